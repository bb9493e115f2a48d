//! vLLM, V0 and V1. With data parallelism one page has a series for each `engine`.

use std::sync::Arc;

use super::{count, mean_and_max, narrow, share, sum};
use crate::{
    fleet::{Adapters, Reading},
    scrape::exposition::{Labels, Page},
};

const RUNNING: &str = "vllm:num_requests_running";
const WAITING: &str = "vllm:num_requests_waiting";
const SWAPPED: &str = "vllm:num_requests_swapped";
const KV_USAGE: [&str; 2] = ["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"];
const LORA: &str = "vllm:lora_requests_info";
const CACHE_CONFIG: &str = "vllm:cache_config_info";
const SLEEP: &str = "vllm:engine_sleep_state";
const PREEMPTIONS: &str = "vllm:num_preemptions_total";
const PREFIX_QUERIES: [&str; 2] = ["vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"];
const PREFIX_HITS: [&str; 2] = ["vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"];
const PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
const GENERATION_TOKENS: &str = "vllm:generation_tokens_total";

pub(super) const WANTED: &[&str] = &[
    RUNNING,
    WAITING,
    SWAPPED,
    KV_USAGE[0],
    KV_USAGE[1],
    LORA,
    CACHE_CONFIG,
    SLEEP,
    PREEMPTIONS,
    PREFIX_QUERIES[0],
    PREFIX_QUERIES[1],
    PREFIX_HITS[0],
    PREFIX_HITS[1],
    PROMPT_TOKENS,
    GENERATION_TOKENS,
];

pub(super) fn read(page: &Page<'_>) -> Reading {
    let total = |name: &str| sum(page.all(name));
    // Some versions say the same under the old and the new name: the new one counts.
    let renamed = |names: [&str; 2]| names.into_iter().find_map(total);
    let caches = Caches::read(page);
    let (kv_usage, kv_usage_max) = caches.usage(page);
    Reading {
        running: total(RUNNING).map(narrow),
        waiting: total(WAITING).map(narrow),
        swapped: total(SWAPPED).map(narrow),
        kv_usage,
        kv_usage_max,
        block_size: caches.block_size,
        blocks: caches.blocks(),
        adapters: adapters(page),
        asleep: asleep(page),
        preemptions_total: total(PREEMPTIONS),
        prefix_queries_total: renamed(PREFIX_QUERIES),
        prefix_hits_total: renamed(PREFIX_HITS),
        prompt_tokens_total: total(PROMPT_TOKENS),
        generation_tokens_total: total(GENERATION_TOKENS),
        ..Reading::default()
    }
}

/// The KV caches of all ranks, from `cache_config_info`.
#[derive(Default)]
struct Caches {
    block_size: Option<u32>,
    /// Rank and its number of blocks. `num_gpu_blocks` may be the word `None`.
    ranks: Vec<(String, u64)>,
}

impl Caches {
    fn read(page: &Page<'_>) -> Self {
        let mut caches = Self::default();
        for sample in page.all(CACHE_CONFIG) {
            let number = |label: &str| sample.labels.get(label)?.parse::<u64>().ok();
            caches.block_size = caches.block_size.or(number("block_size").map(narrow));
            if let Some(blocks) = number("num_gpu_blocks") {
                caches.ranks.push((rank(sample.labels), blocks));
            }
        }
        caches
    }

    /// Blocks of all ranks together. Ranks of one server repeat their sum: with two ranks of 96 blocks each, both
    /// series say 192 (recorded with 0.32; its usage moves in steps of 1/95). Only numbers that differ are parts.
    fn blocks(&self) -> Option<u64> {
        let (_, first) = self.ranks.first()?;
        if self.ranks.iter().all(|(_, blocks)| blocks == first) {
            return Some(*first);
        }
        self.ranks.iter().map(|(_, blocks)| *blocks).reduce(u64::saturating_add)
    }

    fn usage(&self, page: &Page<'_>) -> (Option<f64>, Option<f64>) {
        let weight = |labels: Labels<'_>| {
            let rank = rank(labels);
            let blocks = self.ranks.iter().find(|(it, _)| *it == rank).map(|(_, blocks)| *blocks);
            // A rank that does not tell its size weighs like any other that does not.
            blocks.filter(|blocks| *blocks > 0).map_or(1.0, |blocks| blocks as f64)
        };
        let shares = |name: &str| {
            let shares: Vec<_> =
                page.all(name).filter_map(|sample| Some((share(sample.value)?, weight(sample.labels)))).collect();
            (!shares.is_empty()).then_some(shares)
        };
        mean_and_max(&KV_USAGE.into_iter().find_map(shares).unwrap_or_default())
    }
}

fn rank(labels: Labels<'_>) -> String {
    labels.get("engine").unwrap_or_default().into_owned()
}

/// The value is a time, and label combinations once seen are never removed: the newest series tells. V0 shows the
/// metric with `max_lora="0"` even where LoRA is off.
fn adapters(page: &Page<'_>) -> Option<Adapters> {
    let newest = page.all(LORA).filter(|sample| sample.value.is_finite()).max_by(|a, b| a.value.total_cmp(&b.value))?;
    let max = newest.labels.get("max_lora").and_then(|max| max.parse().ok());
    if max == Some(0) {
        return None;
    }
    let names = |label: &str| -> Vec<Arc<str>> {
        let list = newest.labels.get(label).unwrap_or_default();
        let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(Arc::from).collect()
    };
    Some(Adapters { max, running: names("running_lora_adapters"), waiting: names("waiting_lora_adapters") })
}

/// Asleep if no rank is awake.
fn asleep(page: &Page<'_>) -> bool {
    let awake = page.all(SLEEP).filter(|sample| sample.labels.get("sleep_state").as_deref() == Some("awake"));
    awake.filter_map(|sample| count(sample.value)).max() == Some(0)
}
