//! Where the senses hang together with what is told and what is known besides.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use crate::{
    clock, config,
    discovery::{Discovery, OnChange},
    fleet::{Changes, Condition, Fleet, Pod, PoolState},
    gateway::{House, Waiting, note_ready, tell_turn},
    prefix::{self, BLOCK_BYTES},
    scrape::{Failure, PageRead, Report},
    tasks::Tasks,
    telemetry::{Metrics, Name, labels::PoolReasonLabels},
};

/// Hears what the scrape hears: counts it, keeps the prefix index as large as the pods' caches are, and tells it what
/// they found there.
pub(super) struct Ears {
    pub(super) metrics: Arc<Metrics>,
    pub(super) prefix: Arc<prefix::Index>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) waiting: Arc<Waiting>,
    pub(super) ready_once: Arc<AtomicBool>,
}

impl Ears {
    fn labels(pod: &Pod, reason: &'static str) -> PoolReasonLabels {
        PoolReasonLabels { pool: Name::from(&pod.pool), reason }
    }

    fn scraped(&self, pod: &Pod, outcome: &'static str, took: Duration) {
        let labels = Self::labels(pod, outcome);
        self.metrics.scrapes.get_or_create(&labels).inc();
        self.metrics.scrape_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A pod holds as many prompt bytes as its KV cache has tokens for, and its page counts what was found there.
    fn fit_prefix_index(&self, pod: &Pod, pool: &PoolState) {
        let Some(load) = pod.load() else { return };
        if let Some(hits) = load.reading.prefix_hits_total {
            self.prefix.counted(pod.slot, hits, clock::now());
        }
        if let Some(tokens) = load.reading.kv_capacity() {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
            let bytes = (tokens as f64 * f64::from(pool.bytes_per_token())) as usize;
            self.prefix.set_capacity(pod.slot, bytes / BLOCK_BYTES);
        }
    }
}

impl Report for Ears {
    fn page_read(&self, pod: &Pod, seen: PageRead) {
        self.scraped(pod, "ok", seen.took);
        if seen.unparsed_lines > 0 {
            let unparsed = self.metrics.scrape_unparsed.get_or_create_owned(&Self::labels(pod, "unparsed"));
            unparsed.inc_by(u64::from(seen.unparsed_lines));
        }
        // A pod that has left meanwhile is forgotten, and must not be remembered for its last page.
        if let Some(pool) = self.fleet.pool(&pod.pool).filter(|_| self.fleet.lists(pod)) {
            note_ready(&self.ready_once, pod.condition(clock::now()));
            pod.speed.fade(clock::now());
            self.fit_prefix_index(pod, &pool);
            // Whoever failed to reach it may find it there now.
            self.waiting.pod_may_do(&pool, pod, clock::now());
        }
    }

    fn models_read(&self, pod: &Pod) {
        if let Some(pool) = self.fleet.pool(&pod.pool) {
            self.waiting.pod_may_do(&pool, pod, clock::now());
        }
    }

    fn page_failed(&self, pod: &Pod, failure: Failure, took: Duration) {
        self.scraped(pod, failure.name(), took);
        if failure == Failure::Alien {
            // It says nothing of load, but somebody is there.
            note_ready(&self.ready_once, pod.condition(clock::now()));
            self.models_read(pod);
        }
    }

    fn turned(&self, pod: &Pod, condition: Condition) {
        tell_turn(&self.metrics, &self.prefix, &self.ready_once, pod, condition);
        self.models_read(pod);
    }
}

/// What follows when a pool's pods change: what belonged to pods that left is forgotten, and whoever waits for one may
/// have it.
pub(super) fn on_change(house: &Arc<House>) -> OnChange {
    let told = Arc::clone(house);
    Arc::new(move |pool: &str, changes: &Changes| {
        for pod in &changes.removed {
            told.prefix.forget(pod.slot);
            told.upstream.forget(&pod.id);
        }
        let still = told.fleet.pool(pool);
        if still.is_none() {
            told.retries.forget(pool);
        }
        told.waiting.pool_changed(pool, still.as_deref());
    })
}

/// Whoever follows the pools' endpoints.
pub(super) fn discovery(house: &House, tasks: &Tasks, on_change: &OnChange) -> Discovery {
    let parse = |name: &str, text: &str| config::parse_endpoints(name, text).map_err(|report| report.to_string());
    Discovery::new(&house.fleet, tasks, parse, Arc::clone(on_change))
}
