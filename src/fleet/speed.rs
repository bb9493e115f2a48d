//! How fast a pod has shown itself to be: time to first token against the tokens it had to compute first, and the time
//! between tokens.
//!
//! Time to first token is fitted as `base + tokens * per_token` by least squares over exponentially fading sums, so
//! that a pod which becomes slow is soon known to be, and an outlier is clipped before it enters. A pod that has shown
//! little is believed to be like its pool. Instantaneous throughput is never used: it says how much work there was,
//! not how fast the pod is.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// Weight kept by the past at each new sample: half of it is gone after 34 samples.
const MEMORY: f64 = 0.98;

/// Half of what a pod has shown is forgotten in this time, so that one which had a bad minute, and is avoided since, is
/// tried again. As long as a warm-up.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// How many samples of its own a pod must have shown to be believed as much as its pool; confidence grows with their
/// square, so that one odd answer (an engine's first is slow) is an anecdote and ten are a fact.
const POD_HALF_TRUST: f64 = 8.0;

/// The same for a pool, whose alternative is only [`UNSEEN`].
const POOL_HALF_TRUST: f64 = 1.0;

/// A sample may be this many times what was expected; more is clipped (a preemption, a pause of the client).
const CLIP: f64 = 4.0;

/// Where a fleet that has shown nothing yet is believed to be: an 8B model on an H100 prefills 40,000 tokens/s and
/// takes 6 ms a step, on an L40S a quarter of that (fitted silicon measurements, see the sim's profiles); between them.
const UNSEEN: Pace = Pace { base_ms: 20.0, ms_per_token: 0.05, itl_ms: 15.0 };

/// A pod's speed as three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Milliseconds from sending to the first token that no prompt length explains.
    pub base_ms: f64,
    /// Milliseconds of prefill a token.
    pub ms_per_token: f64,
    /// Milliseconds between two tokens of one stream.
    pub itl_ms: f64,
}

impl Default for Pace {
    fn default() -> Self {
        UNSEEN
    }
}

/// What was learned of one pod, or of a pool as a whole.
/// (In this order in memory; see [`super::Pod`].)
#[derive(Debug)]
#[repr(C)]
pub struct Speed {
    samples: AtomicU32,
    base_ms: AtomicU32,
    ms_per_token: AtomicU32,
    itl_ms: AtomicU32,
    half_trust: f64,
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    itl_n: f64,
    itl: f64,
    /// When time last took its part.
    faded: Option<Instant>,
}

impl Speed {
    /// Nothing learned of a pod.
    pub fn of_pod() -> Self {
        Self::new(POD_HALF_TRUST)
    }

    /// Nothing learned of a pool.
    pub fn of_pool() -> Self {
        Self::new(POOL_HALF_TRUST)
    }

    fn new(half_trust: f64) -> Self {
        Self {
            half_trust,
            sums: Mutex::default(),
            samples: AtomicU32::new(0),
            base_ms: AtomicU32::new(0),
            ms_per_token: AtomicU32::new(0),
            itl_ms: AtomicU32::new(0),
        }
    }

    /// A request had `tokens` to be computed before its first token (its own and those ahead of it) and showed it
    /// after `ttft_ms`. `prior` is what the pool is believed to be.
    pub fn learn_first_token(&self, tokens: f64, ttft_ms: f64, prior: Pace, now: Instant) {
        if !(tokens.is_finite() && ttft_ms.is_finite() && tokens >= 0.0 && ttft_ms >= 0.0) {
            return;
        }
        let expected = self.pace(prior);
        let expected_ms = expected.base_ms + tokens * expected.ms_per_token;
        let mut sums = self.sums();
        sums.fade(now);
        // Before it has shown anything, nothing is an outlier.
        let y = if sums.n > POD_HALF_TRUST { ttft_ms.min(expected_ms * CLIP) } else { ttft_ms };
        sums.n = sums.n * MEMORY + 1.0;
        sums.x = sums.x * MEMORY + tokens;
        sums.y = sums.y * MEMORY + y;
        sums.xx = sums.xx * MEMORY + tokens * tokens;
        sums.xy = sums.xy * MEMORY + tokens * y;
        self.samples.store(self.samples().saturating_add(1), Relaxed);
        self.publish(&sums, prior);
    }

