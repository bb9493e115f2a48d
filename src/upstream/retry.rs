//! How many retries all requests together may make, so that a sick fleet is not drowned by second attempts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::config::Retry;

/// The floor is refilled continuously and may save up this many seconds' worth.
const FLOOR_SAVINGS_SECONDS: f64 = 2.0;

/// The share may save up this many retries: a burst after a quiet hour is still a burst.
const SHARE_SAVINGS: f64 = 100.0;

/// That the budget is spent is told no more often than this for each pool.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Retries earned by requests (a share of one each) and by time (the floor).
#[derive(Debug)]
pub struct RetryBudget {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    share: f64,
    floor: f64,
    filled: Instant,
    /// By pool; no more than there are pools.
    denied: BTreeMap<Arc<str>, Denied>,
}

/// Retries denied since that was last told, and when it was.
#[derive(Debug, Default)]
struct Denied {
    count: u64,
    told: Option<Instant>,
}

impl RetryBudget {
    /// A budget with a full floor.
    pub fn new(retry: &Retry, now: Instant) -> Self {
        let floor = f64::from(retry.budget_floor) * FLOOR_SAVINGS_SECONDS;
        Self { state: Mutex::new(State { share: 0.0, floor, filled: now, denied: BTreeMap::new() }) }
    }

    /// A request came: it earns its share of a retry.
    pub fn earn(&self, retry: &Retry) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.share = (state.share + retry.budget.0).min(SHARE_SAVINGS);
    }

    /// Takes one retry out; `false` if none is left.
    pub fn spend(&self, retry: &Retry, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = f64::from(retry.budget_floor);
        let passed = now.saturating_duration_since(state.filled).as_secs_f64();
        state.floor = (state.floor + passed * rate).min(rate * FLOOR_SAVINGS_SECONDS);
        state.filled = now;
        for purse in [Purse::Share, Purse::Floor] {
            let left = state.purse(purse);
            if *left >= 1.0 {
                *left -= 1.0;
                return true;
            }
        }
        false
    }

    /// A request of `pool` got none; if that is to be told now, how many got none since it last was.
    pub fn denied(&self, pool: &Arc<str>, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let denied = state.denied.entry(Arc::clone(pool)).or_default();
        denied.count += 1;
        let due = denied.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
        due.then(|| {
            denied.told = Some(now);
            std::mem::take(&mut denied.count)
        })
    }

    /// A pool is gone.
    pub fn forget(&self, pool: &str) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).denied.remove(pool);
    }
}

#[derive(Clone, Copy)]
enum Purse {
    Share,
    Floor,
}

impl State {
    fn purse(&mut self, purse: Purse) -> &mut f64 {
        match purse {
            Purse::Share => &mut self.share,
            Purse::Floor => &mut self.floor,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Ratio;

    #[test]
    fn a_sick_fleet_gets_its_share_and_the_floor_and_no_more() {
        let retry = Retry { attempts: 2, budget: Ratio(0.2), budget_floor: 3, on: Vec::new() };
        let now = crate::clock::now();
        let budget = RetryBudget::new(&retry, now);
        for _ in 0..100 {
            budget.earn(&retry);
        }
        let spent = (0..1_000).filter(|_| budget.spend(&retry, now)).count();
        assert!((25..=26).contains(&spent), "20 from the share, 6 saved by the floor: {spent}");
        let later = now + Duration::from_secs(1);
        assert_eq!((0..1_000).filter(|_| budget.spend(&retry, later)).count(), 3);
    }

    #[test]
    fn that_it_is_spent_is_told_at_once_and_then_every_ten_seconds_with_how_many_it_hit() {
        let retry = Retry { attempts: 2, budget: Ratio(0.2), budget_floor: 3, on: Vec::new() };
        let now = crate::clock::now();
        let budget = RetryBudget::new(&retry, now);
        let (one, other) = (Arc::from("one"), Arc::from("other"));
        assert_eq!(budget.denied(&one, now), Some(1));
        assert!((0..40).all(|_| budget.denied(&one, now + Duration::from_secs(9)).is_none()));
        assert_eq!(budget.denied(&other, now), Some(1));
        assert_eq!(budget.denied(&one, now + TELL_EVERY), Some(41));
        budget.forget("one");
        assert_eq!(budget.denied(&one, now + TELL_EVERY), Some(1));
    }
}
