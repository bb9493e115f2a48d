//! What a decision costs: one pick at 10, 100 and 1,000 pods, and hashing and matching a prompt's blocks. Targets: 2 us
//! at 10 pods, 20 us at 1,000; a 2 KB prompt well under 3 us, a 220 KB one under 150 us.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench may stop where it stands")]

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::{SeedableRng, rngs::StdRng};
use tidegate::{
    clock,
    config::{Bytes, Engine, Metrics, Origin, Pool, Scheduler, Scorer, Target, WeightedScorer},
    fleet::{Adapters, Fleet, PodLoad, Reading, ReportedModel, Reservation, Send},
    prefix::{BLOCK_BYTES, Blocks, Hits, Index},
    scheduler::{Question, Scene, Tried, pick},
};

const ADAPTERS: [&str; 6] = ["sql", "chat", "code", "legal", "medical", "poetry"];

fn fleet(pods: usize) -> (Fleet, Vec<Reservation>) {
    let metrics = Metrics {
        path: "/metrics".into(),
        port: None,
        interval: Duration::from_millis(250),
        timeout: Duration::from_secs(1),
        max_page: Bytes(4 << 20),
    };
    let pool = Pool {
        name: "pool".into(),
        engine: Engine::Vllm,
        endpoints: Vec::new(),
        metrics,
        forward_authorization: false,
        ca_file: None,
    };
    let now = clock::now();
    let fleet = Fleet::new(&[Arc::new(pool)], now);
    let targets: Vec<Target> = (0..pods).map(target).collect();
    fleet.set("pool", &targets, now);
    let mut held = Vec::new();
    let pool = fleet.pool("pool").unwrap();
    for (n, pod) in pool.pods().iter().enumerate() {
        pod.store_models(models());
        let send = Send { prompt_tokens: 900, uncached_tokens: 700 };
        held.extend((0..n % 5).map(|_| Reservation::new(Arc::clone(pod), send)));
        pod.store_load(PodLoad { began: now, sent_mark: pod.ledger.sent(), ended_mark: 0, reading: reading(n) });
        pod.speed.learn_first_token(500.0, 40.0, pool.pace());
    }
    (fleet, held)
}

fn target(n: usize) -> Target {
    let origin = Origin { https: false, host: format!("10.{}.{}.{}", n / 65_536, n / 256 % 256, n % 256), port: 8000 };
    Target { origin, base_path: String::new(), token_file: None, metrics_url: None }
}

fn models() -> Vec<ReportedModel> {
    let base: Arc<str> = "meta-llama/Llama-3.1-8B-Instruct".into();
    let adapter = |name: &&str| ReportedModel { name: (*name).into(), parent: Some(Arc::clone(&base)) };
    let own = ReportedModel { name: Arc::clone(&base), parent: None };
    std::iter::once(own).chain(ADAPTERS.iter().map(adapter)).collect()
}

fn reading(n: usize) -> Reading {
    let small = u32::try_from(n % 7).unwrap_or(0);
    Reading {
        engine: "vllm".into(),
        running: Some(8 + small),
        waiting: Some(small / 3),
        kv_usage: Some(f64::from(small) / 10.0),
        block_size: Some(16),
        blocks: Some(26_000),
        adapters: Some(Adapters {
            max: Some(4),
            running: ADAPTERS.iter().skip(n % 4).take(3).map(|name| (*name).into()).collect(),
            waiting: Vec::new(),
        }),
        ..Reading::default()
    }
}

fn hits(pods: usize) -> Hits {
    let index = Index::default();
    let prompt = vec![7u8; 3_600];
    let blocks = Blocks::of("code", "", [&prompt]);
    for slot in (0..pods).step_by(7) {
        index.insert(u32::try_from(slot).unwrap(), &blocks);
    }
    index.longest(&blocks)
}

fn picks(c: &mut Criterion) {
    let gie = [(Scorer::Queue, 2.0), (Scorer::KvCache, 2.0), (Scorer::PrefixCache, 3.0), (Scorer::LoraAffinity, 1.0)];
    let gie = gie.map(|(scorer, weight)| WeightedScorer { scorer, weight }).to_vec();
    let policies = [
        Scheduler::LeastCost,
        Scheduler::Weighted(gie),
        Scheduler::PowerOfTwo,
        Scheduler::RoundRobin,
        Scheduler::SessionHash,
    ];
    let mut rng = StdRng::seed_from_u64(1);
    for policy in policies {
        let mut group = c.benchmark_group(format!("pick/{}", policy.name()));
        for pods in [10, 100, 1_000] {
            let (fleet, _held) = fleet(pods);
            let pool = fleet.pool("pool").unwrap();
            let hits = hits(pods);
            group.bench_function(BenchmarkId::from_parameter(pods), |b| {
                b.iter(|| {
                    let _gate = pool.gate();
                    let listed = pool.pods();
                    let scene = Scene { pool, pods: &listed, now: clock::now() };
                    let question = Question {
                        served_model: "code",
                        prompt_tokens: 900,
                        block_tokens: 64.0,
                        hits: &hits,
                        session: Some(7),
                        expected_output_tokens: 200,
                    };
                    black_box(pick(&policy, &scene, &question, &Tried::none(), &mut rng).is_ok())
                });
            });
        }
    }
}

fn prompts(c: &mut Criterion) {
    let mut group = c.benchmark_group("prefix");
    for (name, bytes) in [("2KB", 2_048), ("32KB", 32_768), ("220KB", 220_000)] {
        let prompt: Vec<u8> = (0..bytes).map(|at: usize| u8::try_from(at % 251).unwrap()).collect();
        let pieces: Vec<&[u8]> = prompt.chunks(1_000).collect();
        let index = Index::default();
        let blocks = Blocks::of("code", "", &pieces);
        for slot in 0..10u32 {
            // Each pod holds a different part of it, and much else.
            let part = bytes * (slot as usize + 1) / 10 / BLOCK_BYTES * BLOCK_BYTES;
            index.insert(slot, &Blocks::of("code", "", [&prompt[..part]]));
            for n in 0..20u8 {
                let other: Vec<u8> = (0..60_000).map(|at: usize| u8::try_from(at % 239).unwrap() ^ n).collect();
                index.insert(slot, &Blocks::of("code", &slot.to_string(), [&other]));
            }
        }
        group.bench_function(BenchmarkId::new("hash", name), |b| {
            b.iter(|| black_box(Blocks::of("code", "", &pieces)));
        });
        group.bench_function(BenchmarkId::new("hash+match", name), |b| {
            b.iter(|| black_box(index.longest(&Blocks::of("code", "", &pieces))));
        });
        group.bench_function(BenchmarkId::new("insert", name), |b| {
            b.iter(|| index.insert(3, &blocks));
        });
    }
}

criterion_group!(benches, picks, prompts);
criterion_main!(benches);
