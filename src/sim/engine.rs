//! The scheduler of a simulated pod: vLLM v1's rules, one step at a time, on a clock that the caller owns.
//!
//! Pure: milliseconds come in, milliseconds go out, so that a server can run it in real time and the lab can run an
//! hour in seconds. A step has two ends, as in the real thing: what arrives or leaves while it computes takes effect
//! when it is over, and the gauges stand still for its length. It does not know text, HTTP or names.

use std::{collections::VecDeque, mem, sync::Arc};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    cache::BlockPool,
    step::{StepLoad, StepModel},
};

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
    /// How long a step waits for an adapter that is not on the GPU yet.
    pub adapter_load_ms: f64,
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
            max_num_batched_tokens: 8_192, // vLLM's default for an H100-class API server
            max_num_seqs: 256,             // vLLM's usual default below the largest GPUs
            max_loras: 4,                  // vLLM's own default is 1; four is what people who serve adapters set
            adapter_load_ms: 200.0,        // loading an adapter was measured at 150-500 ms
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

#[derive(Debug)]
struct Seq {
    request: SimRequest,
    /// Tokens whose KV is computed.
    computed: u32,
    /// Tokens generated so far.
    emitted: u32,
    /// Tokens it computes in the step in flight.
    scheduled: u32,
    blocks: Vec<u32>,
    /// How many of `blocks` were offered to the cache by hash.
    remembered: u32,
    /// Prompt tokens found in the cache when first admitted.
    cached: Option<u32>,
}

impl Seq {
    fn tokens(&self) -> u32 {
        self.request.prompt.tokens + self.emitted
    }

    fn block_hash(&self, index: u32) -> u64 {
        let known = self.request.prompt.block_hashes.get(index as usize).copied();
        known.unwrap_or_else(|| xxh3_64_with_seed(&index.to_le_bytes(), self.request.id))
    }
}

/// What the step in flight will have done.
#[derive(Debug, Default)]
struct Plan {
    budget: u32,
    load: StepLoad,
    adapters: Vec<u32>,
    adapter_loads: u32,
}

/// The scheduler and everything it schedules.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    pool: BlockPool,
    running: Vec<Seq>,
    waiting: VecDeque<Seq>,
    /// Adapters on the GPU, least recently used first.
    resident: Vec<u32>,
    slowdown: f64,
    in_flight: Option<f64>,
    aborts: Vec<u64>,
    plan: Plan,
    skipped: Vec<Seq>,
    report: StepReport,
    gauges: Gauges,
    /// Counts as they happen; `totals` follows when the step is over.
    tally: Totals,
    totals: Totals,
}

