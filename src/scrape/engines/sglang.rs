//! SGLang. Under tensor parallelism several ranks say the same: they are not added up, only data-parallel ranks are.

use super::{count, mean_and_max, narrow, share, sum};
use crate::{fleet::Reading, scrape::exposition::Page};

const RUNNING: &str = "sglang:num_running_reqs";
const WAITING: &str = "sglang:num_queue_reqs";
const KV_USAGE: &str = "sglang:token_usage";
const CAPACITY: &str = "sglang:max_total_num_tokens";
const PAGE_SIZE: &str = "sglang:page_size";
const PAGES: &str = "sglang:num_pages";
const CACHE_CONFIG: &str = "sglang:cache_config_info";
const CACHED_TOKENS: &str = "sglang:cached_tokens_total";
const PROMPT_TOKENS: &str = "sglang:prompt_tokens_total";
const GENERATION_TOKENS: &str = "sglang:generation_tokens_total";

pub(super) const WANTED: &[&str] = &[
    RUNNING,
    WAITING,
    KV_USAGE,
    CAPACITY,
    PAGE_SIZE,
    PAGES,
    CACHE_CONFIG,
    CACHED_TOKENS,
    PROMPT_TOKENS,
    GENERATION_TOKENS,
];

pub(super) fn read(page: &Page<'_>) -> Reading {
    let total =
        |name: &str| ranks(page, name).into_iter().filter_map(|(_, value)| count(value)).reduce(u64::saturating_add);
    let (kv_usage, kv_usage_max) = usage(page);
    let block_size = block_size(page);
    let by_tokens = || Some(total(CAPACITY)? / block_size.filter(|size| *size > 0)?);
    let prompt_tokens_total = sum(page.all(PROMPT_TOKENS));
    Reading {
        running: total(RUNNING).map(narrow),
        waiting: total(WAITING).map(narrow),
        kv_usage,
        kv_usage_max,
        block_size: block_size.map(narrow),
        blocks: total(PAGES).or_else(|| configured(page, "num_pages")).or_else(by_tokens),
        // Every prompt token is looked up, and both counters move when a request ends.
        prefix_queries_total: prompt_tokens_total,
        prefix_hits_total: sum(page.all(CACHED_TOKENS)),
        prompt_tokens_total,
        generation_tokens_total: sum(page.all(GENERATION_TOKENS)),
        ..Reading::default()
    }
}

/// One value for each data-parallel rank: the largest that its tensor-parallel ranks say.
fn ranks(page: &Page<'_>, name: &str) -> Vec<(String, f64)> {
    let mut ranks: Vec<(String, f64)> = Vec::new();
    for sample in page.all(name).filter(|sample| sample.value.is_finite()) {
        let rank = sample.labels.get("dp_rank").unwrap_or_default();
        match ranks.iter_mut().find(|(it, _)| *it == rank) {
            Some((_, value)) => *value = value.max(sample.value),
            None => ranks.push((rank.into_owned(), sample.value)),
        }
    }
    ranks
}

fn usage(page: &Page<'_>) -> (Option<f64>, Option<f64>) {
    let capacities = ranks(page, CAPACITY);
    let weight = |rank: &str| {
        let capacity = capacities.iter().find(|(it, _)| it == rank).map(|(_, tokens)| *tokens);
        capacity.filter(|tokens| *tokens > 0.0).unwrap_or(1.0)
    };
    let shares: Vec<_> =
        ranks(page, KV_USAGE).into_iter().filter_map(|(rank, value)| Some((share(value)?, weight(&rank)))).collect();
    mean_and_max(&shares)
}

fn block_size(page: &Page<'_>) -> Option<u64> {
    let gauge = page.all(PAGE_SIZE).find_map(|sample| count(sample.value));
    gauge.or_else(|| configured(page, "page_size"))
}

/// Older versions tell sizes as labels instead of gauges.
fn configured(page: &Page<'_>, label: &str) -> Option<u64> {
    page.all(CACHE_CONFIG).find_map(|sample| sample.labels.get(label)?.parse().ok())
}
