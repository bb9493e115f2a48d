//! How many of a pod's requests failed of late: a pod that fails every other one never fails five in a row.
//!
//! Two half windows, so that it forgets without keeping a list: the older half is dropped when the newer one is full.

use std::time::{Duration, Instant};

/// Half of what is remembered (the `interval` after which Envoy looks at its hosts anew).
const HALF: Duration = Duration::from_secs(10);

/// Fewer requests than this prove nothing. Envoy wants 50 (`failure_percentage_request_volume`), of services with
/// thousands a second; with 20, a pod of which every tenth request fails is taken for a bad one once in 140,000 windows.
const LEAST: u32 = 20;

/// Failures among a hundred requests from which a pod is bad. Envoy's `failure_percentage_threshold` is 85; every other
/// request lost is too much where each is a prompt of somebody who waits.
const MOST_FAILED_PERCENT: u32 = 50;

/// The requests of the last ten to twenty seconds.
#[derive(Debug, Default)]
pub(super) struct Window {
    newer: Half,
    older: Half,
    began: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Half {
    all: u32,
    failed: u32,
}

impl Window {
    /// A request ended.
    pub(super) fn note(&mut self, failed: bool, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let age = now.saturating_duration_since(began);
        if age >= HALF {
            let newer = std::mem::take(&mut self.newer);
            self.older = if age < HALF * 2 { newer } else { Half::default() };
            self.began = Some(now);
        }
        self.newer.all = self.newer.all.saturating_add(1);
        self.newer.failed = self.newer.failed.saturating_add(u32::from(failed));
    }

    /// Whether too many of them failed.
    pub(super) fn is_bad(&self) -> bool {
        let all = self.newer.all.saturating_add(self.older.all);
        let failed = self.newer.failed.saturating_add(self.older.failed);
        all >= LEAST && u64::from(failed) * 100 >= u64::from(all) * u64::from(MOST_FAILED_PERCENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes `requests` one every `gap`, of which every `nth` fails, and tells after how many it was bad.
    fn bad_after(requests: u32, nth: u32, gap: Duration) -> Option<u32> {
        let (mut window, start) = (Window::default(), crate::clock::now());
        (1..=requests).find(|n| {
            window.note(n.is_multiple_of(nth), start + gap * *n);
            window.is_bad()
        })
    }

    #[test]
    fn every_other_failure_is_bad_once_there_are_enough_and_every_third_never() {
        assert_eq!(bad_after(100, 2, Duration::from_millis(100)), Some(20));
        assert_eq!(bad_after(1_000, 3, Duration::from_millis(100)), None);
    }

    #[test]
    fn a_trickle_proves_nothing() {
        assert_eq!(bad_after(200, 1, Duration::from_secs(2)), None, "ten to twenty seconds hold five to ten of them");
    }

    #[test]
    fn what_is_older_than_two_halves_is_forgotten() {
        let (mut window, start) = (Window::default(), crate::clock::now());
        (0..19).for_each(|_| window.note(true, start));
        window.note(true, start + HALF * 2);
        assert!(!window.is_bad());
        (0..9).for_each(|_| window.note(true, start + HALF * 2));
        window.note(false, start + HALF * 3);
        (0..9).for_each(|_| window.note(false, start + HALF * 3));
        assert!(window.is_bad(), "ten failed in the half before, ten did not in this one");
    }
}
