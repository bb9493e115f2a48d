//! What the gateway would do with a request now, and why, without doing it.

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::Office;
use crate::{
    gateway::{self, Rejection},
    openai::{self, Ask, Dialect},
    scheduler::Explanation,
};

/// Where the request would have come in.
#[derive(Debug, Deserialize)]
pub(super) struct Place {
    listener: Option<String>,
    #[serde(default = "chat")]
    path: String,
}

fn chat() -> String {
    "/v1/chat/completions".to_owned()
}

/// The answer of `/debug/explain`, and what `tidegate explain` prints.
#[derive(Debug, Serialize)]
pub struct ExplainAnswer {
    /// The listener whose policy was asked.
    pub listener: String,
    /// The name that the client used.
    pub model: String,
    /// The pool.
    pub pool: String,
    /// What the model is called there.
    pub served_model: String,
    /// Every candidate, and the verdict.
    pub decision: Explanation,
}

pub(super) async fn explain(
    State(office): State<Office>,
    Query(place): Query<Place>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match answer(&office, &place, &headers, &body) {
        Ok(answer) => Json(answer).into_response(),
        Err(Problem::NoListener) => (StatusCode::NOT_FOUND, "no listener of that name\n").into_response(),
        Err(Problem::Refused(rejection)) => rejection.to_response(Dialect::OpenAi).map(axum::body::Body::from),
    }
}

enum Problem {
    NoListener,
    Refused(Rejection),
}

impl<R: Into<Rejection>> From<R> for Problem {
    fn from(rejection: R) -> Self {
        Self::Refused(rejection.into())
    }
}

fn answer(office: &Office, place: &Place, headers: &HeaderMap, body: &Bytes) -> Result<ExplainAnswer, Problem> {
    let policy = office.policy.load_full();
    let named = |name: &String| policy.listeners.iter().position(|it| *it.name.0 == **name);
    let at = place.listener.as_ref().map_or(Some(0), named).ok_or(Problem::NoListener)?;
    let listener = policy.listeners.get(at).ok_or(Problem::NoListener)?;
    let asked = openai::classify(&Method::POST, &place.path, &policy.config.api.extra_paths)?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let ask = Ask::parse(asked.endpoint, kind, body)?;
    let explained = gateway::explain(&office.house, &policy, at, &ask, body)?;
    Ok(ExplainAnswer {
        listener: listener.name.0.to_string(),
        model: explained.route.client_model.to_string(),
        pool: explained.route.pool.to_string(),
        served_model: explained.route.served_model.to_string(),
        decision: explained.explanation,
    })
}
