//! A full pool refuses what is sheddable and nothing else, at both doors, and takes it again as soon as requests end; and
//! what headers say of objectives and models is heard where it is trusted, and nowhere else.

use std::{fs, net::SocketAddr};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate::{
    clock,
    fleet::Saturation,
    gateway::wire::{Mutation, Reply},
    sim::PodConfig,
};
use tokio::task::JoinHandle;

use super::harness::{
    Call, Gateway, SimPod, chat_stream,
    envoy::{Choice, Envoy, Talk, answer_body, answer_head, body, head},
    eventually, within,
};

const OBJECTIVE: &str = "x-llm-d-inference-objective";
const OBJECTIVE_BEFORE: &str = "x-gateway-inference-objective";
const SERVED_AS: &str = "x-llm-d-model-name-rewrite";
const SERVED_AS_BEFORE: &str = "x-gateway-model-name-rewrite";

/// `later` may be shed and `now` may not; the `later` of another namespace has another pool.
const OBJECTIVES: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: { name: pods }
spec: { targetPorts: [{ number: 8000 }], selector: { matchLabels: { app: vllm } } }
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: { name: later }
spec: { priority: -5, poolRef: { name: pods } }
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: { name: now }
spec: { priority: 3, poolRef: { name: pods } }
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: { name: others, namespace: elsewhere }
spec: { targetPorts: [{ number: 8000 }], selector: { matchLabels: { app: vllm } } }
---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: { name: others-later, namespace: elsewhere }
spec: { priority: -5, poolRef: { name: others } }
";

/// One pod behind three doors: for clients, for clients that are trusted, and for Envoy.
struct House {
    gateway: Gateway,
    pod: SimPod,
    trusted: SocketAddr,
    picker: SocketAddr,
    _manifests: TempDir,
}

impl House {
    /// Of the pod, `batch` requests run at once.
    async fn with(batch: usize) -> Self {
        Self::that(batch, "").await
    }

    /// The same, with this in its configuration.
    async fn that(batch: usize, also: &str) -> Self {
        let mut like = PodConfig::new("m").adapters(&["a", "b"]).time_scale(0.1);
        like.engine.max_num_seqs = batch;
        let (pod, manifests) = (SimPod::like(like).await, tempfile::tempdir().unwrap());
        fs::write(manifests.path().join("objectives.yaml"), OBJECTIVES).unwrap();
        let plan = Gateway::over([pod.endpoint(), "{ inferencePool: { name: pods } }".to_owned()])
            .listener("{ name: trusted, address: 127.0.0.1:0, trust_headers: true }")
            .listener("{ name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: { secure: false } }")
            .models(&[
                "{ modelName: m, poolRef: pods }",
                "{ modelName: batch, poolRef: pods, criticality: Sheddable, targetModels: [{ name: m }] }",
                "{ modelName: vip, poolRef: pods, criticality: Critical, targetModels: [{ name: m }] }",
                "{ modelName: split, poolRef: pods, targetModels: [{ name: a }, { name: b }] }",
            ])
            .yaml(&format!("kubernetes: {{ manifests: {} }}", manifests.path().display()))
            .yaml(also);
        let gateway = plan.start().await;
        gateway.sees_all_pods().await;
        let [_, (_, trusted), (_, picker)] = gateway.running.listeners[..] else { panic!("three doors") };
        Self { gateway, pod, trusted, picker, _manifests: manifests }
    }

    /// The same, with more to do than its slow pod can; what is there stays for as long as the tasks.
    async fn full() -> (Self, Leaving) {
        Self::full_that("").await
    }

    async fn full_that(also: &str) -> (Self, Leaving) {
        let house = Self::that(2, also).await;
        house.pod.faults().change(|faults| faults.slow = 50.0);
        let there = (0..6).map(|_| tokio::spawn(chat_stream("x", 2_000).send(house.gateway.addr)));
        let there = Leaving(there.map(|reply| tokio::spawn(async { reply.await.unwrap().text().await })).collect());
        eventually("a full pool", || house.saturation() >= 1.0).await;
        (house, there)
    }

    fn saturation(&self) -> f64 {
        let pool = self.gateway.running.house.fleet.pool("pods").unwrap();
        Saturation::of(&pool, &pool.pods(), "m", clock::now()).unwrap().level
    }

    fn in_flight(&self) -> u64 {
        self.gateway.pods()[0].ledger.in_flight()
    }

