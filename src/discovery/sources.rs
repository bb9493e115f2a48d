//! What each source of a pool last said, and their union in the fleet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::{CancellationToken, DropGuard};

use super::OnChange;
use crate::{
    clock,
    config::{Endpoint, Target},
    fleet::Fleet,
};

/// One pool's sources.
pub(super) struct Sources {
    pool: Arc<str>,
    fleet: Arc<Fleet>,
    on_change: OnChange,
    /// One for each endpoint of the configuration, in its order.
    list: Mutex<Vec<Source>>,
}

/// An endpoint of the configuration and what it stands for.
struct Source {
    endpoint: Endpoint,
    targets: Vec<Target>,
    /// Whoever follows the endpoint ends with it.
    _follower: DropGuard,
}

/// Where one source puts what it knows.
#[derive(Clone)]
pub(super) struct Slot {
    sources: Arc<Sources>,
    endpoint: Endpoint,
    gone: CancellationToken,
}

impl Sources {
    /// Nothing is known of `pool`.
    pub(super) fn new(pool: Arc<str>, fleet: Arc<Fleet>, on_change: OnChange) -> Arc<Self> {
        Arc::new(Self { pool, fleet, on_change, list: Mutex::default() })
    }

    /// Takes over the configuration's endpoints, and gives those that somebody has to begin to follow. One that stays
    /// keeps what it said.
    pub(super) fn follow(self: &Arc<Self>, endpoints: &[Endpoint]) -> Vec<(Slot, Endpoint)> {
        let mut begun = Vec::new();
        self.update(|list| {
            let mut old = std::mem::take(list);
            for endpoint in endpoints {
                if let Some(at) = old.iter().position(|source| source.endpoint == *endpoint) {
                    list.push(old.swap_remove(at));
                    continue;
                }
                let gone = CancellationToken::new();
                list.push(Source {
                    endpoint: endpoint.clone(),
                    targets: first_targets(endpoint, &old),
                    _follower: gone.clone().drop_guard(),
                });
                if !matches!(endpoint, Endpoint::Fixed(_)) {
                    let slot = Slot { sources: Arc::clone(self), endpoint: endpoint.clone(), gone };
                    begun.push((slot, endpoint.clone()));
                }
            }
            true
        });
        begun
    }

    /// The pool is gone: nothing is followed any more. Its pods are not touched.
    pub(super) fn close(&self) {
        self.list().clear();
    }

    /// `change` says whether it changed anything. The lock is held while the fleet takes over, so that of two lists the
    /// later one wins there too.
    fn update(&self, change: impl FnOnce(&mut Vec<Source>) -> bool) {
        let mut list = self.list();
        if !change(&mut list) {
            return;
        }
        let changes = self.fleet.set(&self.pool, &union(&list), clock::now());
        if !(changes.added.is_empty() && changes.removed.is_empty()) {
            let (added, removed) = (changes.added.len(), changes.removed.len());
            tracing::info!(pool = %self.pool, added, removed, "pods changed");
            (self.on_change)(&self.pool, &changes);
        }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Source>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an endpoint stands for before it was asked. What was followed with other credentials keeps its addresses
/// meanwhile: they are as good as they were.
fn first_targets(endpoint: &Endpoint, old: &[Source]) -> Vec<Target> {
    let same = |old: &&Source| match (endpoint, &old.endpoint) {
        (Endpoint::Dns(now), Endpoint::Dns(then)) => now.origin == then.origin,
        (Endpoint::Cluster { members: now, .. }, Endpoint::Cluster { members: then, .. }) => now == then,
        _ => false,
    };
    let known = || old.iter().find(same).map(|source| source.targets.as_slice()).unwrap_or_default().iter();
    match endpoint {
        Endpoint::Fixed(target) => vec![target.clone()],
        Endpoint::File(_) => Vec::new(),
        Endpoint::Dns(target) => known().map(|old| Target { origin: old.origin.clone(), ..target.clone() }).collect(),
        Endpoint::Cluster { token_file, .. } => {
            known().map(|old| Target { token_file: token_file.clone(), ..old.clone() }).collect()
        }
    }
}

impl Slot {
    /// This source now says so. One that is followed no more is not heard.
    pub(super) fn publish(&self, targets: Vec<Target>) {
        self.sources.update(|list| {
            let mine = list.iter_mut().find(|source| source.endpoint == self.endpoint);
            let Some(source) = mine.filter(|_| !self.gone.is_cancelled()) else {
                return false;
            };
            source.targets = targets;
            true
        });
    }

    /// Cancelled when nobody wants to hear it any more.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}

/// All targets once: where two sources name the same address, the first one's credentials count.
fn union(list: &[Source]) -> Vec<Target> {
    let mut seen = std::collections::HashSet::new();
    let targets = list.iter().flat_map(|source| &source.targets);
    targets.filter(|target| seen.insert(target.origin.authority())).cloned().collect()
}
