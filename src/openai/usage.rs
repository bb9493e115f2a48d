//! How many tokens an answer says it took, in each dialect's words; and how to take that out of a stream again.
//!
//! Numbers are taken as reported. What an engine does not say stays unknown and is never estimated here.
//!
//! The chunk that tells usage goes only to clients that asked: others read `choices[0]` of every chunk and fall over
//! one without. Every other byte passes as it came. Only an event that has not come whole is held back, since a
//! client could make nothing of it either.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    sse::{self, Boundary, KEPT_BUFFER, MAX_EVENT},
    text::Cursor,
};

/// Token counts of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: Option<u32>,
    /// Tokens generated.
    pub completion_tokens: Option<u32>,
    /// Tokens of the prompt that were already in the pod's cache.
    pub cached_tokens: Option<u32>,
}

impl Usage {
    /// Reads the `usage` object that `json` begins with, in all dialects' words, which do not collide; `None` if that is
    /// `null` or something else, or is not there to its end.
    pub(super) fn read(json: &[u8]) -> Option<Self> {
        let mut at = Cursor::new(json);
        if !at.eat(b'{') {
            return None;
        }
        let mut said = Self::default();
        // Anthropic's dialect counts what was read from a cache, or written to one, beside the prompt.
        let mut beside = 0_u32;
        while let Some(key) = at.key() {
            let value = at.value();
            // What is cut off may be less than was meant.
            at.peek()?;
            match key {
                b"prompt_tokens" | b"input_tokens" => said.prompt_tokens = count(value).or(said.prompt_tokens),
                b"completion_tokens" | b"output_tokens" => {
                    said.completion_tokens = count(value).or(said.completion_tokens);
                }
                b"cache_read_input_tokens" => {
                    beside = beside.saturating_add(count(value).unwrap_or(0));
                    said.cached_tokens = said.cached_tokens.or(count(value));
                }
                b"cache_creation_input_tokens" => beside = beside.saturating_add(count(value).unwrap_or(0)),
                b"prompt_tokens_details" | b"input_tokens_details" => {
                    said.cached_tokens = cached(value).or(said.cached_tokens);
                }
                _ => {}
            }
        }
        said.prompt_tokens = said.prompt_tokens.map(|tokens| tokens.saturating_add(beside));
        json.get(..json.len() - at.rest().len())?.ends_with(b"}").then_some(said)
    }

    /// What is known from two reports of one answer; the later one wins where both speak.
    pub(super) fn updated_by(self, later: Self) -> Self {
        Self {
            prompt_tokens: later.prompt_tokens.or(self.prompt_tokens),
            completion_tokens: later.completion_tokens.or(self.completion_tokens),
            cached_tokens: later.cached_tokens.or(self.cached_tokens),
        }
    }
}

/// What the details of a prompt say of it.
fn cached(details: &[u8]) -> Option<u32> {
    count(Cursor::new(details).field(b"cached_tokens")?)
}

fn count(value: &[u8]) -> Option<u32> {
    let count: u64 = str::from_utf8(value).ok()?.parse().ok()?;
    Some(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Removes the chunk that tells usage (and nothing else) from a stream of chat or completion chunks.
#[derive(Debug, Default)]
pub struct UsageStripper {
    boundary: Boundary,
    held: BytesMut,
    /// An event too large to be the usage chunk passes as it comes.
    passing: bool,
    /// Whether the last event was taken out, and what is still owed to it must be as well.
    took_last: bool,
}

impl UsageStripper {
    /// How many bytes of a stream it holds back at most.
    pub const HELD_BACK: usize = MAX_EVENT;

    /// A stripper at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and gives what to send for them.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let mut kept = Kept::new(&chunk);
        let (owed, mut rest) = self.boundary.owed(&chunk);
        kept.next(owed.len(), !self.took_last);
        while !rest.is_empty() {
            let (block, behind, complete) = self.boundary.split(rest);
            rest = behind;
            if complete {
                let take = self.is_usage(block);
                kept.release(&mut self.held, !take);
                kept.next(block.len(), !take);
                (self.took_last, self.passing) = (take, false);
            } else if self.passing || self.held.len() + block.len() > MAX_EVENT {
                kept.release(&mut self.held, true);
                kept.next(block.len(), true);
                self.passing = true;
            } else {
                kept.next(block.len(), false);
                self.held.extend_from_slice(block);
            }
        }
        kept.changed().unwrap_or(chunk)
    }

    /// The stream is over: what was held back.
    pub fn finish(&mut self) -> Bytes {
        std::mem::take(&mut self.held).freeze()
    }

    /// How many bytes it holds back now.
    pub fn held(&self) -> usize {
        self.held.capacity()
    }

    /// What was held back, to be sent now: the rest of the present event passes as it comes.
    pub fn let_go(&mut self) -> Bytes {
        self.passing |= !self.held.is_empty();
        self.finish()
    }

    /// Whether the event that ends with `block` is the usage chunk.
    fn is_usage(&mut self, block: &[u8]) -> bool {
        if self.passing || self.held.len() + block.len() > MAX_EVENT {
            return false;
        }
        if self.held.is_empty() {
            return tells_usage_alone(block);
        }
        let mut whole = self.held.to_vec();
        whole.extend_from_slice(block);
        tells_usage_alone(&whole)
    }
}

/// What is sent for one chunk: the chunk itself as long as nothing was left out or put in.
struct Kept<'a> {
    chunk: &'a [u8],
    at: usize,
    /// From here to `at` everything is kept but not copied yet.
    copied: usize,
    changed: Option<BytesMut>,
}

