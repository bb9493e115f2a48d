//! `weighted`: a weighted sum of the Gateway API Inference Extension's scorers, by its formulas; the most points win and
//! ties are drawn.
//!
//! One thing differs: what we sent since the reading counts as waiting, so that a burst within one scrape interval does
//! not fall on one pod.

use crate::{
    config::{Scorer, WeightedScorer},
    fleet::AdapterState,
    scheduler::{
        Points, Price,
        belief::{Belief, Beliefs},
        filters::Field,
    },
};

/// See the file's comment.
pub(in crate::scheduler) struct Weighted<'a> {
    field: &'a Field<'a>,
    scorers: &'a [WeightedScorer],
    pub(in crate::scheduler) beliefs: Beliefs,
    waiting: Range,
    running: Range,
}

impl<'a> Weighted<'a> {
    pub(super) fn new(scorers: &'a [WeightedScorer], field: &'a Field<'a>) -> Self {
        let beliefs = Beliefs::gather(field, true);
        let waiting = Range::over(beliefs.of(field).map(|(_, it)| f64::from(it.waiting)));
        let running = Range::over(beliefs.of(field).map(|(_, it)| f64::from(it.running)));
        Self { field, scorers, beliefs, waiting, running }
    }

    pub(super) fn prices(&self) -> impl Iterator<Item = Price> {
        let known = self.beliefs.of(self.field);
        known.map(|(candidate, belief)| Price::Points(self.points(candidate.share, &belief)))
    }

    pub(super) fn price(&self, place: usize) -> Price {
        let known = self.beliefs.at(self.field, place);
        Price::Points(known.map_or_else(Points::default, |(candidate, belief)| self.points(candidate.share, &belief)))
    }

    fn points(&self, share: f64, belief: &Belief) -> Points {
        let mut points = Points { share, ..Points::default() };
        for WeightedScorer { scorer, weight } in self.scorers {
            match scorer {
                Scorer::Queue => points.queue += weight * self.waiting.least_first(f64::from(belief.waiting)),
                Scorer::Running => points.running += weight * self.running.least_first(f64::from(belief.running)),
                Scorer::KvCache => points.kv_cache += weight * (1.0 - f64::from(belief.kv_usage)),
                Scorer::PrefixCache => points.prefix_cache += weight * self.prefix(belief),
                Scorer::LoraAffinity => points.lora_affinity += weight * affinity(belief.adapter),
            }
        }
        points
    }

    fn prefix(&self, belief: &Belief) -> f64 {
        f64::from(belief.blocks) / self.field.question.hits.asked().max(1) as f64
    }
}

/// The adapter is in use 1, there is room for it 0.8, it is waited for 0.6, else 0.
fn affinity(adapter: AdapterState) -> f64 {
    match adapter {
        AdapterState::Held => 1.0,
        AdapterState::Room => 0.8,
        AdapterState::Wanted => 0.6,
        AdapterState::Full | AdapterState::Untold => 0.0,
    }
}

/// The smallest and largest value among the candidates.
#[derive(Clone, Copy, Debug)]
struct Range {
    min: f64,
    max: f64,
}

impl Range {
    fn over(values: impl Iterator<Item = f64>) -> Self {
        values.fold(Self { min: f64::INFINITY, max: f64::NEG_INFINITY }, |range, value| Self {
            min: range.min.min(value),
            max: range.max.max(value),
        })
    }

    /// 1 for the smallest, 0 for the largest, 1 for all when they are equal.
    fn least_first(self, value: f64) -> f64 {
        if self.max > self.min { (self.max - value) / (self.max - self.min) } else { 1.0 }
    }
}
