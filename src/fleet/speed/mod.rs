//! How fast a pod has shown itself to be: time to first token against the tokens it had to compute first, and the time of
//! a decoding step against the streams that shared it.
//!
//! The pool learns two lines, `base + tokens * per_token` and `step + streams * per_stream`, by least squares over fading
//! sums; a pod only by how much it is slower than they say, one factor for each. So load is never mistaken for slow
//! hardware: a pod that is merely busy is where the line says it should be. A factor that its own samples cannot tell
//! from 1 is 1, or equal pods would look different by noise. Outliers are clipped, and all fades with time. Instantaneous
//! throughput is never used: it says how much work there was, not how fast the pod is.

mod inflow;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

pub use inflow::Inflow;

/// Weight kept by a pod's past at each new sample: half of it is gone after 34 samples.
const POD_MEMORY: f64 = 0.98;

/// The same for a pool, which has more of them and nobody to be compared with: half is gone after 350.
const POOL_MEMORY: f64 = 0.998;

/// The least spread that tells a slope from noise, as a deviation: tokens of prompts, streams of a batch. Within less, a
/// millisecond of chance would be a slope of hundreds of times the truth, and long prompts would be priced by it.
const LEAST_SPREAD: (f64, f64) = (64.0, 1.0);

/// A slope is not taken to be more times steeper or flatter than the prior's, scaled: real ones lie within ten (0.02 to 0.35
/// ms a token of prefill).
const MOST_SLOPE: f64 = 20.0;

/// Half of what was shown is forgotten in this time, so that a pod which had a bad minute, and is avoided since, is tried
/// again. As long as a warm-up.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// How many samples of its own a pod must have shown to be believed as much as its pool; confidence grows with their
/// square, so that one odd answer (an engine's first is slow) is an anecdote and ten are a fact.
const POD_HALF_TRUST: f64 = 8.0;

/// The same for a pool, whose alternative is only [`UNSEEN`].
const POOL_HALF_TRUST: f64 = 1.0;

/// A sample may be this many times what was expected; more is clipped (a preemption, a pause of the client).
const CLIP: f64 = 4.0;

/// Standard errors within which a pod's factor is told to be 1 (James and Stein's rule shrinks by their square): two, as
/// in tests of one in twenty.
const DOUBT: f64 = 2.0;

/// A pod is not taken to be more times slower or faster than this: GPUs of one pool differ by ten at most, and one that
/// answers from nowhere in no time must not get everything.
const MOST_FACTOR: f64 = 16.0;

/// Where a fleet that has shown nothing yet is believed to be: an 8B model on an H100 prefills 40,000 tokens/s and
/// takes 6 ms a step, on an L40S a quarter of that (fitted silicon measurements, see the sim's profiles); between them.
/// One more stream lengthens a step by a hundredth: its row of the GEMMs, its attention over 1,000 tokens, the host.
const UNSEEN: Pace = Pace { base_ms: 20.0, ms_per_token: 0.05, step_ms: 15.0, stream_ms: 0.15 };

/// Speed as two lines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Milliseconds from sending to the first token that no prompt length explains.
    pub base_ms: f64,
    /// Milliseconds of prefill a token.
    pub ms_per_token: f64,
    /// Milliseconds of a decoding step that no other stream explains.
    pub step_ms: f64,
    /// Milliseconds that each stream adds to it.
    pub stream_ms: f64,
}

impl Pace {
    /// Milliseconds between two tokens of a stream among so many.
    #[inline]
    pub fn itl_ms(&self, streams: f64) -> f64 {
        self.step_ms + self.stream_ms * streams
    }

    fn prefill(self) -> Line {
        Line { base: self.base_ms, slope: self.ms_per_token }
    }

    fn decode(self) -> Line {
        Line { base: self.step_ms, slope: self.stream_ms }
    }

    fn of(prefill: Line, decode: Line) -> Self {
        Self { base_ms: prefill.base, ms_per_token: prefill.slope, step_ms: decode.base, stream_ms: decode.slope }
    }
}

impl Default for Pace {
    fn default() -> Self {
        UNSEEN
    }
}

#[derive(Clone, Copy, Debug)]
struct Line {
    base: f64,
    slope: f64,
}

impl Line {
    fn at(self, x: f64) -> f64 {
        self.base + self.slope * x
    }
}

/// What was learned of a pool as a whole.
#[derive(Debug)]
pub struct PoolSpeed {
    pace: [AtomicU32; 4],
    lessons: Mutex<(Fit, Fit)>,
}

