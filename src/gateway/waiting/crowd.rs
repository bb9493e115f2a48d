//! A pool that is full, in the log: told when requests begin to wait for room, and when nobody does any more.
//!
//! A fleet at its limit fills and empties its line all the time, so that it is told once in a while and not each time.

use std::time::{Duration, Instant};

/// How often it is told that a pool is full: an hour of it is read at a glance.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Who waits for room at one pool.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Crowd {
    /// When they began that an operator was told of, and how many there were at most since.
    open: Option<(Instant, usize)>,
    told: Option<Instant>,
}

impl Crowd {
    /// So many wait `now`; whether that is to be told.
    pub(super) fn waits(&mut self, waiting: usize, now: Instant) -> bool {
        if let Some((_, most)) = &mut self.open {
            *most = waiting.max(*most);
            return false;
        }
        let tell = self.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
        if tell {
            self.told = Some(now);
            self.open = Some((now, waiting));
        }
        tell
    }

    /// Nobody waits any more: for how long they did, and how many at most, if it was told that they do.
    pub(super) fn ends(&mut self, now: Instant) -> Option<(Duration, usize)> {
        self.open.take().map(|(began, most)| (now.saturating_duration_since(began), most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_full_pool_is_told_when_it_fills_and_when_it_has_room_again_and_flapping_once_a_minute() {
        let (mut crowd, began) = (Crowd::default(), clock::now());
        let after = |secs| began + Duration::from_secs(secs);
        assert!(crowd.waits(1, began));
        assert!(!crowd.waits(7, after(1)), "it is known");
        assert!(!crowd.waits(2, after(2)));
        assert_eq!(crowd.ends(after(5)), Some((Duration::from_secs(5), 7)));
        assert_eq!(crowd.ends(after(5)), None, "once");
        assert!(!crowd.waits(1, after(6)), "it flaps");
        assert_eq!(crowd.ends(after(7)), None, "nobody was told that it began");
        assert!(crowd.waits(1, began + TELL_EVERY));
    }
}
