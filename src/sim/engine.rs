//! The scheduler of a simulated pod: vLLM v1's rules, one step at a time, on a clock that the caller owns.
//!
//! Pure: milliseconds come in, milliseconds go out, so that a server can run it in real time and the lab can run an
//! hour in seconds. A step has two ends, as in the real thing: what arrives or leaves while it computes takes effect
//! when it is over, and the gauges stand still for its length. It does not know text, HTTP or names.

use std::{collections::VecDeque, mem};

use xxhash_rust::xxh3::xxh3_64;

use super::{
    batch::{Plan, Seq, count, grow},
    cache::BlockPool,
    step::StepLoad,
    terms::{Emitted, EngineConfig, Gauges, Peek, PromptBlocks, SimRequest, StepReport, TooLong, Totals},
};

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
        self.waiting.push_back(Seq::new(request));
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
        let mut plan = mem::take(&mut self.plan).again(self.config.max_num_batched_tokens);
        self.report.admitted.clear();
        let preempted = self.schedule_running(&mut plan);
        if !preempted {
            self.schedule_waiting(&mut plan);
        }
        self.load_adapters(&mut plan);
        let millis = (self.config.step.millis(&plan.load) + plan.loading_ms) * self.slowdown;
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

    /// Requests here now, running or waiting, as a scrape will see them after the step.
    pub fn live(&self) -> usize {
        self.running.len() + self.waiting.len()
    }

    /// What no metric shows: how this prompt would fare if it came now.
    pub fn peek(&self, prompt: &PromptBlocks) -> Peek {
        let waiting = self.waiting.iter().map(|seq| seq.tokens() - self.cached_tokens(&seq.request.prompt));
        let running = self.running.iter().map(|seq| seq.tokens().saturating_sub(seq.computed + 1));
        let mut chunk = StepLoad::default();
        chunk.add_chunk(self.config.max_num_batched_tokens, 0);
        let millis = self.config.step.millis(&chunk) * self.slowdown;
        Peek {
            cached_tokens: self.cached_tokens(prompt),
            backlog_tokens: running.chain(waiting).map(u64::from).sum(),
            ms_per_token: millis / f64::from(self.config.max_num_batched_tokens.max(1)),
        }
    }

    fn cached_tokens(&self, prompt: &PromptBlocks) -> u32 {
        let most = prompt.tokens.saturating_sub(1) / self.config.block_size;
        let known = prompt.block_hashes.iter().take(most as usize);
        let found = known.take_while(|hash| self.pool.find(**hash).is_some()).count();
        u32::try_from(found).unwrap_or(0) * self.config.block_size
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
        let reserve = if self.config.reserve_full_prompt { seq.tokens() } else { cached + new };
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
                None => plan.loading_ms += load_ms(&self.config, adapter),
            }
            self.resident.push(adapter);
        }
        let surplus = self.resident.len().saturating_sub(self.config.max_loras);
        self.resident.drain(..surplus);
    }

    fn emit(&mut self) {
        let Self { running, pool, report, tally, .. } = self;
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
            report.emitted.push(Emitted { id, index: seq.emitted - 1, cached, last });
            if last {
                tally.finished += 1;
                pool.release(&mut seq.blocks);
            }
            !last
        });
    }

    fn apply_aborts(&mut self) {
        for id in mem::take(&mut self.aborts) {
            let wanted = |seq: &Seq| seq.request.id == id;
            let gone = if let Some(at) = self.running.iter().position(wanted) {
                Some(self.running.remove(at))
            } else {
                self.waiting.iter().position(wanted).and_then(|at| self.waiting.remove(at))
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

/// How long an adapter takes to load: by its number, as if at random.
fn load_ms(config: &EngineConfig, adapter: u32) -> f64 {
    let (least, most) = config.adapter_load_ms.clone().into_inner();
    let share = (xxh3_64(&adapter.to_le_bytes()) >> 11) as f64 / (1u64 << 53) as f64;
    least + (most - least) * share
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::sim::{profiles::find, step::StepModel};

    /// Blocks of 4 tokens, a budget of 16 tokens and `blocks` usable blocks: small enough to work out by hand.
    fn small(blocks: u32) -> EngineConfig {
        EngineConfig {
            block_size: 4,
            num_gpu_blocks: blocks + 1,
            max_num_batched_tokens: 16,
            max_num_seqs: 4,
            max_loras: 1,
            ..EngineConfig::new(StepModel::new(find("h100-8b").unwrap(), 1.0))
        }
    }

    fn request(id: u64, prompt: u32, output_tokens: u32) -> SimRequest {
        let prompt = PromptBlocks { tokens: prompt, block_hashes: Arc::default() };
        SimRequest { id, prompt, output_tokens, adapter: None }
    }

    fn hashed(id: u64, prompt: u32, output_tokens: u32, hashes: &[u64]) -> SimRequest {
        let prompt = PromptBlocks { tokens: prompt, block_hashes: hashes.into() };
        SimRequest { id, prompt, output_tokens, adapter: None }
    }

    fn adapted(id: u64, adapter: u32) -> SimRequest {
        SimRequest { adapter: Some(adapter), ..request(id, 4, 2) }
    }

    /// One whole step: what it emitted as (id, index), and how many tokens it computed.
    fn step(engine: &mut Engine) -> (Vec<(u64, u32)>, u32) {
        engine.begin_step(0.0).expect("there is work");
        let report = engine.end_step();
        (report.emitted.iter().map(|token| (token.id, token.index)).collect(), report.computed)
    }

    #[test]
    fn a_long_prompt_is_computed_in_chunks_and_speaks_when_the_last_is_done() {
        let mut engine = Engine::new(small(20));
        engine.add(request(1, 40, 2)).unwrap();
        assert_eq!(step(&mut engine), (vec![], 16));
        assert_eq!(step(&mut engine), (vec![], 16));
        assert_eq!(step(&mut engine), (vec![(1, 0)], 8));
        assert_eq!(step(&mut engine), (vec![(1, 1)], 1));
        assert_eq!(engine.begin_step(0.0), None);
        assert_eq!(engine.totals().prompt_tokens, 40);
        assert_eq!(engine.totals().generation_tokens, 2);
    }

    #[test]
    fn running_sequences_decode_before_a_new_prompt_gets_the_rest_of_the_budget() {
        let mut engine = Engine::new(small(20));
        engine.add(request(1, 4, 9)).unwrap();
        assert_eq!(step(&mut engine), (vec![(1, 0)], 4));
        engine.add(request(2, 20, 1)).unwrap();
        assert_eq!(step(&mut engine), (vec![(1, 1)], 16), "one decode and a chunk of fifteen");
        assert_eq!(step(&mut engine), (vec![(1, 2), (2, 0)], 6), "one decode and the last five");
    }

    #[test]
    fn a_step_lasts_as_long_as_its_load_says_and_gauges_stand_still_for_its_length() {
        let mut engine = Engine::new(small(20));
        engine.add(request(1, 16, 2)).unwrap();
        let mut load = StepLoad::default();
        load.add_chunk(16, 0);
        let millis = engine.config().step.millis(&load);
        assert_eq!(engine.begin_step(100.0), Some(100.0 + millis));
        assert_eq!(engine.gauges(), &Gauges::default(), "nothing is known before the first step is over");
        assert_eq!(engine.begin_step(100.0), None, "one step at a time");
        engine.end_step();
        assert_eq!((engine.gauges().running, engine.gauges().waiting), (1, 0));
        assert!((engine.gauges().kv_usage - 0.2).abs() < 1e-9, "4 of 20 blocks");
        engine.slow_down(3.0);
        let slow = engine.begin_step(0.0).unwrap();
        load = StepLoad::default();
        load.add_decode(16);
        assert!((slow - 3.0 * engine.config().step.millis(&load)).abs() < 1e-9);
    }

    #[test]
    fn a_cached_prefix_is_not_computed_again_but_its_last_token_is() {
        let mut engine = Engine::new(small(20));
        engine.add(hashed(1, 12, 1, &[10, 11, 12])).unwrap();
        assert_eq!(step(&mut engine), (vec![(1, 0)], 12));
        engine.add(hashed(2, 14, 1, &[10, 11, 12])).unwrap();
        assert_eq!(step(&mut engine), (vec![(2, 0)], 2), "three blocks are there");
        engine.add(hashed(3, 12, 1, &[10, 11, 12])).unwrap();
        assert_eq!(step(&mut engine), (vec![(3, 0)], 4), "of a prompt that is all there, one block is computed");
        assert_eq!((engine.totals().prefix_queries, engine.totals().prefix_hits), (38, 12 + 8));
    }

    #[test]
    fn prompts_that_arrive_together_share_what_the_first_computes_in_the_same_step() {
        let mut engine = Engine::new(small(20));
        engine.add(hashed(1, 8, 1, &[10, 11])).unwrap();
        engine.add(hashed(2, 9, 1, &[10, 11])).unwrap();
        assert_eq!(step(&mut engine), (vec![(1, 0), (2, 0)], 9));
    }

    #[test]
    fn the_next_turn_finds_the_answer_of_the_turn_before() {
        let mut engine = Engine::new(small(20));
        engine.add(hashed(1, 6, 7, &[10, 11, 12])).unwrap();
        while engine.live() > 0 {
            step(&mut engine);
        }
        engine.add(hashed(2, 14, 1, &[10, 11, 12])).unwrap();
        // Of 13 tokens the KV of 12 was computed: the last token was said, not read.
        assert_eq!(step(&mut engine), (vec![(2, 0)], 2));
    }

    #[test]
    fn the_least_recently_used_prefix_is_forgotten_first_and_from_its_end() {
        let mut engine = Engine::new(small(6));
        engine.add(hashed(1, 8, 1, &[10, 11])).unwrap();
        step(&mut engine);
        engine.add(hashed(2, 8, 1, &[20, 21])).unwrap();
        step(&mut engine);
        // The free list: two blocks never used, then 11, 10, 21, 20. Three blocks are taken: 11 goes.
        engine.add(request(3, 12, 1)).unwrap();
        step(&mut engine);
        engine.add(hashed(4, 5, 1, &[10, 11])).unwrap();
        engine.begin_step(0.0).unwrap();
        assert_eq!(engine.end_step().emitted[0].cached, 4);
        // That took the block of 10 and the next in the list: of 20 and 21 the end is gone.
        engine.add(hashed(5, 9, 1, &[20, 21])).unwrap();
        engine.begin_step(0.0).unwrap();
        assert_eq!(engine.end_step().emitted[0].cached, 4);
    }

    #[test]
    fn when_blocks_run_out_the_last_one_starts_again_and_the_first_goes_on() {
        let mut engine = Engine::new(small(4));
        engine.add(request(1, 8, 5)).unwrap();
        engine.add(request(2, 8, 5)).unwrap();
        assert_eq!(step(&mut engine), (vec![(1, 0), (2, 0)], 16));
        // Both need a third block and none is left.
        assert_eq!(step(&mut engine), (vec![(1, 1)], 1));
        assert_eq!(engine.totals().preemptions, 1);
        assert_eq!((engine.gauges().running, engine.gauges().waiting), (1, 1));
        // One block is free and one cached block of its own is left: too little for the nine tokens it has now.
        assert_eq!(step(&mut engine), (vec![(1, 2)], 1));
        assert_eq!(step(&mut engine), (vec![(1, 3)], 1));
        assert_eq!(step(&mut engine), (vec![(1, 4)], 1));
        let (emitted, computed) = step(&mut engine);
        assert_eq!(emitted, [(2, 1)], "it goes on where it was");
        assert_eq!(computed, 5, "its first block was still cached");
        while engine.live() > 0 {
            step(&mut engine);
        }
        assert_eq!(engine.totals().generation_tokens, 10);
        assert_eq!(engine.totals().prefix_queries, 16, "a second admission is not a new query");
    }

    #[test]
    fn the_head_of_the_line_blocks_those_behind_it() {
        let mut engine = Engine::new(small(6));
        engine.add(request(1, 16, 8)).unwrap();
        step(&mut engine);
        engine.add(request(2, 12, 1)).unwrap();
        engine.add(request(3, 1, 1)).unwrap();
        assert_eq!(step(&mut engine), (vec![(1, 1)], 1), "two fits not and three waits behind it");
        assert_eq!(engine.gauges().waiting, 2);
    }

    #[test]
    fn no_more_than_max_num_seqs_run() {
        let mut engine = Engine::new(small(20));
        (0..6).for_each(|id| engine.add(request(id, 2, 3)).unwrap());
        step(&mut engine);
        assert_eq!((engine.gauges().running, engine.gauges().waiting), (4, 2));
    }

    #[test]
    fn a_request_whose_adapter_finds_no_room_is_stepped_over_and_keeps_its_place() {
        let mut engine = Engine::new(small(20));
        engine.add(adapted(1, 0)).unwrap();
        engine.add(adapted(2, 1)).unwrap();
        engine.add(adapted(3, 0)).unwrap();
        engine.add(request(4, 4, 2)).unwrap();
        assert_eq!(step(&mut engine), (vec![(1, 0), (3, 0), (4, 0)], 12));
        assert_eq!(engine.gauges().running_adapters, [0]);
        assert_eq!(step(&mut engine).0, [(1, 1), (3, 1), (4, 1)]);
        assert_eq!(step(&mut engine).0, [(2, 0)]);
    }

    #[test]
    fn loading_an_adapter_costs_once_and_again_when_it_was_replaced() {
        let mut engine = Engine::new(small(20));
        let mut lasts = |adapter| {
            engine.add(SimRequest { output_tokens: 1, ..adapted(9, adapter) }).unwrap();
            let millis = engine.begin_step(0.0).unwrap();
            engine.end_step();
            millis
        };
        let (first, second, other, back) = (lasts(0), lasts(0), lasts(1), lasts(0));
        for loaded in [first, other, back] {
            assert!((loaded - second - 200.0).abs() < 1.0, "{loaded} against {second}");
        }
    }

    #[test]
    fn what_can_never_fit_is_refused() {
        let mut engine = Engine::new(small(4));
        assert_eq!(engine.add(request(1, 12, 5)), Err(TooLong { tokens: 17, capacity: 16 }));
        engine.add(request(2, 12, 4)).unwrap();
    }

    #[test]
    fn an_abort_during_a_step_takes_effect_at_its_end() {
        let mut engine = Engine::new(small(20));
        engine.add(request(1, 8, 5)).unwrap();
        engine.begin_step(0.0).unwrap();
        engine.abort(1);
        assert_eq!(engine.live(), 1);
        engine.end_step();
        assert_eq!((engine.live(), engine.gauges().running), (0, 0));
        assert_eq!(engine.totals().aborted, 1);
        engine.abort(1);
        assert_eq!(engine.totals().aborted, 1, "an unknown id is one that has left already");
    }

    #[derive(Clone, Debug)]
    enum Event {
        Add { prompt: u32, output: u32, family: u64, adapter: Option<u32> },
        Abort(u64),
        Begin,
        End,
    }

    fn event() -> impl Strategy<Value = Event> {
        let adapter = prop_oneof![3 => Just(None), 1 => (0_u32..3).prop_map(Some)];
        prop_oneof![
            3 => (1_u32..30, 1_u32..12, 0_u64..3, adapter)
                .prop_map(|(prompt, output, family, adapter)| Event::Add { prompt, output, family, adapter }),
            1 => (0_u64..40).prop_map(Event::Abort),
            4 => Just(Event::Begin),
            4 => Just(Event::End),
        ]
    }

    proptest! {
        #[test]
        fn blocks_are_conserved_and_every_request_says_all_it_has_to_say(
            events in prop::collection::vec(event(), 1..200), blocks in 11_u32..30, reserve: bool,
        ) {
            let mut engine = Engine::new(EngineConfig { reserve_full_prompt: reserve, ..small(blocks) });
            let (mut wanted, mut said, mut left) = (Vec::new(), Vec::new(), Vec::new());
            for event in events {
                match event {
                    Event::Add { prompt, output, family, adapter } => {
                        let id = wanted.len() as u64;
                        let hashes: Vec<u64> = (0..10).map(|at| family * 100 + at).collect();
                        engine.add(SimRequest { adapter, ..hashed(id, prompt, output, &hashes) }).unwrap();
                        wanted.push(output);
                        said.push(0);
                        left.push(false);
                    }
                    Event::Abort(nth) => {
                        if let Some(it) = left.get_mut(usize::try_from(nth).unwrap()) {
                            *it = true;
                            engine.abort(nth);
                        }
                    }
                    Event::Begin => drop(engine.begin_step(0.0)),
                    Event::End => hear(engine.end_step(), &mut said),
                }
                prop_assert_eq!(held(&engine), engine.pool.total() - engine.pool.free());
            }
            while engine.in_flight.is_some() || engine.begin_step(0.0).is_some() {
                hear(engine.end_step(), &mut said);
            }
            for ((wanted, said), left) in wanted.iter().zip(&said).zip(&left) {
                prop_assert!(if *left { said <= wanted } else { said == wanted }, "{} of {}", said, wanted);
            }
            prop_assert_eq!(engine.live(), 0);
            prop_assert_eq!(engine.pool.free(), engine.pool.total());
            prop_assert_eq!(engine.gauges(), &Gauges::default());
            let totals = engine.totals();
            prop_assert_eq!(totals.finished + totals.aborted, wanted.len() as u64);
            prop_assert_eq!(totals.generation_tokens, said.iter().map(|&it| u64::from(it)).sum::<u64>());
        }
    }

    fn hear(report: &StepReport, said: &mut [u32]) {
        for token in &report.emitted {
            let told = &mut said[usize::try_from(token.id).unwrap()];
            assert_eq!(token.index, *told, "tokens come in order, each once");
            *told += 1;
        }
    }

    /// Blocks that running sequences hold, each counted once; those that wait hold none.
    fn held(engine: &Engine) -> u32 {
        let mut blocks: Vec<u32> = engine.running.iter().flat_map(|seq| seq.blocks.iter().copied()).collect();
        blocks.sort_unstable();
        blocks.dedup();
        count(&blocks)
    }
}
