//! The head of an answer: read whole, parsed once, and what it says of the body.
//!
//! Strict where two readers could see two answers: a length that is none, two that differ, a coding other than `chunked`,
//! folded lines. Chunks win over a length that stands beside them (RFC 9112, 6.3), but no further answer is believed on
//! such a connection. Interim answers are passed over; protocols are not switched.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header, response};

use super::{
    chunked::Chunked,
    framing::{Framing, Nonsense},
};

/// The largest head, bytes: what hyper allows by default at its server side (16 KB) four times over, for pods behind
/// proxies that add their own.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// Fields in one head, or in trailers: as many as hyper takes.
pub(super) const MAX_FIELDS: usize = 100;

/// Interim answers (1xx) before the answer. Nobody asks for any; a proxy that says every few seconds that it is still
/// working gets some minutes.
const MAX_INTERIM: u8 = 64;

/// How every answer begins.
const BEGINNING: &[u8] = b"HTTP/1.";

/// Room in the map of fields for the one that the gateway adds to every answer, so that it need not grow.
const ADDED: usize = 1;

/// A head and what follows from it.
#[derive(Debug)]
pub(super) struct Head {
    /// Status and fields.
    pub(super) parts: response::Parts,
    /// Where the body ends.
    pub(super) framing: Framing,
    /// Whether the pod keeps the connection open.
    pub(super) keep_alive: bool,
}

/// Reads heads until the one that counts.
#[derive(Debug)]
pub(super) struct HeadReader {
    /// To a request for a head only, which has no body whatever its fields say.
    bodiless: bool,
    read: BytesMut,
    /// How much of it holds no end of a head.
    searched: usize,
    interim: u8,
    heard: bool,
}

impl HeadReader {
    /// For the answer to a request that asks for a head only, or for all.
    pub(super) fn new(bodiless: bool) -> Self {
        Self { bodiless, read: BytesMut::new(), searched: 0, interim: 0, heard: false }
    }

    /// Whether any byte came.
    pub(super) fn heard(&self) -> bool {
        self.heard
    }

    /// What came behind the head.
    pub(super) fn rest(self) -> BytesMut {
        self.read
    }

    /// What came next. The head, once it is whole.
    pub(super) fn push(&mut self, piece: BytesMut) -> Result<Option<Head>, Nonsense> {
        self.heard = true;
        if self.read.is_empty() {
            self.read = piece;
        } else {
            self.read.extend_from_slice(&piece);
        }
        loop {
            // Who speaks something else may wait for us to go on, and would be waited for.
            if !self.read.iter().zip(BEGINNING).all(|(is, must)| is == must) {
                return Err(Nonsense::Said("the pod does not speak HTTP/1"));
            }
            let end = end_of_head(&self.read, self.searched);
            if end.unwrap_or(self.read.len()) > MAX_HEAD {
                return Err(Nonsense::Said("a head beyond all bounds"));
            }
            let Some(end) = end else {
                self.searched = self.read.len();
                return Ok(None);
            };
            self.searched = 0;
            let head = self.read.split_to(end).freeze();
            if let Some(head) = parse(&head, self.bodiless)? {
                return Ok(Some(head));
            }
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(Nonsense::Said("too many interim answers"));
            }
        }
    }
}

/// Where a head ends: behind its first empty line. The first `searched` bytes hold no such end.
fn end_of_head(bytes: &[u8], searched: usize) -> Option<usize> {
    // The end may have begun there.
    let from = searched.saturating_sub(2);
    memchr::memchr_iter(b'\n', bytes.get(from..)?).find_map(|at| {
        let behind = from + at + 1;
        match bytes.get(behind..)? {
            [b'\n', ..] => Some(behind + 1),
            [b'\r', b'\n', ..] => Some(behind + 2),
            _ => None,
        }
    })
}

/// The head in exactly these bytes; none if it is an interim one.
fn parse(bytes: &Bytes, bodiless: bool) -> Result<Option<Head>, Nonsense> {
    let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut said = httparse::Response::new(&mut []);
    let read = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut said, bytes, &mut room)?;
    if read != httparse::Status::Complete(bytes.len()) {
        return Err(Nonsense::Said("a head that does not end where it ends"));
    }
    let status = said.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Nonsense::Said("a status that is none"))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Nonsense::Said("the pod switched protocols, which nobody asked for"));
    }
    if status.is_informational() {
        return Ok(None);
    }
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    parts.version = if said.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    parts.headers = fields(said.headers, bytes)?;
    let framing = framing(&mut parts, bodiless)?;
    let keep_alive = keeps_alive(&parts, &framing);
    if status == StatusCode::NO_CONTENT {
        // RFC 9110, 8.6: it may not be there, and HTTP/2 clients refuse an answer with it.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    Ok(Some(Head { parts, framing, keep_alive }))
}

