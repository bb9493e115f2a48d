//! The chunked coding: which bytes are data, and where the last chunk and its trailers end.
//!
//! One byte of framing at a time, so that it does not matter how the bytes are cut; data is moved together in the memory
//! in which it came, so that all chunks of one read go on as one piece. It takes what RFC 9112 (7.1) writes and the
//! blanks behind a size that some servers pad it with, nothing else.

use bytes::Bytes;
use http::HeaderMap;

use super::{
    framing::Nonsense,
    head::{MAX_FIELDS, fields},
};

/// Digits of a chunk's size: all that fit 64 bits, and servers that pad with zeros use eight.
const MAX_DIGITS: u8 = 16;

/// Blanks and extensions behind the sizes of all chunks of an answer together, bytes. No engine sends any; hyper allows
/// as many.
const MAX_EXTENSIONS: u16 = 16 << 10;

/// Trailers in all, bytes: as many as hyper allows.
const MAX_TRAILERS: usize = 16 << 10;

/// What has been read of a chunked body.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    at: At,
    /// Of the chunk: its size as far as it was read, then what is left of it.
    left: u64,
    /// How many digits its size has.
    digits: u8,
    /// Bytes of extensions so far.
    extensions: u16,
    /// Trailers as they come.
    said: Vec<u8>,
    /// Trailers that are complete and were not taken yet.
    pub(super) trailers: Option<Box<HeaderMap>>,
    /// What was wrong behind the data that was taken last.
    pub(super) broken: Option<Nonsense>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// The digits of a size.
    #[default]
    Size,
    /// Blanks behind it, which only an extension or the line's end may follow.
    Blanks,
    /// An extension, which nobody reads.
    Extension,
    /// The line feed behind a size.
    SizeEnd,
    /// Data.
    Data,
    /// The carriage return behind it.
    DataEnd,
    /// The line feed behind that.
    DataEndLf,
    /// Trailers, or the empty line that ends all.
    Last,
    /// The line feed of that.
    LastLf,
    /// The second and further bytes of trailers.
    Trailers,
    /// Nothing.
    Over,
}

impl Chunked {
    /// Whether the last chunk and its trailers were read.
    pub(super) fn is_over(&self) -> bool {
        self.at == At::Over
    }

