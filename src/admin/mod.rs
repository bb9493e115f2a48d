//! The operator's door: probes, metrics, and the gateway's view of its fleet.
//!
//! Two routers: `probes` for kubelet and Prometheus (may face the network), and all of it for the operator (on
//! loopback unless told otherwise, and then only with a token). Nothing here changes anything.

mod config;
mod explain;
mod guard;
mod quotas;
mod state;

use std::sync::{Arc, atomic::Ordering::Relaxed};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    middleware::{self, map_response},
    response::{IntoResponse, Response},
    routing::{get, post},
};

pub use config::ConfigRecord;
pub use explain::{Asked, ExplainAnswer, Problem, Waits, explain_request};
pub use guard::{BadTokenFile, Guard};

use crate::{
    discovery::Resources,
    edge::{Phase, Stage},
    gateway::{CurrentPolicy, House},
    telemetry::Metrics,
};

/// What the operator's pages are made from.
#[derive(Clone, Debug)]
pub struct Office {
    /// The gateway's knowledge.
    pub house: Arc<House>,
    /// The policy in force.
    pub policy: CurrentPolicy,
    /// How far a stop has come.
    pub stage: Arc<Stage>,
    /// Which configuration is in force.
    pub config: Arc<ConfigRecord>,
    /// What pools and models there are besides those of the file.
    pub resources: Resources,
}

impl Office {
    /// The office of one gateway.
    pub fn new(
        house: Arc<House>,
        policy: CurrentPolicy,
        stage: Arc<Stage>,
        config: Arc<ConfigRecord>,
        resources: Resources,
    ) -> Self {
        Self { house, policy, stage, config, resources }
    }

    /// Why the gateway is not ready; `None` if it is. Once a pod was ready it stays so until it stops: taking every
    /// replica out because their pods are would turn errors that say what is wrong into refused connections.
    fn not_ready(&self) -> Option<String> {
        if self.stage.phase() > Phase::Serving {
            return Some("stopping".to_owned());
        }
        let waits_for = || self.resources.waits_for().map(|what| format!(" ({what})")).unwrap_or_default();
        (!self.house.ready_once.load(Relaxed)).then(|| format!("no pod has been ready yet{}", waits_for()))
    }
}

/// Probes and metrics.
pub fn probes(office: Office) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .layer(map_response(async |mut answer: Response| {
            // Who asks now and then keeps no connection: whoever can reach this port could keep them all.
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            answer
        }))
        .with_state(office)
}

/// Everything, for whom `guard` lets in.
pub fn everything(office: Office, guard: Guard) -> Router {
    Router::new()
        .route("/", get(state::index))
        .route("/debug/fleet", get(state::fleet))
        .route("/debug/quotas", get(quotas::quotas))
        .route("/debug/config", get(config::config))
        .route("/debug/explain", post(explain::explain))
        .with_state(office.clone())
        .merge(probes(office))
        .layer(middleware::from_fn_with_state(guard, guard::check))
}

async fn ready(State(office): State<Office>) -> Response {
    match office.not_ready() {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

async fn metrics(State(office): State<Office>) -> Response {
    let metrics = &office.house.metrics;
    let alive = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    metrics.tasks.set(i64::try_from(alive).unwrap_or(i64::MAX));
    ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], metrics.page()).into_response()
}
