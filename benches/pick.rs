//! What a decision costs: one pick at 10, 100 and 1,000 pods; reading, hashing and matching a prompt; and all of it
//! together. Targets: a pick 2 us at 10 pods, 20 us at 1,000; a prompt of 220 KB read, hashed and matched over 64 pods
//! 100 us; the whole decision for 2 KB 5 us at 10 pods, 60 us at 1,000. No insertion holds the index's lock for 100 us.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::format_push_string,
    reason = "a bench may stop where it stands"
)]

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::{SeedableRng, rngs::StdRng};
use tidegate::{
    clock,
    config::{Bytes, Engine, Metrics, Origin, Pool, Saturation, Scheduler, Scorer, Target, WeightedScorer},
    fleet::{Adapters, Fleet, PodLoad, Reading, ReportedModel, Reservation, Room, Send, Spare},
    openai::{Ask, Endpoint},
    prefix::{BLOCK_BYTES, Blocks, Chain, Hits, Index, MAX_BLOCKS},
    scheduler::{Question, Scene, Tried, pick, pick_with_room},
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
        client_certificate: None,
        server_name: None,
        priority_scheduling: false,
        saturation: Saturation { wait: Duration::from_secs(1), batch: None, between_tokens: None },
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
        pool.speed.learn(&pod.speed, tidegate::fleet::Of::Prefill, (500.0, 40.0), tidegate::clock::now());
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
                    let scene = Scene { pool: &pool, pods: &listed, now: clock::now() };
                    let question = question(&hits, Some(7));
                    black_box(pick(&policy, &scene, &question, &Tried::none(), &mut rng).is_ok())
                });
            });
        }
    }
}

/// A prompt of a page, for the adapter that some pods hold.
fn question(hits: &Hits, session: Option<u64>) -> Question<'_> {
    Question {
        served_model: "code",
        prompt_tokens: 900,
        block_tokens: 64.0,
        hits,
        session,
        expected_output_tokens: 200,
    }
}

/// What every request pays for the line while nobody stands in it: whether there is room for it.
fn rooms(c: &mut Criterion) {
    let mut group = c.benchmark_group("room");
    for pods in [1, 10, 100, 1_000] {
        let (fleet, held) = fleet(pods);
        let pool = fleet.pool("pool").unwrap();
        let full = |share: usize| {
            let full = pool.pods().iter().take(pods * share / 100).map(Arc::clone).collect::<Vec<_>>();
            let send = Send { prompt_tokens: 200_000, uncached_tokens: 200_000 };
            full.into_iter().map(|pod| Reservation::new(pod, send)).collect::<Vec<_>>()
        };
        let hits = hits(pods);
        let mut rng = StdRng::seed_from_u64(1);
        for (share, name) in [(0, "some at the first"), (50, "half full"), (100, "full")] {
            let there = full(share);
            for (spare, with) in [
                (None, "pick"),
                (Some(Spare::Crowded), "pick_with_room"),
                (Some(Spare::Full), "pick_with_room in line"),
            ] {
                group.bench_function(BenchmarkId::new(format!("{with}, {name}"), pods), |b| {
                    b.iter(|| {
                        let _gate = pool.gate();
                        let listed = pool.pods();
                        let scene = Scene { pool: &pool, pods: &listed, now: clock::now() };
                        let question = question(&hits, None);
                        let (policy, tried) = (&Scheduler::LeastCost, Tried::none());
                        let picked = match spare {
                            None => pick(policy, &scene, &question, &tried, &mut rng),
                            Some(spare) => pick_with_room(policy, &scene, &question, (&tried, spare), &mut rng),
                        };
                        black_box(picked.is_ok())
                    });
                });
            }
            group.bench_function(BenchmarkId::new(name, pods), |b| {
                b.iter(|| {
                    let pods = pool.pods();
                    Room::of(&pool, &pods, |pod| pod.serves(ADAPTERS[0]) != Some(false), clock::now())
                });
            });
            drop(there);
        }
        drop(held);
    }
    group.finish();
}

