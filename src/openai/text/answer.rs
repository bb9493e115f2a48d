//! The text of an answer, read along as it passes, in the form that it will have in the next turn's prompt.
//!
//! No event is parsed: a few fixed words are searched for, as the watch does, and the string behind them is taken.
//! What a client may not send back as it came ends what is read: parts of other kinds, calls whose form is the engine's.
//! Thoughts do not come back either, but the pod's cache holds them before the answer, so nothing behind them is found
//! there again: with thoughts there is no text.

use super::{Cursor, Plain, Word, has_content, opening};
use crate::openai::{Dialect, Endpoint, Event, Lexicon, sse::KEPT_BUFFER};

/// Reads the text of one answer.
#[derive(Debug)]
pub struct AnswerText {
    endpoint: Endpoint,
    lexicon: Lexicon,
    /// What was read since it was last taken.
    text: Vec<u8>,
    opened: bool,
    /// Whether the rest is of no use.
    closed: bool,
    thought: bool,
}

impl AnswerText {
    /// Of an answer of `endpoint`.
    pub fn new(endpoint: Endpoint, lexicon: &Lexicon) -> Self {
        let lexicon = lexicon.clone();
        Self { endpoint, lexicon, text: Vec::new(), opened: false, closed: false, thought: false }
    }

    /// What was read since [`AnswerText::clear`].
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// What was read has been taken.
    pub fn clear(&mut self) {
        if self.text.capacity() > KEPT_BUFFER {
            self.text = Vec::new();
        }
        self.text.clear();
    }

    /// The bytes held of it.
    pub(in crate::openai) fn held(&self) -> usize {
        self.text.capacity()
    }

    /// What was read has been taken, and its place is not kept.
    pub(in crate::openai) fn let_go(&mut self) {
        self.text = Vec::new();
    }

    /// No more of it is wanted.
    pub(in crate::openai) fn stop(&mut self) {
        self.closed = true;
        self.text = Vec::new();
    }

    /// Whether the text, put behind its prompt, is what the pod's cache holds and the next turn begins with.
    pub fn comes_back(&self) -> bool {
        self.opened && !self.thought
    }

    /// Reads an event that carries generated content.
    pub(in crate::openai) fn event(&mut self, event: &Event<'_>) {
        if self.closed {
            return;
        }
        let data = event.data;
        match self.endpoint.dialect() {
            Dialect::OpenAi => {
                self.thought |= self.thinks(data);
                self.string(data);
                if let Some(calls) = self.lexicon.tool_calls.find(data, has_content) {
                    self.write(|plain| plain.calls(&mut Cursor::new(calls)));
                }
            }
            Dialect::Anthropic => {
                self.thought |= self.thinks(data);
                self.closed |= self.lexicon.partial_json.any(data, |value| value.starts_with(b"\""));
                self.string(data);
            }
            Dialect::Responses => match responses_delta(event) {
                Delta::Text => self.string(data),
                Delta::Thought => self.thought = true,
                Delta::Other => self.closed = true,
            },
        }
        self.closed |= self.thought;
    }

    /// Reads a whole answer.
    pub(in crate::openai) fn whole(&mut self, body: &[u8]) {
        match self.endpoint {
            Endpoint::Completions => self.string(body),
            Endpoint::ChatCompletions => {
                let message = self.lexicon.message.find(body, |value| value.starts_with(b"{"));
                if let Some(message) = message {
                    self.write(|plain| plain.message(&mut Cursor::new(message)));
                }
            }
            _ => self.typed(body),
        }
    }

    /// A whole answer of Anthropic's or of Responses.
    fn typed(&mut self, body: &[u8]) {
        let mut at = Cursor::new(body);
        at.eat(b'{');
        while let Some(key) = at.key() {
            let value = at.value();
            match key {
                b"content" => self.write(|plain| plain.content(&mut Cursor::new(value))),
                b"output" => {
                    // Its turns say themselves whose they are.
                    self.opened = true;
                    self.write(|plain| plain.turns(&mut Cursor::new(value)));
                }
                _ => {}
            }
        }
    }

    fn thinks(&self, data: &[u8]) -> bool {
        let words: [&Word; 2] = match self.endpoint.dialect() {
            Dialect::Anthropic => [&self.lexicon.thinking, &self.lexicon.signature],
            _ => [&self.lexicon.reasoning_content, &self.lexicon.reasoning],
        };
        words.iter().any(|word| word.any(data, has_content))
    }

    fn string(&mut self, data: &[u8]) {
        let is_text = |value: &[u8]| value.starts_with(b"\"") && has_content(value);
        let word = match self.endpoint {
            Endpoint::ChatCompletions => &self.lexicon.content,
            Endpoint::Responses => &self.lexicon.delta,
            _ => &self.lexicon.text,
        };
        if let Some(text) = word.find(data, is_text) {
            self.write(|plain| plain.string(&mut Cursor::new(text)));
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Plain<'_>)) {
        if self.closed {
            return;
        }
        if !std::mem::replace(&mut self.opened, true) {
            self.text.extend_from_slice(opening(self.endpoint));
        }
        let text = &mut self.text;
        let mut take = |piece: &[u8]| text.extend_from_slice(piece);
        let mut plain = Plain::answer(&mut take);
        write(&mut plain);
        plain.finish();
        self.closed |= plain.stopped();
        self.thought |= plain.thought();
    }
}

/// What a `response.*.delta` brings.
enum Delta {
    Text,
    Thought,
    Other,
}

fn responses_delta(event: &Event<'_>) -> Delta {
    let is = |name: &str| {
        event.event.map_or_else(
            || memchr::memmem::find(event.data, name.as_bytes()).is_some(),
            |told| told.starts_with(name.trim_start_matches('"')),
        )
    };
    // Bare quotes: within generated text they would be escaped.
    match () {
        () if is("\"response.output_text") => Delta::Text,
        () if is("\"response.reasoning") => Delta::Thought,
        () => Delta::Other,
    }
}
