//! What the scheduler does with whole pools.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    config::{Scheduler, Scorer, Target, WeightedScorer},
    fleet::{
        Adapters, Evidence, Fleet, Of, Pod, PodLoad, PoolState, Reading, ReportedModel, Reservation, Send, for_test,
    },
    prefix::{Blocks, Hits, Index},
};

/// A pool of `n` pods that are there from the start.
struct Stage {
    fleet: Fleet,
    now: Instant,
    hits: Hits,
}

impl Stage {
    fn new(n: u8) -> Self {
        let now = crate::clock::now();
        let fleet = Fleet::new(&[for_test::pool("pool")], now);
        fleet.set("pool", &(0..n).map(target).collect::<Vec<_>>(), now);
        Self { fleet, now, hits: Hits::default() }
    }

    /// The same, every pod read just now and idle.
    fn idle(n: u8) -> Self {
        let stage = Self::new(n);
        for pod in stage.pods().iter() {
            stage.read(pod, told(0, 0), stage.now);
        }
        stage
    }

    fn pool(&self) -> Arc<PoolState> {
        self.fleet.pool("pool").unwrap()
    }

    fn pods(&self) -> Arc<Vec<Arc<Pod>>> {
        self.pool().pods()
    }

    fn pod(&self, n: usize) -> Arc<Pod> {
        Arc::clone(&self.pods()[n])
    }

    fn ago(&self, millis: u64) -> Instant {
        self.now.checked_sub(Duration::from_millis(millis)).unwrap()
    }

    fn read(&self, pod: &Pod, reading: Reading, began: Instant) {
        assert!(began <= self.now);
        pod.store_load(PodLoad { began, sent_mark: pod.ledger.sent(), ended_mark: pod.ledger.ended(), reading });
    }

    fn ask(&self, prompt_tokens: u32) -> Question<'_> {
        Question {
            served_model: "llama",
            prompt_tokens,
            block_tokens: 64.0,
            hits: &self.hits,
            session: None,
            expected_output_tokens: 200,
        }
    }

    fn try_pick(
        &self,
        policy: &Scheduler,
        ask: &Question<'_>,
        tried: &Tried,
        rng: &mut impl Rng,
    ) -> Result<Verdict, NoPod> {
        let pods = self.pods();
        let scene = Scene { pool: &self.pool(), pods: &pods, now: self.now };
        pick(policy, &scene, ask, tried, rng)
    }

    fn pick(&self, policy: &Scheduler, ask: &Question<'_>, rng: &mut impl Rng) -> Verdict {
        self.try_pick(policy, ask, &Tried::none(), rng).unwrap()
    }

    fn explain(&self, policy: &Scheduler, ask: &Question<'_>) -> Explanation {
        let pods = self.pods();
        let scene = Scene { pool: &self.pool(), pods: &pods, now: self.now };
        explain(policy, &scene, ask, &Tried::none(), &mut rng())
    }

    /// How often each pod is picked in `n` picks, each reserved until all are made.
    fn burst(&self, policy: &Scheduler, ask: &Question<'_>, n: usize) -> BTreeMap<u32, usize> {
        let mut rng = rng();
        let mut held = Vec::new();
        for _ in 0..n {
            let verdict = self.pick(policy, ask, &mut rng);
            held.push(Reservation::new(verdict.pod, verdict.send));
        }
        self.counts(&held)
    }

    fn counts(&self, held: &[Reservation]) -> BTreeMap<u32, usize> {
        let mut counts: BTreeMap<u32, usize> = self.pods().iter().map(|pod| (pod.slot, 0)).collect();
        for it in held {
            *counts.entry(it.pod().slot).or_default() += 1;
        }
        counts
    }

    /// How often each pod is picked in `n` picks that end before the next.
    fn shares(&self, policy: &Scheduler, ask: &Question<'_>, n: usize) -> BTreeMap<u32, usize> {
        let mut rng = rng();
        let mut counts: BTreeMap<u32, usize> = self.pods().iter().map(|pod| (pod.slot, 0)).collect();
        for _ in 0..n {
            *counts.entry(self.pick(policy, ask, &mut rng).pod.slot).or_default() += 1;
        }
        counts
    }
}

