//! One gateway: what `serve` does with a request and with a page of metrics, on the virtual clock.
//!
//! Every decision and everything learned is the production code's: configuration, fleet, prefix index, scheduler. What
//! stands here is only the order in which the desk and the senses of a running gateway call them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{SeedableRng as _, rngs::StdRng};

use super::{
    rivals::{Policy, Rival, Seen, Truth, View},
    script::Ask,
    setup::{MODEL, POOL, Setup, config_text},
    text,
};
use crate::{
    clock,
    config::{self, Endpoint, Scheduler},
    fleet::{Evidence, Fleet, Pace, Pod, PodLoad, PoolState, Reading, ReportedModel, Reservation, Send},
    prefix::{BLOCK_BYTES, Hits, Index},
    scheduler::{self, NoPod, Question, Scene, Tried},
    sim::engine::Engine,
};

/// A gateway and all it knows.
#[derive(Debug)]
pub(super) struct Desk {
    pool: Arc<PoolState>,
    pods: Arc<Vec<Arc<Pod>>>,
    index: Index,
    chooser: Chooser,
    rng: StdRng,
    epoch: Instant,
    seen: Vec<Seen>,
    deciding: Duration,
}

#[derive(Debug)]
enum Chooser {
    Ours(Scheduler),
    Rival(Box<dyn Rival>),
}

/// A request on its way, as its gateway remembers it.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) pod: usize,
    reservation: Reservation,
    tokens_ahead: f64,
    prompt_bytes: usize,
    at_ms: f64,
    first_ms: Option<f64>,
    tokens: u32,
}

/// What the ledger said when a page was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    began: Instant,
    sent: u64,
    ended: u64,
}

impl Desk {
    /// A gateway that has just started, or why the configuration cannot be used.
    pub(super) fn new(setup: &Setup, policy: &Policy, seed: u64) -> Result<Self, config::Report> {
        let text = config_text(setup.pods.len(), setup.scrape.interval_ms, None);
        let (config, _) = config::load("lab", &text)?;
        let epoch = clock::now();
        let fleet = Fleet::new(&config.pools, epoch);
        let endpoints = config.pools.iter().flat_map(|pool| &pool.endpoints);
        let targets: Vec<_> = endpoints
            .filter_map(|endpoint| match endpoint {
                Endpoint::Fixed(target) => Some(target.clone()),
                Endpoint::Dns(_) | Endpoint::File(_) => None,
            })
            .collect();
        fleet.set(POOL, &targets, epoch);
        let pool = fleet.pool(POOL).cloned().ok_or_else(|| config::Report { problems: Vec::new() })?;
        let pods = pool.pods();
        for pod in pods.iter() {
            pod.store_models(vec![ReportedModel { name: MODEL.into(), parent: None }]);
        }
        let chooser = match policy {
            Policy::Ours(scheduler) => Chooser::Ours(scheduler.clone()),
            Policy::Rival(entry) => Chooser::Rival((entry.make)(pods.len())),
        };
        let (index, rng) = (Index::default(), StdRng::seed_from_u64(seed));
        Ok(Self { pool, pods, index, chooser, rng, epoch, seen: Vec::new(), deciding: Duration::ZERO })
    }

    /// A request came: chooses a pod and reserves it, step by step as `gateway::decide` does.
    pub(super) fn decide(&mut self, ask: &Ask, now_ms: f64, truth: &dyn Fn(usize) -> Truth) -> Result<Sent, NoPod> {
        let prompt_bytes = text::prompt_bytes(&ask.prompt);
        let blocks = text::blocks(MODEL, &ask.prompt);
        let began = clock::now();
        let hits = self.index.longest(&blocks);
        let now = self.instant(now_ms);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
        let question = Question {
            served_model: MODEL,
            prompt_tokens: self.pool.tokens(prompt_bytes),
            block_tokens: BLOCK_BYTES as f32 / self.pool.bytes_per_token(),
            hits: &hits,
            session: ask.session,
            expected_output_tokens: self.pool.expected_output_tokens() as u32,
        };
        if let Chooser::Rival(rival) = &self.chooser {
            let sees_truth = rival.sees_truth();
            self.look(&question, if sees_truth { truth } else { &|_| Truth::default() });
        }
        let pool = Arc::clone(&self.pool);
        let gate = pool.gate();
        let (pod, send) = match &mut self.chooser {
            Chooser::Ours(policy) => {
                let scene = Scene { pool: &self.pool, pods: &self.pods, now };
                let verdict = scheduler::pick(policy, &scene, &question, &Tried::none(), &mut self.rng)?;
                (verdict.pod, verdict.send)
            }
            Chooser::Rival(rival) => {
                let opening = text::opening(&ask.prompt);
                let prompt_tokens = f64::from(question.prompt_tokens);
                let view = View { pods: &self.seen, blocks: &blocks, prompt_tokens, opening, now_ms };
                let place = rival.choose(&view, &mut self.rng);
                let pod = self.pods.get(place).ok_or(NoPod::PoolEmpty)?;
                (Arc::clone(pod), send_to(pod, &question))
            }
        };
        self.deciding += clock::now().saturating_duration_since(began);
        let tokens_ahead = pod.ledger.prefill_tokens() as f64 + f64::from(send.uncached_tokens);
        let reservation = Reservation::new(Arc::clone(&pod), send);
        drop(gate);
        self.index.insert(pod.slot, &blocks);
        let place = pod.slot as usize;
        Ok(Sent { pod: place, reservation, tokens_ahead, prompt_bytes, at_ms: now_ms, first_ms: None, tokens: 0 })
    }

