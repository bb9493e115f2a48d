//! A walk over JSON that was found to be JSON before. Whatever else it is given, it comes to an end and says something.

use memchr::{memchr, memchr2};

/// What is still to be read.
#[derive(Clone, Copy, Debug)]
pub(in crate::openai) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(in crate::openai) fn new(json: &'a [u8]) -> Self {
        Self { rest: json }
    }

    pub(in crate::openai) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next byte that is no space.
    pub(in crate::openai) fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    /// Steps over `byte` if it is next.
    pub(in crate::openai) fn eat(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        if is_next {
            self.take(1);
        }
        is_next
    }

    /// The next `length` bytes, or all that are left.
    pub(in crate::openai) fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, &[]));
        self.rest = rest;
        taken
    }

    /// A whole value, as it lies. Takes at least one byte if there is one.
    pub(in crate::openai) fn value(&mut self) -> &'a [u8] {
        let length = match self.peek() {
            None => 0,
            Some(b'"') => string(self.rest).0,
            Some(b'{' | b'[') => nested(self.rest),
            Some(_) => {
                let ends = |byte: &u8| matches!(byte, b',' | b']' | b'}') || byte.is_ascii_whitespace();
                self.rest.iter().position(ends).unwrap_or(self.rest.len()).max(1)
            }
        };
        self.take(length)
    }

    /// The string that is next, without its quotes, and whether it may be spelt oddly: with an escape for what hardly
    /// anybody escapes.
    pub(in crate::openai) fn string(&mut self) -> (&'a [u8], bool) {
        if self.peek() != Some(b'"') {
            return (&[], false);
        }
        let (length, oddly) = string(self.rest);
        let value = self.take(length);
        let text = value.get(1..).unwrap_or_default();
        (text.strip_suffix(b"\"").unwrap_or(text), oddly)
    }

    /// Inside an object: the next key, without its quotes and with its escapes, and its value is next. At the object's
    /// end steps out of it.
    pub(in crate::openai) fn key(&mut self) -> Option<&'a [u8]> {
        self.eat(b',');
        if self.peek() != Some(b'"') {
            self.eat(b'}');
            return None;
        }
        let key = self.value();
        self.eat(b':').then(|| key.get(1..key.len().saturating_sub(1)).unwrap_or_default())
    }

    /// The value of the first field of this name in the object that is next, as it lies.
    pub(in crate::openai) fn field(mut self, name: &[u8]) -> Option<&'a [u8]> {
        self.eat(b'{');
        while let Some(key) = self.key() {
            let value = self.value();
            if key == name {
                return Some(value);
            }
        }
        None
    }

    /// Inside a list: the first byte of its next element, which is next. At the list's end steps out of it.
    pub(in crate::openai) fn element(&mut self) -> Option<u8> {
        self.eat(b',');
        let first = self.peek();
        if matches!(first, Some(b']')) {
            self.eat(b']');
            return None;
        }
        first
    }
}

/// Bytes looked at together: what four vector registers hold, of which x86-64 has sixteen.
const STRIDE: usize = 64;

/// Of a byte and the one before it: a quote that no backslash precedes, or a backslash that one does.
const ENDS: u8 = 1;

/// Of the same: an escape that not everybody would write. Also where the backslash is itself escaped.
const ODD: u8 = 2;

/// The length of the string that `json` begins with, quotes included, and whether it may be spelt oddly.
///
/// Code has an escaped quote every line or so. So a stride is passed over at once unless it has a quote without a
/// backslash before it, or two backslashes in a row, of which the second escapes nothing.
fn string(json: &[u8]) -> (usize, bool) {
    let text = json.get(1..).unwrap_or_default();
    // Most strings are keys and words, over before a search is set up; and prose has no escapes for long.
    let first = near(text).or_else(|| memchr2(b'"', b'\\', text)).unwrap_or(text.len());
    if text.get(first) == Some(&b'"') {
        return (first + 2, false);
    }
    let (mut at, mut found) = (first + 1, 0);
    while let (Some(before), Some(stride)) = (chunk(json, at - 1), chunk(json, at)) {
        let here = stride_signs(before, stride);
        found |= here;
        let carried = stride.first() == Some(&b'"') && json.get(..at).is_some_and(|it| it.ends_with(b"\\\\"));
        if (here & ENDS != 0 || carried)
            && let Some(end) = closing(json, at, at + STRIDE)
        {
            return (end, found & ODD != 0);
        }
        at += STRIDE;
    }
    let end = closing(json, at, json.len()).unwrap_or(json.len());
    let rest = json.get(at - 1..end).unwrap_or_default();
    found |= signs(rest, rest.get(1..).unwrap_or_default());
    (end, found & ODD != 0)
}

