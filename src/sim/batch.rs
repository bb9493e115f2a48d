//! What a step is made of: the sequences that are here, and the plan that says what each computes next.
//!
//! The rules about who comes first are the engine's; this is bookkeeping that they share.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{cache::BlockPool, step::StepLoad, terms::SimRequest};

/// One request while it is here.
#[derive(Debug)]
pub(super) struct Seq {
    pub(super) request: SimRequest,
    /// Tokens whose KV is computed.
    pub(super) computed: u32,
    /// Tokens generated so far.
    pub(super) emitted: u32,
    /// Tokens it computes in the step in flight.
    pub(super) scheduled: u32,
    pub(super) blocks: Vec<u32>,
    /// How many of `blocks` were offered to the cache by hash.
    pub(super) remembered: u32,
    /// Prompt tokens found in the cache when first admitted.
    pub(super) cached: Option<u32>,
}

impl Seq {
    pub(super) fn new(request: SimRequest) -> Self {
        Self { request, computed: 0, emitted: 0, scheduled: 0, blocks: Vec::new(), remembered: 0, cached: None }
    }

    pub(super) fn tokens(&self) -> u32 {
        self.request.prompt.tokens + self.emitted
    }

    pub(super) fn block_hash(&self, index: u32) -> u64 {
        let known = self.request.prompt.block_hashes.get(index as usize).copied();
        known.unwrap_or_else(|| xxh3_64_with_seed(&index.to_le_bytes(), self.request.id))
    }
}

/// What the step in flight will have done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) budget: u32,
    pub(super) load: StepLoad,
    pub(super) adapters: Vec<u32>,
    /// Time that it waits for adapters.
    pub(super) loading_ms: f64,
}

impl Plan {
    /// Empty, with a fresh budget; the list keeps its memory.
    pub(super) fn again(mut self, budget: u32) -> Self {
        self.adapters.clear();
        Self { budget, load: StepLoad::default(), adapters: self.adapters, loading_ms: 0.0 }
    }

    pub(super) fn has_room_for(&self, adapter: Option<u32>, max_loras: usize) -> bool {
        adapter.is_none_or(|it| self.adapters.contains(&it) || self.adapters.len() < max_loras.max(1))
    }

    pub(super) fn add(&mut self, seq: &mut Seq, new: u32) {
        seq.scheduled = new;
        self.budget -= new;
        // One token after an answer has begun is a decode; anything else, a preempted answer too, is a chunk.
        if new == 1 && seq.emitted > 0 && seq.computed + 1 == seq.tokens() {
            self.load.add_decode(seq.computed);
        } else {
            self.load.add_chunk(new, seq.computed);
        }
        if let Some(adapter) = seq.request.adapter.filter(|it| !self.adapters.contains(it)) {
            self.adapters.push(adapter);
        }
    }
}

/// Gives `seq` the blocks for `new` more tokens and lets the cache know those that will be full; all or nothing.
pub(super) fn grow(pool: &mut BlockPool, block_size: u32, seq: &mut Seq, new: u32) -> bool {
    let after = seq.computed + new;
    let missing = after.div_ceil(block_size).saturating_sub(count(&seq.blocks));
    if missing > pool.free() {
        return false;
    }
    seq.blocks.extend((0..missing).map_while(|_| pool.take()));
    // As in vLLM, a block is findable as soon as it is planned: a request admitted in the same step can share it.
    let full = after / block_size;
    for index in seq.remembered..full {
        if let Some(&block) = seq.blocks.get(index as usize) {
            pool.remember(block, seq.block_hash(index));
        }
    }
    seq.remembered = seq.remembered.max(full);
    true
}

pub(super) fn count(blocks: &[u32]) -> u32 {
    u32::try_from(blocks.len()).unwrap_or(u32::MAX)
}
