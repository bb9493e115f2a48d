//! `least-cost`: the pod on which this request adds the fewest milliseconds, to itself and to those already there.
//!
//! Everything is time, so nothing needs weights: a cached prefix is worth exactly the prefill that it saves, and a
//! backlog weighs exactly as long as it takes. Speeds are each pod's own, as it has shown them.

use crate::{
    fleet::{AdapterState, Pace},
    scheduler::{
        Cost, Price,
        belief::{Belief, Beliefs},
        filters::{Candidate, Field},
    },
};

/// How much a prefill delays a stream that decodes beside it, as a share of the prefill's time: chunked prefill shares
/// its steps with decoding. 0.3 to 1 were measured to work alike; the low end leaves caches the most say.
const INTERFERENCE: f64 = 0.3;

/// How much one more stream lengthens a decode step: (0.008 for its GEMM row + 1.2 x 0.047 for its attention over 1,000
/// tokens + 0.01 for the host) of 7.2 ms; the step model of Llama-3.1-8B on an H100.
const BATCH_SLOPE: f64 = 0.01;

/// What a millisecond between tokens counts against one before the first: readers wait for the first and read along
/// with the others. Ours; it makes a pod of half the speed a clear second choice without emptying it.
const OWN_DECODE: f64 = 0.1;

/// The length of others' prompts, of which no metric tells: the mean that SGLang's gateway takes for unknown ones.
const OTHERS_PROMPT: f64 = 1_024.0;

/// How many of our own waiting prompts outweigh that guess. Ours: a handful is a sample.
const OTHERS_SAMPLES: f64 = 4.0;

/// Loading an adapter that fits: the low end of the 150 to 500 ms that loads from disk and host memory take.
const ADAPTER_LOAD_MS: f64 = 150.0;

/// Loading one for which another must go first, after the last request that uses it: the high end.
const ADAPTER_SWAP_MS: f64 = 500.0;

/// Costs nearer than this share of the request's own work are the same cost: learned speeds are no more exact, and
/// equal pods must not look different for noise. Small enough that a cached conversation of 1,000 tokens shows.
const TIE: f64 = 0.02;

/// See the file's comment.
pub(in crate::scheduler) struct LeastCost<'a> {
    field: &'a Field<'a>,
    pool: Pace,
    pub(in crate::scheduler) beliefs: Beliefs,
    adapter: bool,
}

impl<'a> LeastCost<'a> {
    pub(super) fn new(field: &'a Field<'a>) -> Self {
        let beliefs = Beliefs::gather(field, !field.base);
        Self { adapter: field.adapter || beliefs.adapter, pool: field.scene.pool.pace(), field, beliefs }
    }

    pub(super) fn prices(&self) -> impl Iterator<Item = Price> {
        let known = self.beliefs.of(self.field);
        known.map(|(candidate, belief)| Price::Cost(self.cost(candidate, &belief)))
    }

    pub(super) fn price(&self, place: usize) -> Price {
        let known = self.beliefs.at(self.field, place);
        Price::Cost(known.map_or(Cost::NEVER, |(candidate, belief)| self.cost(candidate, &belief)))
    }

    #[expect(clippy::inline_always, reason = "a call a pod, with all it passes, is a tenth of a pick")]
    #[inline(always)]
    fn cost(&self, candidate: &Candidate<'_>, belief: &Belief) -> Cost {
        let pace = candidate.pod.speed.pace(self.pool);
        let uncached = f64::from(self.field.question.uncached(belief.blocks));
        let output = f64::from(self.field.question.expected_output_tokens);
        let streams = f64::from(belief.streams());
        let others_tokens = others_tokens(belief);
        let own_ms = uncached * pace.ms_per_token;
        Cost {
            wait_ms: (f64::from(belief.prefill_tokens) + others_tokens) * pace.ms_per_token,
            prefill_ms: pace.base_ms + own_ms,
            delay_ms: own_ms * INTERFERENCE * streams,
            decode_ms: output * pace.itl_ms * (OWN_DECODE + BATCH_SLOPE * streams),
            kv_ms: kv_ms(belief, pace, others_tokens + uncached + output, output),
            adapter_ms: if self.adapter { adapter_ms(belief.adapter) } else { 0.0 },
            share: candidate.share,
        }
    }
}

/// Within this of the best, a cost is as good.
pub(super) fn tolerance(best: &Cost) -> f64 {
    TIE * (best.prefill_ms + best.decode_ms) / best.share
}

/// Prompt tokens of others' waiting requests: each the guess, outweighed by what ours are like as they come.
#[inline]
fn others_tokens(belief: &Belief) -> f64 {
    if belief.others_waiting <= 0.0 {
        return 0.0;
    }
    let ours = f64::from(belief.prefill_tokens);
    let each = (ours + OTHERS_PROMPT * OTHERS_SAMPLES) / (f64::from(belief.unstarted) + OTHERS_SAMPLES);
    f64::from(belief.others_waiting) * each
}

/// What does not fit is recomputed once, by us or by whom we push out; and to free a part of the cache takes that part
/// of a stream's lifetime. Nothing while all fits: a fuller cache is no slower.
#[inline]
fn kv_ms(belief: &Belief, pace: Pace, coming: f64, output: f64) -> f64 {
    let capacity = f64::from(belief.kv_capacity);
    let ours = f64::from(belief.kv_since.max(belief.prefill_tokens));
    let needed = f64::from(belief.kv_usage) * capacity + ours + coming;
    let over = needed - capacity;
    if over <= 0.0 {
        return 0.0;
    }
    over * pace.ms_per_token + over / needed * output * pace.itl_ms
}

/// A page that speaks of no adapters yet has most likely loaded none.
#[inline]
fn adapter_ms(adapter: AdapterState) -> f64 {
    match adapter {
        AdapterState::Held => 0.0,
        AdapterState::Room | AdapterState::Wanted | AdapterState::Untold => ADAPTER_LOAD_MS,
        AdapterState::Full => ADAPTER_SWAP_MS,
    }
}
