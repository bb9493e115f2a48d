//! The highest rate at which a promise is still kept often enough, by halving.
//!
//! The first bracket is found by going up or down from a first guess, then it is halved (in the logarithm) until its
//! ends are closer than the resolution. Attainment falls with the rate but for noise; where a higher rate did better
//! than a lower one that failed, that was luck and is not believed: capacity is the highest rate that kept the promise
//! below the lowest that did not.

/// The farthest from the first guess that is looked at: beyond that the guess, not the search, is wrong.
const FARTHEST: f64 = 4_096.0;

/// What was measured at a rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// The rate, in the workload's own unit.
    pub rate: f64,
    /// Requests that came a second.
    pub per_second: f64,
    /// Requests that met both promises, of those offered.
    pub attainment: f64,
}

/// What is looked for, and how.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// The attainment to keep.
    pub level: f64,
    /// The first rate to try.
    pub start: f64,
    /// The first step away from it, as a factor; steps grow up to doubling.
    pub step: f64,
    /// How close, as a share of the rate.
    pub resolution: f64,
    /// Whether rates are whole numbers: users, not requests a second.
    pub whole: bool,
}

impl Search {
    /// The rate to measure next, after these; `None` when it is found, or nowhere near.
    pub fn next(&self, points: &[Point]) -> Option<f64> {
        let near = |rate: &f64| (self.start / FARTHEST..=self.start * FARTHEST).contains(rate);
        let rate = match self.bracket(points) {
            (None, None) => Some(self.rounded(self.start)),
            (Some(kept), None) => Some(self.rounded(kept.rate * self.stride(points)).max(self.above(kept.rate))),
            (None, Some(failed)) => {
                let lower = self.rounded(failed.rate / self.stride(points)).min(self.below(failed.rate));
                Some(lower).filter(|rate| *rate > 0.0)
            }
            (Some(kept), Some(failed)) => {
                let half = self.rounded((kept.rate * failed.rate).sqrt());
                let close = failed.rate <= kept.rate * (1.0 + self.resolution);
                (!close && half > kept.rate && half < failed.rate).then_some(half)
            }
        };
        rate.filter(near)
    }

    /// What was found: the highest rate that kept the promise below the lowest that did not.
    pub fn found(&self, points: &[Point]) -> Option<Point> {
        self.bracket(points).0
    }

    fn bracket(&self, points: &[Point]) -> (Option<Point>, Option<Point>) {
        let by_rate = |one: &&Point, other: &&Point| one.rate.total_cmp(&other.rate);
        let failed = points.iter().filter(|point| point.attainment < self.level).min_by(by_rate).copied();
        let below = |point: &&Point| failed.is_none_or(|failed| point.rate < failed.rate);
        let kept = points.iter().filter(|point| point.attainment >= self.level).filter(below).max_by(by_rate);
        (kept.copied(), failed)
    }

    /// Twice as far with every point that did not close the bracket, but never more than doubling the rate.
    fn stride(&self, points: &[Point]) -> f64 {
        let doublings = i32::try_from(points.len()).unwrap_or(i32::MAX).saturating_sub(1).min(10);
        self.step.powi(2_i32.saturating_pow(doublings.unsigned_abs())).min(2.0)
    }

    fn rounded(&self, rate: f64) -> f64 {
        if self.whole { rate.round() } else { rate }
    }

    fn above(&self, rate: f64) -> f64 {
        if self.whole { rate + 1.0 } else { rate }
    }

    fn below(&self, rate: f64) -> f64 {
        if self.whole { rate - 1.0 } else { rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEARCH: Search = Search { level: 0.9, start: 1.0, step: 2.0, resolution: 0.01, whole: false };

    /// Searches on a made-up curve; the point found and how many were measured.
    fn searched(search: &Search, curve: impl Fn(f64) -> f64) -> (Option<Point>, usize) {
        let mut points = Vec::new();
        while let Some(rate) = search.next(&points) {
            assert!(points.len() < 100, "{points:?}");
            points.push(Point { rate, per_second: 3.0 * rate, attainment: curve(rate) });
        }
        (search.found(&points), points.len())
    }

    /// Falls evenly from 1 at rate 0: 0.9 is at a tenth of `empty`.
    fn line(empty: f64) -> impl Fn(f64) -> f64 {
        move |rate| 1.0 - rate / empty
    }

    #[test]
    fn it_is_found_upwards_and_downwards_to_one_in_a_hundred() {
        for truth in [0.013, 0.7, 1.0, 1.004, 37.0, 900.0] {
            let (found, measured) = searched(&SEARCH, line(truth * 10.0));
            let rate = found.unwrap().rate;
            assert!(rate <= truth && rate * 1.0101 >= truth, "{truth}: {rate}");
            assert!(measured < 20, "{truth}: {measured}");
        }
    }

    #[test]
    fn a_good_guess_and_a_small_step_make_it_short() {
        let search = Search { start: 40.0, step: 1.04, ..SEARCH };
        let (found, measured) = searched(&search, line(410.0));
        assert!((found.unwrap().rate / 41.0 - 1.0).abs() < 0.011, "{found:?}");
        assert!(measured <= 5, "40, 41.6, then halves: {measured}");
        let (_, far) = searched(&search, line(4_000.0));
        assert!(far < 20, "a bad guess costs steps that double: {far}");
    }

    #[test]
    fn users_are_whole_and_the_next_one_is_too_many() {
        let search = Search { start: 10.0, whole: true, ..SEARCH };
        #[expect(clippy::cast_possible_truncation, reason = "whole numbers")]
        let users = |empty| searched(&search, line(empty)).0.map(|point| point.rate as i64);
        assert_eq!(users(275.0), Some(27));
        assert_eq!(users(11.0), Some(1));
        assert_eq!(users(5.0), None, "not even one");
    }

    #[test]
    fn luck_above_a_failure_is_not_believed() {
        let points = [(1.0, 0.95), (2.0, 0.89), (2.1, 0.91), (4.0, 0.2)];
        let points = points.map(|(rate, attainment)| Point { rate, per_second: rate, attainment });
        assert_eq!(SEARCH.found(&points), Some(points[0]));
        assert_eq!(SEARCH.next(&points), Some(2.0_f64.sqrt()));
    }

    #[test]
    fn what_never_holds_and_what_never_breaks_ends_the_search() {
        assert_eq!(searched(&SEARCH, |_| 0.5), (None, 13));
        assert!((searched(&SEARCH, |_| 1.0).0.unwrap().rate - 4_096.0).abs() < 1e-9);
    }
}
