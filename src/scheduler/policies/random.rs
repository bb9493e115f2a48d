//! `random`: any candidate, each as likely as its share.

use rand::{Rng, RngExt};

use super::thinned;
use crate::scheduler::filters::Field;

/// See the file's comment.
pub(in crate::scheduler) struct Random {
    pub(super) drawn: usize,
}

impl Random {
    pub(super) fn new(field: &Field<'_>, rng: &mut impl Rng) -> Self {
        let many = field.candidates.len().max(1);
        Self { drawn: thinned(field, rng, |rng| rng.random_range(0..many)) }
    }
}
