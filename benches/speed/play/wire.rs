//! As much of HTTP/1.1 as two programs need that know each other.

use std::io;

use memchr::memmem;
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// What is read at once, at least: ten thousand held streams have this much each.
const READ: usize = 4 << 10;

/// How a message's end is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// By its length from the first byte of the head to the last of the body.
    Whole(usize),
    /// By its last chunk.
    Chunked,
}

/// The head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Its length with the empty line.
    pub(crate) end: usize,
    /// Where the message ends.
    pub(crate) length: Length,
    /// Whether the connection ends with it.
    pub(crate) closes: bool,
}

/// The head at the beginning of `bytes`, once it is there.
pub(crate) fn head(bytes: &[u8]) -> Option<Head> {
    let end = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let text = str::from_utf8(bytes.get(..end)?).ok()?;
    let (mut length, mut closes) = (Length::Whole(end), false);
    for line in text.split("\r\n").skip(1) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Length::Whole(end + value.parse::<usize>().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            length = Length::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.eq_ignore_ascii_case("close");
        }
    }
    Some(Head { end, length, closes })
}

impl Head {
    /// Whether `message`, which begins with this head, is complete. Nothing comes behind it before it is answered.
    pub(crate) fn complete(&self, message: &[u8]) -> bool {
        match self.length {
            Length::Whole(length) => message.len() >= length,
            // Neither JSON nor events hold a bare CR.
            Length::Chunked => message.get(self.end..).is_some_and(|body| body.ends_with(b"0\r\n\r\n")),
        }
    }
}

/// Reads more of a message behind what is there.
pub(crate) async fn more(stream: &mut TcpStream, message: &mut Vec<u8>) -> io::Result<()> {
    message.reserve(READ);
    match stream.read_buf(message).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_by_its_length_or_its_last_chunk() {
        let counted = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
        let told = head(counted).unwrap();
        assert_eq!(told, Head { end: counted.len() - 2, length: Length::Whole(counted.len()), closes: true });
        assert!(told.complete(counted) && !told.complete(&counted[..counted.len() - 1]));
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
        let told = head(chunked).unwrap();
        assert!(told.complete(chunked) && !told.complete(&chunked[..chunked.len() - 5]));
        assert_eq!(head(b"GET / HTTP/1.1\r\n"), None);
    }
}