    /// A stream showed this mean time between its tokens.
    pub fn learn_itl(&self, itl_ms: f64, prior: Pace, now: Instant) {
        if !(itl_ms.is_finite() && itl_ms >= 0.0) {
            return;
        }
        let expected = self.pace(prior).itl_ms;
        let mut sums = self.sums();
        sums.fade(now);
        let y = if sums.itl_n > POD_HALF_TRUST { itl_ms.min(expected * CLIP) } else { itl_ms };
        sums.itl_n = sums.itl_n * MEMORY + 1.0;
        sums.itl = sums.itl * MEMORY + y;
        self.samples.store(self.samples().saturating_add(1), Relaxed);
        self.publish(&sums, prior);
    }

    /// Time has passed and the pool may have learned: weighs anew what was seen here. Called as often as the pod is
    /// read, so that a pod nobody sends to does not stay what it was.
    pub fn fade(&self, prior: Pace, now: Instant) {
        let mut sums = self.sums();
        if sums.n + sums.itl_n > 0.0 {
            sums.fade(now);
            self.publish(&sums, prior);
        }
    }

    /// What it is believed to be; `prior` where nothing was seen.
    #[inline]
    pub fn pace(&self, prior: Pace) -> Pace {
        if self.samples.load(Relaxed) == 0 {
            return prior;
        }
        let read = |cell: &AtomicU32| f64::from(f32::from_bits(cell.load(Relaxed)));
        Pace { base_ms: read(&self.base_ms), ms_per_token: read(&self.ms_per_token), itl_ms: read(&self.itl_ms) }
    }

    /// Samples seen, as far as a u32 counts.
    pub fn samples(&self) -> u32 {
        self.samples.load(Relaxed)
    }

    /// Takes over a pace from elsewhere (a saved state), as if it had been learned.
    pub fn assume(&self, pace: Pace) {
        self.store(pace);
        self.samples.fetch_max(1, Relaxed);
    }

    fn publish(&self, sums: &Sums, prior: Pace) {
        let own = sums.fit(prior);
        let blend = |own: f64, prior: f64, n: f64| {
            let (trust, doubt) = (n * n, self.half_trust * self.half_trust);
            (own * trust + prior * doubt) / (trust + doubt)
        };
        self.store(Pace {
            base_ms: blend(own.base_ms, prior.base_ms, sums.n),
            ms_per_token: blend(own.ms_per_token, prior.ms_per_token, sums.n),
            itl_ms: blend(own.itl_ms, prior.itl_ms, sums.itl_n),
        });
    }

    fn store(&self, pace: Pace) {
        #[expect(clippy::cast_possible_truncation, reason = "f32 holds a pace well enough, and fits an atomic")]
        let write = |cell: &AtomicU32, value: f64| cell.store((value as f32).to_bits(), Relaxed);
        write(&self.base_ms, pace.base_ms);
        write(&self.ms_per_token, pace.ms_per_token);
        write(&self.itl_ms, pace.itl_ms);
    }

