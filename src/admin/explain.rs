//! What the gateway would do with a request now, and why, without doing it.

use std::sync::Arc;

use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{Query, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::Office;
use crate::{
    admission::Caller,
    gateway::{self, House, Policy, Rejection, Wishes},
    openai::{self, Ask, Dialect},
    scheduler::Explanation,
};

/// Where the request would have come in.
#[derive(Debug, Deserialize)]
pub(super) struct Place {
    listener: Option<String>,
    #[serde(default = "chat")]
    path: String,
    objective: Option<String>,
    tenant: Option<String>,
    key: Option<String>,
    priority: Option<i32>,
}

fn chat() -> String {
    "/v1/chat/completions".to_owned()
}

/// The answer of `/debug/explain`, and what `tidegate explain` prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExplainAnswer {
    /// The listener whose policy was asked.
    pub listener: String,
    /// The name that the client used.
    pub model: String,
    /// The pool.
    pub pool: String,
    /// What the model is called there.
    pub served_model: String,
    /// The tenant that asks.
    #[serde(default)]
    pub tenant: String,
    /// The public id of the key that it shows.
    #[serde(default)]
    pub key: Option<String>,
    /// Which limit refuses it, in the words that its client reads; absent if none does.
    #[serde(default)]
    pub refused: Option<String>,
    /// How full the pods are that could have it; 1: full. Absent if none is in use.
    #[serde(default)]
    pub saturation: Option<f64>,
    /// How long it would wait at the best of them before its own prefill.
    #[serde(default)]
    pub wait_ms: Option<f64>,
    /// How much it matters; below 0 it is refused while they are full.
    #[serde(default)]
    pub priority: i32,
    /// Whether it is refused for that, whatever the verdict.
    #[serde(default)]
    pub shed: bool,
    /// Where it would stand in line, if it has to wait before it goes to a pod.
    #[serde(default)]
    pub waits: Option<Waits>,
    /// Every candidate, and the verdict.
    pub decision: Explanation,
}

/// A place in the line.
#[derive(Debug, Serialize, Deserialize)]
pub struct Waits {
    /// `pod`: none is ready; `room`: all are full, or others wait for them.
    pub waits_for: String,
    /// How many would go before it.
    pub requests: usize,
    /// Their tokens, of prompts and expected answers.
    pub tokens: u64,
    /// How long those are likely to take, at the pace of late; absent where none was measured.
    pub expected_ms: Option<f64>,
}

impl From<gateway::Waits> for Waits {
    fn from(waits: gateway::Waits) -> Self {
        Self {
            waits_for: waits.waits_for.to_owned(),
            requests: waits.requests,
            tokens: waits.tokens,
            expected_ms: waits.expected.map(|span| span.as_secs_f64() * 1e3),
        }
    }
}

pub(super) async fn explain(State(office): State<Office>, Query(place): Query<Place>, body: Body) -> Response {
    let policy = office.policy.load_full();
    // What the gateway takes is explained, and no more.
    let limit = policy.config.limits.body;
    let Ok(body) = to_bytes(body, usize::try_from(limit.0).unwrap_or(usize::MAX)).await else {
        return Rejection::TooLarge { limit: limit.0 }.to_response(Dialect::OpenAi).map(Body::from);
    };
    let asked = Asked {
        listener: place.listener.as_deref(),
        path: &place.path,
        objective: place.objective.as_deref(),
        tenant: place.tenant.as_deref(),
        key: place.key.as_deref(),
        priority: place.priority,
    };
    match explain_request(&office.house, &policy, &asked, &body) {
        Ok(answer) => Json(answer).into_response(),
        Err(problem @ (Problem::NoListener { .. } | Problem::NoKey(_))) => {
            (StatusCode::NOT_FOUND, format!("{problem}\n")).into_response()
        }
        Err(Problem::Refused(rejection)) => rejection.to_response(Dialect::OpenAi).map(Body::from),
    }
}

/// Why there is nothing to explain.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// No listener has that name.
    #[error("no listener is named `{asked}`; there are: {there}")]
    NoListener {
        /// The name.
        asked: String,
        /// Those that there are.
        there: String,
    },
    /// No key has that id.
    #[error("no key has the id `{0}`; `tidegate keys list` shows those that there are")]
    NoKey(String),
    /// The request itself would be refused.
    #[error("the gateway would refuse this request: {0}")]
    Refused(Rejection),
}

impl<R: Into<Rejection>> From<R> for Problem {
    fn from(rejection: R) -> Self {
        Self::Refused(rejection.into())
    }
}

/// Where a request would come in, and what its headers would say.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The listener; the first if none is named.
    pub listener: Option<&'a str>,
    /// The path.
    pub path: &'a str,
    /// The objective that it would name; passed over, as the request's own would be, where headers are not trusted.
    pub objective: Option<&'a str>,
    /// Whose it would be, if no key says it.
    pub tenant: Option<&'a str>,
    /// The public id of the key that it would show.
    pub key: Option<&'a str>,
    /// The priority that it would name; passed over as the objective is.
    pub priority: Option<i32>,
}

/// What would happen to a JSON request with this `body`.
///
/// # Errors
/// If there is no such listener, or the request would be refused.
pub fn explain_request(
    house: &House,
    policy: &Policy,
    asked: &Asked<'_>,
    body: &[u8],
) -> Result<ExplainAnswer, Problem> {
    let Asked { listener, path, .. } = *asked;
    let missing = || {
        let there: Vec<&str> = policy.listeners.iter().map(|it| &*it.name.0).collect();
        Problem::NoListener { asked: listener.unwrap_or_default().to_owned(), there: there.join(", ") }
    };
    let named = |name: &str| policy.listeners.iter().position(|it| *it.name.0 == *name);
    let at = listener.map_or(Some(0), named).ok_or_else(missing)?;
    let listener = policy.listeners.get(at).ok_or_else(missing)?;
    let extra = &policy.config.api.extra_paths;
    let endpoint = openai::classify(&Method::POST, path, extra)
        .map_err(|problem| Rejection::of_path(problem, &Method::POST, path, extra))?
        .endpoint;
    let ask = Ask::parse(endpoint, Some("application/json"), body)?;
    let caller = match (asked.key, asked.tenant) {
        (Some(id), _) => house.keyring.named(id).ok_or_else(|| Problem::NoKey(id.to_owned()))?,
        (None, Some(tenant)) => Arc::new(Caller::of(tenant.into())),
        (None, None) => Arc::clone(&listener.anonymous),
    };
    let trusted = listener.trusts_headers;
    let wishes = Wishes {
        objective: asked.objective.filter(|_| trusted),
        priority: asked.priority.filter(|_| trusted),
        ..Wishes::default()
    };
    let explained = gateway::explain(house, (policy, listener), (&ask, body), &caller, wishes)?;
    let (full, priority) = (explained.saturation, explained.priority);
    Ok(ExplainAnswer {
        listener: listener.name.0.to_string(),
        model: explained.route.client_model.to_string(),
        pool: explained.route.pool.to_string(),
        served_model: explained.route.served_model.to_string(),
        tenant: explained.caller.tenant.to_string(),
        key: explained.caller.key.as_deref().map(str::to_owned),
        refused: explained.refused.map(|refusal| refusal.to_string()),
        saturation: full.map(|full| full.level),
        wait_ms: full.map(|full| full.wait_ms),
        priority: priority.0,
        shed: explained.shed,
        waits: explained.waits.map(Waits::from),
        decision: explained.explanation,
    })
}
