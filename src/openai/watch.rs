//! What the desk needs to know of an answer that passes: tokens as they come, usage, and how it ended.
//!
//! It reads along and changes nothing. An ordinary event costs a few searches for fixed words: inside generated text
//! a quote is always escaped, so `"usage"` with bare quotes can only be JSON's own. An event is parsed only when such
//! a word is followed by something that matters.

use super::{Dialect, Frames, Usage};

/// How an answer ended, as far as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum End {
    /// It has not.
    #[default]
    Running,
    /// As it should.
    Done,
    /// The engine gave up on it without calling that an error.
    Cut {
        /// The engine's word for it.
        reason: String,
    },
    /// With an error inside the stream or body.
    Error {
        /// The engine's message.
        message: String,
        /// The engine's code, a number in digits.
        code: Option<String>,
    },
}

/// What one chunk brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Seen {
    /// Events that carry generated content; engines usually send one a token.
    pub tokens: u32,
    /// Whether the first of the answer is among them.
    pub first: bool,
}

/// Watches a streamed answer.
#[derive(Debug)]
pub struct StreamWatch {
    frames: Frames,
    dialect: Dialect,
    usage: Option<Usage>,
    end: End,
    response_id: Option<String>,
}

impl StreamWatch {
    /// A watch at the start of a stream in this dialect.
    pub fn new(dialect: Dialect) -> Self {
        Self { frames: Frames::new(), dialect, usage: None, end: End::Running, response_id: None }
    }

    /// Reads the next bytes along.
    pub fn feed(&mut self, _chunk: &[u8]) -> Seen {
        let _ = (self.dialect, &self.frames);
        Seen::default()
    }

    /// The stream is over: reads a last event that lacks its blank line.
    pub fn finish(&mut self) -> Seen {
        Seen::default()
    }

    /// What the answer says it took, once it did.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// How it ended; `Running` at the end of the bytes means that it was cut.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// The id under which the answer is known, so that a later request can be sent to the pod that made it.
    pub fn response_id(&self) -> Option<&str> {
        self.response_id.as_deref()
    }

    /// Events too large to look into.
    pub fn skipped(&self) -> u64 {
        self.frames.skipped()
    }
}

/// Watches a whole answer.
#[derive(Debug, Default)]
pub struct BodyWatch {
    usage: Option<Usage>,
    end: End,
    response_id: Option<String>,
}

impl BodyWatch {
    /// A watch at the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the next bytes along.
    pub fn feed(&mut self, _chunk: &[u8]) {}

    /// The body is over: now it can be understood.
    pub fn finish(&mut self) {}

    /// What the answer says it took; after `finish`.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// How it ended; `Running` before `finish`.
    pub fn end(&self) -> &End {
        &self.end
    }

    /// The answer's id; after `finish`.
    pub fn response_id(&self) -> Option<&str> {
        self.response_id.as_deref()
    }
}
