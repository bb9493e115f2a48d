//! The `/metrics` page of a simulated pod: vLLM 0.32's families, labels, order and number format.
//!
//! A gateway's parser should meet here what it meets in production, so the page has the families a gateway reads and
//! those it must step over, and is about as long as a real one. What has no meaning without a GPU is there as zero.

use super::{driver::Shown, engine::EngineConfig};

/// Bucket bounds as on a recorded page of vLLM 0.32.
const TOKENS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0];
const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0, 2_048.0, 4_096.0, 8_192.0, 16_384.0];
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2_560.0,
];
const PER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1_920.0, 7_680.0,
];
const TIMES: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
const N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];

/// One histogram.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    bounds: &'static [f64],
    /// Observations at or below each bound and above the one before; the last is everything beyond.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn observe(&mut self, value: f64) {
        let at = self.bounds.partition_point(|&bound| bound < value);
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += value;
    }
}

/// What requests were like, for the histograms.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    prompt_tokens: Histogram,
    output_tokens: Histogram,
    step_tokens: Histogram,
    n: Histogram,
    max_tokens: Histogram,
    ttft: Histogram,
    inter_token: Histogram,
    per_token: Histogram,
    e2e: Histogram,
    queued: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    preemptions: Histogram,
    computed: Histogram,
    stopped: u64,
    limited: u64,
    /// Requests refused because the line was full.
    pub(super) rejected: u64,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            prompt_tokens: Histogram::new(TOKENS),
            output_tokens: Histogram::new(TOKENS),
            step_tokens: Histogram::new(STEP_TOKENS),
            n: Histogram::new(N),
            max_tokens: Histogram::new(TOKENS),
            ttft: Histogram::new(TTFT),
            inter_token: Histogram::new(PER_TOKEN),
            per_token: Histogram::new(PER_TOKEN),
            e2e: Histogram::new(REQUEST),
            queued: Histogram::new(REQUEST),
            inference: Histogram::new(REQUEST),
            prefill: Histogram::new(REQUEST),
            decode: Histogram::new(REQUEST),
            preemptions: Histogram::new(TIMES),
            computed: Histogram::new(TOKENS),
            stopped: 0,
            limited: 0,
            rejected: 0,
        }
    }
}

/// One request that ran to its end.
#[derive(Clone, Debug)]
pub(super) struct Finished {
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    pub(super) cached_tokens: u32,
    pub(super) limited: bool,
    pub(super) queued_s: f64,
    pub(super) prefill_s: f64,
    pub(super) decode_s: f64,
}

impl Seen {
    /// A step computed this many tokens.
    pub(super) fn step(&mut self, tokens: u32) {
        self.step_tokens.observe(f64::from(tokens));
    }

    /// A first token came after this long.
    pub(super) fn first_token(&mut self, seconds: f64) {
        self.ttft.observe(seconds);
    }

    /// Another token came after this long.
    pub(super) fn next_token(&mut self, seconds: f64) {
        self.inter_token.observe(seconds);
    }

    /// A request ended by itself.
    pub(super) fn finished(&mut self, request: &Finished) {
        let output = f64::from(request.output_tokens);
        self.prompt_tokens.observe(f64::from(request.prompt_tokens));
        self.output_tokens.observe(output);
        self.n.observe(1.0);
        self.max_tokens.observe(output);
        self.per_token.observe(request.decode_s / (output - 1.0).max(1.0));
        self.e2e.observe(request.queued_s + request.prefill_s + request.decode_s);
        self.queued.observe(request.queued_s);
        self.inference.observe(request.prefill_s + request.decode_s);
        self.prefill.observe(request.prefill_s);
        self.decode.observe(request.decode_s);
        self.preemptions.observe(0.0);
        self.computed.observe(f64::from(request.prompt_tokens - request.cached_tokens));
        if request.limited {
            self.limited += 1;
        } else {
            self.stopped += 1;
        }
    }
}

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
        let mut out = Text { out: String::with_capacity(1 << 16), page: self };
        out.process();
        out.now();
        out.cached();
        out.tokens();
        out.outcomes();
        out.requests();
        out.latencies();
        out.info();
        out.out
    }
}

struct Text<'a> {
    out: String,
    page: &'a Page<'a>,
}