impl<'a> Kept<'a> {
    fn new(chunk: &'a [u8]) -> Self {
        Self { chunk, at: 0, copied: 0, changed: None }
    }

    /// The next `length` bytes of the chunk, to be sent or not.
    fn next(&mut self, length: usize, send: bool) {
        if !send && length > 0 {
            self.copy();
            self.copied = self.at + length;
        }
        self.at += length;
    }

    /// What was held back from earlier chunks, to be sent here or not at all.
    fn release(&mut self, held: &mut BytesMut, send: bool) {
        if send && !held.is_empty() {
            self.copy().extend_from_slice(held);
        }
        if held.capacity() > KEPT_BUFFER {
            *held = BytesMut::new();
        }
        held.clear();
    }

    fn copy(&mut self) -> &mut BytesMut {
        let out = self.changed.get_or_insert_default();
        out.extend_from_slice(self.chunk.get(self.copied..self.at).unwrap_or_default());
        self.copied = self.at;
        out
    }

    /// What to send if it is not the chunk as it came.
    fn changed(mut self) -> Option<Bytes> {
        self.changed.is_some().then(|| std::mem::take(self.copy()).freeze())
    }
}

/// Whether an event is a chunk with a `usage` and with empty `choices`.
fn tells_usage_alone(block: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Chunk<'a> {
        #[serde(borrow)]
        choices: Vec<&'a RawValue>,
        #[serde(borrow)]
        usage: &'a RawValue,
    }
    if memmem::find(block, b"\"usage\"").is_none() {
        return false;
    }
    let mut joined = Vec::new();
    let Some(event) = sse::read(block, &mut joined) else {
        return false;
    };
    let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(event.data) else {
        return false;
    };
    chunk.choices.is_empty() && Usage::read(chunk.usage.get().as_bytes()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt: u32, completion: u32, cached: Option<u32>) -> Usage {
        Usage { prompt_tokens: Some(prompt), completion_tokens: Some(completion), cached_tokens: cached }
    }

    #[test]
    fn every_dialect_is_read() {
        let chat = r#"{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,
            "prompt_tokens_details":{"cached_tokens":4}}"#;
        assert_eq!(Usage::read(chat.as_bytes()), Some(usage(7, 2, Some(4))));
        let plain = r#"{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,"prompt_tokens_details":null}"#;
        assert_eq!(Usage::read(plain.as_bytes()), Some(usage(7, 2, None)));
        let responses = r#"{"input_tokens":7,"input_tokens_details":{"cached_tokens":0},"output_tokens":2,
            "output_tokens_details":{"reasoning_tokens":1},"total_tokens":9}"#;
        assert_eq!(Usage::read(responses.as_bytes()), Some(usage(7, 2, Some(0))));
        let messages = r#"{"input_tokens":7,"output_tokens":2,"cache_read_input_tokens":5,
            "cache_creation_input_tokens":null}"#;
        assert_eq!(Usage::read(messages.as_bytes()), Some(usage(12, 2, Some(5))), "there they are counted apart");
        let written =
            r#"{"cache_creation_input_tokens":30,"cache_read_input_tokens":5,"input_tokens":7,"output_tokens":2}"#;
        assert_eq!(Usage::read(written.as_bytes()), Some(usage(42, 2, Some(5))));
    }

    #[test]
    fn what_is_not_a_count_stays_unknown() {
        assert_eq!(Usage::read(b"null"), None);
        assert_eq!(Usage::read(b"[1,2]"), None);
        let odd = r#"{"prompt_tokens":-1,"completion_tokens":"2"}"#;
        assert_eq!(Usage::read(odd.as_bytes()), Some(Usage::default()));
        for cut in [r#"{"prompt_tokens":12"#, r#"{"prompt_tokens":12,"#, r#"{"x":{}"#, "{"] {
            assert_eq!(Usage::read(cut.as_bytes()), None, "{cut}");
        }
        let huge = Usage::read(br#"{"prompt_tokens":99999999999}, and more"#).unwrap();
        assert_eq!(huge.prompt_tokens, Some(u32::MAX));
    }

    #[test]
    fn later_reports_win_where_they_speak() {
        let first = Usage { prompt_tokens: Some(7), completion_tokens: Some(1), cached_tokens: Some(3) };
        let later = Usage { completion_tokens: Some(9), ..Usage::default() };
        assert_eq!(Some(first.updated_by(later)), Some(usage(7, 9, Some(3))));
    }

    fn stripped(chunks: Vec<Bytes>) -> String {
        let (mut stripper, mut out) = (UsageStripper::new(), Vec::new());
        for chunk in chunks {
            out.extend_from_slice(&stripper.push(chunk));
        }
        out.extend_from_slice(&stripper.finish());
        String::from_utf8(out).unwrap()
    }

    const TEXT: &str = r#"data: {"choices":[{"delta":{"content":"\"choices\":[],\"usage\":{}"}}],"usage":null}"#;
    const FILTER: &str = r#"data: {"choices":[],"prompt_filter_results":[],"usage":null}"#;
    const TOLD: &str = r#"data: {"id":"1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}"#;

    /// A stream with the usage chunk and what is left without it.
    fn stream(end: &str) -> (String, String) {
        let with = [": hi", "", TEXT, "", FILTER, "", TOLD, "", "data: [DONE]", "", ""].join(end);
        let without = [": hi", "", TEXT, "", FILTER, "", "data: [DONE]", "", ""].join(end);
        (with, without)
    }

    #[test]
    fn the_usage_chunk_is_taken_out_and_nothing_else() {
        for end in ["\n", "\r\n", "\r"] {
            let (with, without) = stream(end);
            assert_eq!(stripped(vec![Bytes::from(with)]), without, "{end:?}");
        }
        let continuous = r#"data: {"choices":[{"index":0}],"usage":{"prompt_tokens":7}}"#.to_owned() + "\n\n";
        assert_eq!(stripped(vec![Bytes::from(continuous.clone())]), continuous);
    }

    #[test]
    fn whole_events_pass_uncopied_and_half_ones_wait() {
        let mut stripper = UsageStripper::new();
        let chunk = Bytes::from_static(b"data: {\"choices\":[1]}\r\n\r\n");
        assert_eq!(stripper.push(chunk.clone()).as_ptr(), chunk.as_ptr());
        assert_eq!(stripper.push(Bytes::from_static(b"data: a\n\ndata: b")), "data: a\n\n");
        assert_eq!(stripper.push(Bytes::from_static(b"c\n")), "");
        assert_eq!(stripper.push(Bytes::from_static(b"\n")), "data: bc\n\n");
        assert_eq!(stripper.push(Bytes::from_static(b"data: cut")), "");
        assert_eq!(stripper.finish(), "data: cut");
    }

    #[test]
    fn an_event_beyond_the_bound_passes_as_it_comes() {
        let mut stripper = UsageStripper::new();
        let half = Bytes::from(vec![b'x'; MAX_EVENT]);
        assert_eq!(stripper.push(half.clone()), "");
        assert_eq!(stripper.push(half.clone()).len(), 2 * MAX_EVENT);
        assert_eq!(stripper.push(half), vec![b'x'; MAX_EVENT]);
        assert_eq!(stripper.push(Bytes::from_static(b"\n\ndata: y\n\n")), "\n\ndata: y\n\n");
    }

    #[test]
    fn what_is_let_go_is_sent_and_its_event_with_it_whatever_it_tells() {
        let (mut stripper, event) = (UsageStripper::new(), TOLD.to_owned() + "\n\n");
        let (half, rest) = event.split_at(40);
        assert_eq!(stripper.let_go(), "");
        assert_eq!(stripper.push(Bytes::from(half.to_owned())), "");
        assert_eq!((stripper.let_go(), stripper.held()), (Bytes::from(half.to_owned()), 0));
        assert_eq!(stripper.push(Bytes::from(rest.to_owned() + &event)), rest, "the next one is taken out again");
    }

    #[test]
    fn a_large_event_is_not_held_once_it_was_sent() {
        let mut stripper = UsageStripper::new();
        assert_eq!(stripper.push(Bytes::from(vec![b'x'; MAX_EVENT / 2])), "");
        assert!(stripper.held() >= MAX_EVENT / 2);
        assert_eq!(stripper.push(Bytes::from_static(b"\n\ndata: a")).len(), MAX_EVENT / 2 + 2);
        assert!(stripper.held() <= KEPT_BUFFER, "{}", stripper.held());
    }

    proptest::proptest! {
        #[test]
        fn chunking_makes_no_difference(
            cuts in crate::openai::pieces::cuts(),
            end in proptest::sample::select(vec!["\n", "\r\n", "\r"]),
        ) {
            let (with, without) = stream(end);
            let pieces = crate::openai::pieces::cut(with.as_bytes(), &cuts);
            proptest::prop_assert_eq!(stripped(pieces), without);
        }
    }
}
