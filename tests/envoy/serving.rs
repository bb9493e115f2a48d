//! What clients get through a real Envoy.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tidegate::{clock, fleet::Saturation, sim::PodConfig, tasks::Tasks};

use super::{
    harness::{Call, Gateway, RawPod, SimPod, chat, chat_stream, events, eventually, refusing_endpoint, within},
    process::{Envoy, deployed, only_among, program},
    scene::{Different, PLAIN, Scene, picker},
};

/// How bodies come in what we recommend.
const DUPLEX: &str = "FULL_DUPLEX_STREAMED";

/// A name, what is different at Envoy, and what at the picker.
type Mode<'a> = (&'a str, Vec<(&'a str, &'a str)>, &'a str);

/// The modes in which bodies may come and go, and how a picker may be set.
#[tokio::test]
async fn in_every_mode_a_chat_and_a_stream_come_as_the_pod_gave_them() {
    let response = |mode: &'static str| ("response_body_mode: FULL_DUPLEX_STREAMED", mode);
    let none = response("response_body_mode: NONE");
    let no_trailers = ("response_trailer_mode: SEND", "response_trailer_mode: SKIP");
    let modes: [Mode<'_>; 6] = [
        (DUPLEX, vec![], "secure: true"),
        ("plain text", vec![], "secure: false"),
        ("buffered", vec![("request_body_mode: FULL_DUPLEX_STREAMED", "request_body_mode: BUFFERED")], "secure: true"),
        ("answers streamed", vec![response("response_body_mode: STREAMED"), no_trailers], "secure: true"),
        ("answers unseen", vec![none, no_trailers], "secure: true"),
        ("answers not asked for", vec![], "observe_responses: false"),
    ];
    for (name, mut envoy, keys) in modes {
        if keys == "secure: false" {
            envoy.push(("name: envoy.transport_sockets.tls", "name: envoy.transport_sockets.raw_buffer"));
            envoy.push((
                "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            ));
            envoy.push(("          common_tls_context: { alpn_protocols: [h2] }\n", ""));
        }
        let Some(scene) = Scene::with(2, Different { envoy: &envoy, keys, ..PLAIN }).await else { return };
        let whole = scene.send(chat("hello", 5)).await;
        assert_eq!(whole.status(), 200, "{name}");
        let answer = whole.json().await;
        assert_eq!(answer["usage"]["completion_tokens"], 5, "{name}: {answer}");
        let stream = scene.send(chat_stream("hello", 5)).await;
        assert_eq!(stream.header("content-type"), Some("text/event-stream; charset=utf-8"), "{name}");
        let text = stream.text().await;
        let events = events(&text);
        assert_eq!((events.len(), *events.last().unwrap()), (8, "[DONE]"), "{name}: {text}");
        let asked: usize = scene.pods.iter().map(SimPod::asked).sum();
        assert_eq!(asked, 2, "{name}");
        if !name.starts_with("answers not") && !name.starts_with("answers unseen") {
            scene.quiet().await;
            assert_eq!(scene.gateway.counted("tidegate_requests_total", &["code=\"200\""]).await, 2.0, "{name}");
        }
    }
}

#[tokio::test]
async fn a_stream_is_not_held_back_and_the_next_request_goes_to_the_other_pod() {
    let Some(scene) = Scene::with(2, PLAIN).await else { return };
    for pod in &scene.pods {
        pod.faults().change(|faults| faults.slow = 50.0);
    }
    let mut first = scene.send(chat_stream("one", 50)).await;
    first.piece().await.unwrap().unwrap();
    assert!(scene.gateway.pods().iter().any(|pod| pod.ledger.in_flight() == 1), "it is still being made");
    let mut second = scene.send(chat_stream("two", 50)).await;
    second.piece().await.unwrap().unwrap();
    assert_eq!(scene.pods.iter().map(SimPod::asked).collect::<Vec<_>>(), [1, 1]);
    drop((first, second));
    // Their clients left: the pods stop, and nothing is counted as open.
    scene.quiet().await;
}

#[tokio::test]
async fn a_split_renames_the_model_both_ways_and_an_adapter_is_one() {
    let rest = "models: [{ modelName: front, poolRef: pods, rewrite_response_model: true, sticky: none, \
                targetModels: [{ name: a, weight: 1 }, { name: b, weight: 1 }] }, { modelName: m, poolRef: pods }]";
    let buffered: &[(&str, &str)] = &[(DUPLEX, "BUFFERED")];
    for envoy in [&[][..], buffered] {
        let Some(scene) = Scene::with(2, Different { envoy, rest, ..PLAIN }).await else { return };
        for n in 0..20 {
            let body =
                json!({"model": "front", "messages": [{"role": "user", "content": format!("{n}")}], "max_tokens": 3});
            let answer = scene.send(Call::post("/v1/chat/completions", body.to_string())).await.json().await;
            assert_eq!(answer["model"], "front");
        }
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for pod in &scene.pods {
            for asked in pod.state().last {
                let body: Value = serde_json::from_str(&asked.body).unwrap();
                *seen.entry(body["model"].to_string()).or_default() += 1;
            }
        }
        assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), ["\"a\"", "\"b\""], "{seen:?}");
    }
}