impl Text<'_> {
    fn process(&mut self) {
        for name in ["objects_collected", "objects_uncollectable", "collections"] {
            let name = format!("python_gc_{name}_total");
            self.head(&name, "Garbage collection of the API process.", "counter");
            for generation in 0..3 {
                self.line(&format!("{name}{{generation=\"{generation}\"}} 0.0"));
            }
        }
        self.head("python_info", "Python platform information", "gauge");
        let version = r#"implementation="CPython",major="3",minor="12",patchlevel="1",version="3.12.1""#;
        self.line(&format!("python_info{{{version}}} 1.0"));
        let (started, uptime) = (self.page.started, self.page.uptime);
        for (name, value) in [
            ("process_virtual_memory_bytes", 4_158_713_856.0), // as recorded from a real pod
            ("process_resident_memory_bytes", 1_256_861_696.0),
            ("process_start_time_seconds", started),
            ("process_cpu_seconds_total", uptime),
            ("process_open_fds", 47.0),
            ("process_max_fds", 20_000.0),
        ] {
            self.head(name, "Of the API process.", if name.ends_with("_total") { "counter" } else { "gauge" });
            self.line(&format!("{name} {}", number(value)));
        }
        for name in ["flops", "read_bytes", "write_bytes"] {
            self.counter(&format!("estimated_{name}_per_gpu"), "Estimated work per GPU.", 0.0);
        }
    }

    fn now(&mut self) {
        let gauges = &self.page.shown.gauges;
        self.gauge("num_requests_running", "Number of requests in model execution batches.", gauges.running as f64);
        self.gauge("num_requests_waiting", "Number of requests waiting to be processed.", gauges.waiting as f64);
        let by_reason = [("capacity", gauges.waiting as f64), ("deferred", 0.0)];
        self.labelled("num_requests_waiting_by_reason", "Number of waiting requests by reason.", "reason", &by_reason);
        let (awake, offloaded) = if self.page.asleep { (0.0, 1.0) } else { (1.0, 0.0) };
        let states = [("awake", awake), ("weights_offloaded", offloaded), ("discard_all", 0.0)];
        self.labelled("engine_sleep_state", "Engine sleep state; awake = 1 means awake.", "sleep_state", &states);
        self.gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", gauges.kv_usage);
    }

    fn cached(&mut self) {
        let totals = self.page.shown.totals;
        let (queries, hits) = (totals.prefix_queries as f64, totals.prefix_hits as f64);
        self.counter("prefix_cache_queries", "Prefix cache queries, in terms of number of queried tokens.", queries);
        self.counter("prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", hits);
        self.counter("external_prefix_cache_queries", "External prefix cache queries, in tokens.", 0.0);
        self.counter("external_prefix_cache_hits", "External prefix cache hits, in tokens.", 0.0);
        self.counter("mm_cache_queries", "Multi-modal cache queries, in items.", 0.0);
        self.counter("mm_cache_hits", "Multi-modal cache hits, in items.", 0.0);
    }

    fn tokens(&mut self) {
        let totals = self.page.shown.totals;
        let (prompt, hits) = (totals.prompt_tokens as f64, totals.prefix_hits as f64);
        let preemptions = totals.preemptions as f64;
        self.counter("num_preemptions", "Cumulative number of preemption from the engine.", preemptions);
        self.counter("prompt_tokens", "Number of prefill tokens processed.", prompt);
        let computed = (prompt - hits).max(0.0);
        let sources = [("local_compute", computed), ("local_cache_hit", hits), ("external_kv_transfer", 0.0)];
        self.counters("prompt_tokens_by_source", "Number of prompt tokens by source.", "source", &sources);
        self.counter("prompt_tokens_cached", "Number of cached prompt tokens (local + external).", hits);
        let generated = totals.generation_tokens as f64;
        self.counter("generation_tokens", "Number of generation tokens processed.", generated);
    }

    fn outcomes(&mut self) {
        let seen = &self.page.shown.seen;
        let (stop, length) = (seen.stopped as f64, seen.limited as f64);
        // A client that goes away is not counted as "abort" by vLLM either.
        let reasons = [("stop", stop), ("length", length), ("abort", 0.0), ("error", 0.0), ("repetition", 0.0)];
        self.counters("request_success", "Count of successfully processed requests.", "finished_reason", &reasons);
        let rejected = [("max_num_queued_reqs", seen.rejected as f64), ("max_num_queued_tokens", 0.0)];
        self.counters("admission_rejections", "Attempts rejected by a queue limit.", "reason", &rejected);
    }

    fn requests(&mut self) {
        let seen = &self.page.shown.seen;
        for (name, help, histogram) in [
            ("request_prompt_tokens", "Number of prefill tokens processed.", &seen.prompt_tokens),
            ("request_generation_tokens", "Number of generation tokens processed.", &seen.output_tokens),
            ("iteration_tokens_total", "Histogram of number of tokens per engine_step.", &seen.step_tokens),
            ("request_max_num_generation_tokens", "Maximum number of requested generation tokens.", &seen.max_tokens),
            ("request_params_n", "Histogram of the n request parameter.", &seen.n),
            ("request_params_max_tokens", "Histogram of the max_tokens request parameter.", &seen.max_tokens),
        ] {
            self.histogram(name, help, histogram);
        }
    }

    fn latencies(&mut self) {
        let seen = &self.page.shown.seen;
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
            self.histogram(name, help, histogram);
        }
    }

    fn info(&mut self) {
        let Page { config, loras, .. } = self.page;
        if !loras.is_empty() {
            self.head("vllm:lora_requests_info", "Running stats on lora requests.", "gauge");
            // vLLM's quirks: series are never removed, the newest has the largest value, "waiting" repeats "running".
            for (names, at) in *loras {
                let (max, at) = (config.max_loras, number(*at));
                let labels =
                    format!(r#"max_lora="{max}",running_lora_adapters="{names}",waiting_lora_adapters="{names}""#);
                self.line(&format!("vllm:lora_requests_info{{{labels}}} {at}"));
            }
        }
        self.head("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge");
        let (size, blocks) = (config.block_size, config.num_gpu_blocks);
        let tokens = u64::from(size) * u64::from(blocks);
        let labels = format!(
            r#"_block_size_resolved="True",block_size="{size}",cache_dtype="auto",enable_prefix_caching="True",engine="0",gpu_memory_utilization="0.92",kv_cache_size_tokens="{tokens}",num_cpu_blocks="None",num_gpu_blocks="{blocks}",num_gpu_blocks_override="None",prefix_caching_hash_algo="sha256",sliding_window="None",user_specified_block_size="False""#
        );
        self.line(&format!("vllm:cache_config_info{{{labels}}} 1.0"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(&format!("vllm:{name}"), help, "gauge");
        self.sample(&format!("{name}{{{}}}", self.labels("", "")), value);
    }

    fn labelled(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        self.head(&format!("vllm:{name}"), help, "gauge");
        for (label_value, value) in values {
            self.sample(&format!("{name}{{{}}}", self.labels(label, label_value)), *value);
        }
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.counters(name, help, "", &[("", value)]);
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        self.head(&format!("vllm:{name}_total"), help, "counter");
        for (label_value, value) in values {
            self.sample(&format!("{name}_total{{{}}}", self.labels(label, label_value)), *value);
        }
        self.head(&format!("vllm:{name}_created"), help, "gauge");
        for (label_value, _) in values {
            self.sample(&format!("{name}_created{{{}}}", self.labels(label, label_value)), self.page.started);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(&format!("vllm:{name}"), help, "histogram");
        let bounds = histogram.bounds.iter().map(|&bound| number(bound)).chain(["+Inf".to_owned()]);
        let mut so_far = 0;
        for (bound, count) in bounds.zip(&histogram.counts) {
            so_far += count;
            self.sample(&format!("{name}_bucket{{{}}}", self.labels("le", &bound)), so_far as f64);
        }
        let labels = self.labels("", "");
        self.sample(&format!("{name}_count{{{labels}}}"), so_far as f64);
        self.sample(&format!("{name}_sum{{{labels}}}"), histogram.sum);
        self.head(&format!("vllm:{name}_created"), help, "gauge");
        self.sample(&format!("{name}_created{{{labels}}}"), self.page.started);
    }

    /// The labels every family has, and one more, in alphabetical order as the Python client writes them.
    fn labels(&self, name: &str, value: &str) -> String {
        let model = self.page.model;
        let mut labels = vec![("engine", "0"), ("model_name", model), (name, value)];
        labels.retain(|(name, _)| !name.is_empty());
        labels.sort_unstable();
        let written: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
        written.join(",")
    }

    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(&format!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn sample(&mut self, series: &str, value: f64) {
        self.line(&format!("vllm:{series} {}", number(value)));
    }
}

/// A number as the Python client writes it: `13.0`, and `1.7952171e+09` from a million on.
fn number(value: f64) -> String {
    let plain = format!("{value:?}");
    let Some((whole, fraction)) = plain.split_once('.').filter(|(whole, _)| value > 0.0 && whole.len() > 6) else {
        return plain;
    };
    let (first, rest) = whole.split_at_checked(1).unwrap_or((whole, ""));
    let digits = format!("{rest}{fraction}");
    let mantissa = format!("{first}.{}", digits.trim_end_matches('0'));
    format!("{}e+{:02}", mantissa.trim_end_matches('.'), whole.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_as_the_python_client_writes_them() {
        for (value, text) in [
            (13.0, "13.0"),
            (0.25, "0.25"),
            (0.0, "0.0"),
            (123_456.5, "123456.5"),
            (10_000_000.0, "1e+07"),
            (4_158_713_856.0, "4.158713856e+09"),
            (1_795_217_101.094_748_5, "1.7952171010947485e+09"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn buckets_are_cumulative_and_inclusive() {
        let mut histogram = Histogram::new(N);
        for value in [1.0, 1.5, 20.0, 21.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.counts, [1, 1, 0, 0, 1, 1]);
    }
}
