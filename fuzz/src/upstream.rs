//! Answers of pods.

#[path = "../../src/upstream/http1/chunked.rs"]
mod chunked;
#[path = "../../src/upstream/http1/framing.rs"]
mod framing;
#[path = "../../src/upstream/http1/head.rs"]
mod head;

use bytes::BytesMut;
use http::HeaderMap;

/// What is made of an answer.
#[derive(Debug, Default, PartialEq)]
pub struct Read {
    pub status: u16,
    pub fields: HeaderMap,
    pub data: Vec<u8>,
    pub trailers: Option<HeaderMap>,
    /// It is complete, or would be if the connection ended here.
    pub over: bool,
    pub keep_alive: bool,
    /// How many bytes were not its own.
    pub behind: usize,
}

/// An answer that comes in these pieces, as `http1::Connection` reads it; nothing if it is refused, wherever in it.
pub fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, to_head: bool) -> Option<Read> {
    let mut pieces = pieces.into_iter();
    let mut reader = head::HeadReader::new(to_head);
    let mut read = Read::default();
    let head = loop {
        let Some(piece) = pieces.next() else { return Some(read) };
        if let Some(head) = reader.push(piece.into()).ok()? {
            break head;
        }
    };
    (read.status, read.fields, read.keep_alive) = (head.parts.status.as_u16(), head.parts.headers, head.keep_alive);
    let mut framing = head.framing;
    for mut piece in std::iter::once(reader.rest()).chain(pieces.map(BytesMut::from)) {
        let came = piece.len();
        if framing.is_over() {
            read.behind += came;
            continue;
        }
        let surplus = framing.take(&mut piece).ok()?;
        assert!(!surplus || framing.is_over());
        if framing.broken().is_some() {
            // What came before it went on; the answer is refused all the same.
            return None;
        }
        read.data.extend_from_slice(&piece);
    }
    read.trailers = framing.take_trailers();
    read.over = framing.close();
    Some(read)
}
