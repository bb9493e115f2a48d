//! What the desk saw of a pod's health; and how a turn of its condition is told, by the desk and by the senses alike.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use http::StatusCode;

use super::{House, rejection::CUTS};
use crate::{
    clock,
    fleet::{Condition, Ejection, Evidence, Pod},
    prefix,
    telemetry::{Metrics, Name, labels::PoolReasonLabels},
    upstream::FailureKind,
};

/// A new pool's counters that alerts watch stand at nothing from the start: the first event of a counter that is born
/// with it is a rise that nobody sees.
pub fn begin_counting(metrics: &Metrics, pool: &str) {
    let labels = |reason| PoolReasonLabels { pool: Name::from(pool), reason };
    for reason in CUTS {
        drop(metrics.cuts.get_or_create(&labels(reason)));
    }
    for kind in FailureKind::RETRIED {
        drop(metrics.retries_denied.get_or_create(&labels(kind.name())));
    }
}

impl House {
    /// A request that was sent at `sent` was answered by `pod`.
    pub(super) fn pod_answered(&self, pod: &Pod, sent: Instant) {
        self.told(pod, pod.health.note(Evidence::RequestOk { sent }, clock::now()));
    }

    /// A request failed by the pod's fault: noted, and the pod is asked how it is.
    pub(super) fn pod_failed(&self, pod: &Pod) {
        let pool = self.fleet.pool(&pod.pool);
        self.told(pod, pool.and_then(|pool| pool.failed(pod, clock::now())));
        (self.doubt)(&pod.id);
    }

    /// `pod` said no to a request that was sent at `sent`, for this `reason`, and asked to be left alone for so long.
    pub(super) fn pod_refused(&self, pod: &Pod, reason: &'static str, asked: Option<Duration>, sent: Instant) {
        pod.health.pushed_back(asked, sent, clock::now());
        let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason };
        self.metrics.refusals.get_or_create(&labels).inc();
    }

    fn told(&self, pod: &Pod, turned: Option<Condition>) {
        if let Some(condition) = turned {
            tell_turn(&self.metrics, &self.prefix, &self.ready_once, pod, condition);
            if let Some(pool) = self.fleet.pool(&pod.pool) {
                self.waiting.pod_may_do(&pool, pod, clock::now());
            }
        }
    }
}

/// A pod's condition changed: counted, remembered if it is ready, what it had cached forgotten if it was away, and an
/// operator should know of the bad turns.
pub fn tell_turn(metrics: &Metrics, prefix: &prefix::Index, ready_once: &AtomicBool, pod: &Pod, condition: Condition) {
    if condition == Condition::Warming {
        // Whoever found it well again: it was restarted, or may as well have been.
        prefix.forget(pod.slot);
    }
    let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: condition.name() };
    metrics.conditions.get_or_create(&labels).inc();
    say_turn(pod, condition);
    note_ready(ready_once, condition);
}

/// A pod that answers is in this condition. One that came to a pool later than the gateway began is warming from the
/// first, so that no turn tells of it.
pub fn note_ready(ready_once: &AtomicBool, condition: Condition) {
    let ready = matches!(condition, Condition::Ready | Condition::Warming);
    if ready && !ready_once.load(Relaxed) && !ready_once.swap(true, Relaxed) {
        tracing::info!("ready");
    }
}

fn say_turn(pod: &Pod, condition: Condition) {
    match condition {
        Condition::Ejected => {
            let why = pod.health.ejection().map_or("ejected", Ejection::told);
            tracing::warn!(pod = %pod.id, "pod {why}");
        }
        other => tracing::info!(pod = %pod.id, condition = other.name(), "pod's condition changed"),
    }
}

/// What the status of an answer, to what was sent at `sent`, says of its pod. 429 and 503 are load, noted when the head
/// came; every other 5xx is its fault; the rest is an answer.
pub(super) fn note_status(house: &House, pod: &Pod, status: StatusCode, sent: Instant) {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {}
        status if status.is_server_error() => house.pod_failed(pod),
        _ => house.pod_answered(pod, sent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        prefix::{BLOCK_BYTES, Blocks, Index},
        telemetry::Rows,
    };

    #[test]
    fn what_a_pod_had_cached_is_forgotten_when_it_comes_back_whoever_found_it() {
        let (metrics, index, ready_once) =
            (Metrics::new(std::sync::Arc::new(Rows::default)), Index::default(), AtomicBool::default());
        let pod = Pod::for_test("pool", 1);
        let blocks = Blocks::of("m", "", [[1; BLOCK_BYTES]]);
        index.insert(pod.slot, &blocks);
        for (condition, held) in [(Condition::Ready, 1), (Condition::Ejected, 1), (Condition::Warming, 0)] {
            tell_turn(&metrics, &index, &ready_once, &pod, condition);
            assert_eq!(index.longest(&blocks).held(pod.slot), held, "{condition:?}");
        }
    }
}
