//! `least-request`: the pod with the fewest requests, ours as we count them and others' as far as readings tell.

use crate::scheduler::{
    Price,
    belief::{Belief, Beliefs},
    filters::{Candidate, Field},
};

/// See the file's comment.
pub(in crate::scheduler) struct LeastRequest<'a> {
    field: &'a Field<'a>,
    pub(in crate::scheduler) beliefs: Beliefs,
}

impl<'a> LeastRequest<'a> {
    pub(super) fn new(field: &'a Field<'a>) -> Self {
        Self { beliefs: Beliefs::gather(field, false), field }
    }

    pub(super) fn price(&self, place: usize) -> Price {
        self.beliefs.at(self.field, place).map_or(Price::Requests(f64::INFINITY), requests)
    }

    pub(super) fn prices(&self) -> impl Iterator<Item = Price> {
        self.beliefs.of(self.field).map(requests)
    }
}

/// This request is counted in, so that a warming pod's share matters while it is idle, too.
#[inline]
fn requests((candidate, belief): (&Candidate<'_>, Belief)) -> Price {
    Price::Requests((f64::from(belief.streams()) + 1.0) / candidate.share)
}
