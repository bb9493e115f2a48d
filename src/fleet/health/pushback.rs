//! How long a pod that said no looks slow.
//!
//! A pod that answers "too busy" in a millisecond has the shortest queue of all and would be sent everything. So a no
//! costs time: as long as the pod asked for, or a pause that doubles with each further no in a row, running down to
//! nothing. It is a price and not a ban: where every pod says no, the one that said it longest ago is the least bad.

use std::time::{Duration, Instant};

/// What a first no costs. Short, because a full queue has room again with the next answer that ends, and an answer takes
/// seconds.
const FIRST: Duration = Duration::from_secs(1);

/// The most that a no costs without the pod asking for it: a pod that has room again is found out about within this, and
/// one that never has is asked four times a minute.
const LONGEST: Duration = Duration::from_secs(16);

/// The longest `Retry-After` that is believed. (linkerd's load biaser believes 300 s; a model is loaded in less than a
/// minute from a warm disk, and a pod that still says no then says so again.)
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// What a first failure costs: about what the request would have cost the pod, so that failing fast is not cheaper than
/// working. With the doubling, five failures in a row (an ejection) are found out about within four seconds.
const FIRST_FAILURE: Duration = Duration::from_millis(250);

/// The noes of one pod.
#[derive(Debug, Default)]
pub(super) struct Pushback {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Pushback {
    /// It said no to a request that was sent at `sent`, and `asked` to be left alone for so long. Returns how long it is.
    pub(super) fn refused(&mut self, asked: Option<Duration>, sent: Instant, now: Instant) -> Duration {
        // Requests that were under way together get one no, however many they are.
        if self.is_news(sent) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        }
        self.last = Some(now);
        let own = doubled(FIRST, self.in_a_row).min(LONGEST);
        asked.unwrap_or_default().min(LONGEST_ASKED).max(own)
    }

    /// It failed a request, the `in_a_row`th of them.
    pub(super) fn failed(&mut self, in_a_row: u32, now: Instant) -> Duration {
        self.last = Some(now);
        doubled(FIRST_FAILURE, in_a_row).min(LONGEST)
    }

    /// It took a request that was sent at `sent`. Returns whether that takes the last no back: one that was sent before
    /// it says nothing of what came after.
    pub(super) fn accepted(&mut self, sent: Instant) -> bool {
        let news = self.is_news(sent);
        if news {
            *self = Self::default();
        }
        news
    }

    fn is_news(&self, sent: Instant) -> bool {
        self.last.is_none_or(|last| sent > last)
    }
}

/// The `nth` of a series that doubles.
fn doubled(first: Duration, nth: u32) -> Duration {
    first.saturating_mul(1 << nth.saturating_sub(1).min(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn each_further_no_in_a_row_costs_twice_as_much_up_to_a_bound() {
        let (mut pushback, start) = (Pushback::default(), crate::clock::now());
        let mut no = |at: u64| pushback.refused(None, start + seconds(at), start + seconds(at)).as_secs();
        assert_eq!([1, 2, 3, 4, 5, 6].map(&mut no), [1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn noes_to_requests_that_were_under_way_together_are_one() {
        let (mut pushback, start) = (Pushback::default(), crate::clock::now());
        for _ in 0..50 {
            assert_eq!(pushback.refused(None, start, start + seconds(1)), FIRST);
        }
    }

    #[test]
    fn a_pod_may_ask_for_longer_but_not_for_ever_nor_for_less() {
        let now = crate::clock::now();
        let asked = |asked| Pushback::default().refused(Some(seconds(asked)), now, now).as_secs();
        assert_eq!([0, 1, 7, 3_600].map(asked), [1, 1, 7, 60]);
    }

    #[test]
    fn only_what_was_sent_since_takes_a_no_back() {
        let (mut pushback, start) = (Pushback::default(), crate::clock::now());
        pushback.refused(None, start, start + seconds(1));
        assert!(!pushback.accepted(start), "it was taken before there was no room");
        assert_eq!(pushback.refused(None, start + seconds(2), start + seconds(2)), FIRST * 2);
        assert!(pushback.accepted(start + seconds(3)));
        assert_eq!(pushback.refused(None, start + seconds(4), start + seconds(4)), FIRST);
    }

    #[test]
    fn a_failure_costs_what_a_request_would_and_doubles() {
        let (mut pushback, now) = (Pushback::default(), crate::clock::now());
        assert_eq!([1, 2, 5].map(|nth| pushback.failed(nth, now).as_millis()), [250, 500, 4_000]);
    }
}
