//! What would be said with every request is said now and then: a mistake in somebody's configuration must be found in
//! the log, and must not fill it.
//!
//! It only says whether it is time; what is said, and what is counted meanwhile, is its owner's matter.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Rare enough that a day of it is read in a minute, and often enough to be near the end of any log.
const PAUSE: Duration = Duration::from_secs(300);

/// One thing to be said, and when it was last.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether to say it `now`; if so, it counts as said.
    pub fn is_due(&self, now: Instant) -> bool {
        self.is_due_each(PAUSE, now)
    }

    /// The same for what is to be said more often, after a `pause`.
    pub fn is_due_each(&self, pause: Duration, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= pause);
        if due {
            *last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn what_goes_on_is_said_at_once_and_then_now_and_then() {
        let (seldom, began) = (Seldom::default(), clock::now());
        let said = (0..601).filter(|second| seldom.is_due(began + Duration::from_secs(*second)));
        assert_eq!(said.collect::<Vec<_>>(), [0, 300, 600]);
    }
}
