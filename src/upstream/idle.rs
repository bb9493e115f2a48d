//! Connections kept for the next request, per pod.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use dashmap::DashMap;

use super::connect::Live;
use crate::fleet::PodId;

/// Idle connections kept for one pod: as many as a full batch (vLLM's default `max_num_seqs` is 256).
const MAX_IDLE: usize = 256;

/// Idle connections by pod. Entries go when discovery drops the pod.
#[derive(Debug, Default)]
pub(super) struct IdleConnections {
    pods: DashMap<PodId, Mutex<Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    live: Live,
    since: Instant,
}

impl IdleConnections {
    /// The connection used last, if one is left that the pod has not closed and that is younger than `limit`: the
    /// pod's own idle timer (5 s in uvicorn) must never be about to strike.
    pub(super) fn take(&self, pod: &PodId, now: Instant, limit: Duration) -> Option<Live> {
        let entry = self.pods.get(pod)?;
        let mut idle = lock(&entry);
        idle.retain(|one| now.saturating_duration_since(one.since) < limit && !one.live.sender.is_closed());
        // One that was given back a moment ago may still be finishing its last answer: the next older will do.
        let at = idle.iter().rposition(|one| one.live.sender.is_ready())?;
        Some(idle.remove(at).live)
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn keep(&self, pod: &PodId, live: Live, now: Instant) {
        if live.sender.is_closed() {
            return;
        }
        if !self.pods.contains_key(pod) {
            self.pods.entry(pod.clone()).or_default();
        }
        if let Some(entry) = self.pods.get(pod) {
            let mut idle = lock(&entry);
            if idle.len() < MAX_IDLE {
                idle.push(Idle { live, since: now });
            }
        }
    }

    /// Closes what is idle longer than `limit`. A pod without any has no entry: an answer that ended after its pod left
    /// may have made one.
    pub(super) fn prune(&self, now: Instant, limit: Duration) {
        self.pods.retain(|_, idle| {
            let idle = idle.get_mut().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|one| now.saturating_duration_since(one.since) < limit);
            !idle.is_empty()
        });
    }

    /// Forgets a pod.
    pub(super) fn forget(&self, pod: &PodId) {
        self.pods.remove(pod);
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.pods.iter().map(|entry| lock(entry.value()).len()).sum()
    }
}

fn lock(idle: &Mutex<Vec<Idle>>) -> MutexGuard<'_, Vec<Idle>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}
