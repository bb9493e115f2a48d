//! Weighted splits: a draw for requests that stand alone, a hash for those that belong together.
//!
//! The hash is a race. Each arm's time is drawn from (key, arm) and divided by the arm's weight, and the earliest wins:
//! shares come out exactly as the weights say, and a changed weight moves only the keys that this arm gains or loses.

use rand::{Rng, RngExt};
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::config::TargetModel;

/// What a request offers to be recognised by.
#[derive(Clone, Copy)]
pub struct StickyKey<'a> {
    /// The session it names.
    pub session: Option<&'a str>,
    /// The hash ([`key_of`]) of its conversation's beginning, computed only when the model asks for it.
    pub opening: &'a dyn Fn() -> Option<u64>,
}

impl StickyKey<'static> {
    /// A request that offers nothing.
    pub const NONE: Self = Self { session: None, opening: &|| None };
}

/// The hash of what names a session or opens a conversation.
pub fn key_of(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// The arms of one model.
#[derive(Clone, Debug)]
pub(super) struct Split {
    arms: Vec<Arm>,
    total: u64,
}

#[derive(Clone, Debug)]
struct Arm {
    name: Arc<str>,
    weight: u32,
    hash: u64,
}

impl Split {
    /// The arms as configured. If every weight is zero all arms are equal, as in the reference picker.
    pub(super) fn new(targets: &[TargetModel]) -> Self {
        let all_zero = targets.iter().all(|target| target.weight == 0);
        let arms: Vec<Arm> = (0u64..)
            .zip(targets)
            .map(|(at, target)| Arm {
                name: Arc::clone(&target.name),
                weight: if all_zero { 1 } else { target.weight },
                // By name, so that the order of the arms does not matter; a name listed twice is two arms.
                hash: xxh3_64_with_seed(target.name.as_bytes(), repeats(targets, at)),
            })
            .collect();
        let total = arms.iter().map(|arm| u64::from(arm.weight)).sum();
        Self { arms, total }
    }

    /// The arm for `key`, always the same; without a key, drawn.
    pub(super) fn arm(&self, model: &str, key: Option<u64>, rng: &mut impl Rng) -> Option<(usize, Arc<str>)> {
        let at = match key {
            Some(key) => self.race(xxh3_64_with_seed(model.as_bytes(), key)),
            None => self.draw(rng),
        }?;
        self.arms.get(at).map(|arm| (at, Arc::clone(&arm.name)))
    }

    fn draw(&self, rng: &mut impl Rng) -> Option<usize> {
        if self.total == 0 {
            return None;
        }
        let mut left = rng.random_range(0..self.total);
        self.arms.iter().position(|arm| {
            let weight = u64::from(arm.weight);
            let here = left < weight;
            left = left.saturating_sub(weight);
            here
        })
    }

    fn race(&self, key: u64) -> Option<usize> {
        let time = |arm: &Arm| {
            let drawn = xxh3_64_with_seed(&arm.hash.to_le_bytes(), key);
            // 53 bits into (0, 1]: never the logarithm of nothing.
            let share = ((drawn >> 11) + 1) as f64 / (1u64 << 53) as f64;
            -share.ln() / f64::from(arm.weight)
        };
        let running = self.arms.iter().enumerate().filter(|(_, arm)| arm.weight > 0);
        running.map(|(at, arm)| (at, time(arm))).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    }
}

/// How many targets before `at` have the same name.
fn repeats(targets: &[TargetModel], at: u64) -> u64 {
    let mut before = (0u64..).zip(targets).take_while(|(i, _)| *i <= at).map(|(_, target)| &target.name);
    let Some(own) = before.by_ref().last() else { return 0 };
    (0u64..).zip(targets).filter(|(i, target)| *i < at && target.name == *own).count() as u64
}
