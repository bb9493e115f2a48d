//! The few edits that an operator may ask for: usage asked for and taken out again, and the client's name for a model.

use serde_json::Value;

use crate::harness::{Call, Gateway, Plan, RawPod, SimPod, chat, chat_stream, events, sse_head};

fn with_usage(prompt: &str) -> Call {
    let body = serde_json::json!({"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": 7,
                                  "stream": true, "stream_options": {"include_usage": true}});
    Call::post("/v1/chat/completions", body.to_string())
}

#[tokio::test]
async fn usage_is_asked_for_and_the_extra_chunk_taken_out_again() {
    let pod = SimPod::start().await;
    let plain = Gateway::over([pod.endpoint()]).start().await;
    let injecting = Gateway::over([pod.endpoint()]).yaml("api: { inject_usage: true }").start().await;
    let id = "same-id";
    let ask = async |gateway: &Gateway, call: Call| {
        let text = call.header("x-request-id", id).send(gateway.addr).await.text().await;
        without_created(&text)
    };
    assert_eq!(ask(&plain, chat_stream("hi", 7)).await, ask(&injecting, chat_stream("hi", 7)).await);
    let sent = pod.state().last;
    assert!(!sent[0].body.contains("include_usage"));
    let body: Value = serde_json::from_str(&sent[1].body).unwrap();
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert_eq!(plain.counted("tidegate_tokens_total", &["output"]).await, 0.0);
    assert_eq!(injecting.counted("tidegate_tokens_total", &["output"]).await, 7.0);
    assert!(injecting.counted("tidegate_tokens_total", &["input"]).await > 0.0);
    // Who asked for usage gets it.
    let asked = ask(&injecting, with_usage("hi")).await;
    assert!(asked.contains("\"completion_tokens\":7"), "{asked}");
    assert_eq!(events(&asked).len(), 1 + 7 + 1 + 1 + 1);
    assert_eq!(injecting.counted("tidegate_tokens_total", &["output"]).await, 14.0);
}

fn without_created(text: &str) -> String {
    let line = |line: &str| match serde_json::from_str::<Value>(line.strip_prefix("data: ").unwrap_or(line)) {
        Ok(mut event) => {
            event["created"] = 0.into();
            format!("data: {event}")
        }
        Err(_) => line.to_owned(),
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn usage_of_whole_answers_is_counted_without_asking() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let prompt = "What is a tide? ".repeat(20);
    for _ in 0..2 {
        chat(&prompt, 5).send(gateway.addr).await.bytes().await;
    }
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_tokens_total", &["output"]).await, 10.0);
    assert_eq!(gateway.counted("tidegate_tokens_total", &["cached"]).await, 80.0);
}

fn renamed(plan: Plan) -> Plan {
    plan.models(&["{ modelName: m, poolRef: pods, rewrite_response_model: true, targetModels: [{ name: served/v2 }] }"])
}

#[tokio::test]
async fn an_answer_carries_the_clients_name_where_configured_and_nowhere_else() {
    let body = "{ \"id\":\"1\",\"model\" : \"served/v2\",\"choices\":[{\"message\":{\"content\":\"\\\"model\\\":\
        \\\"served/v2\\\"\",\"model\":\"served/v2\"}}],\"n\":1.0e0 }";
    let pod = RawPod::answering(crate::harness::whole_json(body)).await;
    let gateway = renamed(Gateway::over([pod.endpoint()])).start().await;
    let expected = body.replacen("\"model\" : \"served/v2\"", "\"model\" : \"m\"", 1);
    assert_eq!(chat("hi", 1).send(gateway.addr).await.text().await, expected);
    let plain = Gateway::over([pod.endpoint()])
        .models(&["{ modelName: m, poolRef: pods, targetModels: [{ name: served/v2 }] }"])
        .start()
        .await;
    assert_eq!(chat("hi", 1).send(plain.addr).await.text().await, body);
}

#[tokio::test]
async fn a_stream_is_renamed_across_every_chunk_border() {
    let event = |model: &str| {
        format!(
            "data: {{\"id\":\"1\",\"model\":\"{model}\",\"choices\":[{{\"delta\":{{\"content\":\"model served/v2\"}}}}]}}\n\n"
        )
    };
    let said = event("served/v2");
    for border in 1..said.len() {
        // Each border once, in one stream of its own connection, without waiting for the pieces between.
        if border % 7 != 0 && !(20..45).contains(&border) {
            continue;
        }
        let mut pod = RawPod::start().await;
        let gateway = renamed(Gateway::over([pod.endpoint()])).start().await;
        let reply = chat_stream("hi", 9).begin(gateway.addr);
        let mut asked = pod.asked().await;
        assert!(String::from_utf8_lossy(&asked.body).contains("\"model\":\"served/v2\""));
        asked.say(sse_head()).await;
        let (one, two) = said.split_at(border);
        asked.chunk(one).await;
        let mut reply = reply.await.unwrap();
        let mut got = String::new();
        asked.chunk(two).await;
        asked.chunk("data: [DONE]\n\n").await;
        asked.say("0\r\n\r\n").await;
        while let Some(piece) = reply.piece().await {
            got.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
        }
        assert_eq!(got, event("m") + "data: [DONE]\n\n", "cut at {border}");
    }
}
