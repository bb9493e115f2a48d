//! What the recorded pages of real servers say, read by eye and written down line by line.

use std::{collections::BTreeSet, fs, path::PathBuf};

use crate::{
    config::Engine,
    fleet::{Adapters, Reading},
};

/// Running, waiting, usage: mean and maximum.
type Gauges = (Option<u32>, Option<u32>, Option<f64>, Option<f64>);
/// Prefix queries and hits, prompt and generated tokens.
type Counters = (Option<u64>, Option<u64>, Option<u64>, Option<u64>);

struct Row {
    page: &'static str,
    gauges: Gauges,
    blocks: u64,
    running_adapters: Option<&'static [&'static str]>,
    counters: Counters,
}

const fn gauges(running: u32, waiting: u32, usage: f64) -> Gauges {
    (Some(running), Some(waiting), Some(usage), Some(usage))
}

const fn counters(queries: u64, hits: u64, prompt: u64, generated: u64) -> Counters {
    (Some(queries), Some(hits), Some(prompt), Some(generated))
}

const fn row(
    page: &'static str,
    gauges: Gauges,
    blocks: u64,
    running_adapters: Option<&'static [&'static str]>,
    counters: Counters,
) -> Row {
    Row { page, gauges, blocks, running_adapters, counters }
}

/// 17 of 95 usable blocks.
const FULL: f64 = 0.178_947_368_421_052_63;

#[rustfmt::skip]
const ROWS: [Row; 19] = [
    row("vllm-0.12.0-lora-metrics-idle", gauges(0, 0, 0.0), 96, None, counters(0, 0, 0, 0)),
    row("vllm-0.12.0-lora-metrics-load3", gauges(4, 12, FULL), 96, Some(&["ad0", "ad2"]), counters(3_752, 1_536, 3_752, 558)),
    row("vllm-0.16.0-lora-metrics-idle", gauges(0, 0, 0.0), 96, None, counters(0, 0, 0, 0)),
    row("vllm-0.16.0-lora-metrics-load3", gauges(4, 12, FULL), 96, Some(&["ad0", "ad1"]), counters(3_752, 1_536, 3_752, 305)),
    row("vllm-0.24.0-lora-metrics-idle", gauges(0, 0, 0.0), 96, None, counters(0, 0, 0, 0)),
    row("vllm-0.24.0-lora-metrics-load2", gauges(4, 12, FULL), 96, Some(&["ad0", "ad1"]), counters(3_752, 1_536, 3_752, 537)),
    row("vllm-0.32.0-dp2-metrics-idle", (None, None, None, None), 192, None, counters(0, 0, 0, 0)),
    row("vllm-0.32.0-dp2-metrics-load0", (Some(4), Some(6), Some(10.0 / 95.0), Some(13.0 / 95.0)), 192, None,
        counters(938 + 2_346, 384 + 1_536, 938 + 2_346, 947 + 1_339)),
    row("vllm-0.32.0-lora-metrics-load1", gauges(4, 12, FULL), 96, Some(&["ad1", "ad0"]), counters(1_876, 384, 1_876, 269)),
    row("vllm-0.32.0-lora-metrics-after", gauges(0, 0, 0.0), 96, Some(&[]), counters(7_511, 4_608, 7_511, 9_600)),
    row("vllm-0.32.0-metrics-fresh", gauges(0, 0, 0.0), 16_384, None, counters(0, 0, 0, 0)),
    row("vllm-0.32.0-metrics-load0", gauges(2, 0, 0.000_427_272_172_373_816), 16_384, None, counters(970, 384, 970, 349)),
    row("vllm-0.32.0-metrics-load1", gauges(13, 0, 0.001_953_244_216_565_952_5), 16_384, None, counters(7_543, 5_760, 7_543, 5_598)),
    row("vllm-0.32.0-metrics-load2", gauges(13, 0, 0.002_685_710_797_778_24), 16_384, None, counters(7_543, 5_760, 7_543, 7_184)),
    row("vllm-0.32.0-metrics-after", gauges(0, 0, 0.0), 16_384, None, counters(7_543, 5_760, 7_543, 24_012)),
    row("sglang-0.5.23-metrics-idle", gauges(0, 0, 0.0), 8_192, None, (Some(12), None, Some(12), Some(8))),
    row("sglang-0.5.23-metrics-load1", gauges(4, 8, 0.13), 8_192, None, counters(28 + 485, 16, 28 + 485, 16 + 7)),
    row("sglang-0.5.23-metrics-load3", gauges(4, 4, 0.12), 8_192, None, counters(28 + 2_361, 1_852, 28 + 2_361, 16 + 607)),
    row("sglang-0.5.23-metrics-after", gauges(0, 0, 0.0), 8_192, None, counters(28 + 6_116, 5_502, 28 + 6_116, 16 + 1_807)),
];

impl Row {
    fn expected(&self) -> Reading {
        let vllm = self.page.starts_with("vllm");
        // vLLM repeats the running adapters as waiting ones.
        let adapters = self.running_adapters.map(|names| {
            let names: Vec<_> = names.iter().map(|name| (*name).into()).collect();
            Adapters { max: Some(2), running: names.clone(), waiting: names }
        });
        let (running, waiting, kv_usage, kv_usage_max) = self.gauges;
        let (prefix_queries_total, prefix_hits_total, prompt_tokens_total, generation_tokens_total) = self.counters;
        Reading {
            engine: if vllm { "vllm" } else { "sglang" }.into(),
            running,
            waiting,
            swapped: None,
            kv_usage,
            kv_usage_max,
            block_size: Some(if vllm { 128 } else { 1 }),
            blocks: Some(self.blocks),
            adapters,
            asleep: false,
            preemptions_total: vllm.then_some(0),
            prefix_queries_total,
            prefix_hits_total,
            prompt_tokens_total,
            generation_tokens_total,
            unparsed_lines: 0,
        }
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics")
}

#[test]
fn every_recorded_page_says_what_a_person_reads_in_it() {
    for row in &ROWS {
        let text = fs::read(folder().join(format!("{}.txt", row.page))).unwrap();
        let mut read = super::read(&Engine::Auto, &text).unwrap();
        let mut expected = row.expected();
        for (it, expected) in
            [(&mut read.kv_usage, &mut expected.kv_usage), (&mut read.kv_usage_max, &mut expected.kv_usage_max)]
        {
            let (Some(a), Some(b)) = (*it, *expected) else { continue };
            assert!((a - b).abs() < 1e-12, "{}: usage {a} instead of {b}", row.page);
            *it = Some(b);
        }
        assert_eq!(read, expected, "{}", row.page);
    }
}

#[test]
fn no_recorded_page_is_without_its_row() {
    let rows: BTreeSet<String> = ROWS.iter().map(|row| format!("{}.txt", row.page)).collect();
    let files = fs::read_dir(folder()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let pages: BTreeSet<String> = files.filter(|name| name != "README.md").collect();
    assert_eq!(rows, pages);
}
