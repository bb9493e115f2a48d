//! What a picker says to Envoy, message by message over real gRPC: the cases that the reference picker is tested with,
//! and what it gets wrong.

use std::{net::SocketAddr, sync::Arc, sync::atomic::Ordering::Relaxed};

use arc_swap::ArcSwap;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tidegate::{
    app::still_house,
    clock, config,
    fleet::{Adapters, PodLoad, Reading},
    gateway::{
        House, Peer, Picker, Policy, Serving,
        wire::{Mutation, ProcessingRequest, ProtocolConfiguration, Reply},
    },
    tasks::Tasks,
};
use tokio::net::TcpListener;

use super::harness::{
    envoy::{Choice, Envoy, Talk, among, answer_body, answer_head, body, chat_head, envoys_own, head, served_by},
    eventually,
    lines::{Lines, told},
};

/// A pod's waiting requests, KV-cache usage and adapters; the n-th is at 192.168.1.n:8000.
type P = (u32, f64, &'static [&'static str]);

/// The pods that a gateway lets be chosen, if it says.
type Subset = Option<&'static [&'static str]>;

/// A name, a model, pods, a subset, and the pod to choose.
type Case = (&'static str, &'static str, &'static [P], Subset, &'static str);

/// Pods, a body, a subset, and what is answered: status, code, and why it was dropped.
type Refused = (&'static [P], &'static str, Subset, i32, &'static str, Option<&'static str>);

/// A picker before pods that are not there, whose load is as a test says.
struct Desk {
    addr: SocketAddr,
    house: Arc<House>,
    tasks: Tasks,
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

const MODELS: &str = "[{ modelName: my-model, poolRef: pods, targetModels: [{ name: my-model-12345 }] }, \
    { modelName: sql-lora, poolRef: pods, targetModels: [{ name: sql-lora-1fdg2 }] }]";

impl Desk {
    async fn before(pods: &[P]) -> Self {
        Self::with(pods, "", MODELS).await
    }

    /// `keys`: more for `ext_proc`.
    async fn with(pods: &[P], keys: &str, models: &str) -> Self {
        Self::rebuilt(pods, keys, models, |_| {}).await
    }

    async fn rebuilt(pods: &[P], keys: &str, models: &str, rebuild: impl FnOnce(&mut House)) -> Self {
        let endpoints: Vec<String> =
            (1..=pods.len().max(1)).map(|n| format!("{{ url: \"http://192.168.1.{n}:8000\" }}")).collect();
        let text = format!(
            "listeners: [{{ name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: {{ secure: false{keys} }} }}]
models: {models}
pools: [{{ name: pods, engine: vllm, endpoints: [{}] }}]
waiting: {{ timeout: 0s }}
limits: {{ body: 4MiB }}
scheduler:
  policy: weighted
  scorers: [{{ name: queue-scorer, weight: 1 }}, {{ name: kv-cache-utilization-scorer, weight: 1 }},
            {{ name: prefix-cache-scorer, weight: 1 }}, {{ name: lora-affinity-scorer, weight: 1 }}]",
            endpoints.join(", ")
        );
        let (config, _) = config::load("test.yaml", &text).unwrap_or_else(|report| panic!("{report}\n{text}"));
        let config = Arc::new(config);
        let mut house = still_house(&config);
        rebuild(&mut house);
        let house = Arc::new(house);
        let targets = config.pools[0].endpoints.iter().map(|endpoint| {
            let config::Endpoint::Fixed(target) = endpoint else { panic!("a fixed one") };
            target.clone()
        });
        let targets: Vec<_> = targets.take(pods.len()).collect();
        house.fleet.set("pods", &targets, clock::now());
        // One instant for all: what an older page says of others counts for less, and a slow machine takes its time.
        let began = clock::now();
        for (pod, (waiting, kv_usage, adapters)) in house.fleet.pool("pods").unwrap().pods().iter().zip(pods) {
            let running = adapters.iter().map(|name| Arc::from(*name)).collect();
            let reading = Reading {
                waiting: Some(*waiting),
                running: Some(0),
                kv_usage: Some(*kv_usage),
                adapters: Some(Adapters { max: Some(4), running, waiting: Vec::new() }),
                ..Reading::default()
            };
            pod.store_load(PodLoad { began, sent_mark: 0, ended_mark: 0, reading });
        }
        let policy = Arc::new(ArcSwap::from_pointee(Policy::new(config, &house.fleet)));
        let tasks = Tasks::new();
        let serves = Arc::clone(&house);
        let serves = Arc::new(move || if serves.ready_once.load(Relaxed) { Serving::Now } else { Serving::NotYet });
        let picker = Picker::new(Arc::clone(&house), policy, 0, tasks.clone(), serves);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, spawner) = (listener.local_addr().unwrap(), tasks.clone());
        tasks.spawn_until_stop(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let picker = picker.clone();
                let serve = service_fn(move |request| picker.clone().serve(Peer::from(from), request));
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let connection = http2.serve_connection(TokioIo::new(stream), serve);
                spawner.spawn_until_stop(async { _ = connection.await });
            }
        });
        Self { addr, house, tasks }
    }

    async fn talk(&self) -> Talk {
        Envoy::connect(self.addr).await.talk().await
    }

    /// What is said of such a request.
    async fn asked(&self, messages: impl IntoIterator<Item = ProcessingRequest>) -> (Choice, Talk) {
        let mut talk = self.talk().await;
        for message in messages {
            talk.say(message);
        }
        (talk.choice().await, talk)
    }

    fn in_flight(&self) -> Vec<u64> {
        self.house.fleet.pool("pods").unwrap().pods().iter().map(|pod| pod.ledger.in_flight()).collect()
    }
}

