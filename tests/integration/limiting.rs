//! Who has used up what may be used is refused, told whose limit it was and when to come again; nobody slips past by being
//! many at once; and counts outlive reloads and the process.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use tidegate::app::Reloaded;

use super::harness::{
    Call, Gateway, Plan, RawClient, RawPod, SimPod, chat, chat_stream,
    envoy::{Envoy, Talk, answer_head, body, head},
    events, eventually,
    lines::{Lines, told},
    sse_head, whole_json,
};

/// A currency in which a token costs one.
const A_TOKEN_COSTS_ONE: &str = "prices: [{ modelName: m, input_per_million: 1000000, output_per_million: 1000000 }]";

fn limited(pod: &SimPod, quotas: &str) -> Plan {
    Gateway::over([pod.endpoint()]).yaml(&format!("quotas:\n  {quotas}"))
}

/// What an answer says that it took.
async fn tokens_of(reply: super::harness::Reply) -> f64 {
    assert_eq!(reply.status(), 200);
    reply.json().await["usage"]["total_tokens"].as_f64().unwrap()
}

/// What is used of a limit that the configuration names.
async fn used(gateway: &Gateway, limit: &str) -> f64 {
    gateway.counted("tidegate_quota_used", &[&format!("limit=\"{limit}\"")]).await
}

#[tokio::test]
async fn who_asks_too_often_is_told_whose_limit_it_was_and_when_to_come_again() {
    let (lines, _guard) = Lines::kept();
    let pod = SimPod::start().await;
    let gateway = limited(&pod, "tenants: [{ name: anonymous, limits: { requests_per_minute: 2 } }]").start().await;
    for left in ["1", "0"] {
        let reply = chat("hi", 1).send(gateway.addr).await;
        assert_eq!((reply.status(), reply.header("x-ratelimit-limit-requests")), (200, Some("2")));
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some(left));
        assert!(reply.header("x-ratelimit-reset-requests").unwrap().ends_with('s'));
        assert_eq!(reply.header("x-ratelimit-limit-tokens"), None);
    }
    let reply = chat("hi", 1).send(gateway.addr).await;
    let pause: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    let exactly: u64 = reply.header("retry-after-ms").unwrap().parse().unwrap();
    assert!(
        (1..=30).contains(&pause) && exactly <= pause * 1_000 && exactly > (pause - 1) * 1_000,
        "{pause} {exactly}"
    );
    assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(reply.header("x-tidegate-refused"), Some("rate_limit"));
    assert_eq!(reply.header("x-should-retry"), None);
    let error = reply.error(429).await;
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("rate_limit_exceeded")));
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with("tenant 'anonymous' may use 2 requests per minute, and they are used up; try again in")
    );
    assert_eq!(pod.asked(), 2, "no pod heard of it");
    gateway.quiet().await;
    let refused = lines.requests().pop().unwrap();
    let limit = "tenant anonymous requests_per_minute";
    assert_eq!(told(&refused, ["reason", "limit", "culprit"]), ["rate_limit", limit, "client"]);

    let reply = Call::post("/v1/messages", r#"{"model":"m","max_tokens":1,"messages":[]}"#).send(gateway.addr).await;
    assert_eq!(reply.header("anthropic-ratelimit-requests-remaining"), Some("0"));
    assert!(reply.header("anthropic-ratelimit-requests-reset").unwrap().ends_with('Z'));
    assert_eq!(reply.json().await["error"]["type"], "rate_limit_error");

    let labels = ["scope=\"tenant\"", "limit=\"requests_per_minute\"", "enforced=\"true\""];
    assert_eq!(gateway.counted("tidegate_quota_refusals_total", &labels).await, 2.0);
    assert_eq!(gateway.counted("tidegate_quota_limit", &["name=\"anonymous\""]).await, 2.0);
    assert!(used(&gateway, "requests_per_minute").await > 1.0);
    let seen = gateway.admin_json("/debug/quotas").await;
    assert_eq!((&seen["closest"][0]["scope"], &seen["closest"][0]["name"]), (&json!("tenant"), &json!("anonymous")));
}

