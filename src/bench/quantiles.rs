//! Quantiles over all samples, not over buckets: a benchmark is short, and its tail is what it is about.

/// Samples kept at most, 8 MB: a thousand a second for a quarter of an hour.
const MOST: usize = 1 << 20;

/// Numbers and their quantiles. What comes beyond the bound is counted, and not kept.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    kept: Vec<f64>,
    dropped: u64,
}

impl Samples {
    /// One more. What is no finite number is no sample.
    pub fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        if self.kept.len() < MOST {
            self.kept.push(value);
        } else {
            self.dropped += 1;
        }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many came too late to be kept.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The smallest kept sample that at least `share` of them do not exceed (the nearest rank: always a value that
    /// really occurred); `None` of nothing.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let mut all = self.kept.clone();
        all.sort_unstable_by(f64::total_cmp);
        nearest_rank(&all, share)
    }

    /// Several quantiles for one sort.
    pub fn quantiles<const N: usize>(&self, shares: [f64; N]) -> [Option<f64>; N] {
        let mut all = self.kept.clone();
        all.sort_unstable_by(f64::total_cmp);
        shares.map(|share| nearest_rank(&all, share))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank lies between 0 and the number of samples"
)]
fn nearest_rank(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples(values: &[f64]) -> Samples {
        let mut samples = Samples::default();
        for &value in values {
            samples.add(value);
        }
        samples
    }

    #[test]
    fn quantiles_are_samples_by_nearest_rank() {
        let ten = samples(&[10.0, 1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0]);
        let at = ten.quantiles([0.0, 0.1, 0.11, 0.5, 0.9, 0.91, 1.0]);
        assert_eq!(at, [1.0, 1.0, 2.0, 5.0, 9.0, 10.0, 10.0].map(Some));
        assert_eq!(ten.quantile(0.9), Some(9.0));
    }

    #[test]
    fn nothing_has_no_quantiles() {
        assert_eq!(samples(&[]).quantile(0.5), None);
        assert_eq!(samples(&[f64::NAN, f64::INFINITY]).len(), 0);
    }

    proptest! {
        #[test]
        fn no_more_than_the_rest_exceeds_a_quantile(values in proptest::collection::vec(0.0..1e6, 1..200), share in 0.0..1.0) {
            let at = samples(&values).quantile(share).unwrap();
            let below = values.iter().filter(|&&value| value < at).count() as f64;
            let above = values.iter().filter(|&&value| value > at).count() as f64;
            let all = values.len() as f64;
            prop_assert!(above <= (1.0 - share) * all + 1e-6);
            prop_assert!(below <= share * all + 1e-6);
        }
    }
}
