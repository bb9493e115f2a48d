//! TensorRT-LLM's own server, `trtllm-serve` (its Prometheus page is at `/prometheus/metrics`; `/metrics` is JSON).

use super::{narrow, sum, usage};
use crate::{fleet::Reading, scrape::exposition::Page};

const RUNNING: &str = "trtllm_num_requests_running";
const WAITING: &str = "trtllm_num_requests_waiting";
const KV_USAGE: &str = "trtllm_kv_cache_utilization";
const BLOCK_SIZE: &str = "trtllm_kv_cache_tokens_per_block";
const BLOCKS: &str = "trtllm_kv_cache_max_blocks";

pub(super) const WANTED: &[&str] = &[RUNNING, WAITING, KV_USAGE, BLOCK_SIZE, BLOCKS];

pub(super) fn read(page: &Page<'_>) -> Reading {
    let total = |name: &str| sum(page.all(name));
    let (kv_usage, kv_usage_max) = usage(page.all(KV_USAGE));
    Reading {
        running: total(RUNNING).map(narrow),
        waiting: total(WAITING).map(narrow),
        kv_usage,
        kv_usage_max,
        block_size: sum(page.all(BLOCK_SIZE).take(1)).map(narrow),
        blocks: total(BLOCKS),
        ..Reading::default()
    }
}
