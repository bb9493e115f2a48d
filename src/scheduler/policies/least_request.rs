//! `least-request`: the pod with the fewest requests, ours as we count them and others' as far as readings tell.

use crate::scheduler::{Price, belief::Beliefs, filters::Field};

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
        let known = self.field.candidates.get(place).zip(self.beliefs.list.get(place));
        // This request is counted in, so that a warming pod's share matters while it is idle, too.
        Price::Requests(
            known.map_or(f64::INFINITY, |(candidate, belief)| (f64::from(belief.streams()) + 1.0) / candidate.share),
        )
    }
}