    /// Sends a request for a stream, waits until it is at the pod, and leaves.
    async fn gets_a_pod(&self, door: SocketAddr, call: Call) {
        let before = self.in_flight();
        let there = Leaving(vec![tokio::spawn(async move { call.send(door).await.text().await })]);
        eventually("a place on the pod", || self.in_flight() > before).await;
        drop(there);
        eventually("its place to be free", || self.in_flight() == before).await;
    }

    /// What Envoy is told of a request with these headers besides.
    async fn asked(&self, model: &str, headers: &[(&str, &str)]) -> (Choice, Talk) {
        let mut fields =
            vec![(":method", "POST"), (":path", "/v1/chat/completions"), ("content-type", "application/json")];
        fields.extend(headers);
        let mut talk = Envoy::connect(self.picker).await.talk().await;
        talk.say(head(&fields, false));
        talk.say(body(of(model).to_string(), true));
        (talk.choice().await, talk)
    }
}

/// Clients that leave when this is dropped.
struct Leaving(Vec<JoinHandle<String>>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

fn of(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1, "stream": true})
}

fn chat_of(model: &str) -> Call {
    Call::post("/v1/chat/completions", of(model).to_string())
}

#[tokio::test]
async fn a_full_pool_refuses_the_sheddable_at_both_doors_and_nobody_else() {
    let (house, _there) = House::full().await;
    let main = house.gateway.addr;
    let reply = chat_of("batch").send(main).await;
    assert_eq!(reply.header("x-tidegate-refused"), Some("saturated"));
    let pause: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&pause), "{pause}");
    let error = reply.error(429).await;
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("overloaded")));
    let reply = Call::post("/v1/messages", of("batch").to_string()).send(main).await;
    assert_eq!(reply.status(), 429);
    let body = reply.json().await;
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("rate_limit_error")));
    for model in ["m", "vip"] {
        house.gets_a_pod(main, chat_of(model)).await;
    }

    let (choice, _talk) = house.asked("batch", &[]).await;
    assert_eq!((choice.status, choice.error()["code"].as_str()), (429, Some("overloaded")));
    assert_eq!(choice.header("x-llm-d-request-dropped-reason"), Some("rejected-saturated"));
    assert!(choice.header("retry-after").is_some());
    for model in ["m", "vip"] {
        let (choice, _talk) = house.asked(model, &[]).await;
        assert_eq!(choice.pod(), house.gateway.pods()[0].address().to_string());
    }

    let shed = ["pool=\"pods\"", "reason=\"saturated\""];
    assert_eq!(house.gateway.counted("tidegate_shed_requests_total", &shed).await, 3.0);
    assert!(house.gateway.counted("tidegate_pool_saturation", &["pool=\"pods\""]).await >= 1.0);
}

#[tokio::test]
async fn an_objective_counts_where_its_header_is_trusted_and_outranks_the_model() {
    let (house, _there) = House::full().await;
    let (main, trusted) = (house.gateway.addr, house.trusted);
    house.gets_a_pod(main, chat_of("m").header(OBJECTIVE, "later")).await;
    assert_eq!(chat_of("batch").header(OBJECTIVE, "now").send(main).await.status(), 429, "clients are not believed");
    for (model, headers, refused) in [
        ("m", &[(OBJECTIVE, "later")][..], true),
        ("m", &[(OBJECTIVE_BEFORE, "later")], true),
        ("vip", &[(OBJECTIVE, "later")], true),
        ("m", &[(OBJECTIVE, "now"), (OBJECTIVE_BEFORE, "later")], false),
        ("batch", &[(OBJECTIVE, "now")], false),
        ("m", &[(OBJECTIVE, "others-later")], false),
        ("m", &[(OBJECTIVE, "nobody")], false),
        ("batch", &[(OBJECTIVE, "nobody")], true),
    ] {
        let call = headers.iter().fold(chat_of(model), |call, (name, value)| call.header(name, value));
        let (choice, talk) = house.asked(model, headers).await;
        assert_eq!(choice.status == 429, refused, "{model} {headers:?}: {choice:?}");
        drop(talk);
        if refused {
            assert_eq!(call.send(trusted).await.status(), 429, "{model} {headers:?}");
        } else {
            eventually("Envoy's place to be free", || house.in_flight() == 6).await;
            house.gets_a_pod(trusted, call).await;
        }
    }
}