fn target(n: u8) -> Target {
    for_test::target(&format!("10.0.0.{n}"))
}

fn told(running: u32, waiting: u32) -> Reading {
    Reading { running: Some(running), waiting: Some(waiting), kv_usage: Some(0.0), ..Reading::default() }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(42)
}

fn load(pod: &Arc<Pod>, uncached_tokens: u32) -> Reservation {
    let send = Send { prompt_tokens: uncached_tokens, uncached_tokens };
    Reservation::new(Arc::clone(pod), send)
}

fn gie() -> Scheduler {
    let scorer = |scorer, weight| WeightedScorer { scorer, weight };
    Scheduler::Weighted(vec![
        scorer(Scorer::Queue, 2.0),
        scorer(Scorer::KvCache, 2.0),
        scorer(Scorer::PrefixCache, 3.0),
        scorer(Scorer::LoraAffinity, 1.0),
        scorer(Scorer::Running, 1.0),
    ])
}

fn policies() -> [Scheduler; 7] {
    [
        Scheduler::LeastCost,
        gie(),
        Scheduler::LeastRequest,
        Scheduler::PowerOfTwo,
        Scheduler::RoundRobin,
        Scheduler::Random,
        Scheduler::SessionHash,
    ]
}

fn even(counts: &BTreeMap<u32, usize>, share: usize, within: usize) {
    assert!(counts.values().all(|n| n.abs_diff(share) <= within), "{counts:?}");
}

#[test]
fn a_burst_of_a_thousand_equal_requests_spreads_evenly_over_idle_pods_of_any_sight() {
    for stage in [Stage::idle(10), Stage::new(10)] {
        for (prompt, output) in [(1, 0), (1, 200), (500, 200), (8_000, 20)] {
            let ask = Question { expected_output_tokens: output, ..stage.ask(prompt) };
            even(&stage.burst(&Scheduler::LeastCost, &ask, 1_000), 100, 2);
            even(&stage.burst(&Scheduler::LeastRequest, &ask, 1_000), 100, 0);
            even(&stage.burst(&gie(), &ask, 1_000), 100, 2);
        }
    }
}

