//! How full a pool is: how long a request would wait at the best of its pods before its own prefill begins, over how long
//! the operator finds that too much. From 1 on, what is sheddable is refused.
//!
//! What we sent and saw is exact and never stale: prompts that wait for their first token, requests there, each ended one
//! gone at once. A page tells the rest: others' requests, how full the cache is, whether a batch is at its end. What it
//! tells of others fades with its age, and what it tells of ours is carried forward by what we sent and what ended since. So
//! an old page says neither "full" nor "free" for ever. Nobody is refused here, and no pod is chosen.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Admission, Glance, Moment, Pace, Pod, PoolState};

/// The length of others' prompts, of which no metric tells: the mean that SGLang's gateway takes for unknown ones.
const OTHERS_PROMPT: f64 = 1_024.0;

/// How many of our own waiting prompts outweigh that guess. Ours: a handful is a sample.
const OTHERS_SAMPLES: f64 = 4.0;

/// KV-cache usage at which no further prompt fits, as a rule: a pod whose next prompt does not fit shows less than a full
/// cache by that prompt, and 8,000 tokens of an 8B model's 422,000 are 2 %.
pub const FULL_CACHE: f64 = 0.95;

/// The first and last pause that a refused client is told, in seconds: the header counts whole ones, and the OpenAI SDKs
/// follow it up to a minute and ignore a longer one.
const PAUSES: (f64, f64) = (1.0, 60.0);

/// How full a pool is for one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Saturation {
    /// Milliseconds before its own prefill that a request would wait at the best pod.
    pub wait_ms: f64,
    /// That over what the operator finds too much.
    pub level: f64,
}

impl Saturation {
    /// How full `pods` of `pool` are, of which those count that are in use and may serve `model` (all, if it has no name);
    /// `None` if there are none.
    pub fn of(pool: &PoolState, pods: &[Arc<Pod>], model: &str, now: Instant) -> Option<Self> {
        let sights = Sights { pace: pool.pace(), moment: pool.moment(now), answer: pool.expected_output_tokens().into() };
        let usable = |pod: &&Arc<Pod>| {
            matches!(pod.admits(now), Admission::Yes | Admission::Warming(_)) && pod.serves(model) != Some(false)
        };
        let pause = |pod: &Pod| pod.health.pushback(now).as_secs_f64() * 1e3;
        // A pod that said no is as good as full for as long as it looks so.
        let wait = |pod: &Arc<Pod>| sights.of_pod(pod).wait_ms().max(pause(pod));
        let wait_ms = pods.iter().filter(usable).map(wait).reduce(f64::min)?;
        let too_long = pool.config().saturation.wait.as_secs_f64() * 1e3;
        Some(Self { wait_ms, level: wait_ms / too_long })
    }

    /// Whether what is sheddable is refused.
    pub fn is_full(&self) -> bool {
        self.level >= 1.0
    }

    /// When to come again: once those who wait now are served.
    pub fn pause(&self) -> Duration {
        let (least, most) = PAUSES;
        Duration::from_secs_f64((self.wait_ms / 1e3).ceil().clamp(least, most))
    }
}

/// What is the same for all pods of a pool.
struct Sights {
    pace: Pace,
    moment: Moment,
    /// Tokens that an answer is expected to have.
    answer: f64,
}

impl Sights {
    fn of_pod(&self, pod: &Pod) -> Backlog {
        let ledger = &pod.ledger;
        let (streams, kv_tokens) = (ledger.in_flight() as f64, ledger.kv_tokens() as f64);
        let mut backlog = Backlog {
            prefill_tokens: ledger.prefill_tokens() as f64,
            ms_per_token: 0.0,
            lifetime_ms: 0.0,
            demand: 0.0,
        };
        let mut all = streams;
        if let Some(glance) = pod.glance(&self.moment) {
            let theirs = f64::from(glance.trust * glance.others_waiting);
            backlog.prefill_tokens += others_tokens(theirs, backlog.prefill_tokens, ledger.unstarted() as f64);
            all += f64::from(glance.trust * glance.others);
            backlog.demand = demand(&glance, (streams, kv_tokens));
        }
        let pace = pod.speed.pace(self.pace);
        backlog.ms_per_token = pace.ms_per_token;
        backlog.lifetime_ms = self.answer * pace.itl_ms(all);
        backlog
    }
}

/// What stands before a request at one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Backlog {
    /// Prompt tokens to be computed first.
    prefill_tokens: f64,
    ms_per_token: f64,
    /// How long an answer takes from its first token to its last.
    lifetime_ms: f64,
    /// What is there and wants to be, in times of what fits.
    demand: f64,
}

impl Backlog {
    /// Prompts are computed one after the other. Where more is wanted than fits, those who wait begin as those who run
    /// end: as much as fits in an answer's time.
    fn wait_ms(&self) -> f64 {
        self.prefill_tokens * self.ms_per_token + (self.demand - 1.0).max(0.0) * self.lifetime_ms
    }
}

/// Prompt tokens of others' waiting requests: each the guess, outweighed by what ours, `unstarted` with `prefill_tokens`, are
/// like as they come.
#[inline]
pub fn others_tokens(others_waiting: f64, prefill_tokens: f64, unstarted: f64) -> f64 {
    if others_waiting <= 0.0 {
        return 0.0;
    }
    others_waiting * (prefill_tokens + OTHERS_PROMPT * OTHERS_SAMPLES) / (unstarted + OTHERS_SAMPLES)
}

/// What the requests at a pod want of its cache and of its batch, in times of what there is, whichever is more; `streams`
/// are ours there now, with `kv_tokens`.
fn demand(glance: &Glance, (streams, kv_tokens): (f64, f64)) -> f64 {
    let (ours, others) = (f64::from(glance.ours), f64::from(glance.others));
    // Those that the page knew and that are there yet, as far as others' are believed to be, and those sent since.
    let known = streams.min(ours) + f64::from(glance.trust) * others;
    let since = (streams - ours).max(0.0);
    let running = f64::from(glance.running);
    let usage = f64::from(glance.kv_usage).min(FULL_CACHE) / FULL_CACHE;
    // Who waits will want as much of the cache as who runs has. An engine that runs nothing has not said how much.
    let each = usage / if running >= 1.0 { running } else { (ours + others).max(1.0) };
    let of_new = match glance.kv_capacity {
        Some(capacity) => kv_tokens / streams.max(1.0) / f64::from(capacity),
        None => each,
    };
    let cache = known * each + since * of_new;
    let batch = glance.batch.map_or(0.0, |slots| (known + since) / f64::from(slots));
    cache.max(batch)
}