    /// What its decisions took in wall time: the index and the choice, without making up the prompt's text.
    pub(super) fn deciding(&self) -> Duration {
        self.deciding
    }

    /// A token of an answer came.
    pub(super) fn token(&self, sent: &mut Sent, now_ms: f64) {
        if sent.first_ms.is_none() {
            sent.first_ms = Some(now_ms);
            sent.reservation.first_token();
            let (now, ttft_ms) = (self.instant(now_ms), now_ms - sent.at_ms);
            let pod = sent.reservation.pod();
            pod.speed.learn_first_token(sent.tokens_ahead, ttft_ms, self.pool.pace(), now);
            self.pool.speed.learn_first_token(sent.tokens_ahead, ttft_ms, Pace::default(), now);
        }
        sent.reservation.generated(1);
        sent.tokens += 1;
    }

    /// An answer is complete, and its usage says that the prompt had `prompt_tokens`. The reservation ends with `sent`.
    pub(super) fn complete(&self, sent: &Sent, prompt_tokens: u32, now_ms: f64) {
        let now = self.instant(now_ms);
        if let (Some(first), Some(gaps)) = (sent.first_ms, sent.tokens.checked_sub(1).filter(|gaps| *gaps > 0)) {
            let itl_ms = (now_ms - first) / f64::from(gaps);
            sent.reservation.pod().speed.learn_itl(itl_ms, self.pool.pace(), now);
            self.pool.speed.learn_itl(itl_ms, Pace::default(), now);
        }
        self.pool.learn_output_tokens(sent.tokens);
        self.pool.learn_bytes_per_token(sent.prompt_bytes, prompt_tokens);
        sent.reservation.pod().health.note(Evidence::RequestOk, now);
    }

    /// A page is asked for: what the ledger says now.
    pub(super) fn marks(&self, pod: usize, now_ms: f64) -> Option<Marks> {
        let ledger = &self.pods.get(pod)?.ledger;
        Some(Marks { began: self.instant(now_ms), sent: ledger.sent(), ended: ledger.ended() })
    }

    /// A page has been read.
    pub(super) fn read(&self, pod: usize, marks: Marks, reading: Reading, now_ms: f64) {
        let Some(pod) = self.pods.get(pod) else { return };
        let capacity = reading.kv_capacity();
        let (sent_mark, ended_mark) = (marks.sent, marks.ended);
        pod.store_load(PodLoad { began: marks.began, sent_mark, ended_mark, reading });
        let now = self.instant(now_ms);
        pod.health.note(Evidence::ScrapeOk { asleep: false }, now);
        pod.speed.fade(self.pool.pace(), now);
        if let Some(tokens) = capacity {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
            let bytes = (tokens as f64 * f64::from(self.pool.bytes_per_token())) as usize;
            self.index.set_capacity(pod.slot, bytes / BLOCK_BYTES);
        }
    }

    /// Puts down what a rival may see.
    fn look(&mut self, question: &Question<'_>, truth: &dyn Fn(usize) -> Truth) {
        self.seen.clear();
        let prompt_tokens = f64::from(question.prompt_tokens);
        for (place, pod) in self.pods.iter().enumerate() {
            let load = pod.load_guard();
            let reading = load.as_ref().map(|load| &load.reading);
            let count = |number: Option<u32>| f64::from(number.unwrap_or(0));
            self.seen.push(Seen {
                in_flight: pod.ledger.in_flight() as f64,
                prefill_tokens: pod.ledger.prefill_tokens() as f64,
                kv_tokens: pod.ledger.kv_tokens() as f64,
                cached_tokens: cached(question.hits, pod, question.block_tokens).min(prompt_tokens),
                running: count(reading.and_then(|it| it.running)),
                waiting: count(reading.and_then(|it| it.waiting)),
                kv_usage: reading.and_then(|it| it.kv_usage).unwrap_or(0.0),
                kv_blocks: reading.and_then(|it| it.blocks).unwrap_or(0) as f64,
                truth: truth(place),
            });
        }
    }

    fn instant(&self, at_ms: f64) -> Instant {
        self.epoch + Duration::from_secs_f64(at_ms / 1e3)
    }
}

fn cached(hits: &Hits, pod: &Pod, block_tokens: f32) -> f64 {
    hits.blocks(pod.slot) as f64 * f64::from(block_tokens)
}

/// What a rival's choice means for the ledger: as the scheduler's own verdicts do.
fn send_to(pod: &Pod, question: &Question<'_>) -> Send {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
    let cached = cached(question.hits, pod, question.block_tokens) as u32;
    let uncached_tokens = question.prompt_tokens.saturating_sub(cached).max(1);
    Send { prompt_tokens: question.prompt_tokens, uncached_tokens }
}

/// The page that an engine shows, as the scrape would read it.
pub(super) fn page(engine: &Engine) -> Reading {
    let (gauges, totals, config) = (engine.gauges(), engine.totals(), engine.config());
    let count = |number: usize| Some(u32::try_from(number).unwrap_or(u32::MAX));
    Reading {
        engine: "vllm".to_owned(),
        running: count(gauges.running),
        waiting: count(gauges.waiting),
        kv_usage: Some(gauges.kv_usage),
        kv_usage_max: Some(gauges.kv_usage),
        block_size: Some(config.block_size),
        blocks: Some(u64::from(config.num_gpu_blocks)),
        preemptions_total: Some(totals.preemptions),
        prefix_queries_total: Some(totals.prefix_queries),
        prefix_hits_total: Some(totals.prefix_hits),
        prompt_tokens_total: Some(totals.prompt_tokens),
        generation_tokens_total: Some(totals.generation_tokens),
        ..Reading::default()
    }
}
