//! `least-cost`: the pod on which this request adds the fewest milliseconds, to itself and to everybody else there.
//!
//! Everything is time, so nothing needs weights: a cached prefix is worth exactly the prefill that it saves, and a
//! backlog weighs exactly as long as it takes. Speeds are each pod's own, as it has shown them. What it does not price is
//! the request's own decoding: it takes about as long everywhere, and where it does not, pods would be told apart by
//! noise times a thousand tokens.

use std::time::Instant;

use crate::{
    fleet::{self, AdapterState, FULL_CACHE, Moment, Pace},
    scheduler::{
        Cost, Price,
        belief::{Belief, Beliefs},
        filters::{Candidate, Field},
    },
};

/// Milliseconds between tokens at which a stream is slow, and waiting in its middle begins to weigh: the promise that
/// most serving benchmarks make their users.
const SLOW_ITL_MS: f64 = 50.0;

/// What a millisecond more between the tokens of a stream that is so slow counts against one before a first token. 0.2
/// to 0.5 were measured to work alike.
const INTERFERENCE: f64 = 0.3;

/// It grows with the square of the time between tokens, up to this: three times as slow is lost already.
const MOST_INTERFERENCE: f64 = 10.0 * INTERFERENCE;

/// How much of its decoding a request spends with each of the streams that it finds: most of them end before it does.
/// Measured; 0.2 to 0.5 work alike.
const OVERLAP: f64 = 1.0 / 3.0;

/// A pod is not taken to be busier with prefills than this: a burst would else look like the end of the world.
const MOST_BUSY: f64 = 0.8;

/// KV-cache usage from which waiting requests may be waiting for room, and at which they do.
const FULL: (f64, f64) = (0.90, FULL_CACHE);

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
    moment: Moment,
    pool: Pace,
    pub(in crate::scheduler) beliefs: Beliefs,
    adapter: bool,
}

impl<'a> LeastCost<'a> {
    pub(super) fn new(field: &'a Field<'a>) -> Self {
        let beliefs = Beliefs::gather(field, !field.base);
        let (pool, now) = (field.scene.pool, field.scene.now);
        Self { adapter: field.adapter || beliefs.adapter, pool: pool.pace(), moment: pool.moment(now), field, beliefs }
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
        // A pod that warms up is full at its share of what others carry.
        let share = candidate.share;
        // Divisions are most of what a price takes: one by the share only while there is one, one by what is left of it.
        let fuller = if share < 1.0 { 1.0 / share } else { 1.0 };
        let streams = f64::from(belief.streams()) * fuller;
        let others_tokens = others_tokens(belief);
        let own_ms = uncached * pace.ms_per_token;
        // The share of its time that goes to our prefills; what is left decodes, so that much slower. To guess at other
        // gateways' by their streams was measured to do harm: all of them then flee the same pod at once.
        let inflow = f64::from(candidate.pod.inflow.per_ms(&self.moment)) * fuller;
        let busy = (inflow * pace.ms_per_token).min(MOST_BUSY);
        let stretched = 1.0 / (1.0 - busy);
        let itl_ms = pace.itl_ms(streams) * stretched;
        let weight = interference(itl_ms);
        Cost {
            wait_ms: (f64::from(belief.prefill_tokens) + others_tokens) * fuller * pace.ms_per_token,
            prefill_ms: pace.base_ms + own_ms,
            // Whoever comes while the queue lasts waits behind it, and the queue lasts by that much longer: the
            // marginal waiting of a queue served in order.
            later_ms: own_ms * busy * stretched,
            delay_ms: weight * own_ms * streams,
            decode_ms: weight * OVERLAP * output * pace.stream_ms * streams,
            kv_ms: kv_ms(belief, pace.ms_per_token, others_tokens + uncached + output, output * itl_ms),
            adapter_ms: if self.adapter { adapter_ms(belief.adapter, output * itl_ms) } else { 0.0 },
            pushback_ms: pushback_ms(candidate, self.field.scene.now),
            share,
        }
    }
}

/// It said no, so its queue is at least as long as it wants to be left alone. Without this the pod that refuses fastest
/// is always the emptiest and gets everything.
#[inline]
fn pushback_ms(candidate: &Candidate<'_>, now: Instant) -> f64 {
    let left = candidate.pod.health.pushback(now);
    if left.is_zero() { 0.0 } else { left.as_secs_f64() * 1e3 }
}

/// Within this of the best, a cost is as good.
pub(super) fn tolerance(best: &Cost) -> f64 {
    TIE * (best.prefill_ms + best.decode_ms)
}

/// What a millisecond that streams are held up counts, where they are `itl_ms` slow. Nobody minds a hundredth of a second
/// between words that come faster than they can be read; at the edge of what was promised every one counts. So an idle
/// fleet is shared out by waiting time alone, and a loaded one guards its streams.
#[inline]
fn interference(itl_ms: f64) -> f64 {
    let slow = itl_ms / SLOW_ITL_MS;
    (INTERFERENCE * slow * slow).min(MOST_INTERFERENCE)
}

/// Prompt tokens of others' waiting requests.
#[inline]
fn others_tokens(belief: &Belief) -> f64 {
    let [waiting, tokens, unstarted] = [belief.others_waiting, belief.prefill_tokens, belief.unstarted].map(f64::from);
    fleet::others_tokens(waiting, tokens, unstarted)
}

/// What does not fit is recomputed once, by us or by whom we push out. Where the cache is full, those who wait start as
/// those who run end, one for one. Nothing while all fits: a fuller cache is no slower, and to leave a pod that holds a
/// prompt because it is nearly full would fill another with the same prompt.
#[inline]
fn kv_ms(belief: &Belief, ms_per_token: f64, coming: f64, lifetime_ms: f64) -> f64 {
    let capacity = f64::from(belief.kv_capacity);
    let usage = f64::from(belief.kv_usage);
    let ours = f64::from(belief.kv_since.max(belief.prefill_tokens));
    let over = (usage * capacity + ours + coming - capacity).max(0.0);
    if usage <= FULL.0 {
        return over * ms_per_token;
    }
    let full = ((usage - FULL.0) / (FULL.1 - FULL.0)).min(1.0);
    let queue = full * f64::from(belief.waiting) / f64::from(belief.running.max(1.0));
    over * ms_per_token + queue * lifetime_ms
}

/// Where there is no room, all adapters there are in use, and one of them must be done with first. A page that speaks of
/// no adapters yet has most likely loaded none.
#[inline]
fn adapter_ms(adapter: AdapterState, lifetime_ms: f64) -> f64 {
    match adapter {
        AdapterState::Held => 0.0,
        AdapterState::Room | AdapterState::Untold => ADAPTER_LOAD_MS,
        // Who waits for it already has waited for half of that.
        AdapterState::Wanted => ADAPTER_LOAD_MS + lifetime_ms / 2.0,
        AdapterState::Full => ADAPTER_SWAP_MS + lifetime_ms,
    }
}