fn completion(model: &str, prompt: &str) -> Vec<u8> {
    json!({"max_tokens": 100, "model": model, "prompt": prompt, "temperature": 0}).to_string().into_bytes()
}

fn completion_head() -> ProcessingRequest {
    head(
        &[(":method", "POST"), (":path", "/v1/completions"), ("hi", "mom"), ("x-request-id", "test-request-id")],
        false,
    )
}

#[tokio::test]
async fn the_cases_that_the_reference_is_tested_with() {
    const FOO_BAR: &[&str] = &["foo", "bar"];
    const TARGET: &[&str] = &["foo", "sql-lora-1fdg2"];
    let cases: &[Case] = &[
        ("select lower queue and kv cache", "my-model", &[(3, 0.2, &[]), (0, 0.1, &[]), (10, 0.2, &[])], None, "2"),
        (
            "select active lora, low queue",
            "sql-lora",
            &[(0, 0.2, FOO_BAR), (0, 0.1, TARGET), (10, 0.2, FOO_BAR)],
            None,
            "2",
        ),
        (
            "select lora despite higher kv cache",
            "sql-lora",
            &[(10, 0.2, FOO_BAR), (10, 0.4, TARGET), (10, 0.3, &["foo"])],
            None,
            "2",
        ),
        (
            "do not shed requests by default",
            "sql-lora",
            &[(6, 0.2, &["foo", "bar", "sql-lora-1fdg2"]), (0, 0.85, &["foo"]), (10, 0.9, &["foo"])],
            None,
            "1",
        ),
        (
            "best from subset",
            "sql-lora",
            &[(0, 0.2, &["foo"]), (0, 0.1, TARGET), (10, 0.2, &["foo"])],
            Some(&["192.168.1.1:8000", "192.168.1.2:8000", "192.168.1.3:8000"]),
            "2",
        ),
        (
            "partial match",
            "sql-lora",
            &[(0, 0.2, &["foo"]), (0, 0.1, TARGET), (10, 0.2, &["foo"])],
            Some(&["192.168.1.3:8000"]),
            "3",
        ),
    ];
    for (name, model, pods, subset, pod) in cases {
        let desk = Desk::before(pods).await;
        let whole = body(completion(model, name), true);
        let whole = subset.map_or(whole.clone(), |subset| among(whole, subset));
        let (choice, mut talk) = desk.asked([completion_head(), whole]).await;
        assert_eq!(choice.pod(), format!("192.168.1.{pod}:8000"), "{name}");
        let served = if *model == "my-model" { "my-model-12345" } else { "sql-lora-1fdg2" };
        assert_eq!(talk.body().await, completion(served, name), "{name}");
    }
}