#[tokio::test]
async fn it_takes_the_sheddable_again_when_requests_end_though_its_page_stands_still() {
    let (house, there) = House::full().await;
    assert_eq!(chat_of("batch").send(house.gateway.addr).await.status(), 429);
    house.pod.faults().change(|faults| faults.stale_metrics = true);
    drop(there);
    eventually("a pool that is not full", || house.saturation() < 1.0).await;
    house.pod.faults().change(|faults| faults.slow = 1.0);
    // Its pages go on saying that 6 are there, and those are not taken for others'.
    let read = house.gateway.counted("tidegate_scrapes_total", &[]).await;
    while house.gateway.counted("tidegate_scrapes_total", &[]).await < read + 2.0 {
        tokio::task::yield_now().await;
    }
    assert!(house.saturation() < 1.0);
    assert_eq!(chat_of("batch").send(house.gateway.addr).await.status(), 200);
}

#[tokio::test]
async fn a_pod_whose_page_never_comes_again_keeps_nobody_waiting() {
    let (house, there) = House::full_that("waiting: { timeout: 30s }").await;
    house.pod.faults().change(|faults| faults.slow_metrics_ms = 3_600_000);
    let waiting = || house.gateway.running.house.waiting.len();
    let replies: Vec<_> = (0..6).map(|_| chat_of("m").begin(house.gateway.addr)).collect();
    eventually("they wait", || waiting() == 6).await;
    drop(there);
    house.pod.faults().change(|faults| faults.slow = 1.0);
    for reply in replies {
        let reply = within("its answer", reply).await.unwrap();
        assert_eq!(reply.status(), 200);
        reply.text().await;
    }
    assert_eq!(waiting(), 0);
    house.gateway.quiet().await;
}

#[tokio::test]
async fn explain_says_how_full_it_is_and_what_that_means() {
    let (house, _there) = House::full().await;
    let explained = async |model: &str, query: &str| {
        let call = Call::post(&format!("/debug/explain?{query}"), of(model).to_string());
        call.send(house.gateway.admin()).await.json().await
    };
    let batch = explained("batch", "").await;
    assert!(batch["saturation"].as_f64().unwrap() >= 1.0 && batch["wait_ms"].as_f64().unwrap() >= 1_000.0, "{batch}");
    assert_eq!((&batch["priority"], &batch["shed"]), (&json!(-1), &json!(true)));
    let other = explained("m", "").await;
    assert_eq!((&other["priority"], &other["shed"]), (&json!(0), &json!(false)));
    let later = explained("m", "listener=trusted&objective=later").await;
    assert_eq!((&later["priority"], &later["shed"]), (&json!(-5), &json!(true)));
    assert_eq!(explained("m", "listener=main&objective=later").await["shed"], false);
}

#[tokio::test]
async fn a_model_that_the_gateway_names_is_asked_for_and_the_answer_has_the_clients_name() {
    let house = House::with(8).await;
    for (model, headers, served) in [
        ("split", &[(SERVED_AS, "m")][..], "m"),
        ("m", &[(SERVED_AS_BEFORE, "a")], "a"),
        ("m", &[(SERVED_AS, "b"), (SERVED_AS_BEFORE, "a")], "b"),
        ("nobody-knows", &[(SERVED_AS, "a")], "a"),
    ] {
        let (choice, mut talk) = house.asked(model, headers).await;
        choice.pod();
        assert!(headers.iter().all(|(name, _)| choice.removed.iter().any(|it| it == name)), "{choice:?}");
        let sent: Value = serde_json::from_slice(&talk.body().await).unwrap();
        assert_eq!(sent["model"], served, "{model} {headers:?}");
        talk.say(answer_head("200", "application/json", false));
        talk.hear().await.unwrap();
        talk.say(answer_body(json!({"model": served, "choices": []}).to_string(), true));
        let Some(Reply::ResponseBody(piece)) = talk.hear().await.unwrap().reply else { panic!("a piece") };
        let Some(Mutation::Streamed(piece)) = piece.response.unwrap().body_mutation.unwrap().mutation else { panic!() };
        let answer: Value = serde_json::from_slice(&piece.body).unwrap();
        assert_eq!(answer["model"], model);
    }
    let whole = |model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
        Call::post("/v1/chat/completions", body.to_string()).header(SERVED_AS, "a")
    };
    let served = |house: &House| {
        let body: Value = serde_json::from_str(&house.pod.state().last.last().unwrap().body).unwrap();
        body["model"].clone()
    };
    assert_eq!(whole("m").send(house.trusted).await.json().await["model"], "m");
    assert_eq!(served(&house), "a");
    assert_eq!(whole("m").send(house.gateway.addr).await.status(), 200);
    assert_eq!(served(&house), "m", "clients are not believed");
    assert_eq!(whole("nobody-knows").send(house.gateway.addr).await.status(), 404);
}