/// Where the first quote or backslash is, if it is among the next sixteen bytes, as behind most keys. They are looked at
/// as one number: a byte that is zero borrows, and the lowest that did is the first.
fn near(text: &[u8]) -> Option<usize> {
    const LOW: u128 = u128::from_ne_bytes([0x01; 16]);
    const HIGH: u128 = u128::from_ne_bytes([0x80; 16]);
    let bytes = u128::from_le_bytes(*text.first_chunk()?);
    let zeros = |bytes: u128| bytes.wrapping_sub(LOW) & !bytes & HIGH;
    let found = zeros(bytes ^ (LOW * u128::from(b'"'))) | zeros(bytes ^ (LOW * u128::from(b'\\')));
    (found != 0).then(|| found.trailing_zeros() as usize / 8)
}

fn chunk(json: &[u8], at: usize) -> Option<&[u8; STRIDE]> {
    json.get(at..)?.first_chunk()
}

/// The signs of a stride. On its own, because within the loop that asks for it the compiler makes no vectors of it.
#[inline(never)]
fn stride_signs(before: &[u8; STRIDE], stride: &[u8; STRIDE]) -> u8 {
    signs(before, stride)
}

/// All signs of `bytes`, each beside the byte before it.
#[inline]
fn signs(before: &[u8], bytes: &[u8]) -> u8 {
    before.iter().zip(bytes).fold(0, |any, (before, byte)| any | sign(*before, *byte))
}

/// Without a branch, so that it becomes comparisons of vectors.
#[inline]
fn sign(before: u8, byte: u8) -> u8 {
    let mask = |yes: bool| 0_u8.wrapping_sub(u8::from(yes));
    let (after, quote, escape) = (mask(before == b'\\'), mask(byte == b'"'), mask(byte == b'\\'));
    let rare = mask(byte == b'u') | mask(byte == b'/');
    (((quote & !after) | (escape & after)) & ENDS) | (after & rare & ODD)
}

/// What is behind the first quote in `json[from..to]` that is not escaped.
fn closing(json: &[u8], mut from: usize, to: usize) -> Option<usize> {
    while let Some(found) = memchr(b'"', json.get(from..to)?) {
        from += found + 1;
        let before = json.get(1..from - 1)?;
        let escapes = before.iter().rev().take_while(|byte| **byte == b'\\').count();
        if escapes.is_multiple_of(2) {
            return Some(from);
        }
    }
    None
}

/// The length of the object or list that `json` begins with.
fn nested(json: &[u8]) -> usize {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                at += string(json.get(at..).unwrap_or_default()).0;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_whole_and_as_they_lie() {
        let json = br#" {"a":"\"}\\"} , [1,["]"],{}],"x\\\"y" ,true]"#;
        let mut at = Cursor::new(json);
        let expected = [r#"{"a":"\"}\\"}"#, r#"[1,["]"],{}]"#, r#""x\\\"y""#, "true"];
        for value in expected {
            assert_eq!(std::str::from_utf8(at.value()).unwrap(), value);
            assert_eq!(at.peek(), Some(if value == "true" { b']' } else { b',' }));
            at.eat(b',');
        }
    }

    #[test]
    fn a_string_ends_at_its_own_quote_wherever_the_strides_fall() {
        for start in 0..70 {
            for text in ["\"", "\\\"", "\\", "\\\\\"", "a\"b\\", "x", "\n\"\n"] {
                let long = "-".repeat(start) + text + &"+".repeat(40) + text;
                let json = serde_json::to_string(&long).unwrap();
                let mut at = Cursor::new(json.as_bytes());
                assert_eq!(at.value().len(), json.len(), "{json}");
                let followed = format!("{json}, \"and more\", {}", " ".repeat(64));
                assert_eq!(Cursor::new(followed.as_bytes()).value().len(), json.len(), "{json}");
            }
        }
    }

    #[test]
    fn what_is_cut_short_is_taken_to_its_end() {
        for json in [r#""abc"#, r#"{"a":[1,2"#, r#""\"#, "[", "nul"] {
            let mut at = Cursor::new(json.as_bytes());
            assert_eq!(at.value(), json.as_bytes());
            assert_eq!(at.peek(), None);
        }
    }
}
