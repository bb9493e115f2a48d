//! The one line of a request, where it says why something went wrong: exactly enough to act on.

use crate::harness::{
    Call, Gateway, RawPod, SimPod, chat, chat_stream,
    lines::{Lines, told},
};

#[tokio::test]
async fn a_refusal_before_any_pod_names_path_endpoint_and_code() {
    let (lines, _guard) = Lines::kept();
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = Call::get("/v1/chat/completions").send(gateway.addr).await;
    assert_eq!((reply.status(), reply.header("allow")), (405, Some("POST")));
    let line = lines.one(&gateway).await;
    assert_eq!(told(&line, ["endpoint", "code", "reason"]), ["chat_completions", "method_not_allowed", "method"]);
    let reply = Call::get("/v1/engines").send(gateway.addr).await;
    assert_eq!(reply.json().await["error"]["message"], "no such endpoint: /v1/engines");
    assert_eq!(told(&lines.one(&gateway).await, ["endpoint", "code"]), ["unknown", "unknown_url"]);
    for (body, code) in [("{", "invalid_json"), ("{}", "missing_required_parameter")] {
        Call::post("/v1/chat/completions", body).send(gateway.addr).await;
        let line = lines.one(&gateway).await;
        assert_eq!(told(&line, ["reason", "code", "culprit"]), ["malformed", code, "client"]);
        assert!(
            line["message"].starts_with("chat_completions  400  "),
            "no gap where no model is: {}",
            line["message"]
        );
    }
}

#[tokio::test]
async fn a_request_that_is_shed_says_how_full_its_pool_is_and_how_little_it_matters() {
    let (lines, _guard) = Lines::kept();
    let mut pod = RawPod::start().await;
    let plan = Gateway::over([pod.endpoint()]).models(&["{ modelName: m, poolRef: pods, criticality: Sheddable }"]);
    let gateway = plan.yaml("saturation: { wait: 10ms }").start().await;
    // A thousand tokens and more, at 0.05 ms each, are more than 10 ms.
    let first = chat_stream(&"x".repeat(4_000), 5).begin(gateway.addr);
    let held = pod.asked().await;
    assert_eq!(chat("hi", 5).send(gateway.addr).await.status(), 429);
    first.abort();
    gateway.quiet().await;
    drop(held);
    let lines = lines.requests();
    let line = lines.iter().find(|line| line["status"] == "429").unwrap();
    let fields = ["pool", "pod", "reason", "code", "priority", "outcome"];
    assert_eq!(told(line, fields), ["pods", "", "saturated", "overloaded", "-1", "refused"]);
    let level: f64 = line["saturation"].parse().unwrap();
    assert!((5.0..6.0).contains(&level), "50 ms and a little: {level}");
    assert!(line["message"].contains("refused: saturated"), "{}", line["message"]);
}

#[tokio::test]
async fn a_retry_says_which_status_it_was_for() {
    let (lines, _guard) = Lines::kept();
    let pods = [SimPod::start().await, SimPod::start().await];
    for pod in &pods {
        pod.faults().change(|faults| faults.status = Some(500));
    }
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint)).yaml("retry: { on: [500] }").start().await;
    assert_eq!(chat("hi", 5).send(gateway.addr).await.status(), 500);
    assert_eq!(told(&lines.one(&gateway).await, ["retried", "attempts", "outcome"]), ["status_500", "2", "complete"]);
}

#[tokio::test]
async fn what_a_stream_showed_is_counted_where_its_pod_reports_no_usage() {
    let (lines, _guard) = Lines::kept();
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    chat_stream("hi", 5).send(gateway.addr).await.text().await;
    let line = lines.one(&gateway).await;
    assert_eq!(told(&line, ["outcome", "output_tokens", "prompt_tokens"]), ["complete", "5", ""]);
    assert!(line["message"].contains(" -> 127.0.0.1:"), "{}", line["message"]);
}

#[tokio::test]
async fn a_timeout_says_which_and_whose_fault_it_was() {
    let (lines, _guard) = Lines::kept();
    let silent = RawPod::start().await;
    for (yaml, streamed, expected) in [
        ("timeouts: { first_byte: 50ms }", false, ["first_byte_timeout", "upstream_timeout", "pod", "504"]),
        ("timeouts: { first_token: 50ms }", true, ["first_token_timeout", "upstream_timeout", "pod", "504"]),
        ("timeouts: { first_byte: 50ms }", true, ["first_byte_timeout", "upstream_timeout", "pod", "504"]),
        ("timeouts: { total: 50ms }", false, ["total_timeout", "request_timeout", "gateway", "504"]),
        (
            "timeouts: { first_token: 600ms }\napi: { heartbeat: 30ms }",
            true,
            ["first_token_timeout", "upstream_timeout", "pod", "200"],
        ),
    ] {
        let gateway = Gateway::over([silent.endpoint()]).pool("metrics: { interval: 1h }").yaml(yaml).start().await;
        let call = if streamed { chat_stream("hi", 5) } else { chat("hi", 5) };
        call.send(gateway.addr).await.text().await;
        let line = lines.one(&gateway).await;
        assert_eq!(told(&line, ["reason", "code", "culprit", "status"]), expected, "{yaml}");
        let message = &line["message"];
        assert!(!message.contains("->") && message.contains(", last tried 127.0.0.1:"), "nobody answered: {message}");
        let word = if expected[0] == "total_timeout" { "total_timeout" } else { "timeout" };
        assert_eq!(gateway.counted("tidegate_rejections_total", &[&format!("\"{word}\"")]).await, 1.0, "{yaml}");
    }
}

#[tokio::test]
async fn the_counters_that_alerts_watch_are_there_before_anything_happens() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let page = Call::get("/metrics").send(gateway.admin()).await.text().await;
    for line in [
        "tidegate_cuts_total{pool=\"pods\",reason=\"connection_died\"} 0",
        "tidegate_cuts_total{pool=\"pods\",reason=\"refused_in_stream\"} 0",
        "tidegate_retries_denied_total{pool=\"pods\",reason=\"connection_refused\"} 0",
        "tidegate_retries_denied_total{pool=\"pods\",reason=\"status\"} 0",
    ] {
        assert!(page.lines().any(|it| it == line), "{line} not in\n{page}");
    }
}
