//! What an operator can see: metrics, the fleet, an explanation, probes, and headers for who debugs.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::fleet::FleetSnapshot;

use crate::harness::{Call, Client, Gateway, RawPod, SimPod, chat, chat_stream, eventually, whole_json, within};

#[tokio::test]
async fn the_page_of_metrics_is_sound_and_counts_what_happened() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    for _ in 0..3 {
        chat_stream("hi", 5).send(gateway.addr).await.text().await;
    }
    Call::post("/v1/completions", r#"{"model":"x","prompt":"hi"}"#).send(gateway.addr).await;
    gateway.quiet().await;
    let reply = Call::get("/metrics").send(gateway.admin()).await;
    let kind = reply.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let page = reply.text().await;
    assert_sound(&page);
    let ok = ["code=\"200\"", "endpoint=\"chat_completions\"", "listener=\"main\"", "model=\"m\""];
    assert_eq!(gateway.counted("tidegate_requests_total", &ok).await, 3.0);
    assert_eq!(gateway.counted("tidegate_requests_total", &["code=\"404\"", "model=\"unknown\""]).await, 1.0);
    assert_eq!(gateway.counted("tidegate_rejections_total", &["unknown_model"]).await, 1.0);
    for family in ["time_to_first_token_seconds", "inter_token_latency_seconds", "request_duration_seconds"] {
        assert_eq!(gateway.counted(&format!("tidegate_{family}_count"), &[]).await, 3.0, "{family}");
    }
    assert!(!page.contains("model=\"x\""), "no label comes raw from a request");
}

/// Every line is a comment or a sample of a family that was announced, no sample comes twice, and the end is marked.
fn assert_sound(page: &str) {
    let mut families = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in page.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let family = rest.split(' ').next().unwrap();
            assert!(!families.contains(&family), "{family} announced twice");
            families.push(family);
        } else if !line.starts_with("# ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(seen.insert(series), "{series} twice");
            let name = series.split('{').next().unwrap();
            let known = families.last().is_some_and(|family| name.starts_with(family));
            assert!(known, "{line} under {:?}", families.last());
        }
    }
    assert!(families.len() > 15 && page.ends_with("# EOF\n"), "{page}");
}

#[tokio::test]
async fn the_fleet_is_shown_as_json_that_reads_back() {
    let pods = [SimPod::start().await, SimPod::start().await];
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint)).start().await;
    gateway.sees_all_pods().await;
    for nth in 0..4 {
        chat(&nth.to_string(), 5).send(gateway.addr).await.bytes().await;
    }
    let shown = gateway.admin_json("/debug/fleet").await;
    let snapshot: FleetSnapshot = serde_json::from_value(shown.clone()).unwrap();
    assert_eq!(serde_json::to_value(&snapshot).unwrap()["pools"], shown["pools"]);
    assert_eq!(shown["prefix"].as_object().unwrap().len(), 2, "what is believed to be cached stands beside it");
    let pod = &shown["pools"][0]["pods"][0];
    assert_eq!((&pod["condition"], &pod["in_flight"]), (&json!("ready"), &json!(0)));
    assert_eq!(pod["reading"]["waiting"], 0, "{pod}");
}

