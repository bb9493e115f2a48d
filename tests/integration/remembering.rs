//! Conversations: what an answer said is known to be where it was said when the next turn comes.

use serde_json::{Value, json};

use crate::harness::{Call, Gateway, Plan, RawPod, chat_stream, sse_head, whole_json};

/// The first user's words: with the turn's mark and role 1,006 bytes, three whole blocks of 256.
fn opening() -> String {
    "tide ".repeat(200)
}

/// The answer: with the marks and the role 2,011 bytes. Both together have eleven whole blocks.
fn answer() -> String {
    "é\n\"\\a/\u{1f600}b".repeat(165) + "12345678901234567890"
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
    assert_eq!(answer().len(), 2_000);
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
