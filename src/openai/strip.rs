//! Takes the usage chunk out of a stream whose client did not ask for it.
//!
//! Clients that did not ask read `choices[0]` of every chunk and fall over one without. Every other byte passes as it
//! came. Only an event that has not come whole is held back, since a client could make nothing of it either.

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Usage,
    sse::{self, Boundary, MAX_EVENT},
};

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
        kept.next(owed.len(), !(self.took_last && !owed.is_empty()));
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
        kept.into_bytes(chunk.clone())
    }

    /// The stream is over: what was held back.
    pub fn finish(&mut self) -> Bytes {
        self.held.split().freeze()
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
        held.clear();
    }

    fn copy(&mut self) -> &mut BytesMut {
        let out = self.changed.get_or_insert_default();
        out.extend_from_slice(self.chunk.get(self.copied..self.at).unwrap_or_default());
        self.copied = self.at;
        out
    }

    fn into_bytes(mut self, chunk: Bytes) -> Bytes {
        if self.changed.is_none() {
            return chunk;
        }
        std::mem::take(self.copy()).freeze()
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
    let Some(event) = sse::read(block, &mut joined) else { return false };
    let Ok(chunk) = serde_json::from_slice::<Chunk<'_>>(event.data) else { return false };
    chunk.choices.is_empty() && Usage::read(chunk.usage.get()).is_some()
}
