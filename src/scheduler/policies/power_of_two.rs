//! `power-of-two`: the better of two drawn at random. Half as good as looking at all, but simultaneous choosers that
//! see the same stale picture rarely draw the same two.

use rand::{Rng, RngExt};

use super::least_request::LeastRequest;
use crate::scheduler::{Price, filters::Field};

/// See the file's comment.
pub(in crate::scheduler) struct PowerOfTwo<'a> {
    pub(in crate::scheduler) all: LeastRequest<'a>,
    drawn: (usize, usize),
}

impl<'a> PowerOfTwo<'a> {
    pub(super) fn new(field: &'a Field<'a>, rng: &mut impl Rng) -> Self {
        let many = field.candidates.len().max(1);
        let one = rng.random_range(0..many);
        // Another one, if there is another.
        let other = (one + 1 + rng.random_range(0..many.saturating_sub(1).max(1))) % many;
        Self { all: LeastRequest::new(field), drawn: (one, other) }
    }

    pub(super) fn price(&self, place: usize) -> Price {
        self.all.price(place)
    }

    /// The places drawn: one where there are no two.
    pub(super) fn drawn(&self) -> impl Iterator<Item = usize> {
        let (one, other) = self.drawn;
        std::iter::once(one).chain((other != one).then_some(other))
    }
}
