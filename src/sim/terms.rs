//! The words between an engine and whoever runs it: how it is set up, what it is asked, what it tells.
//!
//! Plain values, so that the server and the lab speak to the engine alike. Times are milliseconds on the caller's
//! clock.

use std::{ops::RangeInclusive, sync::Arc};

use super::step::StepModel;

/// How an engine is set up; the names are vLLM's.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// How fast it is.
    pub step: StepModel,
    /// Tokens in a KV block.
    pub block_size: u32,
    /// Blocks as `cache_config_info` reports them; one of them is never handed out (vLLM's null block).
    pub num_gpu_blocks: u32,
    /// Tokens computed in one step at most.
    pub max_num_batched_tokens: u32,
    /// Sequences in one step at most.
    pub max_num_seqs: usize,
    /// Different adapters in one step at most.
    pub max_loras: usize,
    /// How long a step waits for an adapter that is not on the GPU yet: every adapter has its own time within this.
    pub adapter_load_ms: RangeInclusive<f64>,
    /// Admit a prompt only if all of it fits now, not only its first chunk (`scheduler_reserve_full_isl`).
    pub reserve_full_prompt: bool,
}

impl EngineConfig {
    /// vLLM's defaults on a server-class GPU.
    pub fn new(step: StepModel) -> Self {
        let block_size = 16; // vLLM's default on GPUs
        Self {
            step,
            block_size,
            num_gpu_blocks: step.profile().kv_tokens / block_size,
            max_num_batched_tokens: 8_192,  // vLLM's default for an H100-class API server
            max_num_seqs: 256,              // vLLM's usual default below the largest GPUs
            max_loras: 4,                   // vLLM's own default is 1; four is what people who serve adapters set
            adapter_load_ms: 200.0..=200.0, // loading an adapter was measured at 150-500 ms
            reserve_full_prompt: false,
        }
    }
}

/// What a prompt holds, as far as the cache cares.
#[derive(Clone, Debug, Default)]
pub struct PromptBlocks {
    /// Its length in tokens.
    pub tokens: u32,
    /// One chained hash for each whole block, from the beginning. It may be shorter (the rest is unique to this
    /// request) or go on beyond the prompt (the hashes of prompt and answer, so that a later turn finds both).
    pub block_hashes: Arc<[u64]>,
}

/// One request, as the engine sees it.
#[derive(Clone, Debug)]
pub struct SimRequest {
    /// The caller's own number; unique among the live ones.
    pub id: u64,
    /// What it asks.
    pub prompt: PromptBlocks,
    /// How many tokens it will be answered with; at least one.
    pub output_tokens: u32,
    /// Which adapter it needs, as the caller numbers them.
    pub adapter: Option<u32>,
}

/// A request that no amount of waiting could fit into this engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tokens} tokens do not fit into a KV cache of {capacity} tokens")]
pub struct TooLong {
    /// Prompt and answer.
    pub tokens: u64,
    /// All usable blocks.
    pub capacity: u64,
}

/// One token of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emitted {
    /// Whose.
    pub id: u64,
    /// Which: the first token of an answer is 0.
    pub index: u32,
    /// How many prompt tokens were found in the cache.
    pub cached: u32,
    /// Whether it was the last.
    pub last: bool,
}

/// What a step did, to be read when it is over.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// When it was over.
    pub ended_at: f64,
    /// Its tokens, in the order of the batch.
    pub emitted: Vec<Emitted>,
    /// Tokens that it computed.
    pub computed: u32,
    /// Requests admitted from waiting in it, in order (a preempted one is admitted again).
    pub admitted: Vec<u64>,
}

/// What vLLM shows about now; set when a step is over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Requests in the batch.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Share of blocks in use, 0 to 1.
    pub kv_usage: f64,
    /// Adapters of running requests, in the order of the batch.
    pub running_adapters: Vec<u32>,
}

/// What is really so inside, for an oracle that a policy is measured against.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peek {
    /// Tokens of the prompt in the cache.
    pub cached_tokens: u32,
    /// Tokens that are to be computed before everybody here decodes, cached prefixes left out.
    pub backlog_tokens: u64,
    /// Milliseconds that a token of a long prompt takes now.
    pub ms_per_token: f64,
}

/// What vLLM counts up; set when a step is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Steps.
    pub steps: u64,
    /// Prompt tokens of requests that were answered with a first token.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Those found.
    pub prefix_hits: u64,
    /// Requests thrown out of the batch for want of blocks.
    pub preemptions: u64,
    /// Requests that emitted their last token.
    pub finished: u64,
    /// Requests that left before that.
    pub aborted: u64,
}
