//! `session-hash`: a session always falls on the same pod while it is there.
//!
//! A race (weighted rendezvous hashing): each pod's time is drawn from (session, pod) over its share, and the earliest
//! wins. A pod that leaves moves only its own sessions, and one that warms up takes its sessions over one by one.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::scheduler::{
    Price,
    filters::{Candidate, Field},
};

/// See the file's comment.
pub(in crate::scheduler) struct SessionHash<'a> {
    field: &'a Field<'a>,
    session: u64,
}

impl<'a> SessionHash<'a> {
    pub(super) fn new(field: &'a Field<'a>, session: u64) -> Self {
        Self { field, session }
    }

    pub(super) fn prices(&self) -> impl Iterator<Item = Price> {
        self.field.candidates.iter().map(|candidate| self.race(candidate))
    }

    pub(super) fn price(&self, place: usize) -> Price {
        let candidate = self.field.candidates.get(place);
        candidate.map_or(Price::Race(f64::INFINITY), |candidate| self.race(candidate))
    }

    fn race(&self, candidate: &Candidate<'_>) -> Price {
        let drawn = xxh3_64_with_seed(candidate.pod.id.as_str().as_bytes(), self.session);
        // 53 bits into (0, 1]: never the logarithm of nothing.
        let uniform = ((drawn >> 11) + 1) as f64 / (1u64 << 53) as f64;
        Price::Race(-uniform.ln() / candidate.share)
    }
}