    /// Moves the data in `bytes` to their beginning. How much there is of it, and how many bytes were read. Where nonsense
    /// follows data, the data is taken, and the nonsense is what is `broken`.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> Result<(usize, usize), Nonsense> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let (mut data, mut read) = (0, 0);
        while !self.is_over() {
            let Some(&byte) = bytes.get(read) else { break };
            if self.at != At::Data {
                match self.step(byte) {
                    Ok(at) => self.at = at,
                    Err(broken) if data == 0 => return Err(broken),
                    Err(broken) => {
                        self.broken = Some(broken);
                        return Ok((data, bytes.len()));
                    }
                }
                read += 1;
                continue;
            }
            let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - read);
            bytes.copy_within(read..read + here, data);
            (data, read) = (data + here, read + here);
            self.left -= here as u64;
            if self.left == 0 {
                self.at = At::DataEnd;
            }
        }
        Ok((data, read))
    }

    fn step(&mut self, byte: u8) -> Result<At, Nonsense> {
        Ok(match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte)?,
            (At::Size, _) if self.digits == 0 => return Err(Nonsense::Said("a chunk without a size")),
            (At::Size | At::Blanks | At::Extension, b'\r') => At::SizeEnd,
            (At::Size | At::Blanks, b' ' | b'\t') => self.extend(At::Blanks)?,
            (At::Size | At::Blanks, b';') => self.extend(At::Extension)?,
            (At::Extension, byte) if byte != b'\n' => self.extend(At::Extension)?,
            (At::SizeEnd, b'\n') => {
                self.digits = 0;
                if self.left == 0 { At::Last } else { At::Data }
            }
            (At::DataEnd, b'\r') => At::DataEndLf,
            (At::DataEndLf, b'\n') => At::Size,
            (At::Last, b'\r') => At::LastLf,
            (At::LastLf, b'\n') => At::Over,
            (At::Last | At::Trailers, byte) => self.trailer(byte)?,
            _ => return Err(Nonsense::Said("a chunk that ends elsewhere than its size says")),
        })
    }

    fn digit(&mut self, byte: u8) -> Result<At, Nonsense> {
        if self.digits == MAX_DIGITS {
            return Err(Nonsense::Said("a chunk's size beyond all bounds"));
        }
        let digit = char::from(byte).to_digit(16).unwrap_or_default();
        self.left = self.left << 4 | u64::from(digit);
        self.digits += 1;
        Ok(At::Size)
    }

    fn extend(&mut self, to: At) -> Result<At, Nonsense> {
        if self.extensions == MAX_EXTENSIONS {
            return Err(Nonsense::Said("too much behind the sizes of chunks"));
        }
        self.extensions += 1;
        Ok(to)
    }

    fn trailer(&mut self, byte: u8) -> Result<At, Nonsense> {
        if self.said.len() == MAX_TRAILERS {
            return Err(Nonsense::Said("trailers beyond all bounds"));
        }
        self.said.push(byte);
        if !self.said.ends_with(b"\n\r\n") {
            return Ok(At::Trailers);
        }
        let said = Bytes::from(std::mem::take(&mut self.said));
        let mut parsed = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let httparse::Status::Complete((_, parsed)) = httparse::parse_headers(&said, &mut parsed)? else {
            return Err(Nonsense::Said("trailers that do not end where they end"));
        };
        self.trailers = Some(Box::new(fields(parsed, &said)?));
        Ok(At::Over)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What becomes of `wire`, cut at `cuts`: its data, and how many of its bytes were read.
    fn unframed(wire: &[u8], cuts: &[usize]) -> Result<(Vec<u8>, usize, Option<HeaderMap>), Nonsense> {
        let mut chunked = Chunked::default();
        let (mut data, mut all) = (Vec::new(), 0);
        let mut rest = wire.to_vec();
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let behind = rest.split_off(cut.min(rest.len()));
            let (own, read) = chunked.take(&mut rest)?;
            data.extend_from_slice(&rest[..own]);
            all += read;
            if chunked.is_over() {
                break;
            }
            assert_eq!(read, rest.len(), "before its end it reads everything");
            rest = behind;
        }
        assert!(chunked.is_over(), "it did not end");
        Ok((data, all, chunked.trailers.map(|it| *it)))
    }

    fn is_sound(mut wire: Vec<u8>) -> bool {
        let mut chunked = Chunked::default();
        chunked.take(&mut wire).is_ok() && chunked.broken.is_none()
    }

    #[test]
    fn data_before_a_bad_chunk_in_the_same_read_is_not_lost() {
        let mut wire = *b"5\r\nhello\r\n1\r\n!\r\nzz\r\n";
        let mut chunked = Chunked::default();
        assert_eq!(chunked.take(&mut wire), Ok((6, wire.len())));
        assert_eq!(&wire[..6], b"hello!");
        assert!(chunked.broken.is_some() && !chunked.is_over());
        assert!(chunked.take(&mut b"0\r\n\r\n".to_vec()).is_err(), "and stays broken");
    }

    #[test]
    fn chunks_of_one_read_become_one_piece() {
        let mut wire = *b"5\r\nhello\r\n1;x=\"y\"\r\n \r\n0005  \r\nworld\r\n0\r\n\r\nHTTP/1.1";
        let mut chunked = Chunked::default();
        let end = wire.len() - 8;
        assert_eq!(chunked.take(&mut wire), Ok((11, end)), "what lies behind the end is left");
        assert_eq!(&wire[..11], b"hello world");
        assert!(chunked.is_over() && chunked.trailers.is_none());
    }

    #[test]
    fn trailers_are_fields() {
        let (data, _, trailers) = unframed(b"2\r\n{}\r\n0\r\nX-Cost: 7\r\nx-cost: \xe9\r\n\r\n", &[]).unwrap();
        let trailers = trailers.unwrap();
        let costs: Vec<_> = trailers.get_all("x-cost").iter().map(http::HeaderValue::as_bytes).collect();
        assert_eq!((data.as_slice(), costs), (&b"{}"[..], vec![&b"7"[..], b"\xe9"]));
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        for bad in [
            "\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1\n",
            "1\rx",
            "1 2\r\n",
            "1\r\nab\r\n",
            "1\r\na\n",
            "1\r\na\rx",
            "11112222333344445\r\n",
            "1;a\n",
            "0\r\n\rx",
            "0\r\nno colon\r\n\r\n",
            "0\r\n a: b\r\n\r\n",
            "0\r\na: b\r\n c\r\n\r\n",
            "0\r\na : b\r\n\r\n",
            ";\r\n",
        ] {
            assert!(!is_sound(bad.as_bytes().to_vec()), "{bad:?}");
        }
    }

    #[test]
    fn the_largest_size_that_can_be_written_is_one() {
        let mut chunked = Chunked::default();
        assert_eq!(chunked.take(&mut b"ffffffffffffffff\r\nabc".to_vec()), Ok((3, 21)));
        assert_eq!(chunked.left, u64::MAX - 3);
    }

    #[test]
    fn extensions_and_trailers_have_bounds() {
        let many = |each: &str, times: usize| is_sound(each.repeat(times).into_bytes());
        let most = usize::from(MAX_EXTENSIONS);
        assert!(many("1;\r\nx\r\n", most) && !many("1;\r\nx\r\n", most + 1));
        assert!(!many("1 \r\nx\r\n", most + 1));
        let trailers = |length: usize| {
            let wire = format!("0\r\na: {}\r\n\r\n", "x".repeat(length - 7));
            is_sound(wire.into_bytes())
        };
        assert!(trailers(MAX_TRAILERS) && !trailers(MAX_TRAILERS + 1));
        let fields = |count: usize| is_sound(format!("0\r\n{}\r\n", "a:b\r\n".repeat(count)).into_bytes());
        assert!(fields(MAX_FIELDS) && !fields(MAX_FIELDS + 1));
    }

    proptest! {
        #[test]
        fn the_data_is_the_same_however_it_is_cut(
            chunks in vec(vec(any::<u8>(), 1..300), 0..8),
            cuts in vec(0..40_usize, 0..60),
            trailer in any::<bool>(),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend(format!("{:x}\r\n", chunk.len()).bytes());
                wire.extend(chunk);
                wire.extend(b"\r\n");
            }
            wire.extend(if trailer { &b"0\r\na: b\r\n\r\n"[..] } else { b"0\r\n\r\n" });
            let length = wire.len();
            wire.extend(b"HTTP/1.1 200");
            let (data, read, trailers) = unframed(&wire, &cuts).unwrap();
            prop_assert_eq!(data, chunks.concat());
            prop_assert_eq!(read, length);
            prop_assert_eq!(trailers.is_some(), trailer);
            let each = vec![1; wire.len()];
            prop_assert_eq!(unframed(&wire, &each).unwrap().0, chunks.concat());
        }

        #[test]
        fn anything_is_read_alike_however_it_is_cut(wire in "[0-9a-f\r\n;: x]{0,60}", cuts in vec(0..9_usize, 0..30)) {
            let whole = is_sound(wire.clone().into_bytes());
            let mut chunked = Chunked::default();
            let mut rest = wire.as_bytes();
            let mut ok = true;
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                ok &= chunked.take(&mut piece.to_vec()).is_ok() && chunked.broken.is_none();
                rest = behind;
                if !ok || chunked.is_over() {
                    break;
                }
            }
            prop_assert_eq!(ok, whole);
        }
    }
}
