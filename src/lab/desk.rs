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
    doors::{Arrival, Door, Sight, Word},
    rivals::{Policy, Rival, Seen, Truth, View},
    script::{Ask, Piece},
    setup::{self, MODEL, POOL, Setup, adapter_name},
    text,
    world::Shown,
};
use crate::{
    clock,
    config::{self, Scheduler, Target, Waiting},
    fleet::{
        Adapters, Admission, Condition, Course, Evidence, Fleet, Pod, PodLoad, PoolState, Reading, ReportedModel, Send,
        Spare,
    },
    prefix::{BLOCK_BYTES, Chain, Claim, Hits, Index},
    routing::{Route, StickyKey, Table, key_of},
    scheduler::{self, NoPod, Question, Scene, Tried},
};

/// A gateway and all it knows.
#[derive(Debug)]
pub(super) struct Desk {
    fleet: Fleet,
    targets: Vec<Target>,
    table: Table,
    next_table: Table,
    adapters: Vec<Arc<str>>,
    /// How long a page may take, and how often a request may be tried again.
    pub(super) timeout_ms: f64,
    pub(super) attempts: usize,
    pool: Arc<PoolState>,
    pods: Arc<Vec<Arc<Pod>>>,
    index: Index,
    chooser: Chooser,
    pub(super) door: Box<dyn Door>,
    spares_full: bool,
    terms: Waiting,
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

/// What judgement is asked about one request, computed once and used for every attempt.
#[derive(Debug)]
pub(super) struct Matter<'a> {
    ask: &'a Ask,
    route: Route,
    /// The adapter that this means for a pod.
    pub(super) adapter: Option<u32>,
    chain: Chain,
    hits: Hits,
    prompt_bytes: usize,
    /// Whether it stood in line.
    pub(super) waited: bool,
}

impl Matter<'_> {
    /// Which arm of the split it fell to.
    pub(super) fn arm(&self) -> usize {
        self.route.arm
    }
}

