//! How long one engine step takes: a profile's coefficients and what the step holds, in; milliseconds, out.
//!
//! The formula keeps the three parts apart because they grow differently: matrix products with the tokens in the
//! step, decode attention with the context looked at, prefill attention with the square of a prompt. It knows
//! nothing of requests or of time passing.

use super::profiles::{GEMM_KNOTS, Profile};

/// Kernels take this much longer in a running server than in isolation (the fit's own correction).
const IN_SERVER: f64 = 1.05;
/// Decode attention suffers this much from sequences of uneven length (the fit's own correction).
const UNEVEN_DECODE: f64 = 1.15;
/// What a step costs on the CPU: scheduling, launching, sampling (the fit's constant).
const CPU_MS: f64 = 1.0;
/// What each sequence in the step adds to that (the fit's constant).
const CPU_MS_PER_SEQ: f64 = 0.01;

/// What one step computes, summed over its sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepLoad {
    /// New prompt tokens, all chunks together.
    pub prefill_tokens: u32,
    /// Chunks of prompts.
    pub chunks: u32,
    /// Sum over chunks of new x (cached + new / 2): the pairs that attention looks at.
    pub prefill_pairs: f64,
    /// Sequences that decode one token.
    pub decoding: u32,
    /// Their context, all together.
    pub decode_context: u64,
}

impl StepLoad {
    /// Adds a chunk of `new` tokens that looks back at `cached` older ones.
    pub fn add_chunk(&mut self, new: u32, cached: u32) {
        self.prefill_tokens += new;
        self.chunks += 1;
        self.prefill_pairs += f64::from(new) * (f64::from(cached) + f64::from(new) / 2.0);
    }

    /// Adds a sequence that decodes one token after `context` others.
    pub fn add_decode(&mut self, context: u32) {
        self.decoding += 1;
        self.decode_context += u64::from(context);
    }

    /// Every token in the step.
    pub fn tokens(&self) -> u32 {
        self.prefill_tokens + self.decoding
    }
}

/// A profile at a speed: what turns a [`StepLoad`] into time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepModel {
    profile: &'static Profile,
    speed: f64,
}

impl StepModel {
    /// `speed` 1.0 is the GPU as measured; 0.5 takes twice as long for everything.
    pub fn new(profile: &'static Profile, speed: f64) -> Self {
        Self { profile, speed }
    }

    /// The same GPU, so many times as fast again.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self { speed: self.speed * factor, ..self }
    }

    /// The profile behind it.
    pub fn profile(&self) -> &'static Profile {
        self.profile
    }

    /// Milliseconds that a step with this load takes.
    pub fn millis(&self, load: &StepLoad) -> f64 {
        let gpu = gemm_ms(self.profile, load.tokens()) + self.decode_ms(load) + self.prefill_ms(load);
        let cpu = CPU_MS + CPU_MS_PER_SEQ * f64::from(load.decoding + load.chunks);
        (IN_SERVER * gpu + cpu) / self.speed
    }

    fn decode_ms(&self, load: &StepLoad) -> f64 {
        // A step without decoding launches no decode kernel, so it does not pay the constant either.
        if load.decoding == 0 {
            return 0.0;
        }
        let cost = &self.profile.decode;
        let kilo_context = load.decode_context as f64 / 1_000.0;
        UNEVEN_DECODE * (cost.const_ms + cost.per_seq_ms * f64::from(load.decoding) + cost.per_kctx_ms * kilo_context)
    }

    fn prefill_ms(&self, load: &StepLoad) -> f64 {
        let cost = &self.profile.prefill;
        cost.per_chunk_ms * f64::from(load.chunks)
            + cost.per_ktok_ms * f64::from(load.prefill_tokens) / 1_000.0
            + cost.per_mtok2_ms * load.prefill_pairs / 1_000_000.0
    }
}

/// Piecewise linear between the measured knots, and along the last piece beyond them.
fn gemm_ms(profile: &Profile, tokens: u32) -> f64 {
    let points = || GEMM_KNOTS.iter().copied().zip(profile.gemm_ms);
    let mut pieces = points().zip(points().skip(1));
    let last = GEMM_KNOTS.len() - 2;
    let piece = pieces.clone().find(|(_, (right, _))| tokens <= *right).or_else(|| pieces.nth(last));
    let Some(((left, at_left), (right, at_right))) = piece else {
        return 0.0;
    };
    let along = (f64::from(tokens.max(1)) - f64::from(left)) / (f64::from(right) - f64::from(left));
    at_left + along * (at_right - at_left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::profiles::{PROFILES, find};

    fn h100() -> StepModel {
        StepModel::new(find("h100-8b").unwrap(), 1.0)
    }

    #[test]
    fn gemm_meets_its_knots_and_is_straight_between_them() {
        let profile = find("h100-8b").unwrap();
        assert!((gemm_ms(profile, 1) - 5.77).abs() < 1e-9);
        assert!((gemm_ms(profile, 8192) - 175.043).abs() < 1e-9);
        assert!((gemm_ms(profile, 7168) - f64::midpoint(130.463, 175.043)).abs() < 1e-9);
        let slope = (348.737 - 261.897) / 4096.0;
        assert!((gemm_ms(profile, 20_480) - (348.737 + 4096.0 * slope)).abs() < 1e-9);
    }

    #[test]
    fn a_lone_decode_is_the_formula_worked_by_hand() {
        let mut load = StepLoad::default();
        load.add_decode(2_000);
        let by_hand = 1.05 * (5.77 + 1.15 * (0.3395 + 0.003_227 + 0.043_717 * 2.0)) + 1.0 + 0.01;
        assert!((h100().millis(&load) - by_hand).abs() < 1e-9);
    }

    #[test]
    fn a_whole_8k_prompt_is_the_formula_worked_by_hand() {
        let mut load = StepLoad::default();
        load.add_chunk(8_192, 0);
        let pairs = 8_192.0 * 4_096.0 / 1e6;
        let by_hand = 1.05 * (175.043 + 0.168 + 0.6928 * 8.192 + 0.726_62 * pairs) + 1.0 + 0.01;
        assert!((h100().millis(&load) - by_hand).abs() < 1e-9);
    }

    #[test]
    fn prefill_speed_is_near_the_published_one() {
        // Published 8k prefill tokens/s, before the in-server correction.
        for (name, published) in [("h100-8b", 40_100.0), ("h100-7b", 43_200.0), ("h100-70b-tp4", 13_500.0)] {
            let mut load = StepLoad::default();
            load.add_chunk(8_192, 0);
            let ms = StepModel::new(find(name).unwrap(), 1.0).millis(&load);
            let speed = 8_192.0 / (ms / IN_SERVER) * 1_000.0;
            assert!((speed / published - 1.0).abs() < 0.05, "{name}: {speed}");
        }
    }

    #[test]
    fn half_speed_takes_twice_as_long() {
        let mut load = StepLoad::default();
        load.add_chunk(500, 0);
        for profile in &PROFILES {
            let (whole, half) = (StepModel::new(profile, 1.0), StepModel::new(profile, 0.5));
            assert!((half.millis(&load) - 2.0 * whole.millis(&load)).abs() < 1e-9, "{}", profile.name);
        }
    }
}
