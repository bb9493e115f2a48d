//! The paths of a simulated pod that need a prompt but no answer: embeddings, ranking, tokens, transcription.
//!
//! What costs a GPU something goes through the engine as a prompt with an answer of one token that nobody sees; the
//! numbers that come back are drawn from the texts, so that equal texts get equal numbers.

use std::sync::Arc;

use axum::{Router, body::Bytes, extract::State, http::StatusCode, response::Response, routing::post};
use serde_json::{Value, json};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    asked::{Asked, Dialect, answer_text, tokens_in},
    json_response,
    refusals::{engine_died, not_json, not_taken, unknown_model},
};
use crate::sim::{Inside, driver::Order, terms::PromptBlocks};

/// Dimensions of an embedding: enough to tell texts apart, few enough to read.
const DIMENSIONS: u32 = 16;

type Pod = State<Arc<Inside>>;

/// The paths that do not generate.
pub(super) fn routes() -> Router<Arc<Inside>> {
    let mut routes = Router::new()
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/audio/transcriptions", post(transcribe))
        .route("/reset_prefix_cache", post(async |State(pod): Pod| pod.engine.reset_prefix_cache()));
    for path in ["/rerank", "/v1/rerank", "/v2/rerank"] {
        routes = routes.route(path, post(rerank));
    }
    for path in ["/score", "/v1/score"] {
        routes = routes.route(path, post(score));
    }
    routes
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
            return Err(engine_died());
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
    let draw = xxh3_64_with_seed(text.as_bytes(), u64::from(at));
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