/// Fields that were parsed from `bytes`, as parts of them.
pub(super) fn fields(parsed: &[httparse::Header<'_>], bytes: &Bytes) -> Result<HeaderMap, Nonsense> {
    let mut fields = HeaderMap::with_capacity(parsed.len() + ADDED);
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
        let (Ok(name), Ok(value)) = (name, value) else { return Err(Nonsense::Said("a field that is none")) };
        fields.append(name, value);
    }
    Ok(fields)
}

fn framing(head: &mut response::Parts, bodiless: bool) -> Result<Framing, Nonsense> {
    if bodiless || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(Framing::Length(0));
    }
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
        return if chunked && head.version == Version::HTTP_11 {
            Ok(Framing::Chunked(Chunked::default()))
        } else {
            Err(Nonsense::Said("a transfer coding other than chunked"))
        };
    }
    let lengths = head.headers.get_all(header::CONTENT_LENGTH);
    let mut parts = lengths.iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(length);
    let Some(first) = parts.next() else { return Ok(Framing::UntilClose { over: false }) };
    let first = first.ok_or(Nonsense::Said("a length that is none"))?;
    let mut repeated = false;
    for other in parts {
        repeated = true;
        if other != Some(first) {
            return Err(Nonsense::Said("two lengths"));
        }
    }
    if repeated {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(first));
    }
    Ok(Framing::Length(first))
}

fn length(digits: &[u8]) -> Option<u64> {
    let digits = digits.trim_ascii();
    // `parse` alone would take a plus sign.
    let plain = digits.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(digits).ok().filter(|_| plain)?.parse().ok()
}

