//! From prices to a verdict: the lowest price wins. Among prices that cannot be told apart the pod with the fewest of
//! our own requests wins, and among those chance, so that simultaneous equal requests spread.

use std::sync::atomic::Ordering::Relaxed;

use rand::{Rng, RngExt};
use smallvec::SmallVec;

use super::{
    NoPod, Price, Question, Scene, Sight, Tried, Verdict,
    filters::Field,
    policies::{Judge, place_of},
};
use crate::config::Scheduler;

/// Chooses a pod. Call it holding the pool's gate, and reserve the verdict before letting go.
pub fn pick(
    policy: &Scheduler,
    scene: &Scene<'_>,
    question: &Question<'_>,
    tried: &Tried,
    rng: &mut impl Rng,
) -> Result<Verdict, NoPod> {
    let field = Field::gather(scene, question, tried)?;
    let turn = || scene.pool.turn.fetch_add(1, Relaxed);
    let judge = Judge::new(policy, &field, &turn, rng);
    choose(policy, &field, &judge, &turn, rng)
}

/// The verdict of `judge`.
pub(super) fn choose(
    policy: &Scheduler,
    field: &Field<'_>,
    judge: &Judge<'_>,
    turn: &dyn Fn() -> u64,
    rng: &mut impl Rng,
) -> Result<Verdict, NoPod> {
    let many = field.candidates.len();
    let ranks = Ranks::of(judge, many);
    let mut sight = judge.sight();
    let place = if sight == Sight::InFlightOnly && ranks.are_equal() {
        sight = Sight::RoundRobin;
        Some(place_of(turn(), many))
    } else {
        ranks.winner(field, rng)
    };
    let won = place.and_then(|place| Some((place, field.pod(*field.candidates.get(place)?)?)));
    // A field has candidates, and one of them ranks first; if not, there is no pod.
    let (place, pod) = won.ok_or(NoPod::PoolEmpty)?;
    Ok(Verdict {
        pod: std::sync::Arc::clone(pod),
        send: field.question.send(pod.slot),
        price: judge.price(place),
        considered: u16::try_from(many).unwrap_or(u16::MAX),
        sight,
        policy: policy.name(),
        failed_open: field.failed_open,
    })
}

/// One number a candidate.
struct Ranks {
    list: SmallVec<[f64; 32]>,
    lowest: f64,
    highest: f64,
    /// Within this of the lowest, a rank is as good.
    tolerance: f64,
}

impl Ranks {
    fn of(judge: &Judge<'_>, many: usize) -> Self {
        let mut ranks = Self {
            list: SmallVec::with_capacity(many),
            lowest: f64::INFINITY,
            highest: f64::NEG_INFINITY,
            tolerance: 0.0,
        };
        let mut best: Option<Price> = None;
        for place in 0..many {
            if !judge.drawn(place) {
                ranks.list.push(f64::INFINITY);
                continue;
            }
            let price = judge.price(place);
            let rank = price.rank();
            if rank < ranks.lowest || best.is_none() {
                ranks.lowest = rank;
                best = Some(price);
            }
            ranks.highest = ranks.highest.max(rank);
            ranks.list.push(rank);
        }
        ranks.tolerance = best.map_or(0.0, |best| judge.tolerance(&best));
        ranks
    }

    fn are_equal(&self) -> bool {
        self.highest - self.lowest <= self.tolerance
    }

    fn winner(&self, field: &Field<'_>, rng: &mut impl Rng) -> Option<usize> {
        let limit = self.lowest + self.tolerance;
        let mut won = None;
        let mut fewest = u64::MAX;
        let mut equals = 0u32;
        for (place, _) in self.list.iter().enumerate().filter(|(_, rank)| **rank <= limit) {
            let candidate = field.candidates.get(place)?;
            let ours = field.pod(*candidate)?.ledger.in_flight();
            if ours > fewest {
                continue;
            }
            equals = if ours < fewest { 1 } else { equals + 1 };
            fewest = ours;
            // The n-th equal replaces the one before it with a chance of 1 in n: each ends up equally likely.
            if equals == 1 || rng.random_range(0..equals) == 0 {
                won = Some(place);
            }
        }
        won
    }
}