#[tokio::test]
async fn explain_asks_as_a_tenant_and_takes_nothing_of_its_limits() {
    let pod = SimPod::start().await;
    let gateway = limited(&pod, "tenants: [{ name: shop, limits: { requests_per_minute: 0 } }]").start().await;
    let explained = async |query: &str| {
        let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] }).to_string();
        Call::post(&format!("/debug/explain?{query}"), body).send(gateway.admin()).await
    };
    let shop = explained("tenant=shop").await.json().await;
    assert_eq!(shop["tenant"], "shop");
    assert!(shop["refused"].as_str().unwrap().contains("tenant 'shop'"), "{shop}");
    assert_eq!(explained("").await.json().await["refused"], Value::Null, "others have no limit");
    let nobody = explained("key=nope").await;
    assert_eq!(nobody.status(), 404);
    assert!(nobody.text().await.contains("no key has the id `nope`"));
    assert_eq!(used(&gateway, "requests_per_minute").await, 0.0);
}

#[tokio::test]
async fn a_thousand_at_once_exceed_a_budget_of_a_hundred_tokens_by_no_more_than_one_reservation() {
    let pod = SimPod::start().await;
    let quotas =
        format!("tenants: [{{ name: anonymous, limits: {{ budget_per_month: 100 }} }}]\n  {A_TOKEN_COSTS_ONE}");
    let gateway = limited(&pod, &quotas).start().await;
    let before = tokens_of(chat("hello", 3).send(gateway.addr).await).await;
    assert_eq!(used(&gateway, "budget_per_month").await, before, "what it cost, not what was reserved");
    let calls: Vec<_> = (0..1_000).map(|_| chat("hello", 3).begin(gateway.addr)).collect();
    let (mut taken, mut refused) = (before, 0);
    for call in calls {
        let reply = call.await.unwrap();
        if reply.status() == 200 {
            taken += tokens_of(reply).await;
        } else {
            assert_eq!(reply.header("x-should-retry"), Some("false"));
            assert_eq!(reply.error(429).await["code"], "insufficient_quota");
            refused += 1;
        }
    }
    assert!(refused > 900, "{refused}");
    assert!(taken > before && taken <= 100.0 + before, "{taken}");
    gateway.quiet().await;
    assert_eq!(used(&gateway, "budget_per_month").await, taken, "what was used is what was told to clients");
}

