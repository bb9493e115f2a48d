//! What a pod's requests were like, gathered for vLLM's histograms.
//!
//! The driver observes, the metrics page shows; neither keeps a list of requests.

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
pub(in crate::sim) struct Histogram {
    /// Upper bounds, in order.
    pub(in crate::sim) bounds: &'static [f64],
    /// Observations at or below each bound and above the one before; the last is everything beyond.
    pub(in crate::sim) counts: Vec<u64>,
    /// Of everything observed.
    pub(in crate::sim) sum: f64,
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
pub(in crate::sim) struct Seen {
    pub(in crate::sim) prompt_tokens: Histogram,
    pub(in crate::sim) output_tokens: Histogram,
    pub(in crate::sim) step_tokens: Histogram,
    pub(in crate::sim) n: Histogram,
    pub(in crate::sim) max_tokens: Histogram,
    pub(in crate::sim) ttft: Histogram,
    pub(in crate::sim) inter_token: Histogram,
    pub(in crate::sim) per_token: Histogram,
    pub(in crate::sim) e2e: Histogram,
    pub(in crate::sim) queued: Histogram,
    pub(in crate::sim) inference: Histogram,
    pub(in crate::sim) prefill: Histogram,
    pub(in crate::sim) decode: Histogram,
    pub(in crate::sim) preemptions: Histogram,
    pub(in crate::sim) computed: Histogram,
    pub(in crate::sim) stopped: u64,
    pub(in crate::sim) limited: u64,
    /// Requests refused because the line was full.
    pub(in crate::sim) rejected: u64,
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
pub(in crate::sim) struct Finished {
    pub(in crate::sim) prompt_tokens: u32,
    pub(in crate::sim) output_tokens: u32,
    pub(in crate::sim) cached_tokens: u32,
    pub(in crate::sim) limited: bool,
    pub(in crate::sim) queued_s: f64,
    pub(in crate::sim) prefill_s: f64,
    pub(in crate::sim) decode_s: f64,
}

impl Seen {
    /// A step computed this many tokens.
    pub(in crate::sim) fn step(&mut self, tokens: u32) {
        self.step_tokens.observe(f64::from(tokens));
    }

    /// A first token came after this long.
    pub(in crate::sim) fn first_token(&mut self, seconds: f64) {
        self.ttft.observe(seconds);
    }

    /// Another token came after this long.
    pub(in crate::sim) fn next_token(&mut self, seconds: f64) {
        self.inter_token.observe(seconds);
    }

    /// A request ended by itself.
    pub(in crate::sim) fn finished(&mut self, request: &Finished) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_inclusive() {
        let mut histogram = Histogram::new(N);
        for value in [1.0, 1.5, 20.0, 21.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.counts, [1, 1, 0, 0, 1, 1]);
    }
}
