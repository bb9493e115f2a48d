//! The one form being written: JSON goes in, its bytes come out in pieces of a few hundred.
//!
//! It copies 32 bytes at a time and looks at them afterwards, because text has an escape every line or so and a prompt of
//! 220 KB has thousands. It keeps no more than one piece.

use memchr::memchr2;

use super::{AS_IS, CALL, Cursor, SAYS, TURN, WITH};

/// Bytes kept before they are given on: a few of the prefix index's blocks.
const PIECE: usize = 1024;

/// Bytes looked at together: what two vector registers hold.
const STRIDE: usize = 32;

/// The fields of a turn that templates leave out.
const UNSAID: [&[u8]; 6] = [b"refusal", b"annotations", b"audio", b"id", b"status", b"logprobs"];

/// Writes the form of a prompt or of an answer.
pub(super) struct Plain<'s> {
    take: &'s mut dyn FnMut(&[u8]),
    piece: [u8; PIECE],
    filled: usize,
    given: usize,
    skipped: usize,
    most: usize,
    is_answer: bool,
    /// Whether what comes from here on cannot be known to come back.
    stopped: bool,
    /// Whether there were thoughts that do not come back.
    thought: bool,
}

impl<'s> Plain<'s> {
    pub(super) fn prompt(take: &'s mut dyn FnMut(&[u8]), most: usize) -> Self {
        let piece = [0; PIECE];
        Self { take, piece, filled: 0, given: 0, skipped: 0, most, is_answer: false, stopped: false, thought: false }
    }

    /// Of an answer, only what a client sends back as it came is written, up to the first that it may not.
    pub(super) fn answer(take: &'s mut dyn FnMut(&[u8])) -> Self {
        Self { is_answer: true, ..Self::prompt(take, usize::MAX) }
    }

