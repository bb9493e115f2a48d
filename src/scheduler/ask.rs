//! What the scheduler is asked: a request's sizes and wishes, the pods as they are, and where it has been already.

use std::{sync::Arc, time::Instant};

use smallvec::SmallVec;

use crate::{
    fleet::{Pod, PoolState, Send},
    prefix::Hits,
};

/// One request, as far as choosing a pod needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The name that pods know the model or adapter by.
    pub served_model: &'a str,
    /// Estimated tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens in one block of the prefix index: its bytes over the pool's bytes a token.
    pub block_tokens: f32,
    /// Which pods hold the prompt's beginning.
    pub hits: &'a Hits,
    /// The hash of the session it belongs to, if it names one.
    pub session: Option<u64>,
    /// How many tokens it will likely generate.
    pub expected_output_tokens: u32,
}

impl Question<'_> {
    /// What sending this request to the pod in `slot` means for its ledger.
    pub fn send(&self, slot: u32) -> Send {
        Send {
            prompt_tokens: self.prompt_tokens,
            uncached_tokens: self.uncached(u32::try_from(self.hits.blocks(slot)).unwrap_or(u32::MAX)),
        }
    }

    /// Prompt tokens to compute where `blocks` are cached. At least one: engines never take the last from their cache.
    #[inline]
    pub(super) fn uncached(&self, blocks: u32) -> u32 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
        let cached = (blocks as f32 * self.block_tokens) as u32;
        self.prompt_tokens.saturating_sub(cached).max(1)
    }
}

/// A pool and its pods at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// What is known of the pool as a whole.
    pub pool: &'a PoolState,
    /// Its pods (all of them, or the subset to choose from).
    pub pods: &'a [Arc<Pod>],
    /// Now.
    pub now: Instant,
}

/// The pods that a request has been sent to already, by slot: they are not chosen again.
#[derive(Clone, Debug, Default)]
pub struct Tried(SmallVec<[u32; 4]>);

impl Tried {
    /// None yet.
    pub fn none() -> Self {
        Self::default()
    }

    /// The request was sent to `pod`.
    pub fn add(&mut self, pod: &Pod) {
        self.0.push(pod.slot);
    }

    /// Whether it was sent there.
    #[inline]
    pub fn contains(&self, pod: &Pod) -> bool {
        // Asked of every pod, and mostly there are none.
        !self.0.is_empty() && self.0.contains(&pod.slot)
    }

    /// How many pods it was sent to.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this is the first attempt.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
