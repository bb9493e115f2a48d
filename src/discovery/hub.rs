//! What is known of a cluster, gathered from one watch for each kind and namespace, and given out as whole worlds.
//!
//! Changes that come together are one new world: a rollout or the first list would else be hundreds. What a watch said
//! last stays until it says otherwise, however long nothing is heard.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::resources::{Heard, Outlook};
use crate::config::resources::{Kind, Object, ObjectName, Objects, World, workloads};

/// How long after a change others are waited for: less than a pod's last request takes, more than a burst's gaps.
const GATHER: Duration = Duration::from_millis(50);

/// The most objects kept of one kind: twenty times the pods of the largest clusters that are supported for one namespace
/// (5,000), at about a KiB each.
const MOST_OBJECTS: usize = 100_000;

/// The most workloads remembered whose pods are gone: a pool of none costs some KiB, and nobody has so many models.
const MOST_WORKLOADS: usize = 1_000;

/// One watch: a kind in a namespace, or everywhere.
pub(super) type Watched = (Kind, Option<String>);

/// How far a watch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing was heard yet.
    Unheard,
    /// Nobody asked for it.
    Unwanted,
    /// The cluster does not have that kind.
    NotServed,
    /// The cluster does not let us see it.
    Forbidden,
    /// All of it was heard at least once.
    Heard,
}

/// Where the watches put what they hear.
pub(super) struct Hub {
    state: Mutex<State>,
    news: Notify,
    worlds: watch::Sender<Arc<Heard>>,
    outlook: watch::Sender<Outlook>,
    /// The label of pods whose values name pools.
    workload_label: Option<String>,
}

struct State {
    home: Arc<str>,
    kinds: BTreeMap<Kind, Arc<Objects>>,
    standing: BTreeMap<Watched, Standing>,
    failing: BTreeSet<Watched>,
    /// Workloads that were ever seen.
    workloads: BTreeSet<ObjectName>,
}

impl Hub {
    /// Nothing is known of what `watched` are to say.
    pub(super) fn new(
        (home, workload_label): (&str, Option<&str>),
        watched: &[Watched],
        worlds: watch::Sender<Arc<Heard>>,
        outlook: watch::Sender<Outlook>,
    ) -> Arc<Self> {
        let standing = watched.iter().map(|it| (it.clone(), Standing::Unheard)).collect();
        let (home, workload_label) = (home.into(), workload_label.map(ToOwned::to_owned));
        let (kinds, failing, workloads) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let state = State { home, kinds, standing, failing, workloads };
        let hub = Self { state: Mutex::new(state), news: Notify::new(), worlds, outlook, workload_label };
        hub.tell_standing(&hub.state());
        Arc::new(hub)
    }

    /// Gives out a new world after each change, for ever.
    pub(super) async fn give_out(&self) {
        loop {
            self.news.notified().await;
            tokio::time::sleep(GATHER).await;
            let mut state = self.state();
            let complete = !state.standing.values().any(|standing| *standing == Standing::Unheard);
            let (home, by_workload) = (Arc::clone(&state.home), self.workload_label.is_some());
            let mut world =
                World { home, complete, by_workload, workloads: BTreeSet::new(), kinds: state.kinds.clone() };
            if let Some(label) = &self.workload_label {
                let room = MOST_WORKLOADS.saturating_sub(state.workloads.len());
                let new: Vec<_> = workloads(&world, label).filter(|it| !state.workloads.contains(it)).collect();
                state.workloads.extend(new.into_iter().collect::<BTreeSet<_>>().into_iter().take(room));
                world.workloads.clone_from(&state.workloads);
            }
            drop(state);
            self.worlds.send_replace(Arc::new(Heard::Cluster(world)));
        }
    }

    /// All objects of a watch, in place of what it said before.
    pub(super) fn replace(&self, watched: &Watched, objects: Objects) {
        let mut state = self.state();
        let mut all = Objects::clone(state.kinds.entry(watched.0).or_default());
        all.retain(|name, _| watched.1.as_deref().is_some_and(|namespace| *name.namespace != *namespace));
        all.extend(objects);
        bound(watched.0, &mut all);
        state.kinds.insert(watched.0, Arc::new(all));
        self.stands(&mut state, watched, Standing::Heard);
        drop(state);
        self.news.notify_one();
    }

