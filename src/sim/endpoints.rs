//! The paths of a simulated pod that ask for work: answers in four APIs, and what needs a prompt but no answer.
//!
//! Everything that costs a GPU something goes through the engine: an embedding is a prompt with an answer of one
//! token that nobody sees. A client that leaves drops its future or its body, and with it the ticket.

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
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Faults, Inside,
    answers::{Answer, Finish},
    asked::{Asked, Dialect, answer_text, tokens_in},
    driver::{NotTaken, Order, Progress, Ticket},
    engine::PromptBlocks,
    server::{cut, error, json_response},
};
use crate::clock;

/// How many answers `/v1/responses/{id}` can still find.
const KEPT_RESPONSES: usize = 1_024;
/// Dimensions of an embedding: enough to tell texts apart, few enough to read.
const DIMENSIONS: u32 = 16;

type Pod = State<Arc<Inside>>;

/// Answers that may be asked for again; the oldest go first.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<VecDeque<(String, Value)>>);

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

/// Every path that asks for work.
pub(super) fn routes() -> Router<Arc<Inside>> {
    let mut routes = Router::new()
        .route(
            "/v1/chat/completions",
            post(async |pod: Pod, head, body| generate(Dialect::Chat, &pod, &head, body).await),
        )
        .route(
            "/v1/completions",
            post(async |pod: Pod, head, body| generate(Dialect::Completions, &pod, &head, body).await),
        )
        .route(
            "/v1/responses",
            post(async |pod: Pod, head, body| generate(Dialect::Responses, &pod, &head, body).await),
        )
        .route("/v1/messages", post(async |pod: Pod, head, body| generate(Dialect::Messages, &pod, &head, body).await))
        .route("/v1/responses/{id}", get(stored))
        .route("/v1/responses/{id}/cancel", post(cancel))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/reset_prefix_cache", post(async |State(pod): Pod| pod.engine.reset_prefix_cache()))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/audio/transcriptions", post(transcribe));
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        routes = routes.route(path, post(rerank));
    }
    for path in ["/score", "/v1/score"] {
        routes = routes.route(path, post(score));
    }
    routes
}

async fn generate(dialect: Dialect, pod: &Inside, head: &HeaderMap, body: Bytes) -> Response {
    let Some(asked) = Asked::parse(dialect, &body) else {
        return not_json();
    };
    let Ok(adapter) = pod.adapter_of(&asked.model) else {
        return unknown_model(&asked.model);
    };
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
    let given = head.get("x-request-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
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
                let message = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
                return error(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message);
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

async fn count_tokens(body: Bytes) -> Response {
    match Asked::parse(Dialect::Messages, &body) {
        Some(asked) => json_response(StatusCode::OK, &json!({"input_tokens": tokens_in(&asked.text)})),
        None => not_json(),
    }
}

async fn tokenize(State(pod): Pod, body: Bytes) -> Response {
    let (Some(chat), Ok(raw)) = (Asked::parse(Dialect::Chat, &body), serde_json::from_slice::<Value>(&body)) else {
        return not_json();
    };
    let text = raw.get("prompt").and_then(Value::as_str).map_or(chat.text, str::to_owned);
    let tokens: Vec<u64> = text.as_bytes().chunks(4).map(|token| xxh3_64(token) % 128_256).collect(); // Llama 3's range
    let (count, most) = (tokens.len(), pod.config.max_model_len);
    json_response(StatusCode::OK, &json!({"count": count, "max_model_len": most, "tokens": tokens, "token_strs": null}))
}

async fn detokenize(body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return not_json();
    };
    let tokens = body.get("tokens").and_then(Value::as_array).map_or(0, Vec::len);
    let text = answer_text(xxh3_64(body.to_string().as_bytes()), u32::try_from(tokens).unwrap_or(u32::MAX));
    json_response(StatusCode::OK, &json!({"prompt": text}))
}

async fn embeddings(State(pod): Pod, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return not_json();
    };
    let inputs = texts(body.get("input"));
    let tokens = inputs.iter().map(|text| tokens_in(text)).sum();
    let model = match pool(&pod, &body, tokens).await {
        Ok(model) => model,
        Err(refused) => return refused,
    };
    // Both official SDKs ask for base64.
    let packed = body.get("encoding_format").and_then(Value::as_str) == Some("base64");
    let data = inputs.iter().enumerate().map(|(index, text)| {
        let vector: Vec<f32> = (0..DIMENSIONS).map(|at| unit(text, at)).collect();
        let bytes: Vec<u8> = vector.iter().flat_map(|it| it.to_le_bytes()).collect();
        let vector = if packed { json!(base64(&bytes)) } else { json!(vector) };
        json!({"index": index, "object": "embedding", "embedding": vector})
    });
    let data: Vec<Value> = data.collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0});
    json_response(
        StatusCode::OK,
        &json!({"id": "embd-0", "object": "list", "model": model, "data": data, "usage": usage}),
    )
}

async fn rerank(State(pod): Pod, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return not_json();
    };
    let (query, documents) = (texts(body.get("query")).concat(), texts(body.get("documents")));
    let tokens = documents.iter().map(|text| tokens_in(text) + tokens_in(&query)).sum();
    let model = match pool(&pod, &body, tokens).await {
        Ok(model) => model,
        Err(refused) => return refused,
    };
    let mut ranked: Vec<(usize, &String, f32)> =
        documents.iter().enumerate().map(|(at, text)| (at, text, unit(&[&query, text.as_str()].concat(), 0))).collect();
    ranked.sort_by(|one, other| other.2.total_cmp(&one.2));
    let most = body.get("top_n").and_then(Value::as_u64).and_then(|it| usize::try_from(it).ok()).unwrap_or(usize::MAX);
    let results = ranked.into_iter().take(most);
    let results =
        results.map(|(at, text, score)| json!({"index": at, "document": {"text": text}, "relevance_score": score}));
    let results: Vec<Value> = results.collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    json_response(StatusCode::OK, &json!({"id": "rerank-0", "model": model, "usage": usage, "results": results}))
}