fn keeps_alive(head: &response::Parts, framing: &Framing) -> bool {
    let fields = &head.headers;
    // Who promises a body to a status that has none may send one.
    let promises = fields.contains_key(header::TRANSFER_ENCODING)
        || fields.get_all(header::CONTENT_LENGTH).iter().any(|value| value != "0");
    let may_send_one = head.status == StatusCode::NO_CONTENT && promises;
    let closes = |value: &HeaderValue| {
        value.as_bytes().split(|byte| *byte == b',').any(|it| it.trim_ascii().eq_ignore_ascii_case(b"close"))
    };
    let two_ends = fields.contains_key(header::TRANSFER_ENCODING) && fields.contains_key(header::CONTENT_LENGTH);
    let closes = matches!(framing, Framing::UntilClose { .. }) || fields.get_all(header::CONNECTION).iter().any(closes);
    head.version == Version::HTTP_11 && !two_ends && !closes && !may_send_one
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn read(text: impl AsRef<[u8]>) -> Result<(Head, BytesMut), Nonsense> {
        let mut reader = HeadReader::new(false);
        let head = reader.push(text.as_ref().into())?.expect("a whole head");
        Ok((head, reader.rest()))
    }

    fn framed(fields: &str) -> Result<String, Nonsense> {
        read(format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).map(|(head, _)| format!("{:?}", head.framing))
    }

    fn keeps(text: &str) -> bool {
        read(text).unwrap().0.keep_alive
    }

    #[test]
    fn status_fields_and_what_lies_behind_them() {
        let text = b"HTTP/1.1 418 Whatever \xe9\r\nX-Odd: a\r\nx-odd:  b\xe9 \r\nempty:\r\ncontent-length: 2\r\n\r\n{}";
        let (head, rest) = read(text).unwrap();
        let odd: Vec<_> = head.parts.headers.get_all("x-odd").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!((head.parts.status.as_u16(), odd), (418, vec![&b"a"[..], b"b\xe9"]));
        assert_eq!((head.parts.headers["empty"].len(), rest.as_ref()), (0, &b"{}"[..]));
        assert!(matches!(head.framing, Framing::Length(2)) && head.keep_alive);
    }

    #[test]
    fn who_says_where_a_body_ends() {
        assert_eq!(framed("content-length: 7\r\n").unwrap(), "Length(7)");
        assert_eq!(framed("content-length: 007\r\ncontent-length: 7, 7\r\n").unwrap(), "Length(7)");
        assert!(framed("").unwrap().starts_with("UntilClose"));
        assert!(framed("transfer-encoding: Chunked\r\n").unwrap().starts_with("Chunked"));
        assert!(framed("content-length: x\r\ntransfer-encoding: chunked\r\n").unwrap().starts_with("Chunked"));
        for status in ["204", "304"] {
            let (head, _) = read(format!("HTTP/1.1 {status} x\r\ncontent-length: 9\r\n\r\n")).unwrap();
            assert!(matches!(head.framing, Framing::Length(0)), "{status}");
        }
        let mut reader = HeadReader::new(true);
        let head = reader.push((&b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"[..]).into()).unwrap().unwrap();
        assert!(matches!(head.framing, Framing::Length(0)) && head.keep_alive);
        assert_eq!(head.parts.headers["content-length"], "9", "what it would have been");
    }

    #[test]
    fn lengths_that_agree_go_on_as_one() {
        let (head, _) = read("HTTP/1.1 200 OK\r\ncontent-length: 7\r\ncontent-length: 7\r\n\r\n").unwrap();
        let lengths: Vec<_> = head.parts.headers.get_all("content-length").iter().collect();
        assert_eq!(lengths, ["7"]);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for fields in [
            "content-length: 7\r\ncontent-length: 8\r\n",
            "content-length: 7, 8\r\n",
            "content-length: 7,\r\n",
            "content-length: +7\r\n",
            "content-length: -7\r\n",
            "content-length: 0x7\r\n",
            "content-length: 7 7\r\n",
            "content-length:\r\n",
            "content-length: 18446744073709551616\r\n",
            "transfer-encoding: gzip\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: identity\r\n",
            "transfer-encoding:\r\n",
            "a: b\r\n c\r\n",
            " a: b\r\n",
            "a : b\r\n",
            "a\r\n",
            ": b\r\n",
            "a: b\rc\r\n",
            "a: \0\r\n",
        ] {
            assert!(framed(fields).is_err(), "{fields:?}");
        }
        for start in [
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/1.1 abc OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            // Before their line is over: they may be waiting for an answer.
            "SSH-2.0-OpenSSH_9.6",
            "220 ready",
            "\x15\x03\x01",
            "<",
        ] {
            assert!(read(start).is_err(), "{start:?}");
        }
    }

    #[test]
    fn a_connection_is_kept_only_if_nothing_speaks_against_it() {
        assert!(keeps("HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: x-close\r\n\r\n"));
        assert!(keeps("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n"));
        assert!(keeps("HTTP/1.1 204 No Content\r\n\r\n"));
        for head in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 200 OK\r\ncontent-length: 7\r\nconnection: keep-alive\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: keep-alive\r\nConnection: x-hop , Close\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 7\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ncontent-length: 7\r\n\r\n",
            "HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert!(!keeps(head), "{head:?}");
        }
    }

    #[test]
    fn interim_answers_are_passed_over_some_of_them() {
        let hint = "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let most = usize::from(MAX_INTERIM);
        assert_eq!(read(hint.repeat(most) + answer).unwrap().0.parts.status, 200);
        assert!(read(hint.repeat(most + 1) + answer).is_err());
    }

    #[test]
    fn a_head_has_bounds() {
        let sized = |size: usize| {
            let fixed = "HTTP/1.1 200 OK\r\na: \r\n\r\n".len();
            format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(size - fixed))
        };
        assert!(read(sized(MAX_HEAD)).is_ok());
        assert!(read(sized(MAX_HEAD + 1)).is_err());
        let endless = HeadReader::new(false).push(sized(MAX_HEAD + 9).as_bytes()[..=MAX_HEAD].into());
        assert!(endless.is_err(), "as soon as it is too large");
        assert!(framed(&"a: b\r\n".repeat(MAX_FIELDS)).is_ok());
        assert!(framed(&"a: b\r\n".repeat(MAX_FIELDS + 1)).is_err());
    }

    /// Pieces pushed one after the other: the status and what lies behind the head.
    fn pushed(text: &[u8], cuts: &[usize]) -> Result<Option<(u16, Vec<u8>)>, Nonsense> {
        let (mut reader, mut rest) = (HeadReader::new(false), text);
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            rest = behind;
            if let Some(head) = reader.push(piece.into())? {
                let behind = [&reader.rest()[..], rest].concat();
                return Ok(Some((head.parts.status.as_u16(), behind)));
            }
        }
        Ok(None)
    }

    proptest! {
        #[test]
        fn a_head_is_the_same_however_it_is_cut(cuts in vec(1..30_usize, 0..40), bare in any::<bool>()) {
            let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\na: b\r\ncontent-length: 3\r\n\r\n\r\n{";
            let text = if bare { text.replace("\r\n", "\n") } else { text.to_owned() };
            let behind = if bare { &b"\n{"[..] } else { b"\r\n{" };
            let expected = Ok(Some((503, behind.to_vec())));
            prop_assert_eq!(&pushed(text.as_bytes(), &cuts), &expected);
            prop_assert_eq!(pushed(text.as_bytes(), &vec![1; text.len()]), expected);
        }

        #[test]
        fn anything_is_read_alike_however_it_is_cut(
            text in "(HTTP/1\\.[01] [1-5]0[0-4] x?\r?\n)([a-c:x\r\n ]{0,20}\r?\n){0,5}",
            cuts in vec(1..9_usize, 0..60),
        ) {
            prop_assert_eq!(pushed(text.as_bytes(), &cuts), pushed(text.as_bytes(), &[]));
        }
    }
}
