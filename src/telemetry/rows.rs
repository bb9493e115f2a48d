//! What the families show that are read at scrape time, handed over as rows: this room knows no fleet.

use std::sync::Arc;

use super::{Name, quotas::QuotaRow};

/// The state of a pod as the scheduler sees it, for the families that are read at scrape time.
#[derive(Clone, Debug)]
pub struct PodRow {
    /// Pool name.
    pub pool: Name,
    /// The pod's address.
    pub pod: Name,
    /// Condition, such as `ready`.
    pub condition: &'static str,
    /// Running requests by its last reading.
    pub running: Option<u32>,
    /// Waiting requests by its last reading.
    pub waiting: Option<u32>,
    /// KV-cache usage by its last reading.
    pub kv_usage: Option<f64>,
    /// Seconds since that reading.
    pub age_seconds: Option<f64>,
    /// Our requests there.
    pub in_flight: u64,
    /// Our prompt tokens there that wait for their first token.
    pub prefill_tokens: u64,
    /// Learned milliseconds of prefill a token.
    pub ms_per_token: f64,
    /// Learned milliseconds between tokens.
    pub itl_ms: f64,
    /// How far the prefix index is believed, 0 to 1.
    pub prefix_trust: f32,
}

/// The state of a pool, for the same.
#[derive(Clone, Debug)]
pub struct PoolRow {
    /// Pool name.
    pub pool: Name,
    /// How full it is; `None` if no pod of it is in use.
    pub saturation: Option<f64>,
}

/// What is known of a kind of Kubernetes objects, for the same.
#[derive(Clone, Debug)]
pub struct KindRow {
    /// The kind, such as `InferencePool`.
    pub kind: &'static str,
    /// Its API group.
    pub group: &'static str,
    /// How many there are.
    pub objects: usize,
    /// Whether its watches are heard; `None` where nothing is watched.
    pub heard: Option<bool>,
}

/// The state of the fleet.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// The kinds of objects that pools and models come from.
    pub kinds: Vec<KindRow>,
    /// Its pools.
    pub pools: Vec<PoolRow>,
    /// Their pods.
    pub pods: Vec<PodRow>,
    /// Limits that the configuration names.
    pub quotas: Vec<QuotaRow>,
}

/// Reads the fleet's state when Prometheus asks.
pub type ReadRows = Arc<dyn Fn() -> Rows + Send + Sync>;