#[tokio::test]
async fn a_decision_can_be_explained_without_being_made() {
    let pods = [SimPod::start().await, SimPod::start().await];
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint))
        .listener("{ name: classic, address: \"127.0.0.1:0\", scheduler: { policy: round-robin } }")
        .models(&["{ modelName: m, poolRef: pods, targetModels: [{ name: a }] }"])
        .start()
        .await;
    gateway.sees_all_pods().await;
    let ask = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let explain = async |path: &str| {
        let reply = Call::post(path, ask.clone()).send(gateway.admin()).await;
        assert_eq!(reply.status(), 200);
        reply.json().await
    };
    let told = explain("/debug/explain").await;
    assert_eq!(
        (&told["listener"], &told["model"], &told["pool"], &told["served_model"]),
        (&json!("main"), &json!("m"), &json!("pods"), &json!("a"))
    );
    assert_eq!(told["decision"]["candidates"].as_array().map(Vec::len), Some(2), "{told}");
    let told = explain("/debug/explain?listener=classic").await;
    assert_eq!(told["listener"], "classic");
    assert!(told["decision"].to_string().contains("round-robin"), "{told}");
    let unknown = Call::post("/debug/explain?listener=nope", ask.clone());
    assert_eq!(unknown.send(gateway.admin()).await.status(), 404);
    let other = Call::post("/debug/explain", r#"{"model":"gpt-9","messages":[]}"#);
    assert_eq!(other.send(gateway.admin()).await.status(), 404);
    let said = async |path: &str| {
        let reply = Call::post(&format!("/debug/explain?path={path}"), ask.clone()).send(gateway.admin()).await;
        reply.json().await["error"]["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(said("/v1/engines").await, "no such endpoint: /v1/engines");
    let slip = "no such endpoint; did you mean /v1/chat/completions? The base URL ends in /v1";
    assert_eq!(said("/chat/completions").await, slip);
    assert_eq!(pods[0].asked() + pods[1].asked(), 0);
    gateway.quiet().await;
}

#[tokio::test]
async fn what_the_gateway_takes_can_be_explained_however_large_and_no_more() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("limits: { body: 5MiB }").start().await;
    let sized = |megabytes: usize| {
        let content = "x".repeat(megabytes << 20);
        let ask = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
        Call::post("/debug/explain", ask.to_string())
    };
    assert_eq!(sized(4).send(gateway.admin()).await.status(), 200);
    let refused = sized(5).send(gateway.admin()).await;
    assert_eq!(refused.status(), 413);
    assert_eq!(refused.json().await["error"]["code"], "request_too_large");
}

#[tokio::test]
async fn it_is_ready_once_a_pod_is() {
    let pod = SimPod::start().await;
    pod.faults().change(|faults| {
        faults.warm_up = true;
        faults.refuse_connections = true;
    });
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let ready = async || Call::get("/readyz").send(gateway.admin()).await.status();
    assert_eq!(ready().await, 503);
    assert_eq!(Call::get("/healthz").send(gateway.admin()).await.status(), 200);
    pod.faults().heal();
    within("readiness", async {
        while ready().await != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    pod.faults().change(|faults| faults.refuse_connections = true);
    assert_eq!(ready().await, 200, "pods that are lost later do not take the gateway out");
}

#[tokio::test]
async fn headers_say_which_pod_and_why_only_if_configured() {
    let pod = SimPod::start().await;
    let silent = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat("hi", 1).send(silent.addr).await;
    assert_eq!((reply.header("x-tidegate-pod"), reply.header("x-tidegate-decision")), (None, None));
    let telling = Gateway::over([pod.endpoint()]).yaml("api: { decision_headers: true }").start().await;
    let reply = chat("hi", 1).send(telling.addr).await;
    assert_eq!(reply.header("x-tidegate-pod"), Some(&*pod.addr().to_string()));
    let decision = reply.header("x-tidegate-decision").unwrap();
    assert!(decision.starts_with("policy=least-cost; sight="), "{decision}");
}

#[tokio::test]
async fn probes_have_a_door_of_their_own_with_nothing_else_behind_it() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("probes: { address: \"127.0.0.1:0\" }").start().await;
    let probes = gateway.running.probes.unwrap();
    for (path, status) in [("/healthz", 200), ("/metrics", 200), ("/debug/fleet", 404), ("/", 404)] {
        assert_eq!(Call::get(path).send(probes).await.status(), status, "{path}");
    }
    assert_eq!(Call::get("/debug/fleet").send(gateway.addr).await.status(), 404, "and none to clients");
    assert_eq!(Call::get("/metrics").send(gateway.addr).await.status(), 404);
}

#[tokio::test]
async fn a_burst_of_equal_requests_spreads_evenly() {
    let mut pods = Vec::new();
    for _ in 0..10 {
        pods.push(SimPod::slow().await);
    }
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint)).start().await;
    gateway.sees_all_pods().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Client::h2(gateway.addr).await);
    }
    let open: Vec<_> = (0..1_000)
        .map(|nth| {
            let prompt = format!("{nth:04} {}", "tide ".repeat(100));
            tokio::spawn(clients[nth % 10].ask_later(chat(&prompt, 50)))
        })
        .collect();
    let house = &gateway.running.house;
    crate::harness::eventually("all at their pods", || {
        gateway.pods().iter().map(|pod| pod.ledger.in_flight()).sum::<u64>() == 1_000
    })
    .await;
    let mut shares: Vec<_> = gateway.pods().iter().map(|pod| pod.ledger.in_flight()).collect();
    shares.sort_unstable();
    assert!(shares[0] >= 98 && shares[9] <= 102, "{shares:?}");
    assert_eq!(house.requests_open.load(std::sync::atomic::Ordering::Relaxed), 1_000);
    open.iter().for_each(tokio::task::JoinHandle::abort);
    gateway.quiet().await;
}

#[tokio::test]
async fn a_request_that_the_pod_answers_with_an_error_is_passed_on_and_counted() {
    let error = r#"{"error":{"message":"max_tokens is too large","type":"BadRequestError","param":null,"code":400}}"#;
    let pod = RawPod::answering(whole_json(error).replacen("200 OK", "400 Bad Request", 1)).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-refused")), (400, None));
    assert_eq!(reply.text().await, error);
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_requests_total", &["code=\"400\""]).await, 1.0);
    let shown: Value = gateway.admin_json("/debug/fleet").await;
    assert_ne!(shown["pools"][0]["pods"][0]["condition"], "ejected");
}

#[tokio::test]
async fn a_whole_answer_that_takes_long_does_not_count_as_waiting_for_its_first_token_all_the_time() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat("hello", 8).begin(gateway.addr);
    let mut asked = pod.asked().await;
    let ledger = || gateway.pods()[0].ledger.unstarted();
    eventually("its prefill to be over, by what is believed of the pod", || ledger() == 0).await;
    assert_eq!(gateway.pods()[0].ledger.in_flight(), 1);
    asked.say(whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
    gateway.quiet().await;
}
