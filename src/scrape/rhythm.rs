//! When a pod's page is due: often while something happens there, ever less often while nothing does, at once again
//! when we send it something. Pure: time and chance come in.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt as _};

/// The longest time between two reads of an idle pod. A page costs vLLM 8 ms of CPU (measured with 0.32): every 2 s
/// that is 0.4 % of a core. What we send ourselves ends the idleness at once.
const IDLE_PERIOD: Duration = Duration::from_secs(2);

/// Every period is drawn this much shorter or longer, so that the pods' turns do not fall together.
const JITTER: f64 = 0.1;

/// One pod's turns.
#[derive(Debug)]
pub(super) struct Rhythm {
    interval: Duration,
    period: Duration,
    began: Instant,
    due: Instant,
    sent_seen: u64,
    out: bool,
}

impl Rhythm {
    /// A pod that is due now and then every `interval` while it is busy.
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            period: interval,
            began: now,
            due: now,
            sent_seen: 0,
            out: false,
        }
    }

    /// Whether to go now. `sent` is the ledger's count: if it moved, an idle pod no longer is.
    pub(super) fn is_due(&mut self, now: Instant, sent: u64) -> bool {
        if sent != self.sent_seen && self.period > self.interval {
            self.period = self.interval;
            self.due = self.due.min(self.began + self.interval);
        }
        !self.out && now >= self.due
    }

    /// Somebody went; nobody else does until [`Rhythm::returned`].
    pub(super) fn left(&mut self, now: Instant, sent: u64) {
        self.began = now;
        self.sent_seen = sent;
        self.out = true;
    }

    /// They are back and found the pod `busy` or idle.
    pub(super) fn returned(&mut self, busy: bool, rng: &mut impl Rng) {
        self.out = false;
        let slowest = IDLE_PERIOD.max(self.interval);
        self.period = if busy {
            self.interval
        } else {
            (self.period * 2).min(slowest)
        };
        self.due = self.began + jittered(self.period, rng);
    }
}

/// `period`, a little shorter or longer.
pub(super) fn jittered(period: Duration, rng: &mut impl Rng) -> Duration {
    period.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER))
}