impl Engine {
    /// An idle engine with an empty cache.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            pool: BlockPool::new(config.num_gpu_blocks.saturating_sub(1)),
            config,
            running: Vec::new(),
            waiting: VecDeque::new(),
            resident: Vec::new(),
            slowdown: 1.0,
            in_flight: None,
            aborts: Vec::new(),
            plan: Plan::default(),
            skipped: Vec::new(),
            report: StepReport::default(),
            gauges: Gauges::default(),
            tally: Totals::default(),
            totals: Totals::default(),
        }
    }

    /// A new request joins the end of the line. It is seen by the next step that begins.
    pub fn add(&mut self, mut request: SimRequest) -> Result<(), TooLong> {
        request.output_tokens = request.output_tokens.max(1);
        request.prompt.tokens = request.prompt.tokens.max(1);
        let tokens = u64::from(request.prompt.tokens) + u64::from(request.output_tokens);
        let capacity = u64::from(self.pool.total()) * u64::from(self.config.block_size);
        if tokens > capacity {
            return Err(TooLong { tokens, capacity });
        }
        self.waiting.push_back(Seq {
            request,
            computed: 0,
            emitted: 0,
            scheduled: 0,
            blocks: Vec::new(),
            remembered: 0,
            cached: None,
        });
        Ok(())
    }

    /// A client went away. Takes effect when the step in flight is over, at once if there is none; an unknown id is
    /// one that has finished already.
    pub fn abort(&mut self, id: u64) {
        self.aborts.push(id);
        if self.in_flight.is_none() {
            self.apply_aborts();
            self.publish();
        }
    }

    /// Plans the next step and says when it will be over; `None` if there is nothing to do or one is in flight.
    pub fn begin_step(&mut self, now_ms: f64) -> Option<f64> {
        if self.in_flight.is_some() || (self.running.is_empty() && self.waiting.is_empty()) {
            return None;
        }
        let mut plan = mem::take(&mut self.plan);
        plan.budget = self.config.max_num_batched_tokens;
        plan.load = StepLoad::default();
        plan.adapters.clear();
        plan.adapter_loads = 0;
        self.report.admitted.clear();
        let preempted = self.schedule_running(&mut plan);
        if !preempted {
            self.schedule_waiting(&mut plan);
        }
        self.load_adapters(&mut plan);
        let loading = f64::from(plan.adapter_loads) * self.config.adapter_load_ms;
        let millis = (self.config.step.millis(&plan.load) + loading) * self.slowdown;
        self.report.computed = plan.load.tokens();
        self.plan = plan;
        if self.report.computed == 0 {
            return None;
        }
        self.in_flight = Some(now_ms + millis);
        self.in_flight
    }

    /// The step in flight is over: hands out its tokens, lets the finished and the aborted go, sets the gauges.
    pub fn end_step(&mut self) -> &StepReport {
        self.report.emitted.clear();
        if let Some(ended_at) = self.in_flight.take() {
            self.report.ended_at = ended_at;
            self.tally.steps += 1;
            self.emit();
            self.apply_aborts();
            self.publish();
        }
        &self.report
    }

    /// When the step in flight ends.
    pub fn busy_until(&self) -> Option<f64> {
        self.in_flight
    }

    /// What a scrape shows.
    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// What a scrape counts.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// How it was set up.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Requests here now, running or waiting: the truth, which a scrape sees only after a step.
    pub fn live(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// Steps that begin from now on take `factor` times as long.
    pub fn slow_down(&mut self, factor: f64) {
        self.slowdown = factor;
    }

    /// Forgets every cached prefix.
    pub fn reset_prefix_cache(&mut self) {
        self.pool.forget_all();
    }

    /// Running sequences come first, in order. When blocks run out, the last one is thrown out and will be computed
    /// again from its beginning.
    fn schedule_running(&mut self, plan: &mut Plan) -> bool {
        let before = self.tally.preemptions;
        let mut at = 0;
        while plan.budget > 0 {
            let Some(seq) = self.running.get_mut(at) else { break };
            let new = (seq.tokens() - seq.computed).min(plan.budget);
            if grow(&mut self.pool, self.config.block_size, seq, new) {
                plan.add(seq, new);
                at += 1;
            } else if let Some(mut last) = self.running.pop() {
                self.tally.preemptions += 1;
                self.pool.release(&mut last.blocks);
                (last.computed, last.remembered) = (0, 0);
                self.waiting.push_front(last);
            }
        }
        self.tally.preemptions > before
    }

    /// The line moves first come, first served, and stops at the first that does not fit; only a request whose
    /// adapter finds no room is stepped over, and keeps its place.
    fn schedule_waiting(&mut self, plan: &mut Plan) {
        while plan.budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(mut seq) = self.waiting.pop_front() else { break };
            if !plan.has_room_for(seq.request.adapter, self.config.max_loras) {
                self.skipped.push(seq);
                continue;
            }
            if !self.admit(&mut seq, plan) {
                self.waiting.push_front(seq);
                break;
            }
            self.running.push(seq);
        }
        for seq in self.skipped.drain(..).rev() {
            self.waiting.push_front(seq);
        }
    }

    /// Takes the longest cached prefix and blocks for the first chunk after it, or nothing at all.
    fn admit(&mut self, seq: &mut Seq, plan: &mut Plan) -> bool {
        let size = self.config.block_size;
        // At least one token must be computed, or there would be nothing to sample from.
        let most = (seq.tokens() - 1) / size;
        let mut idle_hits = 0;
        for index in 0..most {
            let Some((block, idle)) = self.pool.find(seq.block_hash(index)) else {
                break;
            };
            seq.blocks.push(block);
            idle_hits += u32::from(idle);
        }
        let hits = count(&seq.blocks);
        let cached = hits * size;
        let new = (seq.tokens() - cached).min(plan.budget);
        let reserve = if self.config.reserve_full_prompt {
            seq.tokens()
        } else {
            cached + new
        };
        if reserve.div_ceil(size) - hits + idle_hits > self.pool.free() {
            seq.blocks.clear();
            return false;
        }
        seq.blocks.iter().for_each(|&block| self.pool.share(block));
        (seq.computed, seq.remembered) = (cached, hits);
        grow(&mut self.pool, size, seq, new);
        if seq.cached.is_none() {
            seq.cached = Some(cached);
            self.tally.prefix_queries += u64::from(seq.request.prompt.tokens);
            self.tally.prefix_hits += u64::from(cached);
        }
        self.report.admitted.push(seq.request.id);
        plan.add(seq, new);
        true
    }

    fn load_adapters(&mut self, plan: &mut Plan) {
        for &adapter in &plan.adapters {
            match self.resident.iter().position(|&it| it == adapter) {
                Some(at) => drop(self.resident.remove(at)),
                None => plan.adapter_loads += 1,
            }
            self.resident.push(adapter);
        }
        let surplus = self.resident.len().saturating_sub(self.config.max_loras);
        self.resident.drain(..surplus);
    }

    fn emit(&mut self) {
        let Self {
            running,
            pool,
            report,
            tally,
            ..
        } = self;
        running.retain_mut(|seq| {
            seq.computed += mem::take(&mut seq.scheduled);
            if seq.computed < seq.tokens() {
                return true;
            }
            if seq.emitted == 0 {
                tally.prompt_tokens += u64::from(seq.request.prompt.tokens);
            }
            seq.emitted += 1;
            tally.generation_tokens += 1;
            let last = seq.emitted == seq.request.output_tokens;
            let (id, cached) = (seq.request.id, seq.cached.unwrap_or(0));
            report.emitted.push(Emitted {
                id,
                index: seq.emitted - 1,
                cached,
                last,
            });
            if last {
                tally.finished += 1;
                pool.release(&mut seq.blocks);
            }
            !last
        });
    }

    fn apply_aborts(&mut self) {
        for id in mem::take(&mut self.aborts) {
            let running = self
                .running
                .iter()
                .position(|seq| seq.request.id == id)
                .map(|at| self.running.remove(at));
            let waiting = || self.waiting.iter().position(|seq| seq.request.id == id);
            let gone = match running {
                Some(seq) => Some(seq),
                None => waiting().and_then(|at| self.waiting.remove(at)),
            };
            if let Some(mut seq) = gone {
                self.pool.release(&mut seq.blocks);
                self.tally.aborted += 1;
            }
        }
    }

    fn publish(&mut self) {
        self.totals = self.tally;
        self.gauges.running = self.running.len();
        self.gauges.waiting = self.waiting.len();
        self.gauges.kv_usage = self.pool.usage();
        self.gauges.running_adapters.clear();
        for adapter in self.running.iter().filter_map(|seq| seq.request.adapter) {
            if !self.gauges.running_adapters.contains(&adapter) {
                self.gauges.running_adapters.push(adapter);
            }
        }
    }
}

impl Plan {
    fn has_room_for(&self, adapter: Option<u32>, max_loras: usize) -> bool {
        adapter.is_none_or(|it| self.adapters.contains(&it) || self.adapters.len() < max_loras.max(1))
    }

    fn add(&mut self, seq: &mut Seq, new: u32) {
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
fn grow(pool: &mut BlockPool, block_size: u32, seq: &mut Seq, new: u32) -> bool {
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

fn count(blocks: &[u32]) -> u32 {
    u32::try_from(blocks.len()).unwrap_or(u32::MAX)
}
