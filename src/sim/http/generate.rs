//! The paths of a simulated pod that generate: chat, completions, responses and messages, streamed and whole.
//!
//! One way for all four: a ticket in the engine, a [`Telling`] that waits for tokens or faults, and an `Answer` that
//! puts them into words. A client that leaves drops its future or its body, and with it the ticket.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::UNIX_EPOCH,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode},
    response::Response,
    routing::{get, post},
};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    answers::{Answer, Finish},
    asked::{Asked, Dialect},
    cut, json_response,
    refusals::{engine_died, error, not_json, not_taken, too_long, unknown_model},
};
use crate::{
    clock,
    sim::{
        Faults, Inside,
        driver::{Order, Progress, Ticket},
    },
};

/// How many answers `/v1/responses/{id}` can still find.
const KEPT_RESPONSES: usize = 1_024;

type Pod = State<Arc<Inside>>;

/// Answers that may be asked for again; the oldest go first.
#[derive(Debug, Default)]
pub(in crate::sim) struct Shelf(Mutex<VecDeque<(String, Value)>>);

impl Shelf {
    fn put(&self, id: String, response: Value) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(it, _)| *it != id);
        if kept.len() == KEPT_RESPONSES {
            kept.pop_front();
        }
        kept.push_back((id, response));
    }

    fn get(&self, id: &str) -> Option<Value> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(it, _)| it == id).map(|(_, response)| response.clone())
    }
}

/// The paths that generate.
pub(super) fn routes() -> Router<Arc<Inside>> {
    let say =
        |dialect: Dialect| post(async move |State(pod): Pod, head, body| generate(dialect, &pod, &head, body).await);
    Router::new()
        .route("/v1/chat/completions", say(Dialect::Chat))
        .route("/v1/completions", say(Dialect::Completions))
        .route("/v1/responses", say(Dialect::Responses))
        .route("/v1/messages", say(Dialect::Messages))
        .route("/v1/responses/{id}", get(stored))
        .route("/v1/responses/{id}/cancel", post(cancel))
}

async fn generate(dialect: Dialect, pod: &Inside, head: &HeaderMap, body: Bytes) -> Response {
    let Some(asked) = Asked::parse(dialect, &body) else {
        return not_json();
    };
    let Ok(adapter) = pod.adapter_of(&asked.model) else {
        return unknown_model(&asked.model);
    };
    let given = head.get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let asked = if pod.config.checksum { asked.proven(&body, given.as_deref().unwrap_or_default()) } else { asked };
    let name = if asked.model.is_empty() { pod.config.model.clone() } else { asked.model.clone() };
    let prompt = asked.prompt(adapter.map(|_| name.as_str()), pod.config.engine.block_size);
    let prompt_tokens = prompt.tokens;
    if prompt_tokens.saturating_add(asked.output_tokens) > pod.config.max_model_len {
        return too_long(pod.config.max_model_len);
    }
    let order = Order { prompt, output_tokens: asked.output_tokens, limited: asked.limited, adapter };
    let ticket = match pod.engine.take(order) {
        Ok(ticket) => ticket,
        Err(cause) => return not_taken(&cause),
    };
    let created = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let id = given.unwrap_or_else(|| format!("{:016x}{:08x}", asked.seed(), ticket.number()));
    let streams = asked.stream;
    let answer = Answer::new(asked, id, name, created, prompt_tokens);
    let telling = Telling { answer, ticket, faults: pod.faults.watch(), told: 0, progress: Progress::default() };
    if streams { tell_in_pieces(telling, pod) } else { tell_whole(telling, pod).await }
}

/// One answer and how much of it was told.
struct Telling {
    answer: Answer,
    ticket: Ticket,
    faults: watch::Receiver<Faults>,
    told: u32,
    progress: Progress,
}

/// What to say next.
enum Next {
    /// The token after those told.
    Token,
    /// The end.
    End(Finish),
    /// An error instead of an end.
    Broken,
    /// Nothing: the connection breaks.
    Cut,
}

