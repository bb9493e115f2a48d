//! One name, several served models: by weight, and always the same for one session.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Call, Gateway, Plan, RawPod, SimPod, refusing_endpoint, whole_json};

fn split(plan: Plan, sticky: &str) -> Plan {
    plan.models(&[&format!(
        "{{ modelName: m, poolRef: pods, sticky: {sticky}, targetModels: [{{ name: a, weight: 50 }}, {{ name: b, weight: 50 }}] }}"
    )])
}

fn ask(prompt: &str, session: Option<&str>) -> Call {
    let body = json!({"model": "m", "prompt": prompt, "max_tokens": 1, "user": session});
    Call::post("/v1/completions", body.to_string())
}

async fn model_of(call: Call, gateway: &Gateway) -> String {
    let body = call.send(gateway.addr).await.json().await;
    body["model"].as_str().unwrap_or_else(|| panic!("{body}")).to_owned()
}

#[tokio::test]
async fn a_session_stays_on_its_arm_however_it_is_named() {
    let pod = SimPod::start().await;
    let gateway = split(Gateway::over([pod.endpoint()]), "session").start().await;
    let mut arms = BTreeMap::new();
    for session in 0..40 {
        let name = format!("session-{session}");
        let arm = model_of(ask("hi", Some(&name)), &gateway).await;
        for turn in 0..3 {
            assert_eq!(model_of(ask(&format!("turn {turn}"), Some(&name)), &gateway).await, arm);
        }
        let by_header = ask("other", None).header("x-session-id", &name);
        assert_eq!(model_of(by_header, &gateway).await, arm);
        *arms.entry(arm).or_insert(0) += 1;
    }
    assert!(arms["a"] >= 8 && arms["b"] >= 8, "{arms:?}");
}

#[tokio::test]
async fn requests_without_a_session_spread_even_if_they_are_equal() {
    let pod = SimPod::start().await;
    let gateway = split(Gateway::over([pod.endpoint()]), "session").start().await;
    let mut arms = BTreeMap::new();
    for _ in 0..80 {
        *arms.entry(model_of(ask("the same", None), &gateway).await).or_insert(0) += 1;
    }
    assert!(arms["a"] >= 15 && arms["b"] >= 15, "{arms:?}");
    let counted = gateway.counted("tidegate_split_requests_total", &["target=\"a\""]).await;
    assert_eq!(counted, f64::from(arms["a"]));
}

#[tokio::test]
async fn a_conversation_stays_on_its_arm_without_a_session() {
    let pod = SimPod::start().await;
    let gateway = split(Gateway::over([pod.endpoint()]), "conversation").start().await;
    let turn = |opening: &str, turns: usize| {
        let mut messages =
            vec![json!({"role": "system", "content": "be brief"}), json!({"role": "user", "content": opening})];
        for nth in 0..turns {
            messages.push(json!({"role": "assistant", "content": format!("answer {nth}")}));
            messages.push(json!({"role": "user", "content": format!("question {nth}")}));
        }
        let body: Value = json!({"model": "m", "messages": messages, "max_tokens": 1});
        Call::post("/v1/chat/completions", body.to_string())
    };
    let mut arms = BTreeMap::new();
    for nth in 0..30 {
        let opening = format!("opening {nth}");
        let arm = model_of(turn(&opening, 0), &gateway).await;
        assert_eq!(model_of(turn(&opening, 1), &gateway).await, arm);
        assert_eq!(model_of(turn(&opening, 5), &gateway).await, arm);
        *arms.entry(arm).or_insert(0) += 1;
    }
    assert!(arms.len() == 2, "{arms:?}");
}

#[tokio::test]
async fn a_retry_stays_on_its_arm() {
    let mut pod = RawPod::start().await;
    let (refusing, _reserved) = refusing_endpoint(&pod);
    let gateway = split(Gateway::over([refusing, pod.endpoint()]), "none")
        .yaml("scheduler: { policy: round-robin }\nretry: { budget: 100% }")
        .start()
        .await;
    for _ in 0..10 {
        let reply = ask("hi", None).begin(gateway.addr);
        let mut asked = pod.asked().await;
        asked.say(whole_json("{}")).await;
        asked.keep_alive();
        assert_eq!(reply.await.unwrap().status(), 200);
    }
    gateway.quiet().await;
    let arms = gateway.counted("tidegate_split_requests_total", &[]).await;
    let asked = gateway.counted("tidegate_requests_total", &[]).await;
    assert_eq!((arms, asked), (10.0, 10.0), "one arm a request, retried or not");
}