async fn score(State(pod): Pod, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return not_json();
    };
    let (one, many) = (texts(body.get("text_1")).concat(), texts(body.get("text_2")));
    let tokens = many.iter().map(|text| tokens_in(text) + tokens_in(&one)).sum();
    let model = match pool(&pod, &body, tokens).await {
        Ok(model) => model,
        Err(refused) => return refused,
    };
    let scores = many.iter().enumerate();
    let scores = scores
        .map(|(at, text)| json!({"index": at, "object": "score", "score": unit(&[&one, text.as_str()].concat(), 0)}));
    let data: Vec<Value> = scores.collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    json_response(
        StatusCode::OK,
        &json!({"id": "score-0", "object": "list", "model": model, "data": data, "usage": usage}),
    )
}

async fn transcribe(State(pod): Pod, body: Bytes) -> Response {
    let model = form_field(&body, "model").unwrap_or_default();
    // A second of 16 kHz audio is 32 kB and about 50 tokens for Whisper.
    let tokens = u32::try_from(body.len() / 640).unwrap_or(u32::MAX).clamp(1, 1_500);
    match pool(&pod, &json!({"model": model}), tokens).await {
        Ok(_) => {
            let text = answer_text(xxh3_64(&body), 16);
            let usage = json!({"type": "duration", "seconds": tokens.div_ceil(50)});
            json_response(StatusCode::OK, &json!({"text": text, "usage": usage}))
        }
        Err(refused) => refused,
    }
}

/// Runs a prompt that has no answer; returns the model's name.
async fn pool(pod: &Inside, body: &Value, tokens: u32) -> Result<String, Response> {
    let asked = body.get("model").and_then(Value::as_str).unwrap_or_default();
    let adapter = pod.adapter_of(asked).map_err(|_| unknown_model(asked))?;
    let prompt = PromptBlocks { tokens, block_hashes: Arc::default() };
    let order = Order { prompt, output_tokens: 1, limited: false, adapter };
    let mut ticket = pod.engine.take(order).map_err(|cause| not_taken(&cause))?;
    let mut faults = pod.faults.watch();
    tokio::select! {
        _ = ticket.end() => {}
        _ = faults.wait_for(|now| now.engine_dead) => {
            let message = "EngineCore encountered an issue.";
            return Err(error(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message));
        }
    }
    Ok(if asked.is_empty() { pod.config.model.clone() } else { asked.to_owned() })
}

fn texts(input: Option<&Value>) -> Vec<String> {
    match input {
        Some(Value::String(text)) => vec![text.clone()],
        // A list of numbers is one text of tokens; what it says does not matter.
        Some(Value::Array(tokens)) if tokens.iter().all(Value::is_number) => {
            vec![tokens.iter().flat_map(|token| token.as_u64().unwrap_or(0).to_le_bytes()).map(char::from).collect()]
        }
        Some(Value::Array(texts)) => texts.iter().flat_map(|text| self::texts(Some(text))).collect(),
        Some(other) => vec![other.to_string()],
        None => Vec::new(),
    }
}

/// A number from 0 to 1 that a text always gets.
fn unit(text: &str, at: u32) -> f32 {
    let draw = xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), u64::from(at));
    f32::from(u16::try_from(draw & 0xffff).unwrap_or(0)) / f32::from(u16::MAX)
}

/// The value of a text field of a multipart form: what lies between its headers' empty line and the line's end.
fn form_field(body: &[u8], name: &str) -> Option<String> {
    let marker = format!("name=\"{name}\"");
    let after = body.get(memchr::memmem::find(body, marker.as_bytes())? + marker.len()..)?;
    let value = after.get(memchr::memmem::find(after, b"\r\n\r\n")? + 4..)?;
    let value = value.get(..memchr::memmem::find(value, b"\r\n")?)?;
    String::from_utf8(value.to_vec()).ok()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"; // RFC 4648
    let letter = |six: u32| LETTERS.get((six & 63) as usize).map_or('=', |&it| it.into());
    let quads = bytes.chunks(3).flat_map(|three| {
        let bits = three.iter().fold(0_u32, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        let quad = [letter(bits >> 18), letter(bits >> 12), letter(bits >> 6), letter(bits)];
        quad.into_iter().take(three.len() + 1).chain(['='].into_iter().cycle().take(3 - three.len()))
    });
    quads.collect()
}

fn not_json() -> Response {
    error(StatusCode::BAD_REQUEST, "Bad Request", "[{'type': 'json_invalid', 'msg': 'JSON decode error'}]")
}

fn unknown_model(model: &str) -> Response {
    error(StatusCode::NOT_FOUND, "NotFoundError", &format!("The model `{model}` does not exist."))
}

fn too_long(most: u32) -> Response {
    let message =
        format!("This model's maximum context length is {most} tokens. Please reduce the length of the input.");
    error(StatusCode::BAD_REQUEST, "BadRequestError", &message)
}

fn not_taken(cause: &NotTaken) -> Response {
    match cause {
        NotTaken::TooLong(_) => error(StatusCode::BAD_REQUEST, "BadRequestError", &cause.to_string()),
        NotTaken::QueueFull(_) => {
            let message = "The request queue is full; please try again later or on a different instance.";
            error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailableError", message)
        }
    }
}
