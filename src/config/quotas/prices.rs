//! What models cost. In whole numbers, so that a month of additions loses nothing.

use std::{fmt, sync::Arc};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::tree::At;

/// Billionths of the currency that the operator's prices are in: a `u64` of them holds 18 thousand million, and the
/// cheapest token there is costs more than one.
const NANOS: f64 = 1e9;

/// An amount of the currency that the operator's prices are in, in billionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Money(pub u64);

impl Money {
    /// From a number as written; `None` if it is negative or more than can be counted.
    pub fn of(amount: f64) -> Option<Self> {
        let nanos = (amount * NANOS).round();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within u64 by the comparison")]
        (0.0..1e19).contains(&nanos).then_some(Self(nanos as u64))
    }

    /// As a number, for metrics.
    pub fn amount(self) -> f64 {
        self.0 as f64 / NANOS
    }
}

impl fmt::Display for Money {
    /// With two places, or with as many as it takes to show anything.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, nanos) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        let digits = format!("{nanos:09}");
        let kept = digits.trim_end_matches('0').len().max(2);
        write!(out, "{whole}.{}", digits.get(..kept).unwrap_or(&digits))
    }
}

/// What a model costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Price {
    /// By its tokens.
    Tokens(TokenPrice),
    /// By the time that it has GPUs.
    Gpus(GpuPrice),
}

/// The price of a million tokens, each in millionths of the currency, which is the price of one in billionths of a
/// thousandth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPrice {
    /// Of the prompt that the pod had to read.
    pub input: u64,
    /// Of the prompt that it had in its cache.
    pub cached: u64,
    /// Of the answer.
    pub output: u64,
}

/// The price of a pod's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuPrice {
    /// One hour of all its GPUs.
    pub pod_hour: Money,
}

impl TokenPrice {
    /// What so many tokens cost, rounded up; `cached` are part of `input`.
    pub fn cost(&self, input: u64, cached: u64, output: u64) -> Money {
        let cached = cached.min(input);
        let part = |tokens: u64, price: u64| u128::from(tokens) * u128::from(price);
        let sum = part(input - cached, self.input) + part(cached, self.cached) + part(output, self.output);
        Money(u64::try_from(sum.div_ceil(1_000)).unwrap_or(u64::MAX))
    }
}

impl GpuPrice {
    /// What `micros` microseconds of a pod cost, rounded up, when they were shared by as many requests as `sharing`.
    pub fn cost(&self, micros: u64, sharing: u64) -> Money {
        /// Microseconds of an hour.
        const HOUR: u128 = 3_600_000_000;
        let sum = u128::from(self.pod_hour.0) * u128::from(micros);
        Money(u64::try_from(sum.div_ceil(HOUR * u128::from(sharing.max(1)))).unwrap_or(u64::MAX))
    }
}

/// What a model costs: by tokens, or by the time of its GPUs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a price, such as `{ modelName: llama2, input_per_million: 0.5, output_per_million: 1.5 }`"
)]
pub(in crate::config) struct PriceFile {
    /// The model's name, as clients say it.
    #[serde(rename = "modelName")]
    pub(in crate::config) model_name: At<String>,
    /// A million tokens of prompts.
    pub(in crate::config) input_per_million: Option<At<f64>>,
    /// A million tokens of prompts that the pod had in its cache. Default: as input.
    pub(in crate::config) cached_per_million: Option<At<f64>>,
    /// A million tokens of answers.
    pub(in crate::config) output_per_million: Option<At<f64>>,
    /// One GPU for an hour, instead of prices of tokens. A request is charged its share of the time that it was at its pod.
    pub(in crate::config) gpu_hour: Option<At<f64>>,
    /// GPUs of one pod. Default: 1.
    pub(in crate::config) gpus: Option<At<u32>>,
}

/// A model's name and its price.
pub(super) type Named = (Arc<str>, Price);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_shows_two_places_or_as_many_as_it_has() {
        let shown = |amount: f64| Money::of(amount).unwrap().to_string();
        assert_eq!([shown(0.0), shown(12.5), shown(3.0), shown(0.000_002)], ["0.00", "12.50", "3.00", "0.000002"]);
        assert_eq!([Money::of(-0.01), Money::of(f64::NAN), Money::of(1e11)], [None, None, None]);
    }

    #[test]
    fn a_million_tokens_cost_their_price_and_one_is_rounded_up() {
        // 0.5, 0.05 and 1.5 a million.
        let price = TokenPrice { input: 500_000, cached: 50_000, output: 1_500_000 };
        assert_eq!(price.cost(1_000_000, 0, 0), Money::of(0.5).unwrap());
        assert_eq!(price.cost(1_000_000, 1_000_000, 1_000_000), Money::of(1.55).unwrap());
        assert_eq!(price.cost(1, 0, 0), Money(500));
        assert_eq!(TokenPrice { input: 1, ..price }.cost(1, 0, 0), Money(1));
        assert_eq!(price.cost(10, 99, 0), price.cost(10, 10, 0), "no more is cached than there is");
    }

    #[test]
    fn an_hour_of_a_pod_is_shared_by_those_at_it() {
        let price = GpuPrice { pod_hour: Money::of(7.2).unwrap() };
        assert_eq!(price.cost(3_600_000_000, 1), Money::of(7.2).unwrap());
        assert_eq!(price.cost(1_000_000, 4), Money::of(0.0005).unwrap());
        assert_eq!(price.cost(1_000_000, 0), Money::of(0.002).unwrap());
    }
}