/// What was learned of one pod.
/// (In this order in memory; see [`super::Pod`].)
#[derive(Debug)]
#[repr(C)]
pub struct Speed {
    prefill: AtomicU32,
    decode: AtomicU32,
    lessons: Mutex<(Ratio, Ratio)>,
}

impl Default for PoolSpeed {
    fn default() -> Self {
        let speed = Self { pace: Default::default(), lessons: Mutex::default() };
        speed.assume(UNSEEN);
        speed
    }
}

impl Default for Speed {
    fn default() -> Self {
        Self { prefill: one(), decode: one(), lessons: Mutex::default() }
    }
}

fn one() -> AtomicU32 {
    AtomicU32::new(1f32.to_bits())
}

/// What one sample is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Milliseconds to the first token, by the tokens that were to be computed until then.
    Prefill,
    /// Milliseconds of one decoding step, by the streams that shared it.
    Decode,
}

impl PoolSpeed {
    /// What it is believed to be.
    #[inline]
    pub fn pace(&self) -> Pace {
        let [base_ms, ms_per_token, step_ms, stream_ms] = self.pace.each_ref().map(read);
        Pace { base_ms, ms_per_token, step_ms, stream_ms }
    }

    /// Takes over a pace from elsewhere (a saved state).
    pub fn assume(&self, pace: Pace) {
        let all = [pace.base_ms, pace.ms_per_token, pace.step_ms, pace.stream_ms];
        self.pace.iter().zip(all).for_each(|(cell, value)| write(cell, value));
    }

    /// `pod`, one of its own, took `ms` for `x`; see [`Of`].
    pub fn learn(&self, pod: &Speed, of: Of, (x, ms): (f64, f64), now: Instant) {
        if !(x.is_finite() && ms.is_finite() && x >= 0.0 && ms >= 0.0) {
            return;
        }
        let pace = self.pace();
        let line = if of == Of::Prefill { pace.prefill() } else { pace.decode() };
        let (y, factor) = pod.learn(of, line.at(x), ms, now);
        let mut fits = self.lessons.lock().unwrap_or_else(PoisonError::into_inner);
        let fit = if of == Of::Prefill { &mut fits.0 } else { &mut fits.1 };
        fit.learn((x, y), factor, now);
        self.assume(Pace::of(
            fits.0.line(UNSEEN.prefill(), LEAST_SPREAD.0),
            fits.1.line(UNSEEN.decode(), LEAST_SPREAD.1),
        ));
    }
}

impl Speed {
    /// What it is believed to be, in a pool of this pace.
    #[inline]
    pub fn pace(&self, pool: Pace) -> Pace {
        let (prefill, decode) = (read(&self.prefill), read(&self.decode));
        Pace {
            base_ms: pool.base_ms * prefill,
            ms_per_token: pool.ms_per_token * prefill,
            step_ms: pool.step_ms * decode,
            stream_ms: pool.stream_ms * decode,
        }
    }

    /// Takes over a pace from elsewhere (a saved state), in a pool of that other pace.
    pub fn assume(&self, pace: Pace, pool: Pace) {
        write(&self.prefill, pace.ms_per_token / pool.ms_per_token);
        write(&self.decode, pace.step_ms / pool.step_ms);
    }

    /// Time has passed: weighs anew what was seen here. Called as often as the pod is read, so that a pod nobody sends
    /// to does not stay what it was.
    pub fn fade(&self, now: Instant) {
        let mut both = self.lessons();
        both.0.fade(now);
        both.1.fade(now);
        self.publish(&both);
    }

    /// Returns the sample, clipped, and the factor that is believed now.
    fn learn(&self, of: Of, expected: f64, ms: f64, now: Instant) -> (f64, f64) {
        let mut both = self.lessons();
        let ratio = if of == Of::Prefill { &mut both.0 } else { &mut both.1 };
        let y = ratio.learn(expected, ms, now);
        let factor = ratio.factor();
        self.publish(&both);
        (y, factor)
    }

    fn publish(&self, both: &(Ratio, Ratio)) {
        write(&self.prefill, both.0.factor());
        write(&self.decode, both.1.factor());
    }

