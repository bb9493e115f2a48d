//! From prices to a verdict: the lowest price wins. Among prices that cannot be told apart the pod with the fewest of
//! our own requests wins, and among those chance, so that simultaneous equal requests spread.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use rand::{Rng, RngExt};

use super::{
    NoPod, Question, Scene, Sight, Tried, Verdict,
    filters::Field,
    policies::{Judge, place_of},
};
use crate::{
    config::Scheduler,
    fleet::{Saturation, Spare},
};

/// Chooses a pod. Call it holding the pool's gate, and reserve the verdict before letting go.
pub fn pick(
    policy: &Scheduler,
    scene: &Scene<'_>,
    question: &Question<'_>,
    tried: &Tried,
    rng: &mut impl Rng,
) -> Result<Verdict, NoPod> {
    let field = Field::gather(policy, scene, question, tried)?;
    let turn = || scene.pool.turn.fetch_add(1, Relaxed);
    let judge = Judge::new(policy, &field, &turn, rng);
    choose(policy, &field, &judge, &turn, rng)
}

/// The same, but full pods that `spare` speaks of are chosen only where there are no others.
///
/// # Errors
/// As [`pick`].
pub fn pick_with_room(
    policy: &Scheduler,
    scene: &Scene<'_>,
    question: &Question<'_>,
    (tried, spare): (&Tried, Spare),
    rng: &mut impl Rng,
) -> Result<Verdict, NoPod> {
    let verdict = pick(policy, scene, question, tried, rng)?;
    // As a rule it has room, and the others need not be asked.
    if Saturation::full(scene.pool, std::slice::from_ref(&verdict.pod), spare, scene.now).next().is_none() {
        return Ok(verdict);
    }
    let mut spared = tried.clone();
    Saturation::full(scene.pool, scene.pods, spare, scene.now).for_each(|pod| spared.add(pod));
    pick(policy, scene, question, &spared, rng).or(Ok(verdict))
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
    let ranks = Ranks::of(judge);
    let mut sight = judge.sight();
    let place = if sight == Sight::InFlightOnly && ranks.are_equal() {
        sight = Sight::RoundRobin;
        Some(place_of(turn(), many))
    } else {
        ranks.winner(field, rng)
    };
    let won = place.and_then(|place| Some((place, field.candidates.get(place)?.pod)));
    // A field has candidates, and one of them ranks first; if not, there is no pod.
    let (place, pod) = won.ok_or(NoPod::PoolEmpty)?;
    Ok(Verdict {
        pod: Arc::clone(pod),
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
    /// `(place, rank)`, of those drawn.
    list: Vec<(usize, f64)>,
    lowest: f64,
    highest: f64,
    /// Within this of the lowest, a rank is as good.
    tolerance: f64,
}

impl Ranks {
    fn of(judge: &Judge<'_>) -> Self {
        let list = judge.ranks();
        let (mut best, mut lowest, mut highest) = (0, f64::INFINITY, f64::NEG_INFINITY);
        for (place, rank) in &list {
            if *rank < lowest {
                (best, lowest) = (*place, *rank);
            }
            highest = highest.max(*rank);
        }
        let tolerance = judge.tolerance(&judge.price(best));
        Self { list, lowest, highest, tolerance }
    }

    fn are_equal(&self) -> bool {
        self.highest - self.lowest <= self.tolerance
    }

    fn winner(&self, field: &Field<'_>, rng: &mut impl Rng) -> Option<usize> {
        let limit = self.lowest + self.tolerance;
        let mut won = None;
        let mut fewest = u64::MAX;
        let mut equals = 0u32;
        for (place, _) in self.list.iter().filter(|(_, rank)| *rank <= limit) {
            let ours = field.candidates.get(*place)?.pod.ledger.in_flight();
            if ours > fewest {
                continue;
            }
            equals = if ours < fewest { 1 } else { equals + 1 };
            fewest = ours;
            // The n-th equal replaces the one before it with a chance of 1 in n: each ends up equally likely.
            if equals == 1 || rng.random_range(0..equals) == 0 {
                won = Some(*place);
            }
        }
        won
    }
}