    fn sums(&self) -> std::sync::MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sums {
    fn fade(&mut self, now: Instant) {
        let passed = self.faded.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let kept = (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        for sum in [&mut self.n, &mut self.x, &mut self.y, &mut self.xx, &mut self.xy, &mut self.itl_n, &mut self.itl] {
            *sum *= kept;
        }
        self.faded = Some(now);
    }

    /// Least squares where the samples differ enough in length to tell base from slope; else the base is taken as
    /// given and only the slope is fitted.
    fn fit(&self, prior: Pace) -> Pace {
        let itl_ms = if self.itl_n > 0.0 { self.itl / self.itl_n } else { prior.itl_ms };
        if self.n <= 0.0 {
            return Pace { itl_ms, ..prior };
        }
        let (mean_x, mean_y) = (self.x / self.n, self.y / self.n);
        let spread = self.xx / self.n - mean_x * mean_x;
        let slope = (self.xy / self.n - mean_x * mean_y) / spread;
        let base = mean_y - slope * mean_x;
        // A tenth of the mean length is the least spread that tells a slope from noise.
        let telling = spread.sqrt() > mean_x * 0.1 && slope.is_finite() && slope > 0.0 && base >= 0.0;
        if telling && self.n > 2.0 {
            return Pace { base_ms: base, ms_per_token: slope, itl_ms };
        }
        // Scale the prior's line so that it passes through the mean.
        let factor = mean_y / (prior.base_ms + prior.ms_per_token * mean_x).max(f64::MIN_POSITIVE);
        Pace { base_ms: prior.base_ms * factor, ms_per_token: prior.ms_per_token * factor, itl_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn near(a: f64, b: f64, share: f64) -> bool {
        (a - b).abs() <= b * share
    }

    /// Answers ten a second.
    fn taught(speed: &Speed, from: Instant, (base, per_token): (f64, f64), samples: u32) -> Instant {
        for i in 0..samples {
            let tokens = f64::from(i % 10) * 500.0;
            let now = from + Duration::from_millis(100) * i;
            speed.learn_first_token(tokens, base + per_token * tokens, UNSEEN, now);
        }
        from + Duration::from_millis(100) * samples
    }

    #[test]
    fn a_pod_that_showed_nothing_is_like_its_pool() {
        let pool = Pace { base_ms: 7.0, ms_per_token: 0.2, itl_ms: 9.0 };
        assert_eq!(Speed::of_pod().pace(pool), pool);
    }

    #[test]
    fn base_and_slope_are_told_apart() {
        let speed = Speed::of_pod();
        taught(&speed, clock::now(), (12.0, 0.025), 400);
        let pace = speed.pace(UNSEEN);
        assert!(near(pace.ms_per_token, 0.025, 0.2), "{pace:?}");
        assert!(near(pace.base_ms, 12.0, 0.3), "{pace:?}");
    }

    #[test]
    fn a_pod_that_becomes_four_times_slower_is_known_to_be_within_a_hundred_answers() {
        let speed = Speed::of_pod();
        let then = taught(&speed, clock::now(), (12.0, 0.025), 400);
        taught(&speed, then, (48.0, 0.1), 100);
        let pace = speed.pace(UNSEEN);
        assert!(near(pace.ms_per_token, 0.1, 0.25), "{pace:?}");
    }

    #[test]
    fn one_answer_in_fifty_that_took_a_minute_moves_the_estimate_little() {
        let (speed, now) = (Speed::of_pod(), clock::now());
        for i in 0..500u32 {
            let tokens = f64::from(i % 10) * 500.0;
            let ttft = if i % 50 == 49 { 60_000.0 } else { 12.0 + 0.025 * tokens };
            speed.learn_first_token(tokens, ttft, UNSEEN, now + Duration::from_millis(100) * i);
        }
        let pace = speed.pace(UNSEEN);
        assert!(pace.base_ms + 2_000.0 * pace.ms_per_token < 2.0 * 62.0, "{pace:?}");
    }

    #[test]
    fn prompts_of_one_length_still_tell_a_slow_pod_from_a_fast_one() {
        let (fast, slow, now) = (Speed::of_pod(), Speed::of_pod(), clock::now());
        for _ in 0..100 {
            fast.learn_first_token(1_000.0, 40.0, UNSEEN, now);
            slow.learn_first_token(1_000.0, 80.0, UNSEEN, now);
        }
        let ratio = slow.pace(UNSEEN).ms_per_token / fast.pace(UNSEEN).ms_per_token;
        assert!(ratio > 1.7, "{ratio}");
    }

    #[test]
    fn nonsense_is_not_learned() {
        let speed = Speed::of_pod();
        speed.learn_first_token(f64::NAN, 3.0, UNSEEN, clock::now());
        speed.learn_itl(f64::INFINITY, UNSEEN, clock::now());
        assert_eq!(speed.samples(), 0);
    }

    #[test]
    fn an_engines_slow_first_answer_does_not_make_it_the_pod_that_nobody_uses() {
        let (pool, pod) = (Speed::of_pool(), Speed::of_pod());
        let start = clock::now();
        pod.learn_first_token(20.0, 2_000.0, UNSEEN, start);
        pool.learn_first_token(20.0, 2_000.0, UNSEEN, start);
        let mut now = start;
        for _ in 0..30 {
            now += Duration::from_millis(100);
            pool.learn_first_token(20.0, 30.0, UNSEEN, now);
        }
        pod.fade(pool.pace(UNSEEN), now);
        let (pod, pool) = (pod.pace(UNSEEN), pool.pace(UNSEEN));
        assert!(pod.base_ms < 2.0 * pool.base_ms, "{pod:?} in a pool of {pool:?}");
    }

    #[test]
    fn a_pod_that_was_slow_and_is_avoided_is_like_its_pool_again_after_some_minutes() {
        let speed = Speed::of_pod();
        let then = taught(&speed, clock::now(), (200.0, 0.5), 200);
        assert!(speed.pace(UNSEEN).base_ms > 100.0);
        speed.fade(UNSEEN, then + HALF_LIFE * 5);
        let pace = speed.pace(UNSEEN);
        assert!(near(pace.base_ms, UNSEEN.base_ms, 0.5), "{pace:?}");
    }
}
