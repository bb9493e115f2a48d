//! What each source of a pool last said, and their union in the fleet.

use std::sync::{Arc, Mutex, PoisonError};

use super::OnChange;
use crate::{
    clock,
    config::{Endpoint, Pool, Target},
    fleet::Fleet,
};

/// One pool's sources.
pub(super) struct Sources {
    pool: Arc<str>,
    fleet: Arc<Fleet>,
    on_change: OnChange,
    /// One list for each endpoint of the configuration, in its order.
    lists: Mutex<Vec<Vec<Target>>>,
}

/// Where one source puts what it knows.
#[derive(Clone)]
pub(super) struct Slot {
    sources: Arc<Sources>,
    place: usize,
}

impl Sources {
    /// Fixed endpoints are known; the others have said nothing yet.
    pub(super) fn new(pool: &Pool, fleet: &Arc<Fleet>, on_change: &OnChange) -> Arc<Self> {
        let first = |endpoint: &Endpoint| match endpoint {
            Endpoint::Fixed(target) => vec![target.clone()],
            Endpoint::Dns(_) | Endpoint::File(_) => Vec::new(),
        };
        Arc::new(Self {
            pool: Arc::clone(&pool.name),
            fleet: Arc::clone(fleet),
            on_change: Arc::clone(on_change),
            lists: Mutex::new(pool.endpoints.iter().map(first).collect()),
        })
    }

    /// Puts what is known from the configuration alone into the fleet.
    pub(super) fn publish_fixed(&self) {
        self.update(|_| {});
    }

    /// Where the endpoint at `place` of the configuration puts what it knows.
    pub(super) fn slot(self: &Arc<Self>, place: usize) -> Slot {
        Slot { sources: Arc::clone(self), place }
    }

    /// The lock is held while the fleet takes over, so that of two lists the later one wins there too.
    fn update(&self, change: impl FnOnce(&mut Vec<Vec<Target>>)) {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut lists);
        let changes = self.fleet.set(&self.pool, &union(&lists), clock::now());
        if !(changes.added.is_empty() && changes.removed.is_empty()) {
            let (added, removed) = (changes.added.len(), changes.removed.len());
            tracing::info!(pool = %self.pool, added, removed, "pods changed");
            (self.on_change)(&self.pool, &changes);
        }
    }
}

impl Slot {
    /// This source now says so.
    pub(super) fn publish(&self, targets: Vec<Target>) {
        self.sources.update(|lists| {
            if let Some(list) = lists.get_mut(self.place) {
                *list = targets;
            }
        });
    }
}

/// All targets once: where two sources name the same address, the first one's credentials count.
fn union(lists: &[Vec<Target>]) -> Vec<Target> {
    let mut seen = std::collections::HashSet::new();
    let targets = lists.iter().flatten().filter(|target| seen.insert(target.origin.authority()));
    targets.cloned().collect()
}
