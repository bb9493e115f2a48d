//! What may be used in a minute: a bucket that leaks.
//!
//! `level` falls by `limit` a minute, and something fits if `level + amount <= limit`. It is paid for before it is known:
//! what was taken and not used comes back, what was used beyond is debt, which has to leak away before anybody else fits.
//! What has leaked meanwhile does not come back: a stream of ten minutes that took too much ten minutes ago has hindered
//! nobody since. All that is in the bucket leaks alike, each by its share: what is left of something is its amount times the
//! part of the whole that was left since, and that one number, kept as a logarithm, is all there is to remember.

use std::time::{Duration, Instant};

/// Seconds in which a limit leaks away.
const MINUTE: f64 = 60.0;

/// A bucket.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    level: f64,
    /// The logarithm of the part that stayed since it was last empty.
    stayed: f64,
    /// How often it was empty: of what was taken before, nothing is left.
    emptied: u64,
    at: Option<Instant>,
}

/// Something that was taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    amount: f64,
    stayed: f64,
    emptied: u64,
}

impl Bucket {
    /// One that held `level` some time `ago`, when so much might be used in a minute.
    pub(super) fn kept(level: f64, limit: u64, (ago, now): (Duration, Instant)) -> Self {
        let level = if level.is_finite() { level.max(0.0) } else { 0.0 };
        Self { level: (level - leak(limit, ago)).max(0.0), at: Some(now), ..Self::default() }
    }

    /// Lets out what has leaked.
    pub(super) fn flow(&mut self, limit: u64, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at.unwrap_or(now));
        let left = self.level - leak(limit, elapsed);
        if left > 0.0 {
            self.stayed += (left / self.level).ln();
            self.level = left;
        } else if self.level > 0.0 {
            self.emptied += 1;
            (self.level, self.stayed) = (0.0, 0.0);
        }
        // An instant from before the last one leaks nothing twice.
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
    }

    /// How long until `amount` fits; none if it does. It must not be more than the limit.
    pub(super) fn wait(&self, limit: u64, amount: f64) -> Option<Duration> {
        let over = self.level + amount - limit as f64;
        // Floating point: what was leaked in many steps is a hair more than in one.
        (over > 1e-6).then(|| pause(over, limit))
    }

    /// Takes.
    pub(super) fn take(&mut self, amount: f64) -> Mark {
        self.level += amount;
        Mark { amount, stayed: self.stayed, emptied: self.emptied }
    }

    /// What was taken turned out to be `used`.
    pub(super) fn settle(&mut self, mark: Mark, used: f64) {
        let unused = mark.amount - used;
        if unused <= 0.0 {
            self.level -= unused;
            return;
        }
        if mark.emptied == self.emptied {
            let left = mark.amount * (self.stayed - mark.stayed).exp();
            self.level = (self.level - unused.min(left)).max(0.0);
        }
    }

    /// What is in it.
    pub(super) fn level(&self) -> f64 {
        self.level
    }

    /// How long until it is empty.
    pub(super) fn reset(&self, limit: u64) -> Duration {
        pause(self.level, limit)
    }
}

fn leak(limit: u64, elapsed: Duration) -> f64 {
    limit as f64 * elapsed.as_secs_f64() / MINUTE
}

