//! `round-robin`: one after the other. The turn counts over the candidates alone, so that a pod that is out does not
//! leave its turn to its neighbour.

use rand::Rng;

use super::thinned;
use crate::scheduler::{Price, filters::Field};

/// See the file's comment.
pub(in crate::scheduler) struct RoundRobin {
    next: usize,
    many: usize,
}

impl RoundRobin {
    pub(super) fn new(field: &Field<'_>, turn: &dyn Fn() -> u64, rng: &mut impl Rng) -> Self {
        let many = field.candidates.len().max(1);
        Self { next: thinned(field, rng, |_| place_of(turn(), many)), many }
    }

    pub(super) fn prices(&self) -> impl Iterator<Item = Price> {
        (0..self.many).map(|place| self.price(place))
    }

    #[inline]
    pub(super) fn price(&self, place: usize) -> Price {
        let ahead = if place < self.next { place + self.many } else { place } - self.next;
        Price::Turns(u32::try_from(ahead).unwrap_or(u32::MAX))
    }
}

/// Whose turn it is among `many`.
pub(in crate::scheduler) fn place_of(turn: u64, many: usize) -> usize {
    usize::try_from(turn % many.max(1) as u64).unwrap_or(0)
}
