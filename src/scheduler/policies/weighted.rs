//! `weighted`: a weighted sum of the Gateway API Inference Extension's scorers, by its formulas; the most points win and
//! ties are drawn.
//!
//! One thing differs: what we sent since the reading counts as waiting, so that a burst within one scrape interval does
//! not fall on one pod.

use crate::{
    config::{Scorer, WeightedScorer},
    scheduler::{
        Points, Price,
        belief::{Adapter, Belief, Beliefs},
        filters::{Candidate, Field},
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
        let beliefs = Beliefs::gather(field);
        let waiting = Range::over(beliefs.list.iter().map(|it| it.waiting));
        let running = Range::over(beliefs.list.iter().map(|it| it.running));
        Self { field, scorers, beliefs, waiting, running }
    }

    pub(super) fn price(&self, place: usize) -> Price {
        let known = self.field.candidates.get(place).zip(self.beliefs.list.get(place));
        Price::Points(known.map_or_else(Points::default, |(candidate, belief)| self.points(*candidate, belief)))
    }

    fn points(&self, candidate: Candidate, belief: &Belief) -> Points {
        let mut points = Points { share: candidate.share, ..Points::default() };
        for WeightedScorer { scorer, weight } in self.scorers {
            match scorer {
                Scorer::Queue => points.queue += weight * self.waiting.least_first(belief.waiting),
                Scorer::Running => points.running += weight * self.running.least_first(belief.running),
                Scorer::KvCache => points.kv_cache += weight * (1.0 - belief.kv_usage),
                Scorer::PrefixCache => points.prefix_cache += weight * self.prefix(candidate),
                Scorer::LoraAffinity => points.lora_affinity += weight * affinity(belief.adapter),
            }
        }
        points
    }

    fn prefix(&self, candidate: Candidate) -> f64 {
        let hits = self.field.question.hits;
        let slot = self.field.pod(candidate).map_or(u32::MAX, |pod| pod.slot);
        hits.blocks(slot) as f64 / hits.asked().max(1) as f64
    }
}

/// The adapter is in use 1, there is room for it 0.8, it is waited for 0.6, else 0.
fn affinity(adapter: Adapter) -> f64 {
    match adapter {
        Adapter::Held => 1.0,
        Adapter::Room => 0.8,
        Adapter::Wanted => 0.6,
        Adapter::Full | Adapter::Untold => 0.0,
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
