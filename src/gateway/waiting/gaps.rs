//! Gaps in which a pool had no usable pod: how long they lasted, and how fast those who waited were served then. From that
//! a client hears when to come again, and an operator that a gap began and is over.

use std::time::{Duration, Instant};

/// When to come again where nothing was measured yet: an engine takes half a minute and more to load a model, and a
/// client that asks six times a minute finds it soon after.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Never sooner: the header counts whole seconds.
const RETRY_AFTER_LEAST: Duration = Duration::from_secs(1);

/// Never later: the OpenAI SDKs follow the header up to a minute and ignore a longer one.
pub(super) const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

/// Weight of the last gap or interval in what is expected of the next: the last three count for most of it.
const WEIGHT: f64 = 0.3;

/// A pool's gap is told no more often than this: pods that flap would fill the log.
pub(super) const TELL_EVERY: Duration = Duration::from_secs(10);

/// How long a pool was without a usable pod lately, and how fast those who waited were served then.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gaps {
    /// Since when there is somebody who waits for one.
    began: Option<Instant>,
    seconds: Option<f64>,
    last_served: Option<Instant>,
    seconds_each: Option<f64>,
    told: Option<Instant>,
    /// When the gap began that was told of and of whose end nobody was told.
    open: Option<Instant>,
}

/// A time to come again that a client will follow.
pub(super) fn pause(seconds: f64) -> Duration {
    let pause = Duration::try_from_secs_f64(seconds.ceil()).unwrap_or(RETRY_AFTER_MOST);
    pause.clamp(RETRY_AFTER_LEAST, RETRY_AFTER_MOST)
}

impl Gaps {
    /// When to come again, if `waiting` stand in line: when the gap is likely over and the line served.
    pub(super) fn retry_after(&self, waiting: usize, now: Instant) -> Duration {
        let Some(expected) = self.seconds else { return RETRY_AFTER };
        let elapsed = self.began.map_or(0.0, |began| now.saturating_duration_since(began).as_secs_f64());
        // A gap that already lasts longer than the others did lasts about as long again.
        let left = if elapsed < expected { expected - elapsed } else { elapsed };
        pause(left + self.seconds_each.unwrap_or_default() * waiting as f64)
    }

    /// Somebody waits since `began`; whether an operator is to be told `now`.
    pub(super) fn begins(&mut self, began: Instant, now: Instant) -> bool {
        let new = self.began.is_none();
        let since = *self.began.get_or_insert(began);
        let tell = new && self.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
        if tell {
            self.told = Some(now);
            self.open = Some(since);
        }
        tell
    }

    /// Nobody waits any more.
    pub(super) fn ends(&mut self) {
        self.began = None;
    }

    /// The first of a gap, or one more, was served: how long the gap was, if an operator knows of it.
    pub(super) fn served(&mut self, now: Instant) -> Option<Duration> {
        let mean = |known: Option<f64>, since: Instant| {
            let seen = now.saturating_duration_since(since).as_secs_f64();
            Some(known.map_or(seen, |known| known + (seen - known) * WEIGHT))
        };
        if let Some(began) = self.began.take() {
            self.seconds = mean(self.seconds, began);
        } else if let Some(last) = self.last_served {
            self.seconds_each = mean(self.seconds_each, last);
        }
        self.last_served = Some(now);
        self.open.take().map(|open| now.saturating_duration_since(open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_gap_is_told_when_it_begins_and_when_it_is_over_and_flapping_is_told_seldom() {
        let mut gaps = Gaps::default();
        let began = clock::now();
        let after = |secs| began + Duration::from_secs(secs);
        assert!(gaps.begins(began, began));
        assert!(!gaps.begins(began, began), "the next who waits is no other gap");
        assert_eq!(gaps.served(after(7)), Some(Duration::from_secs(7)));
        assert_eq!(gaps.served(after(7)), None, "once");
        assert!(!gaps.begins(after(7), after(7)), "it flaps");
        assert_eq!(gaps.served(after(7)), None, "nobody was told that it began");
        let later = after(7) + TELL_EVERY;
        assert!(gaps.begins(later, later));
    }
}