#[tokio::test]
async fn what_a_pod_had_cached_costs_what_cached_tokens_cost_in_every_dialect() {
    let prices = "prices: [{ modelName: m, input_per_million: 1000000, cached_per_million: 100000, output_per_million: \
                  2000000 }]";
    let mut pod = RawPod::start().await;
    let quotas = format!("quotas:\n  all: {{ budget_per_month: 1000000 }}\n  {prices}");
    let gateway = Gateway::over([pod.endpoint()]).yaml(&quotas).start().await;
    // Of 1,000 tokens 900 were there, and 20 came: 100 + 900 / 10 + 20 x 2.
    let details = r#"{"prompt_tokens":1000,"completion_tokens":20,"total_tokens":1020,"prompt_tokens_details":{"cached_tokens":900}}"#;
    let responses = r#"{"input_tokens":1000,"output_tokens":20,"input_tokens_details":{"cached_tokens":900}}"#;
    let anthropic =
        r#"{"input_tokens":100,"output_tokens":20,"cache_read_input_tokens":900,"cache_creation_input_tokens":0}"#;
    let begun =
        r#"{"input_tokens":100,"output_tokens":1,"cache_read_input_tokens":900,"cache_creation_input_tokens":0}"#;
    let stream = [
        format!(r#"{{"type":"message_start","message":{{"id":"m","usage":{begun}}}}}"#),
        r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"hi"}}"#.to_owned(),
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":20}}"#.to_owned(),
        r#"{"type":"message_stop"}"#.to_owned(),
    ]
    .map(|data| format!("data: {data}\n\n"))
    .concat();
    let stream = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{stream}");
    let whole = |usage: &str| whole_json(&format!(r#"{{"id":"x","choices":[],"content":[],"usage":{usage}}}"#));
    let asked = [
        ("/v1/chat/completions", "", whole(details)),
        ("/v1/responses", "", whole(responses)),
        ("/v1/messages", "", whole(anthropic)),
        ("/v1/messages", r#","stream":true"#, stream),
    ];
    let mut paid = 0.0;
    for (path, more, answer) in asked {
        let body = format!(r#"{{"model":"m","max_tokens":50,"input":"hi","messages":[]{more}}}"#);
        let reply = Call::post(path, body).begin(gateway.addr);
        let mut exchange = pod.asked().await;
        exchange.say(answer).await;
        drop(exchange);
        let reply = reply.await.unwrap();
        assert_eq!(reply.status(), 200);
        _ = reply.collected().await;
        gateway.quiet().await;
        paid += 230.0;
        assert_eq!(used(&gateway, "budget_per_month").await.round(), paid, "{path}{more}");
    }
}

#[tokio::test]
async fn tokens_of_streams_are_counted_though_nobody_asked_for_usage() {
    let pod = SimPod::start().await;
    let gateway = limited(&pod, "all: { output_tokens_per_minute: 1000000 }").start().await;
    let reply = chat_stream("hello", 7).send(gateway.addr).await;
    assert_eq!(reply.header("x-ratelimit-limit-tokens"), Some("1000000"));
    let stream = reply.text().await;
    assert!(events(&stream).iter().all(|event| !event.contains("\"usage\":{")), "{stream}");
    gateway.quiet().await;
    let labels = ["tenant=\"anonymous\"", "model=\"m\"", "kind=\"output\""];
    assert_eq!(gateway.counted("tidegate_spent_tokens_total", &labels).await, 7.0);
    let asked = |body: &str| serde_json::from_str::<Value>(body).unwrap()["stream_options"]["include_usage"].clone();
    assert_eq!(asked(&pod.state().last.last().unwrap().body), true);
}

#[tokio::test]
async fn who_leaves_in_the_middle_pays_for_what_came_and_is_no_longer_counted_as_open() {
    let pod = SimPod::start().await;
    let quotas = format!("all: {{ concurrent_requests: 1, budget_per_month: 100000 }}\n  {A_TOKEN_COSTS_ONE}");
    let gateway = limited(&pod, &quotas).start().await;
    let mut leaving = chat_stream("hello", 5_000).send(gateway.addr).await;
    leaving.piece().await.unwrap().unwrap();
    let second = chat("hello", 1).send(gateway.addr).await;
    assert_eq!(second.header("retry-after"), Some("1"));
    let error = second.error(429).await;
    assert!(error["message"].as_str().unwrap().contains("all callers together may have 1 requests at once"), "{error}");
    drop(leaving);
    gateway.quiet().await;
    assert_eq!(used(&gateway, "concurrent_requests").await, 0.0);
    let paid = used(&gateway, "budget_per_month").await;
    assert!((2.0..5_000.0).contains(&paid), "its prompt and what came: {paid}");
    assert_eq!(chat("hello", 1).send(gateway.addr).await.status(), 200);
}

#[tokio::test]
async fn what_no_pod_took_costs_nothing() {
    let pod = SimPod::start().await;
    let quotas = format!("all: {{ budget_per_month: 1000, requests_per_minute: 10 }}\n  {A_TOKEN_COSTS_ONE}");
    let gateway = limited(&pod, &quotas).start().await;
    gateway.sees_all_pods().await;
    pod.faults().change(|faults| faults.status = Some(500));
    let reply = chat("hello", 50).send(gateway.addr).await;
    assert!(reply.status() >= 500, "{}", reply.status());
    drop(reply);
    gateway.quiet().await;
    assert_eq!(used(&gateway, "budget_per_month").await, 0.0);
}

#[tokio::test]
async fn a_prompt_larger_than_the_limit_is_not_to_be_sent_again() {
    let pod = SimPod::start().await;
    let gateway = limited(&pod, "all: { tokens_per_minute: 10 }").start().await;
    let reply = chat(&"word ".repeat(200), 1).send(gateway.addr).await;
    assert_eq!((reply.header("x-should-retry"), reply.header("retry-after")), (Some("false"), None));
    let error = reply.error(429).await;
    assert!(error["message"].as_str().unwrap().contains("can never be taken as it is"), "{error}");
}

#[tokio::test]
async fn what_is_only_counted_refuses_nobody() {
    let pod = SimPod::start().await;
    let gateway = limited(&pod, "each_tenant: { requests_per_minute: 1, enforce: false }").start().await;
    for _ in 0..3 {
        let reply = chat("hi", 1).send(gateway.addr).await;
        assert_eq!((reply.status(), reply.header("x-ratelimit-limit-requests")), (200, None));
    }
    let labels = ["limit=\"requests_per_minute\"", "enforced=\"false\""];
    assert_eq!(gateway.counted("tidegate_quota_refusals_total", &labels).await, 2.0);
}

#[tokio::test]
async fn counts_outlive_a_reload_and_new_limits_hold_at_once() {
    let pod = SimPod::start().await;
    let text = |limit: u32| {
        format!(
            "listeners: [{{ name: main, address: \"127.0.0.1:0\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\npools: [{{ name: pods, \
             endpoints: [{}] }}]\nmodels: [{{ modelName: m, poolRef: pods }}]\nquotas: {{ all: {{ requests_per_minute: {limit} }} }}\n",
            pod.endpoint()
        )
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.yaml");
    fs::write(&file, text(2)).unwrap();
    let gateway = Gateway::from(&text(2)).await;
    gateway.sees_all_pods().await;
    let reloader = gateway.running.reloader(&file, &text(2), None);
    let status = async || chat("hi", 1).send(gateway.addr).await.status();
    assert_eq!([status().await, status().await, status().await], [200, 200, 429]);
    fs::write(&file, text(3)).unwrap();
    assert!(matches!(reloader.reload().await, Reloaded::Applied(_)));
    assert_eq!([status().await, status().await], [200, 429], "one more than before, not three");
}

#[tokio::test]
async fn budgets_outlive_the_process() {
    let (pod, folder) = (SimPod::start().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("quotas.json");
    let quotas = format!(
        "tenants: [{{ name: anonymous, limits: {{ budget_per_month: 100000, concurrent_requests: 5 }} }}]\n  {A_TOKEN_COSTS_ONE}\n  \
         state_file: {}",
        file.display()
    );
    let gateway = limited(&pod, &quotas).start().await;
    let spent = tokens_of(chat("hello", 9).send(gateway.addr).await).await;
    gateway.quiet().await;
    gateway.stop(Duration::from_secs(5)).await;
    let gateway = limited(&pod, &quotas).start().await;
    let more = tokens_of(chat("hello", 2).send(gateway.addr).await).await;
    gateway.quiet().await;
    assert_eq!(used(&gateway, "budget_per_month").await, spent + more);
    assert_eq!(used(&gateway, "concurrent_requests").await, 0.0);
}

#[tokio::test]
async fn envoy_is_told_the_same() {
    let pod = SimPod::start().await;
    let picker = "{ name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: { secure: false } }";
    let plan = limited(&pod, "all: { requests_per_minute: 1, concurrent_requests: 1 }").listener(picker);
    let gateway = plan.start().await;
    gateway.sees_all_pods().await;
    let envoy = Envoy::connect(gateway.running.listeners[1].1).await;
    let ask = async || -> Talk {
        let talk = envoy.talk().await;
        let fields = [(":method", "POST"), (":path", "/v1/chat/completions"), ("content-type", "application/json")];
        talk.say(head(&fields, false));
        talk.say(body(r#"{"model":"m","messages":[],"max_tokens":3}"#, true));
        talk
    };
    let mut first = ask().await;
    first.choice().await.pod();
    let choice = ask().await.choice().await;
    assert_eq!((choice.status, choice.error()["code"].as_str()), (429, Some("rate_limit_exceeded")));
    assert!(choice.header("retry-after").is_some(), "{choice:?}");
    first.body().await;
    first.say(answer_head("200", "application/json", false));
    let answer = first.hear().await.unwrap();
    assert!(format!("{answer:?}").contains("x-ratelimit-remaining-requests"), "{answer:?}");
    drop(first);
    eventually("its place to be free", || {
        let mut open = f64::NAN;
        gateway.running.house.counts.each(&tidegate::gateway::moment(), |_, _, _, used| open = used[1].1);
        open == 0.0
    })
    .await;
}

#[tokio::test]
async fn who_is_over_its_limit_is_refused_before_anything_of_its_body_is_read() {
    let pod = SimPod::start().await;
    let gateway = limited(&pod, "each_tenant: { requests_per_minute: 1 }").start().await;
    assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    let mut client = RawClient::connect(gateway.addr).await;
    client.say("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("x-tidegate-refused: rate_limit\r\n"), "{head}");
    let labels = ["scope=\"tenant\"", "limit=\"requests_per_minute\""];
    assert_eq!(gateway.counted("tidegate_quota_refusals_total", &labels).await, 1.0);
}

#[tokio::test]
async fn asking_for_a_response_is_a_request_and_takes_no_tokens() {
    let pod = SimPod::start().await;
    let quotas = format!(
        "all: {{ requests_per_minute: 2, concurrent_requests: 1, budget_per_month: 100000 }}\n  {A_TOKEN_COSTS_ONE}"
    );
    let gateway = limited(&pod, &quotas).start().await;
    let made =
        Call::post("/v1/responses", r#"{"model":"m","input":"hi","max_output_tokens":2}"#).send(gateway.addr).await;
    let path = format!("/v1/responses/{}", made.json().await["id"].as_str().unwrap());
    gateway.quiet().await;
    let paid = used(&gateway, "budget_per_month").await;
    let seen = Call::get(&path).send(gateway.addr).await;
    assert_eq!((seen.status(), seen.header("x-ratelimit-remaining-requests")), (200, Some("0")));
    drop(seen);
    gateway.quiet().await;
    assert!(paid > 0.0 && used(&gateway, "requests_per_minute").await > 1.5);
    assert_eq!([used(&gateway, "budget_per_month").await, used(&gateway, "concurrent_requests").await], [paid, 0.0]);
    for call in [Call::get(&path), Call::post(&format!("{path}/cancel"), "")] {
        let refused = call.send(gateway.addr).await;
        assert_eq!(refused.header("x-tidegate-refused"), Some("rate_limit"));
        assert_eq!(refused.error(429).await["code"], "rate_limit_exceeded");
    }
}

#[tokio::test]
async fn a_model_that_is_asked_for_by_the_name_pods_know_it_by_costs_the_same() {
    let pod = SimPod::start().await;
    let quotas = "all: { budget_per_month: 100000 }\n  prices: [{ modelName: alias, input_per_million: 1000000, \
                  output_per_million: 1000000 }]\n  models: [{ modelName: alias, limits: { requests_per_minute: 2 } }]";
    let alias = "{ modelName: alias, poolRef: pods, targetModels: [{ name: m }] }";
    let gateway = limited(&pod, quotas).models(&[alias]).start().await;
    gateway.sees_all_pods().await;
    eventually("the pod's models", || gateway.pods().iter().all(|pod| pod.serves("m") == Some(true))).await;
    let tokens = tokens_of(chat("hello", 3).send(gateway.addr).await).await;
    gateway.quiet().await;
    assert_eq!(used(&gateway, "budget_per_month").await, tokens);
    let alias = r#"{"model":"alias","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;
    assert_eq!(Call::post("/v1/chat/completions", alias).send(gateway.addr).await.status(), 200);
    let error = chat("hi", 1).send(gateway.addr).await.error(429).await;
    assert!(error["message"].as_str().unwrap().starts_with("model 'alias' may use 2 requests per minute"), "{error}");
}

#[tokio::test]
async fn who_leaves_between_the_end_of_an_answer_and_its_usage_pays_no_less_than_was_reserved() {
    let mut pod = RawPod::start().await;
    let quotas = format!("quotas:\n  all: {{ budget_per_month: 1000000 }}\n  {A_TOKEN_COSTS_ONE}");
    let gateway = Gateway::over([pod.endpoint()]).pool("metrics: { interval: 1h }").yaml(&quotas).start().await;
    let image = r#"{"type":"image_url","image_url":{"url":"https://e.example/1.png"}}"#;
    let body = format!(
        r#"{{"model":"m","stream":true,"max_tokens":40,"messages":[{{"role":"user","content":[{image},{image},{image}]}}]}}"#
    );
    let asking = Call::post("/v1/chat/completions", body).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    asked.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"forty words at once\"}}]}\n\n").await;
    asked.chunk("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n").await;
    let mut leaving = asking.await.unwrap();
    let mut came = String::new();
    while !came.contains("stop") {
        came.push_str(std::str::from_utf8(&leaving.piece().await.unwrap().unwrap()).unwrap());
    }
    drop(leaving);
    gateway.quiet().await;
    let paid = used(&gateway, "budget_per_month").await;
    assert!((3_040.0..3_100.0).contains(&paid), "three images, and forty tokens that it may have had: {paid}");
}