#[tokio::test]
async fn a_body_in_pieces_is_one_and_only_what_changed_is_set() {
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let whole = completion("my-model", &"x".repeat(200_000));
    let mut messages = vec![head(
        &[
            (":method", "POST"),
            (":path", "/v1/completions"),
            ("x-request-id", "id-1"),
            ("a", "1"),
            ("a", "2"),
            ("x-gateway-destination-endpoint", "10.9.9.9:1"),
            ("x-llm-d-inference-objective", "high"),
            ("x-vllm-priority", "-9"),
            ("accept-encoding", "gzip"),
        ],
        false,
    )];
    messages.extend(whole.chunks(17_000).map(|piece| body(piece.to_vec(), false)));
    messages.push(body("", true));
    let (choice, mut talk) = desk.asked(messages).await;
    assert_eq!(choice.pod(), "192.168.1.1:8000");
    let mut set: Vec<_> = choice.set.iter().map(|(name, _)| name.as_str()).collect();
    set.sort_unstable();
    assert_eq!(set, ["accept-encoding", "x-gateway-destination-endpoint"]);
    let mut removed = choice.removed.clone();
    removed.sort_unstable();
    assert_eq!(removed, ["x-llm-d-inference-objective", "x-vllm-priority"]);
    assert_eq!(talk.body().await, completion("my-model-12345", &"x".repeat(200_000)));
}

