//! Conversations: what an answer said is known to be where it was said when the next turn comes.

use serde_json::{Value, json};

use crate::harness::{Call, Gateway, Plan, RawPod, chat_stream, sse_head, whole_json};

/// The first user's words: with the turn's mark and role 1,006 bytes, three whole blocks of 256.
fn opening() -> String {
    "tide ".repeat(200)
}

/// The answer: as JSON spells it 2,000 bytes, with the mark and the role 2,011. Both together have eleven whole blocks.
fn answer() -> String {
    "é\n\"\\a/\u{1f600}b".repeat(132) + "12345678901234567890"
}

/// Prompt tokens that the only pod is believed to hold of the conversation's next turn; a block has 64.
async fn known_of_next_turn(gateway: &Gateway) -> u64 {
    gateway.quiet().await;
    let next = json!({"messages": [
        {"content": opening(), "role": "user"},
        {"content": [{"type": "text", "text": answer()}], "role": "assistant", "refusal": null},
        {"content": "and then?", "role": "user"},
    ], "model": "m"});
    let told = Call::post("/debug/explain", next.to_string()).send(gateway.admin()).await.json().await;
    let decision: &Value = &told["decision"];
    decision["prompt_tokens"].as_u64().unwrap() - decision["candidates"][0]["uncached_tokens"].as_u64().unwrap()
}

/// The answer's text in events of seven characters, cut into chunks where it happens.
async fn streamed(plan: fn(Plan) -> Plan, ends: bool) -> u64 {
    let mut pod = RawPod::start().await;
    let gateway = plan(Gateway::over([pod.endpoint()])).start().await;
    let reply = chat_stream(&opening(), 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let letters: Vec<char> = answer().chars().collect();
    let event = |delta: Value| format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta}]}));
    let tokens = letters.chunks(7).map(|token| event(json!({"content": token.iter().collect::<String>()})));
    let mut text = event(json!({"role": "assistant", "content": ""})) + &tokens.collect::<String>();
    if ends {
        text.push_str("data: [DONE]\n\n");
    }
    for chunk in text.as_bytes().chunks(1_000) {
        asked.say([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).await;
    }
    if ends {
        asked.say("0\r\n\r\n").await;
    }
    drop(asked);
    let told = reply.await.unwrap().text().await;
    assert_eq!(told.contains("\"error\""), !ends, "{told}");
    known_of_next_turn(&gateway).await
}

#[tokio::test]
async fn the_next_turn_finds_the_answer_that_was_streamed() {
    assert_eq!(json!(answer()).to_string().len() - 2, 2_000);
    assert_eq!(streamed(|plan| plan, true).await, 11 * 64);
}

#[tokio::test]
async fn an_answer_that_broke_off_is_not_counted_on() {
    assert_eq!(streamed(|plan| plan, false).await, 3 * 64);
}

#[tokio::test]
async fn answers_are_left_alone_where_the_operator_says_so() {
    assert_eq!(streamed(|plan| plan.yaml("api: { index_answers: false }"), true).await, 3 * 64);
}

#[tokio::test]
async fn the_next_turn_finds_the_answer_that_came_whole() {
    let message = json!({"role": "assistant", "content": answer()});
    let body = json!({"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
    let pod = RawPod::answering(whole_json(&body.to_string())).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    crate::harness::chat(&opening(), 9).send(gateway.addr).await.bytes().await;
    assert_eq!(known_of_next_turn(&gateway).await, 11 * 64);
}

/// A pod that takes every prompt to have 1,000 tokens, and what it says to have found of them.
async fn after_thirty_answers(details: &str) -> (f64, Value) {
    let usage = format!(r#"{{"prompt_tokens":1000,"completion_tokens":1,"prompt_tokens_details":{details}}}"#);
    let body = format!(r#"{{"choices":[{{"message":{{"role":"assistant","content":"x"}}}}],"usage":{usage}}}"#);
    let pod = RawPod::answering(whole_json(&body)).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    // With the turn's mark and role 4,000 bytes, so that four of them stay a token.
    let prompt = &"tide ".repeat(800)[6..];
    for _ in 0..30 {
        crate::harness::chat(prompt, 1).send(gateway.addr).await.bytes().await;
    }
    gateway.quiet().await;
    let trust = gateway.counted("tidegate_pod_prefix_trust_ratio", &[]).await;
    let seen = gateway.admin_json("/debug/fleet").await;
    let seen = seen["prefix"].as_object().unwrap().values().next().unwrap().clone();
    assert_eq!(seen["trust"], trust);
    let ask = json!({"model": "m", "messages": [{"role": "user", "content": prompt}]});
    let told = Call::post("/debug/explain", ask.to_string()).send(gateway.admin()).await.json().await;
    let candidate = told["decision"]["candidates"][0].clone();
    assert_eq!(candidate["prefix_trust"], trust);
    (trust, candidate["uncached_tokens"].clone())
}

#[tokio::test]
async fn a_pod_whose_cache_is_switched_off_is_soon_taken_to_hold_nothing() {
    let (trust, uncached) = after_thirty_answers(r#"{"cached_tokens":0}"#).await;
    assert_eq!((trust, uncached), (0.0, 1_000.into()));
}

#[tokio::test]
async fn a_pod_that_does_not_say_what_it_found_is_believed() {
    let (trust, uncached) = after_thirty_answers("null").await;
    assert_eq!((trust, uncached), (1.0, (1_000 - 15 * 64).into()), "fifteen whole blocks");
}
