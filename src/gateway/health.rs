//! What the desk saw of a pod's health; and how a turn of its condition is told, by the desk and by the senses alike.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::House;
use crate::{
    clock,
    fleet::{Condition, Evidence, Pod},
    telemetry::{Metrics, Name, labels::PoolReasonLabels},
};

impl House {
    /// A request was answered by `pod`.
    pub(super) fn pod_answered(&self, pod: &Pod) {
        self.note(pod, Evidence::RequestOk);
    }

    /// A request failed by the pod's fault: noted, and the pod is asked how it is.
    pub(super) fn pod_failed(&self, pod: &Pod) {
        self.note(pod, Evidence::RequestFailed);
        (self.doubt)(&pod.id);
    }

    fn note(&self, pod: &Pod, evidence: Evidence) {
        if let Some(condition) = pod.health.note(evidence, clock::now()) {
            tell_turn(&self.metrics, &self.ready_once, pod, condition);
        }
    }
}

/// A pod's condition changed: counted, remembered if it is ready, and an operator should know of the bad turns.
pub fn tell_turn(metrics: &Metrics, ready_once: &AtomicBool, pod: &Pod, condition: Condition) {
    if matches!(condition, Condition::Ready | Condition::Warming) {
        ready_once.store(true, Relaxed);
    }
    let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: condition.name() };
    metrics.conditions.get_or_create(&labels).inc();
    match condition {
        Condition::Ejected => tracing::warn!(pod = %pod.id, "pod ejected: it failed, or nobody answers there"),
        other => tracing::info!(pod = %pod.id, condition = other.name(), "pod's condition changed"),
    }
}