#[tokio::test]
async fn who_cannot_be_given_a_pod_is_told_in_openais_words() {
    const ONE: &[P] = &[(0, 0.2, &[])];
    let cases: &[Refused] = &[
        (ONE, "no healthy upstream", None, 400, "invalid_json", None),
        (ONE, r#"{"prompt":"hello world"}"#, None, 400, "missing_required_parameter", None),
        (
            ONE,
            r#"{"model":"my-model","prompt":"x"}"#,
            Some(&["192.168.1.99:8000"]),
            503,
            "no_ready_pod",
            Some("rejected-no-endpoints"),
        ),
        (ONE, r#"{"model":"my-model","prompt":"x"}"#, Some(&[]), 503, "no_ready_pod", Some("rejected-no-endpoints")),
        (
            ONE,
            r#"{"model":"my-model","prompt":"x"}"#,
            Some(&["192.168.1.1:8001"]),
            503,
            "no_ready_pod",
            Some("rejected-no-endpoints"),
        ),
        (&[], r#"{"model":"my-model","prompt":"x"}"#, None, 503, "no_ready_pod", Some("rejected-no-endpoints")),
    ];
    for (pods, text, subset, status, code, dropped) in cases {
        let desk = Desk::before(pods).await;
        let whole = body(*text, true);
        let whole = subset.map_or(whole.clone(), |subset| among(whole, subset));
        let (choice, mut talk) = desk.asked([completion_head(), whole]).await;
        assert_eq!((choice.status, choice.error()["code"].as_str().unwrap()), (*status, *code), "{text} {subset:?}");
        assert_eq!(choice.header("x-llm-d-request-dropped-reason"), *dropped, "{text}");
        assert_eq!(choice.header("content-type"), Some("application/json"));
        assert_eq!(choice.header("retry-after").is_some(), *status == 503);
        assert_eq!(choice.header("x-request-id"), Some("test-request-id"));
        assert!(talk.hear().await.is_none(), "nothing follows");
    }
}

#[tokio::test]
async fn a_request_without_a_body_gets_a_pod_or_is_answered_and_an_empty_pool_is_503() {
    let get = |path: &'static str| head(&[(":method", "GET"), (":path", path), ("hi", "mom")], true);
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let (choice, _talk) = desk.asked([get("/some/page?x=1")]).await;
    assert_eq!(choice.pod(), "192.168.1.1:8000");
    assert!(choice.header("x-request-id").is_some(), "there was none");
    let (choice, _talk) = desk.asked([get("/v1/models")]).await;
    assert_eq!(choice.status, 200);
    assert!(String::from_utf8(choice.body).unwrap().contains("sql-lora"));
    let subset = among(get("/some/page"), &["192.168.1.9:8000"]);
    assert_eq!(desk.asked([subset]).await.0.status, 503, "a subset holds for these too");
    let empty = Desk::before(&[]).await;
    assert_eq!(empty.asked([get("/some/page")]).await.0.status, 503);
}

#[tokio::test]
async fn what_is_no_inference_goes_on_byte_for_byte() {
    let desk = Desk::before(&[(3, 0.2, &[]), (0, 0.1, &[]), (10, 0.2, &[])]).await;
    let post = head(&[(":method", "POST"), (":path", "/whatever")], false);
    let (choice, mut talk) = desk.asked([post, body("passthrough-parser", true)]).await;
    assert_eq!(choice.pod(), "192.168.1.2:8000");
    assert_eq!(talk.body().await, b"passthrough-parser");
    let closed = Desk::with(&[(0, 0.1, &[])], ", other_paths: false", MODELS).await;
    let post = head(&[(":method", "POST"), (":path", "/whatever")], false);
    assert_eq!(closed.asked([post, body("x", true)]).await.0.status, 404);
}

#[tokio::test]
async fn a_model_that_nobody_named_is_the_pods_matter() {
    let desk = Desk::before(&[(0, 4.0, &[])]).await;
    let (choice, mut talk) = desk.asked([completion_head(), body(completion("direct-model", "x"), true)]).await;
    assert_eq!(choice.pod(), "192.168.1.1:8000");
    assert_eq!(talk.body().await, completion("direct-model", "x"));
}

#[tokio::test]
async fn a_list_names_the_next_best_behind_the_first() {
    let desk = Desk::with(&[(3, 0.2, &[]), (0, 0.1, &[]), (10, 0.2, &[])], ", fallbacks: 5", MODELS).await;
    let (choice, _talk) = desk.asked([completion_head(), body(completion("my-model", "x"), true)]).await;
    assert_eq!(choice.pod(), "192.168.1.2:8000,192.168.1.1:8000,192.168.1.3:8000");
    assert_eq!(desk.in_flight(), [0, 1, 0], "only the first has a place kept");
}

#[tokio::test]
async fn a_place_is_kept_to_the_answers_end_and_moves_to_who_served() {
    let desk = Desk::with(&[(3, 0.2, &[]), (0, 0.1, &[])], ", fallbacks: 1", MODELS).await;
    let (choice, mut talk) = desk.asked([completion_head(), body(completion("my-model", "x"), true)]).await;
    assert!(choice.pod().starts_with("192.168.1.2:8000"));
    talk.body().await;
    assert_eq!(desk.in_flight(), [0, 1]);
    talk.say(served_by(answer_head("200", "application/json", false), "192.168.1.1:8000"));
    assert!(matches!(talk.hear().await.unwrap().reply, Some(Reply::ResponseHeaders(_))));
    assert_eq!(desk.in_flight(), [1, 0], "another pod served it");
    let answer =
        json!({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 7, "completion_tokens": 10}}).to_string();
    let (one, two) = answer.split_at(20);
    talk.say(answer_body(one.to_owned(), false));
    talk.say(answer_body(two.to_owned(), false));
    talk.say(answer_body("", true));
    let mut echoed = Vec::new();
    loop {
        let Some(Reply::ResponseBody(piece)) = talk.hear().await.unwrap().reply else { panic!("a piece") };
        let Some(Mutation::Streamed(piece)) = piece.response.unwrap().body_mutation.unwrap().mutation else { panic!() };
        echoed.extend_from_slice(&piece.body);
        if piece.end_of_stream {
            break;
        }
    }
    assert_eq!(echoed, answer.as_bytes());
    assert_eq!(desk.in_flight(), [0, 0], "before the conversation is over");
    assert_eq!(desk.house.requests_open.load(Relaxed), 0);
    talk.done();
    assert!(talk.hear().await.is_none());
}

#[tokio::test]
async fn who_leaves_at_any_moment_leaves_nothing_behind() {
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let chat = || body(r#"{"model":"my-model","stream":true,"messages":[{"role":"user","content":"x"}]}"#, true);
    let sse = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let all = [chat_head(), chat(), answer_head("200", "text/event-stream", false), answer_body(sse, false)];
    for many in 0..=all.len() {
        let talk = desk.talk().await;
        all[..many].iter().for_each(|message| talk.say(message.clone()));
        drop(talk);
    }
    let quiet =
        || desk.house.requests_open.load(Relaxed) == 0 && desk.in_flight() == [0] && desk.house.bodies.held() == 0;
    eventually("all counters at zero", quiet).await;
}

/// A head of a conversation in which bodies come whole, both ways.
fn buffered_head() -> ProcessingRequest {
    let mut first = completion_head();
    first.protocol_config =
        Some(ProtocolConfiguration { request_body_mode: 2, response_body_mode: 2, ..ProtocolConfiguration::default() });
    first
}

#[tokio::test]
async fn buffered_is_told_by_the_conversation_itself() {
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let mut talk = desk.talk().await;
    talk.say(buffered_head());
    let Some(Reply::RequestHeaders(head)) = talk.hear().await.unwrap().reply else { panic!("the head comes first") };
    assert!(head.response.is_none());
    talk.say(body(completion("my-model", "x"), true));
    let said = talk.hear().await.unwrap();
    assert!(said.dynamic_metadata.is_some());
    let Some(Reply::RequestBody(reply)) = said.reply else { panic!("then the body") };
    let reply = reply.response.unwrap();
    let names = reply.header_mutation.unwrap().set_headers;
    assert!(names.iter().any(|it| it.header.as_ref().unwrap().key == "x-gateway-destination-endpoint"));
    let Some(Mutation::Body(changed)) = reply.body_mutation.unwrap().mutation else { panic!("another body") };
    assert_eq!(changed, completion("my-model-12345", "x"));
}

#[tokio::test]
async fn a_filter_that_sends_bodies_too_late_is_told_what_to_set() {
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let mut first = completion_head();
    first.protocol_config =
        Some(ProtocolConfiguration { request_body_mode: 1, response_body_mode: 1, ..ProtocolConfiguration::default() });
    let (lines, _guard) = Lines::kept();
    for _ in 0..3 {
        let (choice, _) = desk.asked([first.clone()]).await;
        assert_eq!(choice.status, 500);
        assert!(choice.error()["message"].as_str().unwrap().contains("FULL_DUPLEX_STREAMED or BUFFERED"));
    }
    let warnings = lines.warnings();
    assert_eq!(warnings.len(), 1, "the operator, once: {warnings:?}");
    assert!(warnings[0]["message"].contains("set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED"));
}

/// Asks, and has this said of the answer.
async fn answered(desk: &Desk, envoy: &Envoy, answer: ProcessingRequest) {
    let mut talk = envoy.talk().await;
    talk.say(completion_head());
    talk.say(body(completion("my-model", "x"), true));
    talk.choice().await;
    talk.body().await;
    talk.say(answer);
    assert!(matches!(talk.hear().await.unwrap().reply, Some(Reply::ResponseHeaders(_))));
    drop(talk);
    eventually("the end", || desk.house.requests_open.load(Relaxed) == 0).await;
}

#[tokio::test]
async fn where_envoy_goes_elsewhere_the_line_names_both_pods_and_it_is_told_once_a_pod() {
    let (lines, _guard) = Lines::kept();
    let desk = Desk::before(&[(3, 0.2, &[]), (0, 0.1, &[])]).await;
    let envoy = Envoy::connect(desk.addr).await;
    for served in ["192.168.1.1:8000", "192.168.1.9:8000", "192.168.1.2:8000"] {
        answered(&desk, &envoy, served_by(answer_head("200", "application/json", true), served)).await;
    }
    let told: Vec<_> = lines.requests().iter().map(|line| told(line, ["pod", "asked_pod", "status"])).collect();
    let (first, chosen) = ("192.168.1.1:8000", "192.168.1.2:8000");
    assert_eq!(told, [[first, chosen, "200"], ["192.168.1.9:8000", chosen, "200"], [chosen, "", "200"]]);
    let warnings = lines.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let does_not_follow = "Envoy does not follow the choice of 192.168.1.2:8000: is it among the endpoints";
    assert!(warnings[0]["message"].starts_with(does_not_follow), "{warnings:?}");
    assert_eq!(warnings[0]["went_to"], first);
    let page = desk.house.metrics.page();
    assert!(page.contains("tidegate_picker_elsewhere_total{pool=\"pods\",reason=\"unnamed\"} 2"), "{page}");
}

#[tokio::test]
async fn a_pod_is_not_blamed_for_failures_at_an_address_that_is_nobodys() {
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let envoy = Envoy::connect(desk.addr).await;
    let failed = "upstream_reset_before_response_started{connection_failure}";
    for _ in 0..8 {
        let answer = envoys_own(answer_head("503", "text/plain", true), failed);
        answered(&desk, &envoy, served_by(answer, "9.9.9.9:1")).await;
        answered(&desk, &envoy, served_by(answer_head("500", "text/plain", true), "9.9.9.9:1")).await;
        answered(&desk, &envoy, served_by(answer_head("429", "text/plain", true), "9.9.9.9:1")).await;
    }
    let pods = desk.house.fleet.pool("pods").unwrap().pods();
    let page = desk.house.metrics.page();
    assert!(!page.contains("tidegate_attempt_failures_total{pool=\"pods\""), "{page}");
    assert!(pods[0].health.pushback(std::time::Instant::now()).is_zero());
    // Its own are its own.
    answered(&desk, &envoy, answer_head("429", "text/plain", true)).await;
    assert!(!pods[0].health.pushback(std::time::Instant::now()).is_zero());
}

#[tokio::test]
async fn a_next_best_that_serves_is_named_in_the_line_and_no_mistake() {
    let (lines, _guard) = Lines::kept();
    let desk = Desk::with(&[(3, 0.2, &[]), (0, 0.1, &[])], ", fallbacks: 1", MODELS).await;
    let envoy = Envoy::connect(desk.addr).await;
    answered(&desk, &envoy, served_by(answer_head("200", "application/json", true), "192.168.1.1:8000")).await;
    assert_eq!(told(&lines.requests()[0], ["pod", "asked_pod"]), ["192.168.1.1:8000", "192.168.1.2:8000"]);
    assert_eq!(lines.warnings().len(), 0);
    let page = desk.house.metrics.page();
    assert!(page.contains("tidegate_picker_elsewhere_total{pool=\"pods\",reason=\"fallback\"} 1"), "{page}");
}

#[tokio::test]
async fn a_pod_that_envoy_did_not_reach_is_refused_in_envoys_words_and_no_stream_was_cut() {
    let (lines, _guard) = Lines::kept();
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let envoy = Envoy::connect(desk.addr).await;
    let unreachable = "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_111}";
    let hung_up = "upstream_reset_before_response_started{connection_termination}";
    for (details, reason, culprit) in [
        (unreachable, "upstream_unreachable", "pod"),
        (hung_up, "upstream_failed", "pod"),
        ("no_healthy_upstream", "not_sent", "gateway"),
    ] {
        answered(&desk, &envoy, envoys_own(answer_head("503", "text/plain", true), details)).await;
        let line = lines.requests().remove(0);
        let fields = told(&line, ["outcome", "reason", "code", "culprit", "status"]);
        assert_eq!(fields, ["refused", reason, details, culprit, "503"]);
        assert!(line["message"].contains("last tried 192.168.1.1:8000"), "nobody answered: {}", line["message"]);
    }
    let page = desk.house.metrics.page();
    for line in [
        "tidegate_attempt_failures_total{pool=\"pods\",reason=\"connect_failed\"} 1",
        "tidegate_attempt_failures_total{pool=\"pods\",reason=\"connection_died\"} 1",
        "tidegate_rejections_total{listener=\"picker\",reason=\"upstream_unreachable\"} 1",
    ] {
        assert!(page.contains(line), "{line} not in\n{page}");
    }
    let mut cuts = page.lines().filter(|line| line.starts_with("tidegate_cuts_total{"));
    assert!(cuts.all(|line| line.ends_with(" 0")), "{page}");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_413_and_the_memory_is_given_back() {
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let mut talk = desk.talk().await;
    talk.say(completion_head());
    for _ in 0..5 {
        talk.say(body(vec![b'x'; 1 << 20], false));
    }
    let choice = talk.choice().await;
    assert_eq!((choice.status, choice.error()["code"].as_str().unwrap()), (413, "request_too_large"));
    assert_eq!(desk.house.bodies.held(), 0);
}

#[tokio::test]
async fn five_hundred_conversations_on_one_connection_do_not_hold_each_other_up() {
    let desk = Desk::before(&[(0, 0.1, &[]), (0, 0.1, &[])]).await;
    let envoy = Envoy::connect(desk.addr).await;
    let mut talks = Vec::new();
    for _ in 0..150 {
        let talk = envoy.talk().await;
        talk.say(completion_head());
        talks.push(talk);
    }
    for talk in talks.iter().rev() {
        talk.say(body(completion("my-model", "x"), true));
    }
    for talk in &mut talks {
        assert_eq!(talk.choice().await.status, 0);
    }
    assert_eq!(desk.in_flight().iter().sum::<u64>(), 150);
    drop(talks);
    eventually("every place given back", || desk.in_flight().iter().sum::<u64>() == 0).await;
}

#[tokio::test]
async fn health_is_told_by_the_names_that_gateways_and_kubelets_ask_for() {
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let envoy = Envoy::connect(desk.addr).await;
    let (serving, not_serving) = (Ok(1), Ok(2));
    let readiness = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"];
    assert_eq!(envoy.health("liveness").await, serving);
    // Manifests of the reference ask by this name whether to restart it: not while its pods load their models.
    assert_eq!(envoy.health("inference-extension").await, serving);
    for name in readiness {
        assert_eq!(envoy.health(name).await, not_serving, "{name}");
    }
    desk.house.ready_once.store(true, Relaxed);
    for name in readiness {
        assert_eq!(envoy.health(name).await, serving, "{name}");
    }
    assert_eq!(envoy.health("else").await, Err(tonic::Code::NotFound));
}

#[tokio::test]
async fn where_answers_are_not_shown_the_place_is_kept_for_a_while_and_the_conversation_ends() {
    let desk = Desk::with(&[(0, 0.1, &[])], ", observe_responses: false", MODELS).await;
    let (choice, mut talk) = desk.asked([completion_head(), body(completion("my-model", "x"), true)]).await;
    assert_eq!(choice.pod(), "192.168.1.1:8000");
    talk.body().await;
    assert!(talk.hear().await.is_none(), "Envoy is on its own");
    assert_eq!(desk.in_flight(), [1], "the pod has it all the same");
    // 100 tokens of a pod that is taken to be fast.
    eventually("the place given back", || desk.in_flight() == [0]).await;
}

#[tokio::test]
async fn a_message_larger_than_any_body_may_be_is_413_as_well() {
    let desk = Desk::before(&[(0, 0.1, &[])]).await;
    let mut talk = desk.talk().await;
    talk.say(buffered_head());
    talk.hear().await.unwrap();
    talk.say(body(vec![b'x'; 5 << 20], true));
    let choice = talk.choice().await;
    assert_eq!((choice.status, choice.error()["code"].as_str().unwrap()), (413, "request_too_large"));
}

#[tokio::test]
async fn a_panic_ends_its_conversation_and_no_other_on_the_connection() {
    let doomed = |house: &mut House| house.doubt = Box::new(|_| panic!("doubt is fatal"));
    let desk = Desk::rebuilt(&[(0, 0.1, &[])], "", MODELS, doomed).await;
    let envoy = Envoy::connect(desk.addr).await;
    let ask = async || {
        let mut talk = envoy.talk().await;
        talk.say(completion_head());
        talk.say(body(completion("my-model", "x"), true));
        assert_eq!(talk.choice().await.pod(), "192.168.1.1:8000");
        talk.body().await;
        talk
    };
    let (mut bystander, mut doomed) = (ask().await, ask().await);
    // A pod that refused is doubted, and doubt is fatal in this house.
    doomed.say(envoys_own(
        answer_head("503", "text/plain", false),
        "upstream_reset_before_response_started{connection_failure}",
    ));
    assert_eq!(doomed.fails().await, tonic::Code::Internal);
    bystander.say(answer_head("200", "application/json", false));
    assert!(matches!(bystander.hear().await.unwrap().reply, Some(Reply::ResponseHeaders(_))));
    drop((bystander, doomed));
    eventually("both to be over", || desk.house.requests_open.load(Relaxed) == 0 && desk.in_flight() == [0]).await;
}
