//! The fleet as the scheduler sees it, as JSON; and a list of what can be asked here.

use axum::{Json, extract::State};

use super::Office;
use crate::{clock, fleet::FleetSnapshot};

/// What there is to see.
const INDEX: &str = "Tidegate\n
GET  /healthz        the process answers
GET  /readyz         traffic may come
GET  /metrics        OpenMetrics
GET  /debug/fleet    every pod as the scheduler sees it (JSON; `tidegate explain --state` reads it)
POST /debug/explain  a request body: its route, every candidate with its terms, the verdict
                     (?listener=NAME&path=/v1/chat/completions)
";

pub(super) async fn index() -> &'static str {
    INDEX
}

pub(super) async fn fleet(State(office): State<Office>) -> Json<FleetSnapshot> {
    Json(FleetSnapshot::take(&office.house.fleet, clock::now()))
}
