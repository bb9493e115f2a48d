//! A request body: refused or read, and what is read agrees with what serde_json, an independent reader, takes it for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tidegate_fuzz::openai::{Ask, Endpoint};

const ENDPOINTS: [Endpoint; 8] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Messages,
    Endpoint::Embeddings,
    Endpoint::Score,
    Endpoint::Tokenize,
    Endpoint::Extra,
];

fuzz_target!(|input: &[u8]| {
    let Some((which, body)) = input.split_first() else { return };
    let endpoint = ENDPOINTS[usize::from(*which) % ENDPOINTS.len()];
    let Ok(ask) = Ask::parse(endpoint, None, body) else { return };
    for span in ask.opening(body) {
        let value = body.get(span).expect("a span within the body");
        serde_json::from_slice::<&serde_json::value::RawValue>(value).expect("a span of one value");
    }
    let mut whole = Vec::new();
    let length = ask.prompt_text(body, usize::MAX, |piece| whole.extend_from_slice(piece));
    assert_eq!(length, whole.len());
    let mut beginning = Vec::new();
    // What is skipped is counted as it lies, so that the length is near enough and no more.
    ask.prompt_text(body, 64, |piece| beginning.extend_from_slice(piece));
    assert!(whole.starts_with(&beginning) && beginning.len() >= length.min(64));
    // Some values are beyond a tree (deep nesting, numbers too large): those are the engine's to judge.
    let Ok(tree) = serde_json::from_slice::<Value>(body) else { return };
    assert_eq!(tree.get("model").and_then(Value::as_str).unwrap_or_default(), ask.model);
    assert_eq!(tree.get("stream").and_then(Value::as_bool).unwrap_or_default(), ask.stream);
});