/// How long `amount` takes to leak.
fn pause(amount: f64, limit: u64) -> Duration {
    Duration::try_from_secs_f64(amount * MINUTE / limit.max(1) as f64).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: f64) -> impl Fn(Instant) -> Instant {
        move |start| start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_full_bucket_says_when_the_next_fits() {
        let (mut bucket, start) = (Bucket::default(), crate::clock::now());
        bucket.flow(60, start);
        bucket.take(60.0);
        assert_eq!(bucket.wait(60, 10.0), Some(Duration::from_secs(10)));
        bucket.flow(60, at(10.0)(start));
        assert_eq!(bucket.wait(60, 10.0), None);
        assert_eq!(bucket.reset(60), Duration::from_secs(50));
    }

    #[test]
    fn what_was_not_used_comes_back_and_what_was_beyond_is_debt() {
        let (mut bucket, start) = (Bucket::default(), crate::clock::now());
        bucket.flow(100, start);
        let (first, second) = (bucket.take(40.0), bucket.take(60.0));
        bucket.settle(first, 10.0);
        assert!((bucket.level() - 70.0).abs() < 1e-9);
        bucket.settle(second, 160.0);
        assert!((bucket.level() - 170.0).abs() < 1e-9);
        assert_eq!(bucket.wait(100, 30.0), Some(Duration::from_secs(60)), "100 over, at 100 a minute");
    }

    #[test]
    fn what_has_leaked_does_not_come_back_a_second_time() {
        let (mut bucket, start) = (Bucket::default(), crate::clock::now());
        bucket.flow(60, start);
        let long = bucket.take(60.0);
        bucket.flow(60, at(60.0)(start));
        bucket.take(60.0);
        bucket.settle(long, 1.0);
        assert!((bucket.level() - 60.0).abs() < 1e-6, "the second one's share is untouched: {}", bucket.level());
    }

    #[test]
    fn of_what_has_leaked_in_part_the_rest_comes_back() {
        let (mut bucket, start) = (Bucket::default(), crate::clock::now());
        bucket.flow(60, start);
        let (one, other) = (bucket.take(30.0), bucket.take(30.0));
        // 40 of 60 have left: of each 20, and 10 are there.
        bucket.flow(60, at(40.0)(start));
        bucket.settle(one, 25.0);
        assert!((bucket.level() - 15.0).abs() < 1e-6, "5 were unused and are there: {}", bucket.level());
        bucket.settle(other, 0.0);
        assert!((bucket.level() - 5.0).abs() < 1e-6, "no more than its own 10: {}", bucket.level());
    }

    #[test]
    fn time_that_goes_back_leaks_nothing_twice() {
        let (mut bucket, start) = (Bucket::default(), crate::clock::now());
        bucket.flow(60, at(30.0)(start));
        bucket.take(60.0);
        bucket.flow(60, start);
        bucket.flow(60, at(31.0)(start));
        assert!((bucket.level() - 59.0).abs() < 1e-6);
    }

    #[test]
    fn one_that_was_kept_has_leaked_while_nobody_looked() {
        let ago = (Duration::from_secs(30), crate::clock::now());
        assert!((Bucket::kept(50.0, 60, ago).level() - 20.0).abs() < 1e-9);
        assert!(Bucket::kept(f64::NAN, 60, ago).level() < 1e-9);
    }

    proptest! {
        /// Whatever is taken and settled in whatever order: the level is never negative, and without time it is exactly
        /// what is still open plus what was used.
        #[test]
        fn nothing_is_lost_or_made_while_no_time_passes(
            steps in proptest::collection::vec((0_u32..100, 0_u32..200), 1..50),
            order in any::<usize>(),
        ) {
            let (mut bucket, now) = (Bucket::default(), crate::clock::now());
            bucket.flow(100, now);
            let mut open: Vec<_> = steps.iter().map(|(taken, used)| (bucket.take(f64::from(*taken)), *taken, *used)).collect();
            let (mut held, mut used_in_all) = (f64::from(steps.iter().map(|it| it.0).sum::<u32>()), 0.0);
            let mut order = order;
            while !open.is_empty() {
                let (mark, taken, used) = open.swap_remove(order % open.len());
                order = order.rotate_left(7) ^ 0x9e37;
                bucket.settle(mark, f64::from(used));
                held -= f64::from(taken);
                used_in_all += f64::from(used);
                prop_assert!((bucket.level() - held - used_in_all).abs() < 1e-6, "{} {held} {used_in_all}", bucket.level());
            }
        }

        /// With time as well: never negative, and never less than a bucket that was told the truth from the beginning.
        #[test]
        fn settling_gives_back_no_more_than_is_there(
            steps in proptest::collection::vec((0_u32..60_000, 0_u32..100, 0_u32..100), 1..60),
        ) {
            let start = crate::clock::now();
            let (mut bucket, mut truth, mut now) = (Bucket::default(), Bucket::default(), start);
            let mut open = Vec::new();
            for (millis, taken, used) in steps {
                now += Duration::from_millis(u64::from(millis));
                bucket.flow(100, now);
                truth.flow(100, now);
                let used = used.min(taken);
                open.push((bucket.take(f64::from(taken)), used));
                truth.take(f64::from(used));
                if open.len() > 3 {
                    let (mark, used) = open.remove(0);
                    bucket.settle(mark, f64::from(used));
                }
                prop_assert!(bucket.level() >= 0.0);
                prop_assert!(bucket.level() >= truth.level() - 1e-6, "{} {}", bucket.level(), truth.level());
            }
        }
    }
}
