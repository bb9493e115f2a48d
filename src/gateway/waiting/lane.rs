//! A lane of a pool's line: those for whom the same pods will do, and whether one of them may go now.

use std::{sync::Arc, time::Instant};

use crate::fleet::{Pod, PoolState, Room};

/// Whether a pod is one of those that may be chosen.
pub(in crate::gateway) type Among = Arc<dyn Fn(&Pod) -> bool + Send + Sync>;

/// The only pods that will do, where not all will: under a number that is the same for the same ones.
#[derive(Clone)]
pub(in crate::gateway) struct Few {
    /// Not 0.
    pub(in crate::gateway) number: u64,
    /// Which.
    pub(in crate::gateway) among: Among,
}

/// What is the same for all in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lane {
    /// What the model is called at the pods.
    pub(super) model: Arc<str>,
    /// The number of the few pods that will do; 0: all.
    pub(super) few: u64,
}

/// A lane in which somebody stands.
pub(super) struct Standing {
    pub(super) few: Option<Few>,
    /// How many.
    pub(super) many: usize,
    /// The pool's news when one of them last found no pod, or reached none: until there is other, nobody need try.
    pub(super) seen: Option<u64>,
}

/// Why nobody of a lane may go.
pub(super) struct Shut {
    /// When it looks otherwise by itself.
    pub(super) until: Option<Instant>,
}

impl Standing {
    /// Whether the first may try. Where no pod is in use it may once for each piece of news: only a try tells for sure.
    pub(super) fn may_go(&self, lane: &Lane, pool: &PoolState, now: Instant) -> Result<(), Shut> {
        if pool.is_closed() {
            return Ok(());
        }
        if self.seen == Some(pool.news()) {
            return Err(Shut { until: None });
        }
        match room(pool, lane, self.few.as_ref(), now) {
            Room::Yes | Room::NoPod => Ok(()),
            Room::No(until) => Err(Shut { until }),
        }
    }
}

/// Whether `pool` has room for one more of `lane`.
pub(super) fn room(pool: &PoolState, lane: &Lane, few: Option<&Few>, now: Instant) -> Room {
    let serves = |pod: &Pod| pod.serves(&lane.model) != Some(false);
    Room::of(pool, &pool.pods(), |pod| serves(pod) && few.is_none_or(|few| (few.among)(pod)), now)
}
