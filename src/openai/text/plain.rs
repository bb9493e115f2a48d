//! The one form being written: JSON goes in, its bytes come out piece by piece.
//!
//! A string keeps its escapes, since text has one every line or so and a prompt of 220 KB has thousands: it is given on
//! as it lies, and only one that spells something as hardly anybody does (`\u0041`, `\/`) is spelt anew. What is short is
//! gathered; no more is kept than one piece.

use memchr::memchr;

use super::{AS_IS, CALL, Cursor, SAYS, TURN, WITH};

/// Bytes gathered before they are given on: one of the prefix index's blocks.
const PIECE: usize = 256;

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

    /// What the next string says.
    pub(super) fn string(&mut self, at: &mut Cursor<'_>) {
        let (text, oddly_spelt) = at.string();
        if self.is_enough() {
            self.skipped(text.len());
        } else if oddly_spelt {
            self.spell(text);
        } else {
            self.bytes(text);
        }
    }

    /// `text` in the one spelling that everybody knows.
    fn spell(&mut self, mut text: &[u8]) {
        while let Some(at) = memchr(b'\\', text) {
            let (plain, escape) = text.split_at_checked(at).unwrap_or((text, &[]));
            self.bytes(plain);
            text = escape.get(2..).unwrap_or_default();
            match escape.get(1) {
                Some(b'u') => text = self.code_point(text),
                Some(b'/') => self.byte(b'/'),
                _ => self.bytes(escape.get(..2).unwrap_or(escape)),
            }
        }
        self.bytes(text);
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
        match code.and_then(char::from_u32).unwrap_or(char::REPLACEMENT_CHARACTER) {
            '"' => self.bytes(b"\\\""),
            '\\' => self.bytes(b"\\\\"),
            '\n' => self.bytes(b"\\n"),
            '\r' => self.bytes(b"\\r"),
            '\t' => self.bytes(b"\\t"),
            '\u{8}' => self.bytes(b"\\b"),
            '\u{c}' => self.bytes(b"\\f"),
            control @ '\0'..'\x20' => self.bytes(format!("\\u{:04x}", u32::from(control)).as_bytes()),
            letter => self.bytes(letter.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        behind
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.bytes(&[byte]);
    }

    /// Bytes as they are; many are not copied.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        if self.filled + bytes.len() > PIECE {
            self.give();
        }
        match self.piece.get_mut(self.filled..self.filled + bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                self.filled += bytes.len();
            }
            None => self.give_on(bytes),
        }
    }

    fn give(&mut self) {
        let (piece, filled) = (self.piece, std::mem::take(&mut self.filled));
        self.give_on(piece.get(..filled).unwrap_or_default());
    }

    fn give_on(&mut self, piece: &[u8]) {
        if !self.stopped && !self.is_enough() && !piece.is_empty() {
            (self.take)(piece);
        }
        self.given += piece.len();
    }

    fn is_enough(&self) -> bool {
        self.given >= self.most
    }
}

/// The role of the turn that is next, as it lies. It is nearly always the first field.
fn role_of(at: Cursor<'_>) -> Option<&[u8]> {
    at.field(b"role")
}

fn hex(digits: &[u8]) -> Option<u32> {
    let four = digits.first_chunk::<4>()?;
    four.iter().try_fold(0, |code, digit| Some(code * 16 + char::from(*digit).to_digit(16)?))
}
