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
        Self { interval, period: interval, began: now, due: now, sent_seen: 0, out: false }
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
        self.period = if busy { self.interval } else { (self.period * 2).min(slowest) };
        self.due = self.began + jittered(self.period, rng);
    }
}

/// `period`, a little shorter or longer.
pub(super) fn jittered(period: Duration, rng: &mut impl Rng) -> Duration {
    period.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER))
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const FAST: Duration = Duration::from_millis(250);

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Goes whenever it is due, looking every millisecond, and gives the times between.
    fn gaps(rhythm: &mut Rhythm, from: Instant, turns: usize, busy: bool) -> (Vec<Duration>, Instant) {
        let mut rng = StdRng::seed_from_u64(7);
        let (mut now, mut last, mut gaps) = (from, rhythm.began, Vec::new());
        while gaps.len() < turns {
            if rhythm.is_due(now, 0) {
                gaps.push(now - last);
                last = now;
                rhythm.left(now, 0);
                rhythm.returned(busy, &mut rng);
            }
            now += millis(1);
        }
        (gaps, last)
    }

    #[test]
    fn a_new_pod_is_due_at_once_and_by_one_visitor_only() {
        let now = crate::clock::now();
        let mut rhythm = Rhythm::new(FAST, now);
        assert!(rhythm.is_due(now, 0));
        rhythm.left(now, 0);
        assert!(!rhythm.is_due(now + millis(60_000), 5), "one is still out");
    }

    #[test]
    fn a_busy_pod_keeps_its_interval_within_a_tenth() {
        let now = crate::clock::now();
        let (gaps, _) = gaps(&mut Rhythm::new(FAST, now), now, 50, true);
        let gaps = &gaps[1..];
        assert!(gaps.iter().all(|gap| (millis(225)..=millis(276)).contains(gap)), "{gaps:?}");
        assert!(gaps.iter().any(|gap| gap != &gaps[0]), "no jitter");
    }

    #[test]
    fn an_idle_pod_is_asked_ever_less_often_down_to_every_two_seconds() {
        let now = crate::clock::now();
        let (gaps, _) = gaps(&mut Rhythm::new(FAST, now), now, 8, false);
        for (gap, about) in gaps[1..].iter().zip([500, 1_000, 2_000, 2_000, 2_000, 2_000]) {
            let share = gap.as_secs_f64() / millis(about).as_secs_f64();
            assert!((0.89..=1.11).contains(&share), "{gaps:?}");
        }
    }

    #[test]
    fn sending_an_idle_pod_something_makes_it_due() {
        let now = crate::clock::now();
        let mut rhythm = Rhythm::new(FAST, now);
        let (_, last) = gaps(&mut rhythm, now, 6, false);
        assert!(!rhythm.is_due(last + millis(300), 0));
        assert!(!rhythm.is_due(last + millis(200), 1), "but not before its interval");
        assert!(rhythm.is_due(last + millis(250), 1));
    }

    #[test]
    fn an_interval_above_two_seconds_does_not_shrink_when_idle() {
        let now = crate::clock::now();
        let (gaps, _) = gaps(&mut Rhythm::new(millis(10_000), now), now, 3, false);
        assert!(gaps[1..].iter().all(|gap| *gap >= millis(9_000)), "{gaps:?}");
    }
}
