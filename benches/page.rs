//! What it costs to read one recorded page. Target: 50 us for the 52 KB of a loaded vLLM.

#![expect(clippy::expect_used, reason = "a bench that cannot begin may end")]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::{fs, hint::black_box, path::Path};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate::{config::Engine, scrape::read_page};

const PAGES: [&str; 4] = [
    "vllm-0.32.0-metrics-load0",
    "vllm-0.32.0-lora-metrics-load1",
    "vllm-0.32.0-dp2-metrics-load0",
    "sglang-0.5.23-metrics-load1",
];

fn pages(criterion: &mut Criterion) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics");
    let mut group = criterion.benchmark_group("page");
    for name in PAGES {
        let text = fs::read(folder.join(format!("{name}.txt"))).expect("a recorded page");
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| read_page(&Engine::Auto, black_box(&text)));
        });
    }
    group.finish();
}

criterion_group!(benches, pages);
criterion_main!(benches);