    /// Gives what is left. Returns the length of all.
    pub(super) fn finish(&mut self) -> usize {
        self.give();
        self.given + self.skipped
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    pub(super) fn thought(&self) -> bool {
        self.thought
    }

    /// So many bytes were not looked at.
    pub(super) fn skipped(&mut self, bytes: usize) {
        self.skipped += bytes;
    }

    /// A list of turns.
    pub(super) fn turns(&mut self, at: &mut Cursor<'_>) {
        at.eat(b'[');
        while !self.is_enough()
            && let Some(first) = at.element()
        {
            if first == b'{' { self.turn(at) } else { self.as_is(at.value()) }
        }
    }

    /// One turn: its role, wherever it stands, then all else in its own order. Without a role it is no turn.
    fn turn(&mut self, at: &mut Cursor<'_>) {
        let Some(role) = role_of(*at) else {
            let whole = at.value();
            return self.as_is(whole);
        };
        self.role(role.strip_prefix(b"\"").unwrap_or(role));
        self.message(at);
    }

    /// The fields of a message whose role is known.
    pub(super) fn message(&mut self, at: &mut Cursor<'_>) {
        at.eat(b'{');
        while let Some(key) = at.key() {
            if key == b"role" {
                at.value();
            } else {
                self.field(key, at);
            }
        }
    }

    fn field(&mut self, key: &[u8], at: &mut Cursor<'_>) {
        match key {
            b"content" => return self.content(at),
            b"tool_calls" if at.peek() == Some(b'[') => return self.calls(at),
            _ => {}
        }
        let value = at.value();
        let says_nothing = matches!(value, b"null" | b"[]" | b"\"\"" | b"{}");
        match key {
            _ if says_nothing || UNSAID.contains(&key) => {}
            b"reasoning_content" | b"reasoning" => self.thought = true,
            b"type" if value == b"\"message\"" => {}
            _ => {
                self.as_is(key);
                self.as_is(value);
            }
        }
    }

    /// What somebody says.
    pub(super) fn said_by(&mut self, role: &[u8], at: &mut Cursor<'_>) {
        self.role(role);
        self.content(at);
    }

    /// `role` may still have its closing quote.
    fn role(&mut self, role: &[u8]) {
        self.byte(TURN);
        self.bytes(role.strip_suffix(b"\"").unwrap_or(role));
        self.byte(SAYS);
    }

    /// A string, or a list of parts.
    pub(super) fn content(&mut self, at: &mut Cursor<'_>) {
        match at.peek() {
            Some(b'"') => self.string(at),
            Some(b'[') => {
                at.eat(b'[');
                while let Some(first) = at.element() {
                    match first {
                        b'{' => self.part(at.value()),
                        b'"' => self.string(at),
                        _ => self.as_is(at.value()),
                    }
                }
            }
            _ => {
                let value = at.value();
                if value != b"null" {
                    self.as_is(value);
                }
            }
        }
    }

    /// A part of a content: its text if that is all, else the part as it lies.
    fn part(&mut self, part: &[u8]) {
        let mut at = Cursor::new(part);
        at.eat(b'{');
        let (mut text, mut is_text) = (None, true);
        while let Some(key) = at.key() {
            let value = at.value();
            match key {
                b"text" => text = Some(value),
                b"type" => is_text &= matches!(value, b"\"text\"" | b"\"input_text\"" | b"\"output_text\""),
                // Marks of where to cache are moved from turn to turn.
                b"cache_control" | b"annotations" | b"logprobs" | b"citations" => {}
                _ => is_text = false,
            }
        }
        match text {
            Some(text) if is_text && text.starts_with(b"\"") => self.string(&mut Cursor::new(text)),
            _ => self.as_is(part),
        }
    }

    /// A list of tool calls. Their ids and types are left out, as most templates do.
    pub(super) fn calls(&mut self, at: &mut Cursor<'_>) {
        at.eat(b'[');
        while at.element().is_some() {
            let mut call = Cursor::new(at.value());
            call.eat(b'{');
            while let Some(key) = call.key() {
                if key == b"function" {
                    self.function(&mut call);
                } else {
                    call.value();
                }
            }
        }
    }

    fn function(&mut self, at: &mut Cursor<'_>) {
        at.eat(b'{');
        let (mut name, mut arguments) = (None, None);
        while let Some(key) = at.key() {
            // Pieces of a call that is streamed repeat its name as nothing.
            let value = Some(at.value()).filter(|value| !matches!(*value, b"\"\"" | b"null"));
            match key {
                b"name" => name = value,
                b"arguments" => arguments = value,
                _ => {}
            }
        }
        if let Some(name) = name {
            self.byte(CALL);
            self.string(&mut Cursor::new(name));
            self.byte(WITH);
        }
        match arguments {
            Some(text) if text.starts_with(b"\"") => self.string(&mut Cursor::new(text)),
            Some(object) => self.as_is(object),
            None => {}
        }
    }

    /// A value as it lies. In an answer nobody knows how it will come back, so nothing behind it counts.
    pub(super) fn as_is(&mut self, value: &[u8]) {
        if self.is_answer {
            self.give();
            self.stopped = true;
        }
        self.byte(AS_IS);
        self.bytes(value);
    }

    /// The string that is next, unescaped.
    pub(super) fn string(&mut self, at: &mut Cursor<'_>) {
        if self.is_enough() {
            let passed = at.value().len();
            self.skipped(passed);
            return;
        }
        at.eat(b'"');
        let mut rest = at.rest();
        loop {
            if self.filled + STRIDE > PIECE {
                self.give();
                if self.is_enough() {
                    break;
                }
            }
            let Some((length, found)) = self.stride(rest) else { break };
            self.filled += length;
            rest = rest.get(length..).unwrap_or_default();
            match found {
                None => {}
                Some(b'\\') => rest = self.escape(rest),
                Some(_) => {
                    at.go_on(rest.get(1..).unwrap_or_default());
                    return;
                }
            }
        }
        // Cut short, or enough: what is left of it is passed over.
        at.go_on(rest);
        if !rest.is_empty() {
            // It begins inside the string: a quote before it would end what was read.
            self.pass_string(at);
        }
    }

    /// Copies up to a stride of plain bytes behind what is filled: how many, and what stopped them. `None` at the end.
    #[inline]
    fn stride(&mut self, rest: &[u8]) -> Option<(usize, Option<u8>)> {
        let room = self.piece.get_mut(self.filled..self.filled + STRIDE)?;
        if let Some(block) = rest.first_chunk::<STRIDE>() {
            room.copy_from_slice(block);
            // Written so that it is one comparison of vectors.
            let special = block.iter().map(|byte| u8::from(*byte == b'"') | u8::from(*byte == b'\\'));
            if special.fold(0, |any, it| any | it) == 0 {
                return Some((STRIDE, None));
            }
            let length = memchr2(b'"', b'\\', block)?;
            return Some((length, block.get(length).copied()));
        }
        let length = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        let found = rest.get(length).copied();
        if length == 0 && found.is_none() {
            return None;
        }
        room.get_mut(..length)?.copy_from_slice(rest.get(..length)?);
        Some((length, found))
    }

    /// `rest` begins with an escape: writes what it means and returns what is behind it.
    fn escape<'a>(&mut self, rest: &'a [u8]) -> &'a [u8] {
        let (letter, behind) = (rest.get(1).copied(), rest.get(2..).unwrap_or_default());
        let byte = match letter {
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'r') => b'\r',
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'u') => return self.code_point(behind),
            Some(other) => other,
            None => return &[],
        };
        self.byte(byte);
        behind
    }

    /// `digits` are behind `\u`. Half a pair is written as what decoders put in its place.
    fn code_point<'a>(&mut self, digits: &'a [u8]) -> &'a [u8] {
        let high = hex(digits);
        let behind = digits.get(4..).unwrap_or_default();
        let (code, behind) = match high {
            Some(high @ 0xd800..=0xdbff) => {
                let low = behind.strip_prefix(b"\\u").and_then(hex).filter(|low| (0xdc00..=0xdfff).contains(low));
                match low {
                    Some(low) => {
                        let code = 0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                        (Some(code), behind.get(6..).unwrap_or_default())
                    }
                    None => (None, behind),
                }
            }
            other => (other, behind),
        };
        let letter = code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER);
        self.bytes(letter.encode_utf8(&mut [0; 4]).as_bytes());
        behind
    }

    /// Steps over the rest of a string from the middle of it.
    fn pass_string(&mut self, at: &mut Cursor<'_>) {
        let rest = at.rest();
        let mut passed = 0;
        while let Some(found) = rest.get(passed..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
            passed += found;
            if rest.get(passed) == Some(&b'"') {
                break;
            }
            passed += 2;
        }
        self.skipped(passed.min(rest.len()));
        at.take(passed + 1);
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.bytes(&[byte]);
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.filled == PIECE {
                self.give();
            }
            let length = bytes.len().min(PIECE - self.filled);
            let (now, later) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
            if let Some(room) = self.piece.get_mut(self.filled..self.filled + length) {
                room.copy_from_slice(now);
            }
            self.filled += length;
            bytes = later;
        }
    }

    fn give(&mut self) {
        let piece = self.piece.get(..self.filled).unwrap_or_default();
        if !self.stopped && self.given < self.most && !piece.is_empty() {
            (self.take)(piece);
        }
        self.given += self.filled;
        self.filled = 0;
    }

    fn is_enough(&self) -> bool {
        self.given >= self.most
    }
}

/// The role of the turn that is next, as it lies. It is nearly always the first field.
fn role_of(mut at: Cursor<'_>) -> Option<&[u8]> {
    at.eat(b'{');
    while let Some(key) = at.key() {
        let value = at.value();
        if key == b"role" {
            return Some(value);
        }
    }
    None
}

fn hex(digits: &[u8]) -> Option<u32> {
    let four = digits.first_chunk::<4>()?;
    four.iter().try_fold(0, |code, digit| Some(code * 16 + char::from(*digit).to_digit(16)?))
}