/// A chat of about `size` bytes: a system prompt, then turns of code and talk, a line of about 50 bytes at a time.
fn chat(size: usize, seed: usize) -> (Ask, String) {
    let line = |n: usize| format!("    let tide_{n} = gauge(\\\"harbour\\\", {});\\n", n * seed % 9_973);
    let mut turns = String::from(r#"{"role":"system","content":"You write Rust."}"#);
    let mut n = 0;
    while turns.len() < size {
        let lines: String = (n..n + 40).map(line).take_while(|_| turns.len() < size).collect();
        let room = size.saturating_sub(turns.len()).min(lines.len());
        let cut = lines[..room].rfind("\\n").map_or(lines.len(), |at| at + 2);
        let role = if n % 80 == 0 { "user" } else { "assistant" };
        turns.push_str(&format!(r#",{{"role":"{role}","content":"{}"}}"#, &lines[..cut]));
        n += 40;
    }
    let body = format!(r#"{{"model":"code","messages":[{turns}],"stream":true,"max_tokens":256}}"#);
    let ask = Ask::parse(Endpoint::ChatCompletions, None, body.as_bytes()).unwrap();
    (ask, body)
}

fn chain_of((ask, body): &(Ask, String)) -> Chain {
    let mut chain = Chain::new("code", "");
    ask.prompt_text(body.as_bytes(), Chain::MAX_BYTES, |piece| chain.push(piece));
    chain
}

/// Other prompts of 60 KB, as many as a pod's default capacity takes.
fn fill(index: &Index, slot: u32) {
    for n in 0..40u8 {
        let other: Vec<u8> = (0..60_000).map(|at: usize| u8::try_from(at % 239).unwrap() ^ n).collect();
        index.insert(slot, &Blocks::of("code", &slot.to_string(), [&other]));
    }
}

fn prompts(c: &mut Criterion) {
    let mut group = c.benchmark_group("prefix");
    for (name, bytes) in [("2KB", 2_048), ("32KB", 32_768), ("220KB", 220_000)] {
        let prompt = chat(bytes, 7);
        let chain = chain_of(&prompt);
        let index = Index::default();
        for slot in 0..64u32 {
            // Each pod holds a different part of it, and much else.
            fill(&index, slot);
            let part = prompt.1.len() * (slot as usize + 1) / 64;
            let mut start = Chain::new("code", "");
            prompt.0.prompt_text(prompt.1.as_bytes(), part.max(BLOCK_BYTES), |piece| start.push(piece));
            index.insert(slot, start.blocks());
        }
        group.bench_function(BenchmarkId::new("read", name), |b| {
            b.iter(|| prompt.0.prompt_text(prompt.1.as_bytes(), usize::MAX, |piece| _ = black_box(piece)));
        });
        group.bench_function(BenchmarkId::new("read+hash", name), |b| {
            b.iter(|| black_box(chain_of(&prompt)));
        });
        group.bench_function(BenchmarkId::new("read+hash+match", name), |b| {
            b.iter(|| black_box(index.longest(chain_of(&prompt).blocks())));
        });
        group.bench_function(BenchmarkId::new("insert again", name), |b| {
            b.iter(|| index.insert(3, chain.blocks()));
        });
    }
}

/// The longest that the index's lock is held for: the longest prompt, new, at a pod that is full; and a restart.
fn locks(c: &mut Criterion) {
    let index = Index::default();
    (0..64).for_each(|slot| fill(&index, slot));
    let texts: Vec<Blocks> =
        (0..256u32).map(|n| Blocks::of("code", &n.to_string(), [vec![7u8; MAX_BLOCKS * BLOCK_BYTES]])).collect();
    let mut at = 0;
    let mut group = c.benchmark_group("lock");
    group.bench_function("insert 2048 new", |b| {
        b.iter(|| {
            index.insert(3, &texts[at % texts.len()]);
            at += 1;
        });
    });
    group.bench_function("forget and fill", |b| {
        b.iter(|| {
            index.forget(3);
            (0..4).for_each(|n| index.insert(3, &texts[n]));
        });
    });
}

/// From the parsed request to the verdict and the prompt's insertion, as the gateway's desk goes.
fn decisions(c: &mut Criterion) {
    let mut group = c.benchmark_group("decision");
    let mut rng = StdRng::seed_from_u64(1);
    for pods in [10, 64, 1_000] {
        let (fleet, _held) = fleet(pods);
        let pool = fleet.pool("pool").unwrap();
        let index = Index::default();
        let prompts: Vec<_> = (1..=16).map(|seed| chat(2_048, seed)).collect();
        for pod in pool.pods().iter().take(100) {
            fill(&index, pod.slot);
        }
        for (n, prompt) in prompts.iter().enumerate() {
            pool.pods().iter().skip(n).step_by(7).for_each(|pod| index.insert(pod.slot, chain_of(prompt).blocks()));
        }
        let mut at = 0;
        group.bench_function(BenchmarkId::new("2KB", pods), |b| {
            b.iter(|| {
                let prompt = &prompts[at % prompts.len()];
                at += 1;
                let mut chain = Chain::new("code", "");
                let bytes = prompt.0.prompt_text(prompt.1.as_bytes(), Chain::MAX_BYTES, |piece| chain.push(piece));
                let hits = index.longest(chain.blocks());
                let gate = pool.gate();
                let listed = pool.pods();
                let scene = Scene { pool: &pool, pods: &listed, now: clock::now() };
                let question = Question {
                    served_model: "code",
                    prompt_tokens: pool.tokens(bytes),
                    block_tokens: 64.0,
                    hits: &hits,
                    session: None,
                    expected_output_tokens: 200,
                };
                let verdict = pick(&Scheduler::LeastCost, &scene, &question, &Tried::none(), &mut rng).unwrap();
                drop(gate);
                index.insert(verdict.pod.slot, chain.blocks());
            });
        });
    }
}

criterion_group!(benches, picks, rooms, prompts, locks, decisions);
criterion_main!(benches);
