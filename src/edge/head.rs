//! What hyper lets pass in the head of an HTTP/1.1 request, and other readers take differently: line ends without a CR,
//! a second length, a length beside `Transfer-Encoding`, a fragment in the target.
//!
//! It is no second parser: it never says where a request ends, only that one is refused. It sees each head that comes
//! while nothing is being answered, which is how proxies in front of us send theirs; one that is pipelined behind a body
//! is judged by hyper alone.

use memchr::{memchr, memchr2};

/// Kept of a line that comes in pieces: more than the longest name that matters.
const KEPT: usize = 32;

/// The head that is being read.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// Whether the last byte was a CR.
    after_cr: bool,
    lines: u32,
    lengths: u32,
    codings: u32,
    over: bool,
}

impl Head {
    /// Reads on; false if it is to be refused.
    pub(super) fn accepts(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while !self.over && !rest.is_empty() {
            let end = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
            let (piece, behind) = rest.split_at(end);
            if self.lines == 0 && memchr(b'#', piece).is_some() {
                return false;
            }
            let after_cr = std::mem::take(&mut self.after_cr);
            rest = match behind {
                [b'\n', rest @ ..] if after_cr && piece.is_empty() => rest,
                // A CR within a line ends it for some.
                _ if after_cr => return false,
                [b'\r', b'\n', rest @ ..] => rest,
                [b'\r'] | [] => {
                    self.after_cr = !behind.is_empty();
                    let room = KEPT.saturating_sub(self.line.len());
                    self.line.extend_from_slice(piece.get(..room).unwrap_or(piece));
                    return true;
                }
                _ => return false,
            };
            if !self.line_ends(piece) {
                return false;
            }
        }
        true
    }

    /// A whole line, of which `piece` is the rest.
    fn line_ends(&mut self, piece: &[u8]) -> bool {
        let mut joined = std::mem::take(&mut self.line);
        let line = if joined.is_empty() {
            piece
        } else {
            joined.extend_from_slice(piece);
            joined.as_slice()
        };
        if line.is_empty() {
            // Empty lines before a request are passed over.
            self.over = self.lines > 0;
            return true;
        }
        self.lines = self.lines.saturating_add(1);
        // Few lines begin as those two do.
        if !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T')) {
            return true;
        }
        let name = memchr(b':', line).and_then(|end| line.get(..end)).unwrap_or_default();
        self.lengths += u32::from(name.eq_ignore_ascii_case(b"content-length"));
        self.codings += u32::from(name.eq_ignore_ascii_case(b"transfer-encoding"));
        self.lengths + self.codings <= 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts(head: &str, pieces: usize) -> bool {
        let mut scan = Head::default();
        head.as_bytes().chunks(pieces).all(|piece| scan.accepts(piece))
    }

    const START: &str = "POST /v1/completions?a=b HTTP/1.1\r\nHost: a\r\n";

    #[test]
    fn what_readers_take_differently_is_refused_however_it_is_cut() {
        for pieces in 1..80 {
            for rest in [
                "\r\n",
                "Content-Length: 3\r\n\r\na\nb\rc\n",
                "transfer-encoding: chunked\r\n\r\n1\r\na",
                "a-header-that-is-a-long-one: content-length: 1 transfer-encoding: x # \r\ncontent-length: 0\r\n\r\n",
            ] {
                assert!(accepts(&format!("{START}{rest}"), pieces), "{rest:?} in {pieces}");
                assert!(accepts(&format!("\r\n{START}{rest}"), pieces), "{rest:?} in {pieces}");
            }
            for rest in [
                "\n",
                "a: b\nc: d\r\n\r\n",
                "a: b\rc: d\r\n\r\n",
                "content-length: 1\r\nContent-Length: 1\r\n\r\n",
                "content-length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "TRANSFER-ENCODING: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
            ] {
                assert!(!accepts(&format!("{START}{rest}"), pieces), "{rest:?} in {pieces}");
            }
            assert!(!accepts("POST /v1/completions#a HTTP/1.1\r\nHost: a\r\n\r\n", pieces));
            assert!(!accepts("POST / HTTP/1.1\nHost: a\r\n\r\n", pieces));
        }
    }

    /// Found by fuzzing: only the beginning of a line that comes in pieces is kept, and the CR was behind that.
    #[test]
    fn a_carriage_return_late_in_a_line_that_comes_in_pieces_is_seen() {
        for pieces in 1..60 {
            assert!(!accepts(&format!("{START}x: {}\ry\r\n\r\n", "a".repeat(50)), pieces), "{pieces}");
        }
    }

    proptest! {
        #[test]
        fn chunking_makes_no_difference(text in "([a-c#:\r\n]|\r\n|\ncontent-length:){0,60}", pieces in 1_usize..20) {
            prop_assert_eq!(accepts(&text, pieces), accepts(&text, text.len().max(1)));
        }
    }
}
