//! What the desk needs to know of a whole answer: usage, its id, and whether the engine gave up on it.
//!
//! It keeps both ends of the body and nothing between, so that a large answer costs no more than a small one, and
//! understands them when the body is over. It searches for JSON's own words as the watch over streams does.

use std::borrow::Cow;

use serde::Deserialize;

use super::{
    End, Reported, Usage,
    watch::{Facts, Word, has_content},
};

/// How much of a whole answer is kept at its head and again at its tail. Engines put the id first and usage last;
/// 64 KiB hold nearly every generated answer whole, and for a list of embeddings the two ends are enough.
const KEPT_END: usize = 64 * 1024;

/// Watches a whole answer, of which it keeps no more than both ends.
#[derive(Debug, Default)]
pub struct BodyWatch {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Whether bytes between the two were let go.
    gap: bool,
    facts: Facts,
}

impl BodyWatch {
    /// A watch at the start of a body.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the next bytes along.
    pub fn feed(&mut self, chunk: &[u8]) {
        let room = KEPT_END.saturating_sub(self.head.len()).min(chunk.len());
        let (head, rest) = chunk.split_at_checked(room).unwrap_or((chunk, &[]));
        self.head.extend_from_slice(head);
        let skipped = rest.len().saturating_sub(KEPT_END);
        self.tail.extend_from_slice(rest.get(skipped..).unwrap_or_default());
        // Trimmed only at twice the size, so that small chunks do not shift it each time.
        let surplus = self.tail.len().saturating_sub(KEPT_END);
        if surplus > KEPT_END || skipped > 0 {
            self.tail.drain(..surplus);
            self.gap = true;
        }
    }

    /// The body is over: now it can be understood.
    pub fn finish(&mut self) {
        let (head, tail) = (std::mem::take(&mut self.head), std::mem::take(&mut self.tail));
        if self.gap {
            let id = Word::new("\"id\"").find(&head, has_content).and_then(|raw| {
                serde_json::Deserializer::from_slice(raw)
                    .into_iter::<String>()
                    .next()?
                    .ok()
            });
            self.facts.response_id = id;
            self.read(&tail);
        } else {
            let body = [head, tail].concat();
            self.read_shape(&body);
            self.read(&body);
        }
        self.facts.close(End::Done);
    }

    /// What the answer says it took; after `finish`.
    pub fn usage(&self) -> Option<Usage> {
        self.facts.usage
    }

    /// How it ended; `Running` before `finish`.
    pub fn end(&self) -> &End {
        &self.facts.end
    }

    /// The answer's id; after `finish`.
    pub fn response_id(&self) -> Option<&str> {
        self.facts.response_id.as_deref()
    }

    /// What only a body known from its beginning to its end can tell.
    fn read_shape(&mut self, body: &[u8]) {
        if let Ok(answer) = serde_json::from_slice::<Answer<'_>>(body) {
            self.facts.response_id = answer.id.map(Cow::into_owned);
            if answer.status.as_deref() == Some("cancelled") {
                self.facts.cut("cancelled");
            }
        }
        let words = ["\"error\"", "\"detail\""].map(Word::new);
        if words
            .iter()
            .any(|word| word.any(body, |value| !value.starts_with(b"null")))
            && let Some(reported) = Reported::read(body)
        {
            self.facts.fail(reported);
        }
    }

    fn read(&mut self, part: &[u8]) {
        if let Some(raw) = Word::new("\"usage\"").find(part, |value| value.starts_with(b"{")) {
            self.facts.take_usage(raw);
        }
        if Word::new("\"finish_reason\"").any(part, |value| value.starts_with(b"\"abort\"")) {
            self.facts.cut("abort");
        }
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
}
