//! The `/metrics` page of a simulated pod: vLLM 0.32's families, labels, order and number format.
//!
//! A gateway's parser should meet here what it meets in production, so the page has the families a gateway reads and
//! those it must step over, and is about as long as a real one. What has no meaning without a GPU is there as zero.

mod exposition;
mod histograms;

use self::exposition::{Exposition, number};
pub(super) use self::histograms::{Finished, Seen};
use super::{driver::Shown, terms::EngineConfig};

/// Everything a page is made of.
pub(super) struct Page<'a> {
    pub(super) model: &'a str,
    pub(super) config: &'a EngineConfig,
    pub(super) shown: &'a Shown,
    pub(super) asleep: bool,
    /// Every set of adapters that ran at once, with the time it last did.
    pub(super) loras: &'a [(String, f64)],
    /// When the pod started, in seconds since 1970.
    pub(super) started: f64,
    /// CPU seconds that a real pod would have used so far.
    pub(super) uptime: f64,
}

impl Page<'_> {
    /// The page as text.
    pub(super) fn render(&self) -> String {
        // A page is some 50 kB; asking for them at once saves growing.
        let out = String::with_capacity(1 << 16);
        let mut out = Exposition { out, model: self.model, started: self.started };
        self.process(&mut out);
        self.now(&mut out);
        self.cached(&mut out);
        self.tokens(&mut out);
        self.outcomes(&mut out);
        self.requests(&mut out);
        self.latencies(&mut out);
        self.info(&mut out);
        out.out
    }

    fn process(&self, out: &mut Exposition<'_>) {
        for name in ["objects_collected", "objects_uncollectable", "collections"] {
            let name = format!("python_gc_{name}_total");
            out.head(&name, "Garbage collection of the API process.", "counter");
            for generation in 0..3 {
                out.line(&format!("{name}{{generation=\"{generation}\"}} 0.0"));
            }
        }
        out.head("python_info", "Python platform information", "gauge");
        let version = r#"implementation="CPython",major="3",minor="12",patchlevel="1",version="3.12.1""#;
        out.line(&format!("python_info{{{version}}} 1.0"));
        let (started, uptime) = (self.started, self.uptime);
        for (name, value) in [
            ("process_virtual_memory_bytes", 4_158_713_856.0), // as recorded from a real pod
            ("process_resident_memory_bytes", 1_256_861_696.0),
            ("process_start_time_seconds", started),
            ("process_cpu_seconds_total", uptime),
            ("process_open_fds", 47.0),
            ("process_max_fds", 20_000.0),
        ] {
            out.head(name, "Of the API process.", if name.ends_with("_total") { "counter" } else { "gauge" });
            out.line(&format!("{name} {}", number(value)));
        }
        for name in ["flops", "read_bytes", "write_bytes"] {
            out.counter(&format!("estimated_{name}_per_gpu"), "Estimated work per GPU.", 0.0);
        }
    }

    fn now(&self, out: &mut Exposition<'_>) {
        let gauges = &self.shown.gauges;
        out.gauge("num_requests_running", "Number of requests in model execution batches.", gauges.running as f64);
        out.gauge("num_requests_waiting", "Number of requests waiting to be processed.", gauges.waiting as f64);
        let by_reason = [("capacity", gauges.waiting as f64), ("deferred", 0.0)];
        out.labelled("num_requests_waiting_by_reason", "Number of waiting requests by reason.", "reason", &by_reason);
        let (awake, offloaded) = if self.asleep { (0.0, 1.0) } else { (1.0, 0.0) };
        let states = [("awake", awake), ("weights_offloaded", offloaded), ("discard_all", 0.0)];
        out.labelled("engine_sleep_state", "Engine sleep state; awake = 1 means awake.", "sleep_state", &states);
        out.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", gauges.kv_usage);
    }

    fn cached(&self, out: &mut Exposition<'_>) {
        let totals = self.shown.totals;
        let (queries, hits) = (totals.prefix_queries as f64, totals.prefix_hits as f64);
        for (name, help, value) in [
            ("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", queries),
            ("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", hits),
            ("external_prefix_cache_queries", "External prefix cache queries, in tokens.", 0.0),
            ("external_prefix_cache_hits", "External prefix cache hits, in tokens.", 0.0),
            ("mm_cache_queries", "Multi-modal cache queries, in items.", 0.0),
            ("mm_cache_hits", "Multi-modal cache hits, in items.", 0.0),
        ] {
            out.counter(name, help, value);
        }
    }

    fn tokens(&self, out: &mut Exposition<'_>) {
        let totals = self.shown.totals;
        let (prompt, hits) = (totals.prompt_tokens as f64, totals.prefix_hits as f64);
        let preemptions = totals.preemptions as f64;
        out.counter("num_preemptions", "Cumulative number of preemption from the engine.", preemptions);
        out.counter("prompt_tokens", "Number of prefill tokens processed.", prompt);
        let computed = (prompt - hits).max(0.0);
        let sources = [("local_compute", computed), ("local_cache_hit", hits), ("external_kv_transfer", 0.0)];
        out.counters("prompt_tokens_by_source", "Number of prompt tokens by source.", "source", &sources);
        out.counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", hits);
        let tiers = [("device", hits), ("host", 0.0), ("p2p", 0.0), ("disk", 0.0), ("external_unspecified", 0.0)];
        out.counters("prompt_tokens_cached_by_source", "Prefix-cache hit tokens by cache tier.", "source", &tiers);
        let generated = totals.generation_tokens as f64;
        out.counter("generation_tokens", "Number of generation tokens processed.", generated);
    }

    fn outcomes(&self, out: &mut Exposition<'_>) {
        let seen = &self.shown.seen;
        let (stop, length) = (seen.stopped as f64, seen.limited as f64);
        // A client that goes away is not counted as "abort" by vLLM either.
        let reasons = [("stop", stop), ("length", length), ("abort", 0.0), ("error", 0.0), ("repetition", 0.0)];
        out.counters("request_success", "Count of successfully processed requests.", "finished_reason", &reasons);
        // The API server counts these, so they belong to no engine.
        let of_server = |reason: &str| format!(r#"model_name="{}",reason="{reason}""#, self.model);
        let rejected =
            [(of_server("max_num_queued_reqs"), seen.rejected as f64), (of_server("max_num_queued_tokens"), 0.0)];
        out.series("admission_rejections", "Attempts rejected by a queue limit.", &rejected);
    }

    fn requests(&self, out: &mut Exposition<'_>) {
        let seen = &self.shown.seen;
        for (name, help, histogram) in [
            ("request_prompt_tokens", "Number of prefill tokens processed.", &seen.prompt_tokens),
            ("request_generation_tokens", "Number of generation tokens processed.", &seen.output_tokens),
            ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", &seen.step_tokens),
            ("request_max_num_generation_tokens", "Maximum number of requested generation tokens.", &seen.max_tokens),
            ("request_params_n", "Histogram of the n request parameter.", &seen.n),
            ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", &seen.max_tokens),
        ] {
            out.histogram(name, help, histogram);
        }
    }

    fn latencies(&self, out: &mut Exposition<'_>) {
        let seen = &self.shown.seen;
        for (name, help, histogram) in [
            ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", &seen.ttft),
            ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", &seen.inter_token),
            ("request_time_per_output_token_seconds", "Time per output token per request.", &seen.per_token),
            ("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", &seen.e2e),
            ("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", &seen.queued),
            ("request_inference_time_seconds", "Histogram of time spent in RUNNING phase.", &seen.inference),
            ("request_prefill_time_seconds", "Histogram of time spent in PREFILL phase.", &seen.prefill),
            ("request_decode_time_seconds", "Histogram of time spent in DECODE phase.", &seen.decode),
            ("request_num_preemptions", "Histogram of preemptions per request.", &seen.preemptions),
            ("request_prefill_kv_computed_tokens", "New KV tokens computed during prefill.", &seen.computed),
        ] {
            out.histogram(name, help, histogram);
        }
    }

    fn info(&self, out: &mut Exposition<'_>) {
        let Page { config, loras, .. } = self;
        if !loras.is_empty() {
            out.head("vllm:lora_requests_info", "Running stats on lora requests.", "gauge");
            // vLLM's quirks: series are never removed, the newest has the largest value, "waiting" repeats "running".
            for (names, at) in *loras {
                let (max, at) = (config.max_loras, number(*at));
                let labels =
                    format!(r#"max_lora="{max}",running_lora_adapters="{names}",waiting_lora_adapters="{names}""#);
                out.line(&format!("vllm:lora_requests_info{{{labels}}} {at}"));
            }
        }
        out.head("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge");
        let (size, blocks) = (config.block_size, config.num_gpu_blocks);
        let tokens = u64::from(size) * u64::from(blocks);
        let labels = format!(
            r#"_block_size_resolved="True",block_size="{size}",cache_dtype="auto",enable_prefix_caching="True",engine="0",gpu_memory_utilization="0.92",kv_cache_size_tokens="{tokens}",num_cpu_blocks="None",num_gpu_blocks="{blocks}",num_gpu_blocks_override="None",prefix_caching_hash_algo="sha256",sliding_window="None",user_specified_block_size="False""#
        );
        out.line(&format!("vllm:cache_config_info{{{labels}}} 1.0"));
    }
}