#[test]
fn a_burst_from_eight_threads_spreads_evenly_because_pick_and_reserve_are_one_step() {
    let stage = Stage::idle(10);
    let held: Vec<Reservation> = std::thread::scope(|scope| {
        let work = |seed| {
            let stage = &stage;
            move || {
                let mut rng = StdRng::seed_from_u64(seed);
                let one = |_| {
                    let pool = stage.pool();
                    let _gate = pool.gate();
                    let verdict = stage.pick(&Scheduler::LeastCost, &stage.ask(700), &mut rng);
                    Reservation::new(verdict.pod, verdict.send)
                };
                (0..125).map(one).collect::<Vec<_>>()
            }
        };
        let threads: Vec<_> = (0..8).map(|seed| scope.spawn(work(seed))).collect();
        threads.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    even(&stage.counts(&held), 100, 2);
}

#[test]
fn a_lone_request_at_a_time_still_visits_every_equal_pod() {
    even(&Stage::idle(10).shares(&Scheduler::LeastCost, &Stage::idle(10).ask(300), 2_000), 200, 60);
}

#[test]
fn the_holder_of_a_prefix_wins_until_its_backlog_costs_more_than_the_prefill_it_saves() {
    let mut stage = Stage::idle(4);
    let index = Index::default();
    let prompt = Blocks::of("llama", "", [vec![1u8; 16_384]]);
    index.insert(stage.pod(2).slot, &prompt);
    stage.hits = index.longest(&prompt);
    let ask = stage.ask(4_096);
    let mut rng = rng();
    let verdict = stage.pick(&Scheduler::LeastCost, &ask, &mut rng);
    assert_eq!((verdict.pod.slot, verdict.send.uncached_tokens), (2, 1));
    let _some = load(&stage.pod(2), 2_000);
    assert_eq!(stage.pick(&Scheduler::LeastCost, &ask, &mut rng).pod.slot, 2);
    let _more = load(&stage.pod(2), 3_000);
    assert_ne!(stage.pick(&Scheduler::LeastCost, &ask, &mut rng).pod.slot, 2);
}

#[test]
fn a_slow_pod_gets_little_as_soon_as_its_answers_show_it() {
    let stage = Stage::idle(4);
    let pool = stage.pool();
    for (n, pod) in stage.pods().iter().enumerate() {
        let slow = if n == 0 { 4.0 } else { 1.0 };
        for i in 0..60u32 {
            let tokens = f64::from(i % 6) * 400.0;
            pool.speed.learn(&pod.speed, Of::Prefill, (tokens, (20.0 + 0.05 * tokens) * slow), crate::clock::now());
            pool.speed.learn(&pod.speed, Of::Decode, (0.0, 15.0 * slow), crate::clock::now());
        }
    }
    let counts = stage.burst(&Scheduler::LeastCost, &stage.ask(1_000), 130);
    // At a quarter of the speed it should end with about a quarter of the others' backlog: 10 of 130.
    assert!((2..=14).contains(&counts[&0]), "{counts:?}");
}

#[test]
fn others_traffic_is_seen_and_counts_less_as_its_reading_ages() {
    let stage = Stage::idle(2);
    let cost = |age: u64| {
        stage.read(&stage.pod(0), told(8, 4), stage.ago(age * 1_000));
        let told = stage.explain(&Scheduler::LeastCost, &stage.ask(500));
        let total = |n: usize| told.candidates[n].total.unwrap();
        (total(0) - total(1), told.candidates[0].reading_trust)
    };
    let (fresh, older, gone) = (cost(0), cost(3), cost(6));
    assert!(fresh.0 > 100.0 && older.0 > 0.0 && older.0 < fresh.0 * 0.6, "{fresh:?} {older:?}");
    assert!(gone.0.abs() < 1e-9 && gone.1.abs() < f64::EPSILON, "{gone:?}");
}

#[test]
fn our_own_requests_in_a_reading_are_not_counted_twice() {
    let stage = Stage::idle(2);
    let held: Vec<_> = (0..6).map(|_| load(&stage.pod(0), 100)).collect();
    let streams = |stage: &Stage| stage.explain(&Scheduler::LeastCost, &stage.ask(10)).candidates[0].streams;
    assert_eq!(streams(&stage), Some(6.0));
    stage.read(&stage.pod(0), told(4, 2), stage.now);
    assert_eq!(streams(&stage), Some(6.0));
    drop(held);
    assert_eq!(streams(&stage), Some(0.0));
}

#[test]
fn a_pod_never_read_is_taken_for_an_average_one_neither_idle_nor_full() {
    let stage = Stage::new(3);
    stage.read(&stage.pod(0), told(2, 0), stage.now);
    stage.read(&stage.pod(1), told(20, 6), stage.now);
    let told = stage.explain(&Scheduler::LeastCost, &stage.ask(500));
    let total = |n: usize| told.candidates[n].total.unwrap();
    assert!(total(0) < total(2) && total(2) < total(1), "{told:?}");
    assert_eq!(told.verdict.as_deref(), Some("pool/10.0.0.0:8000"));
}

#[test]
fn a_page_without_gauges_is_no_idle_pod() {
    let stage = Stage::new(2);
    stage.read(&stage.pod(0), Reading::default(), stage.now);
    stage.read(&stage.pod(1), told(6, 0), stage.now);
    let told = stage.explain(&Scheduler::LeastRequest, &stage.ask(500));
    assert_eq!(told.candidates[0].streams, Some(6.0));
}

#[test]
fn the_verdict_says_what_it_stood_on() {
    let mut rng = rng();
    let stage = Stage::new(3);
    let seen = |stage: &Stage, policy: &Scheduler, rng: &mut StdRng| stage.pick(policy, &stage.ask(100), rng).sight;
    for policy in [Scheduler::LeastCost, gie(), Scheduler::LeastRequest, Scheduler::PowerOfTwo] {
        assert_eq!(seen(&stage, &policy, &mut rng), Sight::RoundRobin);
    }
    let held = load(&stage.pod(0), 5_000);
    assert_eq!(seen(&stage, &Scheduler::LeastCost, &mut rng), Sight::InFlightOnly);
    stage.read(&stage.pod(1), told(0, 0), stage.now);
    assert_eq!(seen(&stage, &Scheduler::LeastCost, &mut rng), Sight::Fresh);
    assert_eq!(seen(&stage, &Scheduler::RoundRobin, &mut rng), Sight::Unneeded);
    drop(held);
}

#[test]
fn blind_equal_pods_take_turns_and_explaining_takes_none() {
    let stage = Stage::new(3);
    let mut rng = rng();
    let order: Vec<u32> = (0..6)
        .map(|_| {
            let told = stage.explain(&Scheduler::LeastCost, &stage.ask(100));
            let verdict = stage.pick(&Scheduler::LeastCost, &stage.ask(100), &mut rng);
            assert_eq!(told.verdict, Some(verdict.pod.id.to_string()));
            verdict.pod.slot
        })
        .collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn round_robin_gives_an_absent_pods_turn_to_all_others() {
    let stage = Stage::idle(4);
    stage.pod(1).health.note(Evidence::HealthBad, stage.now);
    let counts = stage.shares(&Scheduler::RoundRobin, &stage.ask(1), 300);
    assert_eq!(counts, BTreeMap::from([(0, 100), (1, 0), (2, 100), (3, 100)]));
}

#[test]
fn a_warming_pod_gets_about_its_share_under_every_policy_that_spreads() {
    let mut stage = Stage::new(0);
    stage.now += Duration::from_secs(60);
    stage.fleet.set("pool", &(0..4).map(target).collect::<Vec<_>>(), stage.now);
    for pod in stage.pods().iter().skip(1) {
        // Only the first is a newcomer; the others are asked to have finished warming up.
        pod.health.note(Evidence::ScrapeOk { asleep: true }, stage.ago(40_000));
        pod.health.note(Evidence::ScrapeOk { asleep: false }, stage.ago(35_000));
    }
    stage.now += Duration::from_secs(6); // a fifth of its 30 s
    for pod in stage.pods().iter() {
        stage.read(pod, told(0, 0), stage.now);
    }
    for policy in [Scheduler::LeastCost, Scheduler::LeastRequest, Scheduler::RoundRobin, Scheduler::Random] {
        let counts = stage.burst(&policy, &stage.ask(500), 3_200);
        // A fifth of a warm pod's thousand is 200.
        assert!((100..=330).contains(&counts[&0]), "{} {counts:?}", policy.name());
    }
}

#[test]
fn a_session_stays_and_a_pod_that_leaves_moves_only_its_own() {
    let stage = Stage::idle(8);
    let mut rng = rng();
    let mut place = |session: u64| {
        let ask = Question { session: Some(xxhash_rust::xxh3::xxh3_64(&session.to_le_bytes())), ..stage.ask(10) };
        stage.pick(&Scheduler::SessionHash, &ask, &mut rng).pod.slot
    };
    let before: Vec<u32> = (0..4_000).map(&mut place).collect();
    assert_eq!(before, (0..4_000).map(&mut place).collect::<Vec<_>>());
    for slot in 0..8 {
        let here = before.iter().filter(|it| **it == slot).count();
        assert!(here.abs_diff(500) < 100, "{slot} has {here}");
    }
    stage.pod(3).health.note(Evidence::Gone, stage.now);
    for (session, was) in before.iter().enumerate() {
        let is = place(session as u64);
        assert!(is != 3 && (is == *was || *was == 3));
    }
}

#[test]
fn an_adapter_draws_its_requests_until_the_queue_there_costs_more_than_loading_it() {
    let stage = Stage::new(3);
    let adapters = |running: &[&str], max| Reading {
        adapters: Some(Adapters {
            max: Some(max),
            running: running.iter().map(|it| (*it).into()).collect(),
            waiting: Vec::new(),
        }),
        ..told(0, 0)
    };
    stage.read(&stage.pod(0), adapters(&["a", "b"], 2), stage.now);
    stage.read(&stage.pod(1), adapters(&["llama"], 2), stage.now);
    stage.read(&stage.pod(2), adapters(&["a"], 2), stage.now);
    let told = stage.explain(&Scheduler::LeastCost, &stage.ask(100));
    let term = |n: usize| told.candidates[n].terms.iter().find(|it| it.name == "adapter").unwrap().value;
    // At a full pod it waits for another adapter's requests to end: their 256 tokens of 15.0 ms, and then the load.
    let ends = f64::from(stage.ask(100).expected_output_tokens) * 15.0;
    assert_eq!((term(0).round(), term(1), term(2)), (500.0 + ends, 0.0, 150.0));
    assert_eq!(told.verdict.as_deref(), Some("pool/10.0.0.1:8000"));
    let scores = stage.explain(&gie(), &stage.ask(100));
    let score =
        |n: usize| scores.candidates[n].terms.iter().find(|it| it.name == "lora-affinity-scorer").unwrap().value;
    assert_eq!((score(0), score(1), score(2)), (0.0, 1.0, 0.8));
    let _queue = load(&stage.pod(1), 4_000);
    assert_eq!(stage.pick(&Scheduler::LeastCost, &stage.ask(100), &mut rng()).pod.slot, 2);
}

#[test]
fn a_full_kv_cache_is_avoided_and_a_half_full_one_is_not() {
    let stage = Stage::new(2);
    let kv = |usage| Reading { kv_usage: Some(usage), blocks: Some(1_000), block_size: Some(16), ..told(4, 0) };
    let term = |usage| {
        stage.read(&stage.pod(0), kv(usage), stage.now);
        stage.read(&stage.pod(1), kv(0.1), stage.now);
        let told = stage.explain(&Scheduler::LeastCost, &stage.ask(1_000));
        told.candidates[0].terms.iter().find(|it| it.name == "kv").unwrap().value
    };
    assert!(term(0.5).abs() < f64::EPSILON);
    assert!(term(0.99) > 50.0, "{}", term(0.99));
}

#[test]
fn gies_scorers_give_gies_numbers() {
    let mut stage = Stage::new(3);
    for (n, (waiting, running, kv)) in [(0, 4, 0.25), (5, 2, 0.5), (10, 0, 1.0)].into_iter().enumerate() {
        let reading = Reading { kv_usage: Some(kv), ..told(running, waiting) };
        stage.read(&stage.pod(n), reading, stage.now);
    }
    let index = Index::default();
    let prompt = Blocks::of("llama", "", [vec![1u8; 1_024]]);
    index.insert(stage.pod(1).slot, &Blocks::of("llama", "", [vec![1u8; 768]]));
    stage.hits = index.longest(&prompt);
    let told = stage.explain(&gie(), &stage.ask(256));
    let values = |n: usize| told.candidates[n].terms.iter().map(|it| it.value).collect::<Vec<_>>();
    // queue x2, running x1, kv x2, prefix x3, lora x1, share
    assert_eq!(values(0), [2.0, 0.0, 1.5, 0.0, 0.0, 1.0]);
    assert_eq!(values(1), [1.0, 0.5, 1.0, 2.25, 0.0, 1.0]);
    assert_eq!(values(2), [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(told.verdict.as_deref(), Some("pool/10.0.0.1:8000"));
}

#[test]
fn power_of_two_never_takes_the_worst() {
    let stage = Stage::idle(5);
    let _held: Vec<_> = (0..3).map(|_| load(&stage.pod(4), 10)).collect();
    let counts = stage.shares(&Scheduler::PowerOfTwo, &stage.ask(10), 2_000);
    assert_eq!(counts[&4], 0);
    assert!((0..4).all(|slot| counts[&slot].abs_diff(500) < 100), "{counts:?}");
}

#[test]
fn without_an_admitted_pod_an_ejected_one_is_taken_and_a_sleeper_never() {
    let stage = Stage::idle(2);
    stage.pod(0).health.note(Evidence::ScrapeOk { asleep: true }, stage.now);
    stage.pod(1).health.note(Evidence::HealthBad, stage.now);
    let mut rng = rng();
    for policy in policies() {
        let verdict = stage.pick(&policy, &stage.ask(10), &mut rng);
        assert!(verdict.failed_open && verdict.pod.slot == 1);
        let mut tried = Tried::none();
        tried.add(&verdict.pod);
        let refused = stage.try_pick(&policy, &stage.ask(10), &tried, &mut rng).unwrap_err();
        assert_eq!(refused, NoPod::AllTried);
    }
    stage.pod(1).health.note(Evidence::Gone, stage.now);
    let outs = Outs { asleep: 1, draining: 1 };
    let refused = stage.try_pick(&Scheduler::LeastCost, &stage.ask(10), &Tried::none(), &mut rng);
    assert_eq!(refused.unwrap_err(), NoPod::AllOut(outs));
    assert_eq!(stage.explain(&Scheduler::LeastCost, &stage.ask(10)).refusal, Some(NoPod::AllOut(outs).to_string()));
}

#[test]
fn an_empty_pool_and_a_model_that_nobody_serves_are_told_apart() {
    let mut rng = rng();
    let empty = Stage::new(0);
    let none = Tried::none();
    assert_eq!(empty.try_pick(&Scheduler::LeastCost, &empty.ask(1), &none, &mut rng).unwrap_err(), NoPod::PoolEmpty);
    let stage = Stage::idle(1);
    stage.pod(0).store_models(vec![ReportedModel { name: "other".into(), parent: None }]);
    assert_eq!(stage.try_pick(&Scheduler::LeastCost, &stage.ask(1), &none, &mut rng).unwrap_err(), NoPod::NotServed);
}

#[test]
fn an_ejected_pod_is_tried_by_one_request_at_a_time_and_by_no_retry() {
    let mut stage = Stage::idle(2);
    stage.pod(0).health.note(Evidence::HealthBad, stage.now);
    stage.now += Duration::from_secs(10);
    let busy: Vec<_> = (0..4).map(|_| load(&stage.pod(1), 1_000)).collect();
    let mut rng = rng();
    let mut elsewhere = Tried::none();
    elsewhere.add(&Pod::for_test("pool", 99));
    let retry = stage.try_pick(&Scheduler::LeastCost, &stage.ask(10), &elsewhere, &mut rng).unwrap();
    assert_eq!(retry.pod.slot, 1);
    let probe = stage.pick(&Scheduler::LeastCost, &stage.ask(10), &mut rng);
    assert_eq!(probe.pod.slot, 0);
    let probe = Reservation::new(probe.pod, probe.send);
    assert!(probe.is_probe());
    assert_eq!(stage.pick(&Scheduler::LeastCost, &stage.ask(10), &mut rng).pod.slot, 1);
    drop((probe, busy));
}

/// What a pod in a random fleet is like: health, whether it serves, whether tried, load, age of its reading.
type Like = (u8, u8, bool, u32, Option<u64>);

fn arrange(stage: &Stage, likes: &[Like]) -> (Tried, Vec<Reservation>) {
    let (mut tried, mut held) = (Tried::none(), Vec::new());
    for (pod, (health, serves, was_tried, load_there, age)) in stage.pods().iter().zip(likes) {
        let evidence = match health {
            0 => Some(Evidence::HealthBad),
            1 => Some(Evidence::ScrapeOk { asleep: true }),
            2 => Some(Evidence::Gone),
            3 => Some(Evidence::ScrapeOk { asleep: false }),
            _ => None,
        };
        evidence.map(|evidence| pod.health.note(evidence, stage.now));
        let model = |name: &str| ReportedModel { name: name.into(), parent: (*serves == 2).then(|| "base".into()) };
        match serves {
            0 => pod.store_models(vec![model("other")]),
            1 | 2 => pod.store_models(vec![model("other"), model("llama")]),
            _ => {}
        }
        if let Some(age) = age {
            stage.read(pod, told(*load_there, load_there / 3), stage.ago(*age));
        }
        held.extend((0..load_there % 5).map(|_| load(pod, 100 * load_there)));
        if *was_tried {
            tried.add(pod);
        }
    }
    (tried, held)
}

proptest! {
    #[test]
    fn every_policy_picks_an_admitted_untried_pod_that_serves_the_model_if_there_is_one(
        likes in prop::collection::vec((0u8..8, 0u8..5, prop::bool::weighted(0.2), 0u32..30, prop::option::of(0u64..9_000)), 0..12),
        seed: u64,
        prompt in 1u32..20_000,
        session: Option<u64>,
    ) {
        let stage = Stage::new(u8::try_from(likes.len()).unwrap());
        let (tried, held) = arrange(&stage, &likes);
        let usable = |like: &Like, ejected: bool| like.1 != 0 && !like.2 && (like.0 > 2 || ejected && like.0 == 0);
        let ask = Question { session, ..stage.ask(prompt) };
        for policy in policies() {
            let mut rng = StdRng::seed_from_u64(seed);
            let picked = stage.try_pick(&policy, &ask, &tried, &mut rng);
            let ready = likes.iter().any(|like| usable(like, false));
            match picked {
                Ok(verdict) => {
                    prop_assert_eq!(verdict.failed_open, !ready);
                    prop_assert!(usable(&likes[verdict.pod.slot as usize], !ready));
                    prop_assert!(verdict.price.rank().is_finite());
                }
                Err(_) => prop_assert!(!likes.iter().any(|like| usable(like, true))),
            }
        }
        drop(held);
    }

    #[test]
    fn what_explain_shows_is_what_pick_does(
        likes in prop::collection::vec((0u8..8, 0u8..5, prop::bool::weighted(0.2), 0u32..30, prop::option::of(0u64..9_000)), 0..12),
        seed: u64,
        prompt in 1u32..20_000,
    ) {
        let stage = Stage::new(u8::try_from(likes.len()).unwrap());
        let (tried, held) = arrange(&stage, &likes);
        let pods = stage.pods();
        let scene = Scene { pool: &stage.pool(), pods: &pods, now: stage.now };
        let ask = Question { session: Some(seed), ..stage.ask(prompt) };
        for policy in policies() {
            let told = explain(&policy, &scene, &ask, &tried, &mut StdRng::seed_from_u64(seed));
            prop_assert_eq!(told.candidates.len(), likes.len());
            let picked = pick(&policy, &scene, &ask, &tried, &mut StdRng::seed_from_u64(seed));
            prop_assert_eq!(&told.verdict, &picked.as_ref().ok().map(|it| it.pod.id.to_string()));
            prop_assert_eq!(told.refusal.is_some(), picked.is_err());
            let Ok(verdict) = picked else { continue };
            let shown = told.candidates.iter().find(|it| Some(&it.pod) == told.verdict.as_ref()).unwrap();
            prop_assert_eq!(shown.total, Some(verdict.price.total()));
            let Price::Cost(cost) = verdict.price else { continue };
            let least = told.candidates.iter().filter_map(|it| it.total).fold(f64::INFINITY, f64::min);
            prop_assert!(cost.total_ms() <= least + 0.02 * (cost.prefill_ms + cost.decode_ms) / cost.share + 1e-9);
        }
        drop(held);
    }
}

#[test]
fn a_pod_whose_page_never_came_is_used_like_the_others() {
    let stage = Stage::new(4);
    for pod in stage.pods().iter().skip(1) {
        stage.read(pod, told(1, 0), stage.ago(100));
    }
    let counts = stage.burst(&Scheduler::LeastCost, &stage.ask(500), 400);
    assert!(counts.values().all(|count| (90..=110).contains(count)), "{counts:?}");
    let lone = stage.shares(&Scheduler::LeastCost, &stage.ask(500), 400);
    assert!(lone.values().all(|count| (50..=150).contains(count)), "{lone:?}");
}
