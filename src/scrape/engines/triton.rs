//! Triton with the TensorRT-LLM backend, whose gauges are told apart by a label; and plain Triton, which only tells
//! how much waits. (`nv_inference_exec_count` is a counter and says nothing of what runs now.)

use super::{narrow, sum, usage};
use crate::{
    fleet::Reading,
    scrape::exposition::{Page, Sample},
};

const REQUESTS: &str = "nv_trt_llm_request_metrics";
const BLOCKS: &str = "nv_trt_llm_kv_cache_block_metrics";
const PENDING: &str = "nv_inference_pending_request_count";

pub(super) const WANTED: &[&str] = &[REQUESTS, BLOCKS, PENDING];

pub(super) fn read(page: &Page<'_>) -> Reading {
    let requests = |kind: &str| sum(of_kind(page, REQUESTS, "request_type", kind)).map(narrow);
    let blocks = |kind: &'static str| of_kind(page, BLOCKS, "kv_cache_block_type", kind);
    let (kv_usage, kv_usage_max) = usage(blocks("fraction"));
    Reading {
        running: requests("scheduled"),
        waiting: requests("waiting").or_else(|| sum(page.all(PENDING)).map(narrow)),
        kv_usage,
        kv_usage_max,
        block_size: sum(blocks("tokens_per").take(1)).map(narrow),
        blocks: sum(blocks("max")),
        ..Reading::default()
    }
}

fn of_kind<'p, 'a: 'p>(
    page: &'p Page<'a>,
    name: &'p str,
    label: &'p str,
    kind: &'p str,
) -> impl Iterator<Item = &'p Sample<'a>> {
    page.all(name).filter(move |sample| sample.labels.get(label).as_deref() == Some(kind))
}