    /// One object is so now.
    pub(super) fn put(&self, kind: Kind, name: ObjectName, object: Object) {
        let mut state = self.state();
        let all = state.kinds.entry(kind).or_default();
        // Most of what changes in an object is nothing that is read.
        if all.get(&name).is_some_and(|known| **known == object) {
            return;
        }
        let all = Arc::make_mut(all);
        all.insert(name, Arc::new(object));
        bound(kind, all);
        drop(state);
        self.news.notify_one();
    }

    /// One object is gone.
    pub(super) fn take(&self, kind: Kind, name: &ObjectName) {
        let mut state = self.state();
        if Arc::make_mut(state.kinds.entry(kind).or_default()).remove(name).is_some() {
            drop(state);
            self.news.notify_one();
        }
    }

    /// A watch came to another standing. One that has heard all keeps its objects whatever comes.
    pub(super) fn stand(&self, watched: &Watched, standing: Standing) {
        let mut state = self.state();
        if state.standing.get(watched) == Some(&Standing::Heard) {
            drop(state);
            return self.fails(watched, Some("the cluster has or shows this resource no more"));
        }
        self.stands(&mut state, watched, standing);
        drop(state);
        self.news.notify_one();
    }

    fn stands(&self, state: &mut State, watched: &Watched, standing: Standing) {
        if state.standing.insert(watched.clone(), standing) != Some(standing) {
            tell(watched, standing);
            self.tell_standing(state);
        }
    }

    /// A watch fails, or does no more. Said once when it begins and once when it is over, not by each.
    pub(super) fn fails(&self, watched: &Watched, why: Option<&str>) {
        let mut state = self.state();
        let before = state.failing.is_empty();
        let changed = match why {
            Some(_) => state.failing.insert(watched.clone()),
            None => state.failing.remove(watched),
        };
        match (changed, before, why) {
            (true, true, Some(error)) => {
                tracing::warn!(kind = watched.0.word(), error, "cluster not heard, its last word stays");
            }
            (true, false, None) if state.failing.is_empty() => tracing::info!("cluster heard again"),
            _ => {}
        }
        if changed {
            self.tell_standing(&state);
        }
    }

    /// What is still waited for, for whoever asks why the gateway is not ready.
    fn tell_standing(&self, state: &State) {
        let of = |wanted: Standing| {
            let kinds = state.standing.iter().filter(|(_, standing)| **standing == wanted);
            kinds.map(|((kind, _), _)| format!("{}.{}", kind.plural(), kind.group())).collect::<BTreeSet<_>>()
        };
        let (unheard, absent) = (of(Standing::Unheard), of(Standing::NotServed));
        let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let pools = [Kind::Pool, Kind::AlphaPool];
        let no_pools = || pools.iter().all(|kind| absent.contains(&format!("{}.{}", kind.plural(), kind.group())));
        let waits_for = match () {
            () if !state.failing.is_empty() => Some("the cluster's API server is not heard".to_owned()),
            () if !unheard.is_empty() => Some(format!("waiting for the cluster's word on {}", list(&unheard))),
            () if no_pools() => {
                Some("the cluster has no InferencePool resource (its definition is not installed)".to_owned())
            }
            () => None,
        };
        let well = |watched: &Watched| !state.failing.contains(watched);
        let mut heard = BTreeMap::new();
        for watched in state.standing.iter().filter(|(_, it)| **it == Standing::Heard).map(|(watched, _)| watched) {
            *heard.entry(watched.0).or_insert(true) &= well(watched);
        }
        self.outlook.send_replace(Outlook { waits_for, heard });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell((kind, namespace): &Watched, standing: Standing) {
    let (kind, group) = (kind.word(), kind.group());
    let namespace = namespace.as_deref().unwrap_or("*");
    let said = match standing {
        Standing::Unheard | Standing::Unwanted => return,
        Standing::NotServed => "the cluster does not have this resource (yet), waiting for it",
        Standing::Forbidden => {
            let said = "not allowed to list and watch this resource; give the service account the right to";
            return tracing::warn!(kind, group, namespace, "{said}");
        }
        Standing::Heard => "following",
    };
    tracing::info!(kind, group, namespace, "{said}");
}

/// Keeps the first by name; so many are no fleet but an accident.
fn bound(kind: Kind, objects: &mut Objects) {
    if objects.len() > MOST_OBJECTS {
        tracing::warn!(kind = kind.word(), most = MOST_OBJECTS, "more objects than are kept");
        while objects.len() > MOST_OBJECTS {
            objects.pop_last();
        }
    }
}
