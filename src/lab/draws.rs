//! Random numbers of the shapes that workloads ask for, from uniform ones.

use rand::{Rng, RngExt as _};

/// Uniform in (0, 1].
fn uniform(rng: &mut impl Rng) -> f64 {
    1.0 - rng.random::<f64>()
}

/// Exponential with this mean.
pub(super) fn exponential(mean: f64, rng: &mut impl Rng) -> f64 {
    -mean * uniform(rng).ln()
}

/// Normal with mean 0 and deviation 1 (Box and Muller).
pub(super) fn normal(rng: &mut impl Rng) -> f64 {
    (-2.0 * uniform(rng).ln()).sqrt() * (std::f64::consts::TAU * uniform(rng)).cos()
}

/// Gamma with this mean and coefficient of variation; 1 is exponential (Marsaglia and Tsang 2000).
pub(super) fn gamma(mean: f64, cv: f64, rng: &mut impl Rng) -> f64 {
    let shape = 1.0 / (cv * cv);
    // Below 1 the method does not hold: draw with one more and scale by a power of a uniform number.
    let (raised, scale) = if shape < 1.0 { (shape + 1.0, uniform(rng).powf(1.0 / shape)) } else { (shape, 1.0) };
    let d = raised - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && uniform(rng).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v * scale * mean / shape;
        }
    }
}

/// Log-normal with this mean and deviation of the quantity itself.
pub(super) fn log_normal(mean: f64, deviation: f64, rng: &mut impl Rng) -> f64 {
    let variance = (deviation / mean).powi(2).ln_1p();
    (mean.ln() - variance / 2.0 + variance.sqrt() * normal(rng)).exp()
}

/// A whole number of tokens, at least one.
pub(super) fn tokens(drawn: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
    let tokens = drawn.round().max(1.0) as u32;
    tokens
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn moments(mut draw: impl FnMut(&mut StdRng) -> f64) -> (f64, f64) {
        let mut rng = StdRng::seed_from_u64(1);
        let list: Vec<f64> = (0..200_000).map(|_| draw(&mut rng)).collect();
        let mean = list.iter().sum::<f64>() / list.len() as f64;
        let variance = list.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / list.len() as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn draws_have_the_mean_and_deviation_that_were_asked_for() {
        for (drawn, mean, deviation) in [
            (moments(|rng| exponential(3.0, rng)), 3.0, 3.0),
            (moments(|rng| gamma(2.0, 0.5, rng)), 2.0, 1.0),
            (moments(|rng| gamma(2.0, 3.5, rng)), 2.0, 7.0),
            (moments(|rng| log_normal(1_500.0, 1_200.0, rng)), 1_500.0, 1_200.0),
        ] {
            assert!((drawn.0 / mean - 1.0).abs() < 0.03, "{drawn:?} for {mean} ± {deviation}");
            assert!((drawn.1 / deviation - 1.0).abs() < 0.05, "{drawn:?} for {mean} ± {deviation}");
        }
    }
}
