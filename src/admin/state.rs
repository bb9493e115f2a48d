//! The fleet as the scheduler sees it, as JSON; and a list of what can be asked here.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde::Serialize;

use super::Office;
use crate::{
    clock,
    fleet::FleetSnapshot,
    gateway::{House, LineView},
};

/// What there is to see.
const INDEX: &str = "Tidegate\n
GET  /healthz        the process answers
GET  /readyz         traffic may come
GET  /metrics        OpenMetrics
GET  /debug/fleet    every pod as the scheduler sees it (JSON; `tidegate explain --state` reads it)
GET  /debug/quotas   what callers have used up of their limits, the closest to one first (JSON)
GET  /debug/config   hash of the configuration in force, and how the last reload went (JSON)
POST /debug/explain  a request body: its route, every candidate with its terms, the verdict
                     (?listener=NAME&path=/v1/chat/completions)
";

pub(super) async fn index() -> &'static str {
    INDEX
}

/// The fleet, and beside it what the prefix index believes of each pod.
#[derive(Debug, Serialize)]
pub(super) struct Seen {
    #[serde(flatten)]
    fleet: FleetSnapshot,
    prefix: BTreeMap<String, Believed>,
    /// Who waits, by pool.
    line: BTreeMap<String, LineView>,
}

/// What the prefix index believes of one pod.
#[derive(Debug, Serialize)]
struct Believed {
    /// Blocks that it is believed to hold.
    blocks: usize,
    /// How far that is believed, 0 to 1.
    trust: f32,
}

pub(super) async fn fleet(State(office): State<Office>) -> Json<Seen> {
    let House { fleet, prefix, waiting, .. } = &*office.house;
    let believed = |slot| Believed { blocks: prefix.held(slot), trust: prefix.trust(slot) };
    let pods = fleet.pools().flat_map(|pool| pool.pods().to_vec());
    let prefix = pods.map(|pod| (pod.id.to_string(), believed(pod.slot))).collect();
    let line = fleet.pools().map(|pool| (pool.name().to_string(), waiting.view(pool.name()))).collect();
    Json(Seen { fleet: FleetSnapshot::take(fleet, clock::now()), prefix, line })
}
