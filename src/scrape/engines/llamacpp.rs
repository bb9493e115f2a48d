//! llama.cpp's server, started with `--metrics`. Its values can be `nan`. Newer versions tell no KV-cache usage.

use super::{narrow, sum, usage};
use crate::{fleet::Reading, scrape::exposition::Page};

const RUNNING: &str = "llamacpp:requests_processing";
const WAITING: &str = "llamacpp:requests_deferred";
const KV_USAGE: &str = "llamacpp:kv_cache_usage_ratio";
const PROMPT_TOKENS: &str = "llamacpp:prompt_tokens_total";
const GENERATION_TOKENS: &str = "llamacpp:tokens_predicted_total";

pub(super) const WANTED: &[&str] = &[RUNNING, WAITING, KV_USAGE, PROMPT_TOKENS, GENERATION_TOKENS];

pub(super) fn read(page: &Page<'_>) -> Reading {
    let total = |name: &str| sum(page.all(name));
    let (kv_usage, kv_usage_max) = usage(page.all(KV_USAGE));
    Reading {
        running: total(RUNNING).map(narrow),
        waiting: total(WAITING).map(narrow),
        kv_usage,
        kv_usage_max,
        prompt_tokens_total: total(PROMPT_TOKENS),
        generation_tokens_total: total(GENERATION_TOKENS),
        ..Reading::default()
    }
}
