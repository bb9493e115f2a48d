//! Which pod of a pool a request goes to, and why.
//!
//! Filters say which pods may be chosen at all, the policy puts one number on each of them, and the lowest wins.
//! [`pick`] and [`explain`] take the same steps over the same numbers, so what is explained is what was done. Nothing
//! is reserved here: the caller holds the pool's gate, picks, and reserves what the verdict says.

mod ask;
mod belief;
mod choice;
mod explanation;
mod filters;
mod policies;
mod verdict;

pub use ask::{Question, Scene, Tried};
pub use choice::{pick, pick_with_room};
pub use explanation::{Candidate, Explanation, explain};
pub use verdict::{Cost, NoPod, Outs, Points, Price, Sight, Term, Verdict};

#[cfg(test)]
mod tests;
