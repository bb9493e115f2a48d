//! How fast a pool's line gets shorter, in tokens a second: while somebody waited, and lately.

use std::time::{Duration, Instant};

/// Over what time it is measured, seconds. Ours: several answers' lives (a few seconds each), and short enough that a pool
/// that grew or shrank is known for it before a client's minute is over.
const SPAN: f64 = 10.0;

/// What is less than this is no measurement, seconds: the first that go on after a burst go together.
const LEAST: f64 = 1.0;

/// What was admitted, and in what time, the past fading.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    tokens: f64,
    seconds: f64,
    /// Until when that was counted; `None` while nobody waits.
    upto: Option<Instant>,
}

impl Drain {
    /// Somebody waits now, if nobody did before.
    pub(super) fn begins(&mut self, now: Instant) {
        self.upto.get_or_insert(now);
    }

    /// Nobody waits any more: what is admitted from now on says nothing.
    pub(super) fn ends(&mut self) {
        self.upto = None;
    }

    /// `tokens` went on at `now`.
    pub(super) fn took(&mut self, tokens: u32, now: Instant) {
        let passed = self.passed(now);
        let fades = (-passed / SPAN).exp();
        self.tokens = self.tokens * fades + f64::from(tokens);
        self.seconds = self.seconds * fades + passed;
        self.upto = Some(now);
    }

    /// How long `tokens` take.
    pub(super) fn wait_for(&self, tokens: u64, now: Instant) -> Option<Duration> {
        // Time in which nothing went counts as well.
        let seconds = self.seconds + self.passed(now);
        if self.tokens <= 0.0 || seconds < LEAST {
            return None;
        }
        Duration::try_from_secs_f64(tokens as f64 * seconds / self.tokens).ok()
    }

    fn passed(&self, now: Instant) -> f64 {
        self.upto.map_or(0.0, |upto| now.saturating_duration_since(upto).as_secs_f64())
    }
}