#[tokio::test]
async fn what_is_refused_is_told_in_openais_words() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pods.yaml");
    std::fs::write(&file, "[]").unwrap();
    let rest = "waiting: { timeout: 0s }\nmodels: [{ modelName: m, poolRef: pods }]";
    let gateway = picker(vec![format!("{{ file: {:?} }}", file.display())], "secure: true", rest).await;
    let envoy = Envoy::start(&program, &deployed("original-dst", gateway.addr, &[])).await;
    let reply = chat("x", 1).send(envoy.addr).await;
    assert_eq!(reply.header("retry-after"), Some("2"));
    assert_eq!(reply.header("x-llm-d-request-dropped-reason"), Some("rejected-no-endpoints"));
    assert_eq!(reply.error(503).await["code"], "no_ready_pod");
    let reply = Call::post("/v1/chat/completions", "{").send(envoy.addr).await;
    assert_eq!(reply.error(400).await["type"], "invalid_request_error");
}

#[tokio::test]
async fn a_full_pool_sheds_what_may_be_shed_and_the_rest_waits_for_room() {
    let Some(program) = program() else { return };
    let mut like = PodConfig::new("m").time_scale(0.1);
    like.engine.max_num_seqs = 2;
    let pod = SimPod::like(like).await;
    pod.faults().change(|faults| faults.slow = 50.0);
    let rest = "models: [{ modelName: m, poolRef: pods }, { modelName: batch, poolRef: pods, criticality: Sheddable, \
                targetModels: [{ name: m }] }]";
    let gateway = picker(vec![pod.endpoint()], "secure: true", rest).await;
    gateway.sees_all_pods().await;
    let envoy = Envoy::start(&program, &deployed("original-dst", gateway.addr, &[])).await;
    let there: Vec<_> = (0..6).map(|_| chat_stream("x", 2_000).begin(envoy.addr)).collect();
    let is_full = || {
        let pool = gateway.running.house.fleet.pool("pods").unwrap();
        Saturation::of(&pool, &pool.pods(), "m", clock::now()).is_some_and(|it| it.level >= 1.0)
    };
    eventually("a full pool", is_full).await;
    let batch = r#"{"model":"batch","messages":[],"max_tokens":1}"#;
    let refused = Call::post("/v1/chat/completions", batch).send(envoy.addr).await;
    assert_eq!(refused.header("x-llm-d-request-dropped-reason"), Some("rejected-saturated"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(refused.error(429).await["type"], "rate_limit_error");
    let asked = pod.asked();
    let who_may_not = chat_stream("y", 1).begin(envoy.addr);
    eventually("whose request may not be shed in line", || gateway.running.house.waiting.len() == 1).await;
    assert_eq!(pod.asked(), asked);
    there.iter().for_each(tokio::task::JoinHandle::abort);
    drop(there);
    eventually("it at the pod, which has room again", || pod.asked() > asked).await;
    who_may_not.abort();
    gateway.quiet().await;
}

#[tokio::test]
async fn large_bodies_and_many_at_once() {
    let rest = "limits: { body: 2MiB }";
    let Some(scene) = Scene::with(4, Different { rest, ..PLAIN }).await else { return };
    let large = scene.send(chat(&"word ".repeat(200_000), 1)).await;
    assert!(matches!(large.status(), 200 | 400), "the pod has the last word on a prompt: {}", large.status());
    assert_eq!(scene.pods.iter().map(SimPod::asked).sum::<usize>(), 1, "a megabyte came through");
    let larger = scene.send(chat(&"word ".repeat(600_000), 1)).await;
    assert_eq!(larger.error(413).await["code"], "request_too_large");
    let tasks = Tasks::new();
    let mut all = Vec::new();
    for n in 0..500 {
        let to = scene.envoy.addr;
        all.push(tasks.spawn(async move {
            let reply = chat_stream(&format!("{n}"), 20).send(to).await;
            assert_eq!(reply.status(), 200);
            assert!(reply.text().await.ends_with("data: [DONE]\n\n"));
        }));
    }
    for one in all {
        one.await.unwrap();
    }
    scene.quiet().await;
    assert_eq!(scene.envoy.counted("ext_proc.streams_failed").await, 0);
}

#[tokio::test]
async fn a_subset_that_the_gateway_names_is_kept_to() {
    let Some(program) = program() else { return };
    let pods = [SimPod::start().await, SimPod::start().await];
    let gateway = picker(pods.iter().map(SimPod::endpoint).collect(), "secure: true", "").await;
    gateway.sees_all_pods().await;
    let config = only_among(&deployed("original-dst", gateway.addr, &[]), &pods[1].addr().to_string());
    let envoy = Envoy::start(&program, &config).await;
    for _ in 0..6 {
        assert_eq!(chat("x", 1).send(envoy.addr).await.status(), 200);
    }
    assert_eq!((pods[0].asked(), pods[1].asked()), (0, 6));
}

#[tokio::test]
async fn when_the_first_pod_is_gone_the_next_of_the_list_serves_and_has_the_place() {
    let Some(program) = program() else { return };
    let witness = RawPod::answering(super::harness::whole_json("{}")).await;
    let (gone, socket) = refusing_endpoint(&witness);
    let alive = SimPod::slow().await;
    let rest = "scheduler: { policy: round-robin }";
    let gateway = picker(vec![gone, alive.endpoint()], "fallbacks: 1", rest).await;
    let addresses = [socket.local_addr().unwrap(), alive.addr()];
    let envoy = Envoy::start(&program, &deployed("override-host", gateway.addr, &addresses)).await;
    let mut retried = 0;
    for _ in 0..4 {
        let mut reply = chat_stream("x", 20).send(envoy.addr).await;
        assert_eq!(reply.status(), 200);
        reply.piece().await.unwrap().unwrap();
        let in_flight = |address: SocketAddr| {
            let pods = gateway.pods();
            let pod = pods.iter().find(|pod| **pod.address() == *address.to_string()).unwrap();
            pod.ledger.in_flight()
        };
        assert_eq!((in_flight(addresses[0]), in_flight(addresses[1])), (0, 1));
        drop(reply);
        eventually("the place given back", || in_flight(addresses[1]) == 0).await;
        retried = envoy.counted("cluster.pods.upstream_rq_retry_success").await;
    }
    assert!(retried >= 1, "one of them went to the pod that is gone first");
}

#[tokio::test]
async fn without_a_picker_open_means_round_robin_and_closed_means_an_error() {
    let short: &[(&str, &str)] = &[("message_timeout: 35s", "message_timeout: 2s")];
    for (name, status) in [("override-host", 200), ("original-dst", 500)] {
        let different = Different { deployed: name, envoy: short, ..PLAIN };
        let Some(scene) = Scene::with(2, different).await else { return };
        assert_eq!(scene.send(chat("x", 1)).await.status(), 200);
        let Scene { envoy, gateway, pods } = scene;
        gateway.stop(Duration::ZERO).await;
        for _ in 0..4 {
            assert_eq!(chat("x", 1).send(envoy.addr).await.status(), status, "{name}");
        }
        let asked = pods.iter().filter(|pod| pod.asked() > 0).count();
        assert!(status != 200 || asked == 2, "round robin");
    }
}

#[tokio::test]
async fn a_picker_that_stops_ends_what_it_has_begun() {
    let Some(scene) = Scene::with(1, PLAIN).await else { return };
    scene.pods[0].faults().change(|faults| faults.slow = 20.0);
    let mut reply = scene.send(chat_stream("x", 30)).await;
    reply.piece().await.unwrap().unwrap();
    let Scene { envoy, gateway, pods } = scene;
    let stopped = Tasks::new().spawn(gateway.stop(Duration::from_secs(60)));
    let text = reply.text().await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(within("the stop", stopped).await.unwrap().cut, 0);
    drop((envoy, pods));
}

#[test]
fn envoy_accepts_what_we_recommend() {
    let Some(program) = program() else { return };
    for file in std::fs::read_dir("deploy/envoy").unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|it| it == "yaml") {
            let done =
                std::process::Command::new(&program).args(["--mode", "validate", "-c"]).arg(&path).output().unwrap();
            assert!(done.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&done.stderr));
        }
    }
}