impl Telling {
    /// Waits until there is something to tell, or a fault strikes at this point of the answer.
    async fn next(&mut self) -> Next {
        loop {
            let faults = self.faults.borrow_and_update().clone();
            let reached = |limit: Option<u32>| limit.is_some_and(|limit| self.told >= limit);
            if reached(faults.cut_mid_stream) {
                return Next::Cut;
            }
            if faults.engine_dead || reached(faults.error_event) {
                return Next::Broken;
            }
            if reached(faults.finish_abort) {
                return Next::End(Finish::Abort);
            }
            if self.told < self.progress.tokens {
                self.told += 1;
                return Next::Token;
            }
            if self.progress.complete {
                return Next::End(self.answer.natural_finish());
            }
            tokio::select! {
                progress = self.ticket.beyond(self.told) => self.progress = progress,
                _ = self.faults.changed() => {}
            }
        }
    }
}

async fn tell_whole(mut telling: Telling, pod: &Inside) -> Response {
    loop {
        match telling.next().await {
            Next::Token => {}
            Next::End(finish) => {
                let body = telling.answer.whole(telling.told, telling.progress.cached, finish);
                if telling.answer.asked.dialect == Dialect::Responses {
                    pod.responses.put(telling.answer.response_id(), body.clone());
                }
                return json_response(StatusCode::OK, &body);
            }
            Next::Broken => {
                return engine_died();
            }
            // Some bytes, then nothing: the worst place to break a whole answer.
            Next::Cut => {
                let begun = stream::iter([Ok(Bytes::from("{"))]);
                return Response::new(Body::from_stream(begun.chain(stream::once(cut()))));
            }
        }
    }
}

fn tell_in_pieces(telling: Telling, pod: &Inside) -> Response {
    if telling.answer.asked.dialect == Dialect::Responses {
        let whole = telling.answer.whole(telling.answer.asked.output_tokens, 0, telling.answer.natural_finish());
        pod.responses.put(telling.answer.response_id(), whole);
    }
    let mut response = Response::new(Body::from_stream(stream::unfold(Some(telling), frame)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream; charset=utf-8"));
    response
}

/// The next piece of a stream, and what is left to tell after it.
async fn frame(telling: Option<Telling>) -> Option<(io::Result<Bytes>, Option<Telling>)> {
    let mut telling = telling?;
    let next = telling.next().await;
    let (answer, cached) = (&telling.answer, telling.progress.cached);
    // As in vLLM, nothing is said before the first token; what opens the stream comes with it.
    let opening = || answer.opening(cached);
    match next {
        Next::Token if telling.told == 1 && !opening().is_empty() => {
            let text = [opening(), answer.token(0)].concat();
            Some((Ok(Bytes::from(text)), Some(telling)))
        }
        Next::Token => {
            let text = answer.token(telling.told - 1);
            Some((Ok(Bytes::from(text)), Some(telling)))
        }
        Next::End(finish) => Some((Ok(Bytes::from(answer.closing(telling.told, cached, finish))), None)),
        Next::Broken => Some((Ok(Bytes::from(answer.broken())), None)),
        Next::Cut => Some((cut().await, None)),
    }
}

async fn stored(State(pod): Pod, Path(id): Path<String>) -> Response {
    match pod.responses.get(&id) {
        Some(response) => json_response(StatusCode::OK, &response),
        None => error(StatusCode::NOT_FOUND, "invalid_request_error", &format!("Response with id '{id}' not found.")),
    }
}

async fn cancel(State(pod): Pod, Path(id): Path<String>) -> Response {
    let Some(mut response) = pod.responses.get(&id) else {
        return error(StatusCode::NOT_FOUND, "invalid_request_error", &format!("Response with id '{id}' not found."));
    };
    if let Some(status) = response.get_mut("status") {
        *status = json!("cancelled");
    }
    pod.responses.put(id, response.clone());
    json_response(StatusCode::OK, &response)
}