    fn lessons(&self) -> std::sync::MutexGuard<'_, (Ratio, Ratio)> {
        self.lessons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[inline]
fn read(cell: &AtomicU32) -> f64 {
    f64::from(f32::from_bits(cell.load(Relaxed)))
}

fn write(cell: &AtomicU32, value: f64) {
    #[expect(clippy::cast_possible_truncation, reason = "f32 holds a pace well enough, and fits an atomic")]
    cell.store((value as f32).to_bits(), Relaxed);
}

/// Weight kept after the time since `last`, which becomes `now`.
fn kept(last: &mut Option<Instant>, now: Instant) -> f64 {
    let passed = last.replace(now).map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
    (-passed.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2()
}

/// How much slower than expected: the ratio of two sums, and how sure that is.
#[derive(Debug, Default)]
struct Ratio {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    yy: f64,
    faded: Option<Instant>,
}

impl Ratio {
    fn learn(&mut self, expected: f64, ms: f64, now: Instant) -> f64 {
        self.fade(now);
        // Before it has shown anything, nothing is an outlier.
        let y = if self.n > POD_HALF_TRUST { ms.min(expected * self.raw().max(1.0 / CLIP) * CLIP) } else { ms };
        for (sum, new) in self.sums().into_iter().zip([1.0, expected, y, expected * expected, expected * y, y * y]) {
            *sum = *sum * POD_MEMORY + new;
        }
        y
    }

    fn sums(&mut self) -> [&mut f64; 6] {
        [&mut self.n, &mut self.x, &mut self.y, &mut self.xx, &mut self.xy, &mut self.yy]
    }

    fn fade(&mut self, now: Instant) {
        let kept = kept(&mut self.faded, now);
        self.sums().into_iter().for_each(|sum| *sum *= kept);
    }

    fn raw(&self) -> f64 {
        if self.x > 0.0 { self.y / self.x } else { 1.0 }
    }

    fn factor(&self) -> f64 {
        if self.n <= 0.0 || self.x <= 0.0 {
            return 1.0;
        }
        let raw = self.raw();
        let error = (self.yy - 2.0 * raw * self.xy + raw * raw * self.xx).max(0.0) / (self.x * self.x);
        let beyond = raw - 1.0;
        let shrunk = (1.0 - DOUBT * DOUBT * error / (beyond * beyond).max(f64::MIN_POSITIVE)).max(0.0);
        let trust = self.n * self.n / (self.n * self.n + POD_HALF_TRUST * POD_HALF_TRUST);
        (1.0 + beyond * shrunk * trust).clamp(1.0 / MOST_FACTOR, MOST_FACTOR)
    }
}

/// A line through what all pods showed, each made comparable by its factor.
#[derive(Debug, Default)]
struct Fit {
    n: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
    /// The mean factor of the pods that taught: if all are slow, none is, and the line moves.
    factor: f64,
    faded: Option<Instant>,
}

impl Fit {
    fn learn(&mut self, (x, y): (f64, f64), factor: f64, now: Instant) {
        let kept = kept(&mut self.faded, now) * POOL_MEMORY;
        self.factor = (self.factor * self.n * kept + factor) / (self.n * kept + 1.0);
        let y = y / factor * self.factor;
        let sums = [&mut self.n, &mut self.x, &mut self.y, &mut self.xx, &mut self.xy];
        for (sum, new) in sums.into_iter().zip([1.0, x, y, x * x, x * y]) {
            *sum = *sum * kept + new;
        }
    }

    /// Least squares where the samples differ enough to tell base from slope; else the prior's line, scaled so that it
    /// passes through their mean.
    fn line(&self, prior: Line, least_spread: f64) -> Line {
        if self.n <= 0.0 {
            return prior;
        }
        let (mean_x, mean_y) = (self.x / self.n, self.y / self.n);
        let spread = self.xx / self.n - mean_x * mean_x;
        let slope = (self.xy / self.n - mean_x * mean_y) / spread;
        let base = mean_y - slope * mean_x;
        let factor = mean_y / prior.at(mean_x).max(f64::MIN_POSITIVE);
        let scaled = Line { base: prior.base * factor, slope: prior.slope * factor };
        let likely = scaled.slope / MOST_SLOPE..=scaled.slope * MOST_SLOPE;
        // A tenth of the mean is the least share of it that tells.
        let telling = spread.sqrt() > least_spread.max(mean_x * 0.1) && likely.contains(&slope) && base >= 0.0;
        let own = if telling && self.n > 2.0 { Line { base, slope } } else { scaled };
        let (trust, doubt) = (self.n * self.n, POOL_HALF_TRUST * POOL_HALF_TRUST);
        let blend = |own: f64, prior: f64| (own * trust + prior * doubt) / (trust + doubt);
        Line { base: blend(own.base, prior.base), slope: blend(own.slope, prior.slope) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn near(a: f64, b: f64, share: f64) -> bool {
        (a - b).abs() <= b * share
    }

    /// A pool of pods, each with its factor, that answer in turn, ten a second each; odd samples are a third longer and
    /// even ones a third shorter than they should be.
    fn taught(pool: &PoolSpeed, pods: &[(&Speed, f64)], from: Instant, samples: u32) -> Instant {
        for i in 0..samples {
            let (tokens, noise) = (f64::from(i % 10) * 500.0, if i % 2 == 0 { 2.0 / 3.0 } else { 4.0 / 3.0 });
            for (pod, factor) in pods {
                let now = from + Duration::from_millis(100) * i;
                pool.learn(pod, Of::Prefill, (tokens, (12.0 + 0.025 * tokens) * factor * noise), now);
            }
        }
        from + Duration::from_millis(100) * samples
    }

    #[test]
    fn a_pod_that_showed_nothing_is_like_its_pool() {
        let pool = Pace { base_ms: 7.0, ms_per_token: 0.2, step_ms: 9.0, stream_ms: 0.1 };
        assert_eq!(Speed::default().pace(pool), pool);
        let itl_ms = PoolSpeed::default().pace().itl_ms(10.0);
        assert!(near(itl_ms, 16.5, 1e-6), "{itl_ms}");
    }

    #[test]
    fn base_and_slope_are_told_apart_and_equal_pods_are_exactly_equal() {
        let (pool, one, other) = (PoolSpeed::default(), Speed::default(), Speed::default());
        taught(&pool, &[(&one, 1.0), (&other, 1.05)], clock::now(), 400);
        let pace = pool.pace();
        assert!(near(pace.ms_per_token, 0.025, 0.2), "{pace:?}");
        assert!(near(pace.base_ms, 12.0, 0.4), "{pace:?}");
        assert_eq!((one.pace(pace), other.pace(pace)), (pace, pace), "a twentieth is within the noise");
    }

    #[test]
    fn mixed_hardware_is_told_apart_and_the_line_lies_between() {
        let (pool, fast, slow) = (PoolSpeed::default(), Speed::default(), Speed::default());
        taught(&pool, &[(&fast, 1.0), (&slow, 3.0)], clock::now(), 400);
        let (fast, slow) = (fast.pace(pool.pace()), slow.pace(pool.pace()));
        assert!(near(slow.ms_per_token / fast.ms_per_token, 3.0, 0.2), "{fast:?} {slow:?}");
        assert!(near(fast.ms_per_token, 0.025, 0.3), "{fast:?}");
    }

    #[test]
    fn a_pod_that_becomes_four_times_slower_is_known_to_be_within_a_hundred_answers() {
        let (pool, well, ill) = (PoolSpeed::default(), Speed::default(), Speed::default());
        let then = taught(&pool, &[(&well, 1.0), (&ill, 1.0)], clock::now(), 400);
        taught(&pool, &[(&well, 1.0), (&ill, 4.0)], then, 100);
        let (well, ill) = (well.pace(pool.pace()), ill.pace(pool.pace()));
        assert!(ill.ms_per_token / well.ms_per_token > 2.8, "{well:?} {ill:?}");
    }

    #[test]
    fn when_all_become_slow_the_line_moves_and_nobody_is_to_blame() {
        let (pool, one, other) = (PoolSpeed::default(), Speed::default(), Speed::default());
        let then = taught(&pool, &[(&one, 1.0), (&other, 1.0)], clock::now(), 400);
        taught(&pool, &[(&one, 4.0), (&other, 4.0)], then, 1_200);
        assert!(near(one.pace(pool.pace()).ms_per_token, 0.1, 0.3), "{:?}", one.pace(pool.pace()));
        assert!(near(pool.pace().ms_per_token, 0.1, 0.4), "{:?}", pool.pace());
    }

    #[test]
    fn a_busy_pod_is_not_a_slow_one() {
        let (pool, busy, idle, now) = (PoolSpeed::default(), Speed::default(), Speed::default(), clock::now());
        for i in 0..400u32 {
            let at = now + Duration::from_millis(100) * i;
            let noise = 0.9 + 0.2 * f64::from(i % 2);
            for (pod, streams) in [(&busy, 60.0 + f64::from(i % 7)), (&idle, 2.0 + f64::from(i % 5))] {
                pool.learn(pod, Of::Decode, (streams, (7.0 + 0.1 * streams) * noise), at);
            }
        }
        let pace = pool.pace();
        assert!(near(pace.step_ms, 7.0, 0.2) && near(pace.stream_ms, 0.1, 0.2), "{pace:?}");
        assert!(near(busy.pace(pace).step_ms, pace.step_ms, 0.1), "{:?}", busy.pace(pace));
    }

    #[test]
    fn one_answer_in_fifty_that_took_a_minute_moves_the_estimate_little() {
        let (pool, pod, now) = (PoolSpeed::default(), Speed::default(), clock::now());
        for i in 0..500u32 {
            let tokens = f64::from(i % 10) * 500.0;
            let ttft = if i % 50 == 49 { 60_000.0 } else { 12.0 + 0.025 * tokens };
            pool.learn(&pod, Of::Prefill, (tokens, ttft), now + Duration::from_millis(100) * i);
        }
        let pace = pod.pace(pool.pace());
        assert!(pace.base_ms + 2_000.0 * pace.ms_per_token < 2.0 * 62.0, "{pace:?}");
    }

    #[test]
    fn prompts_of_one_length_still_tell_a_slow_pod_from_a_fast_one() {
        let (pool, fast, slow, now) = (PoolSpeed::default(), Speed::default(), Speed::default(), clock::now());
        for _ in 0..100 {
            pool.learn(&fast, Of::Prefill, (1_000.0, 40.0), now);
            pool.learn(&slow, Of::Prefill, (1_000.0, 80.0), now);
        }
        let ratio = slow.pace(pool.pace()).ms_per_token / fast.pace(pool.pace()).ms_per_token;
        assert!(ratio > 1.7, "{ratio}");
    }

    #[test]
    fn a_pod_that_answers_in_no_time_is_not_taken_to_cost_nothing() {
        let (pool, instant, other) = (PoolSpeed::default(), Speed::default(), Speed::default());
        taught(&pool, &[(&instant, 0.0), (&other, 1.0)], clock::now(), 400);
        let (instant, other) = (instant.pace(pool.pace()), other.pace(pool.pace()));
        assert!(instant.ms_per_token >= other.ms_per_token / MOST_FACTOR / MOST_FACTOR, "{instant:?} {other:?}");
    }

    #[test]
    fn short_prompts_of_nearly_one_length_say_nothing_of_long_ones() {
        let (pool, pod, now) = (PoolSpeed::default(), Speed::default(), clock::now());
        for i in 0..20u32 {
            let (tokens, chance) = (10.0 + f64::from(i % 3), f64::from(i * 7 % 11));
            pool.learn(&pod, Of::Prefill, (tokens, 15.0 + 3.0 * chance), now + Duration::from_millis(100) * i);
        }
        let pace = pool.pace();
        assert!(pace.ms_per_token < 0.2, "20 ms and 0.05 a token, scaled to 30 ms: {pace:?}");
    }

    #[test]
    fn nonsense_is_not_learned() {
        let (pool, pod) = (PoolSpeed::default(), Speed::default());
        let before = pool.pace();
        for (x, ms) in [(f64::NAN, 3.0), (1.0, f64::INFINITY), (-1.0, 3.0), (1.0, -3.0)] {
            pool.learn(&pod, Of::Prefill, (x, ms), clock::now());
        }
        assert_eq!((pool.pace(), pod.pace(before)), (before, before));
    }

    #[test]
    fn an_engines_slow_first_answer_does_not_make_it_the_pod_that_nobody_uses() {
        let (pool, first, others, start) = (PoolSpeed::default(), Speed::default(), Speed::default(), clock::now());
        pool.learn(&first, Of::Prefill, (20.0, 2_000.0), start);
        for i in 1..=30u32 {
            pool.learn(&others, Of::Prefill, (20.0, 30.0), start + Duration::from_millis(100) * i);
        }
        first.fade(start + Duration::from_secs(3));
        let (first, pool) = (first.pace(pool.pace()), pool.pace());
        assert!(first.base_ms < 3.0 * pool.base_ms, "{first:?} in a pool of {pool:?}");
    }

    #[test]
    fn a_pod_that_was_slow_and_is_avoided_is_like_its_pool_again_after_some_minutes() {
        let (pool, well, ill) = (PoolSpeed::default(), Speed::default(), Speed::default());
        let then = taught(&pool, &[(&well, 1.0), (&ill, 5.0)], clock::now(), 200);
        assert!(ill.pace(pool.pace()).base_ms > 2.0 * well.pace(pool.pace()).base_ms);
        ill.fade(then + HALF_LIFE * 5);
        assert!(near(ill.pace(pool.pace()).base_ms, pool.pace().base_ms, 0.5), "{:?}", ill.pace(pool.pace()));
    }
}