/// A request on its way, as its gateway remembers it.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) pod: usize,
    course: Course,
    prompt_bytes: usize,
    /// The prompt, to go on with its answer.
    chain: Chain,
    /// What was believed to be cached.
    claim: Claim,
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
        let config = setup.configured(setup.shift.map(|shift| shift.before))?;
        let next = setup.configured(setup.shift.map(|shift| shift.after))?;
        let epoch = clock::now();
        let fleet = Fleet::new(&config.pools, epoch);
        let no_pool = || config::Report { problems: Vec::new() };
        let pool = fleet.pool(POOL).ok_or_else(no_pool)?;
        let chooser = match policy {
            Policy::Ours(scheduler) => Chooser::Ours(scheduler.clone()),
            Policy::Rival(entry) => Chooser::Rival((entry.make)(setup.pods.len())),
        };
        let mut desk = Self {
            targets: setup::targets(&config),
            table: Table::new(&config),
            next_table: Table::new(&next),
            adapters: (0..setup.adapters).map(|adapter| adapter_name(adapter).into()).collect(),
            timeout_ms: pool.config().metrics.timeout.as_secs_f64() * 1e3,
            attempts: config.retry.attempts as usize,
            pods: pool.pods(),
            pool,
            fleet,
            index: Index::default(),
            chooser,
            door: setup.door.make(),
            spares_full: setup.door.spares_full,
            terms: config.waiting.clone(),
            rng: StdRng::seed_from_u64(seed),
            epoch,
            seen: Vec::new(),
            deciding: Duration::ZERO,
        };
        desk.discover(setup.early_pods(), 0.0);
        Ok(desk)
    }

    /// Discovery lists the first so many pods, and each is asked what it serves.
    pub(super) fn discover(&mut self, pods: usize, now_ms: f64) {
        let targets = self.targets.get(..pods).unwrap_or(&self.targets);
        let changes = self.fleet.set(POOL, targets, self.instant(now_ms));
        for pod in &changes.added {
            pod.store_models(self.menu());
        }
        self.pods = self.pool.pods();
    }

    fn menu(&self) -> Vec<ReportedModel> {
        let base: Arc<str> = MODEL.into();
        let adapter = |name: &Arc<str>| ReportedModel { name: Arc::clone(name), parent: Some(Arc::clone(&base)) };
        let model = ReportedModel { name: Arc::clone(&base), parent: None };
        [model].into_iter().chain(self.adapters.iter().map(adapter)).collect()
    }

    /// The configuration with other weights is in force.
    pub(super) fn shift(&mut self) {
        self.table = self.next_table.clone();
    }

    /// A request came to the door.
    pub(super) fn came(&mut self, nth: u32, ask: &Ask, now_ms: f64) {
        let bytes = text::prompt_bytes(&ask.prompt);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
        let answer = self.pool.expected_output_tokens() as u32;
        let tokens = self.pool.tokens(bytes).saturating_add(answer);
        let arrival = Arrival { nth, at_ms: now_ms, client: ask.client, tokens, bytes };
        let sight = Sight { pool: &self.pool, pods: &self.pods, terms: &self.terms, now: self.instant(now_ms), now_ms };
        self.door.came(arrival, &sight);
    }

    /// What the door says next.
    pub(super) fn says(&mut self, now_ms: f64) -> Option<Word> {
        let sight = Sight { pool: &self.pool, pods: &self.pods, terms: &self.terms, now: self.instant(now_ms), now_ms };
        self.door.next(&sight)
    }

    /// A request came: where it goes, under which name, and who holds how much of it.
    pub(super) fn matter<'a>(&mut self, ask: &'a Ask) -> Option<Matter<'a>> {
        let asked = ask.adapter.and_then(|adapter| self.adapters.get(adapter as usize)).map_or(MODEL, |name| name);
        let session = ask.session.map(|session| session.to_string());
        let opening = || Some(key_of(&text::opening(&ask.prompt).to_le_bytes()));
        let key = StickyKey { session: session.as_deref(), opening: &opening };
        let reports = |name: &str| self.pods.iter().any(|pod| pod.serves(name) == Some(true));
        let reported = |name: &str| reports(name).then(|| POOL.into());
        let route = self.table.find(asked, key, reported, &mut self.rng).ok()?;
        let adapter = self.adapters.iter().position(|name| *name == route.served_model);
        let chain = text::chain(&route.served_model, &ask.prompt);
        Some(Matter {
            ask,
            adapter: adapter.and_then(|adapter| u32::try_from(adapter).ok()),
            hits: self.index.longest(chain.blocks()),
            chain,
            prompt_bytes: text::prompt_bytes(&ask.prompt),
            waited: false,
            route,
        })
    }

    /// Chooses a pod and reserves it, step by step as `gateway::decide` does.
    pub(super) fn decide(
        &mut self,
        matter: &Matter<'_>,
        tried: &Tried,
        now_ms: f64,
        truth: &dyn Fn(usize) -> Truth,
    ) -> Result<Sent, NoPod> {
        let Matter { ask, chain, prompt_bytes, .. } = matter;
        let began = clock::now();
        let now = self.instant(now_ms);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
        let question = Question {
            served_model: &matter.route.served_model,
            prompt_tokens: self.pool.tokens(*prompt_bytes),
            block_tokens: BLOCK_BYTES as f32 / self.pool.bytes_per_token(),
            hits: &matter.hits,
            session: ask.session,
            expected_output_tokens: self.pool.expected_output_tokens() as u32,
        };
        if let Chooser::Rival(rival) = &self.chooser {
            let sees_truth = rival.sees_truth();
            self.look((&question, tried, now), if sees_truth { truth } else { &|_| Truth::default() });
            if self.seen.iter().all(|pod| pod.out) {
                return Err(NoPod::AllTried);
            }
        }
        let pool = Arc::clone(&self.pool);
        let gate = pool.gate();
        let (pod, send) = match &mut self.chooser {
            Chooser::Ours(policy) => {
                let scene = Scene { pool: &self.pool, pods: &self.pods, now };
                let verdict = if self.spares_full {
                    let spare = if matter.waited { Spare::Full } else { Spare::Crowded };
                    scheduler::pick_with_room(policy, &scene, &question, (tried, spare), &mut self.rng)?
                } else {
                    scheduler::pick(policy, &scene, &question, tried, &mut self.rng)?
                };
                (verdict.pod, verdict.send)
            }
            Chooser::Rival(rival) => {
                // The adapter is part of `KubeAI`'s key.
                let opening = text::opening(&ask.prompt) ^ matter.adapter.map_or(0, |it| text::mixed(1, it.into()));
                let prompt_tokens = f64::from(question.prompt_tokens);
                let view = View { pods: &self.seen, blocks: chain.blocks(), prompt_tokens, opening, now_ms };
                let place = rival.choose(&view, &mut self.rng);
                let pod = self.pods.get(place).ok_or(NoPod::PoolEmpty)?;
                (Arc::clone(pod), send_to(pod, &question))
            }
        };
        self.deciding += clock::now().saturating_duration_since(began);
        let course = Course::begin(&self.pool, &pod, send, now);
        drop(gate);
        self.index.insert(pod.slot, chain.blocks());
        let place = pod.slot as usize;
        let share = (matter.hits.held(pod.slot) * BLOCK_BYTES) as f32 / (*prompt_bytes).max(1) as f32;
        let claim = Claim { tokens: question.prompt_tokens as f32 * share.min(1.0), sent: now };
        Ok(Sent { pod: place, course, prompt_bytes: *prompt_bytes, chain: chain.clone(), claim })
    }

    /// What its decisions took in wall time: the index and the choice, without making up the prompt's text.
    pub(super) fn deciding(&self) -> Duration {
        self.deciding
    }

    /// A token of an answer came.
    pub(super) fn token(&self, sent: &mut Sent, now_ms: f64) {
        sent.course.tokens(1, self.instant(now_ms));
    }

    /// An answer is complete, and its usage says that the prompt had `prompt_tokens`. The reservation ends with `sent`.
    pub(super) fn complete(&self, mut sent: Sent, prompt_tokens: u32, answer: Piece, now_ms: f64) {
        let now = self.instant(now_ms);
        sent.course.complete(sent.prompt_bytes, Some(prompt_tokens), None, now);
        let slot = sent.course.pod().slot;
        // Engines do not say how much they found unless they are told to; their pages do.
        if sent.claim.tokens > 0.0 {
            self.index.answered(slot, sent.claim, None, now);
        }
        text::read_along(&mut sent.chain, answer);
        self.index.insert(slot, sent.chain.blocks());
        self.note(sent.course.pod(), Evidence::RequestOk { sent: sent.course.sent_at() }, now);
    }

    /// An attempt failed by its pod's fault, or an answer broke off.
    pub(super) fn failed(&self, sent: &Sent, now_ms: f64) {
        let (pod, now) = (sent.course.pod(), self.instant(now_ms));
        self.turned(pod, self.pool.failed(pod, now));
    }

    /// Its pod said that it is too busy.
    pub(super) fn refused_by(&self, sent: &Sent, now_ms: f64) {
        sent.course.pod().health.pushed_back(None, sent.course.sent_at(), self.instant(now_ms));
    }

    /// So that the next attempt goes elsewhere.
    pub(super) fn give_up(sent: &Sent, tried: &mut Tried) {
        tried.add(sent.course.pod());
    }

    /// Nobody listens where a page was asked for.
    pub(super) fn refused(&self, pod: usize, now_ms: f64) {
        if let Some(pod) = self.pods.get(pod) {
            self.note(pod, Evidence::ScrapeRefused, self.instant(now_ms));
        }
    }

    /// A pod that was away has likely lost its cache.
    fn note(&self, pod: &Pod, evidence: Evidence, now: Instant) {
        self.turned(pod, pod.health.note(evidence, now));
    }

    fn turned(&self, pod: &Pod, condition: Option<Condition>) {
        if condition == Some(Condition::Warming) {
            self.index.forget(pod.slot);
        }
    }

    /// A page is asked for: what the ledger says now.
    pub(super) fn marks(&self, pod: usize, now_ms: f64) -> Option<Marks> {
        let ledger = &self.pods.get(pod)?.ledger;
        Some(Marks { began: self.instant(now_ms), sent: ledger.sent(), ended: ledger.ended() })
    }

    /// A page has been read.
    pub(super) fn read(&self, pod: usize, marks: Marks, shown: &Shown, now_ms: f64) {
        let reading = self.reading(shown);
        let Some(pod) = self.pods.get(pod) else { return };
        let (capacity, hits) = (reading.kv_capacity(), reading.prefix_hits_total);
        let (sent_mark, ended_mark) = (marks.sent, marks.ended);
        pod.store_load(PodLoad { began: marks.began, sent_mark, ended_mark, reading });
        let now = self.instant(now_ms);
        self.note(pod, Evidence::ScrapeOk { asleep: false }, now);
        pod.speed.fade(now);
        if let Some(hits) = hits {
            self.index.counted(pod.slot, hits, now);
        }
        if let Some(tokens) = capacity {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
            let bytes = (tokens as f64 * f64::from(self.pool.bytes_per_token())) as usize;
            self.index.set_capacity(pod.slot, bytes / BLOCK_BYTES);
        }
    }

    /// What the scrape makes of a page.
    fn reading(&self, shown: &Shown) -> Reading {
        let name = |adapter: &u32| self.adapters.get(*adapter as usize).map(Arc::clone);
        let adapters = shown.adapters.as_ref().filter(|_| !self.adapters.is_empty());
        let adapters = adapters.map(|list| {
            let running: Vec<Arc<str>> = list.iter().filter_map(name).collect();
            // vLLM repeats the running ones where it should list those that are waited for.
            Adapters { max: Some(shown.max_loras), waiting: running.clone(), running }
        });
        Reading { adapters, ..shown.reading.clone() }
    }

    /// Puts down what a rival may see. That a pod is out of use is found out by our health, on behalf of its own.
    fn look(&mut self, (question, tried, now): (&Question<'_>, &Tried, Instant), truth: &dyn Fn(usize) -> Truth) {
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
                out: tried.contains(pod) || matches!(pod.admits(now), Admission::No(_)),
                truth: truth(place),
            });
        }
        if tried.is_empty() && self.seen.iter().all(|pod| pod.out) {
            self.seen.iter_mut().for_each(|pod| pod.out = false);
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
