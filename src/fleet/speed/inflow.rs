//! How much prefill is being sent to a pod: tokens a millisecond, the recent ones counting most.
//!
//! It is what we send, known at once and without noise, and tells how much of its time a pod will spend on prefills
//! while an answer is generated; what the pod reports of that comes after the fact. Other gateways' traffic is not in it.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use crate::fleet::Moment;

/// Time in which a token's weight falls to a third: about as long as an answer takes (350 tokens at 30 ms in recorded
/// conversations). 5 to 60 s were measured to work alike.
const FADE_MS: f32 = 10_000.0;

/// A fading sum in one word, so that it is read without a lock: the tokens in single precision, and the millisecond after
/// the epoch at which they were so many.
/// (In this order in memory; see [`crate::fleet::Pod`].)
#[derive(Debug)]
#[repr(C)]
pub struct Inflow {
    state: AtomicU64,
    epoch: Instant,
}

impl Inflow {
    /// Nothing yet, on a clock that begins at `epoch`.
    pub fn new(epoch: Instant) -> Self {
        Self { state: AtomicU64::new(0), epoch }
    }

    /// `tokens` to be computed were sent. Call it under the pool's gate: there is one writer.
    pub fn add(&self, tokens: u32, now: Instant) {
        let moment = Moment::new(now, self.epoch);
        let sum = self.sum(&moment) + tokens as f32;
        self.put(sum, &moment);
    }

    fn put(&self, sum: f32, moment: &Moment) {
        self.state.store(u64::from(sum.to_bits()) << 32 | u64::from(moment.millis(self.epoch)), Relaxed);
    }

    /// Takes over what [`Inflow::of_late`] said elsewhere (a saved state).
    pub fn assume(&self, tokens: f32, now: Instant) {
        self.put(tokens, &Moment::new(now, self.epoch));
    }

    /// Tokens sent in the last ten seconds or so, the older ones in part.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
    pub fn of_late(&self, now: Instant) -> u32 {
        self.sum(&Moment::new(now, self.epoch)).round() as u32
    }

    /// Tokens a millisecond.
    #[inline]
    pub fn per_ms(&self, moment: &Moment) -> f32 {
        self.sum(moment) * (1.0 / FADE_MS)
    }

    #[inline]
    fn sum(&self, moment: &Moment) -> f32 {
        let state = self.state.load(Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "two halves of a word")]
        let (tokens, at) = (f32::from_bits((state >> 32) as u32), state as u32);
        // Signed, because the processor has no instruction for unsigned ones; and a moment before the last is the last.
        let passed = moment.millis(self.epoch).wrapping_sub(at).cast_signed().max(0) as f32 * (1.0 / FADE_MS);
        // The beginning of the exponential's series: near it where anything is left, and a tenth of its price.
        tokens / (1.0 + passed + passed * passed / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock;

    #[test]
    fn a_steady_flow_is_told_as_tokens_a_millisecond_and_fades_when_it_stops() {
        let start = clock::now();
        let inflow = Inflow::new(start);
        let at = |ms: u64| start + Duration::from_millis(ms);
        let seen = |ms: u64| inflow.per_ms(&Moment::new(at(ms), start));
        assert!(seen(0).abs() < f32::EPSILON);
        (0..600).for_each(|n| inflow.add(1_000, at(n * 100)));
        assert!((9.0..11.0).contains(&seen(60_000)), "{}", seen(60_000));
        assert!((2.0..5.0).contains(&seen(70_000)), "{}", seen(70_000));
        assert!(seen(600_000) < 0.01, "{}", seen(600_000));
        assert!(seen(1_000) >= seen(60_000), "time does not run backwards");
    }
}
