//! How many of its pool's requests a pod may be sent while it warms up.
//!
//! Its share makes a warming pod look fuller than it is, and that is enough while the others are not full. Where every
//! other pod has a queue, the one that has none is the cheapest at any share and would be sent everything at once, with
//! an empty cache. So besides it may not be chosen more often than this, whatever the policy says.
//!
//! Counted in requests of the pool and not in time: a burst is a burst at any rate. (The generic cell rate algorithm, as
//! in token buckets that keep one number.)

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Times an equal part of the pool's requests. More than 1, because it has no queue and can take more; less than the 1.5
/// from which a newcomer's share is felt by those whose prefixes it takes over.
const MOST_OF_EQUAL_PART: f64 = 1.25;

/// Requests that it may be ahead of that: two that come together may both go there.
const AHEAD: f64 = 1.0;

/// The unit of the one number: a request has so many parts.
const PARTS: f64 = 1_000.0;

/// At which request of the pool its next one would be due.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    due: AtomicU64,
}

impl Allowance {
    pub(super) fn is_left(&self, nth: u64, pods: usize) -> bool {
        self.due.load(Relaxed) <= parts(nth as f64 + AHEAD * every(pods))
    }

    /// Call it under the pool's gate: there is one writer.
    pub(super) fn take(&self, nth: u64, pods: usize) {
        let due = self.due.load(Relaxed).max(parts(nth as f64));
        self.due.store(due + parts(every(pods)), Relaxed);
    }
}

/// Its part is one request in so many of the pool's.
fn every(pods: usize) -> f64 {
    pods as f64 / MOST_OF_EQUAL_PART
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
fn parts(requests: f64) -> u64 {
    (requests * PARTS) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_would_be_chosen_every_time_gets_a_quarter_more_than_an_equal_part() {
        let allowance = Allowance::default();
        let mut taken = Vec::new();
        for nth in 0..400 {
            if allowance.is_left(nth, 4) {
                allowance.take(nth, 4);
                taken.push(nth);
            }
        }
        // An equal part of 400 is 100.
        assert_eq!(taken.len(), 126, "a quarter more, and one ahead");
        let most = (0..360).map(|from| taken.iter().filter(|nth| (from..from + 40).contains(*nth)).count()).max();
        assert_eq!(most, Some(14), "of any forty");
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let allowance = Allowance::default();
        let taken = (10_000..10_004).filter(|nth| {
            let left = allowance.is_left(*nth, 4);
            if left {
                allowance.take(*nth, 4);
            }
            left
        });
        assert_eq!(taken.count(), 2);
    }
}
