//! Pods that are left alone, and why: those that fail are out for a while, those that say no look slow, and no pod
//! attracts traffic by being fast at not serving it.

use std::{collections::BTreeMap, sync::Arc};

use tidegate::{clock, fleet::Pod};

use crate::harness::{Call, Client, Gateway, RawPod, SimPod, chat, eventually, within};

/// Round robin, so that every pod gets its turn whatever is known of it.
const IN_TURN: &str = "scheduler: { policy: round-robin }";

fn conditions(pods: &[Arc<Pod>]) -> Vec<&'static str> {
    let now = clock::now();
    pods.iter().map(|pod| pod.condition(now).name()).collect()
}

fn count(words: &[&str], word: &str) -> usize {
    words.iter().filter(|it| **it == word).count()
}

/// How the requests of a test ended, by status.
type Ends = BTreeMap<u16, usize>;

async fn ask(gateway: &Gateway, requests: usize) -> Ends {
    let mut ends = Ends::new();
    let mut client = Client::h1(gateway.addr).await;
    for nth in 0..requests {
        let reply = client.ask(chat(&format!("request {nth}"), 1)).await.unwrap();
        *ends.entry(reply.status()).or_default() += 1;
        reply.bytes().await;
    }
    ends
}

/// Of four pods one says the same, at once, to whatever it is asked. (Under the other policies the lab plays it.) The share of requests that it gets once the first
/// forty have come one after the other, and how the later ones ended: eight clients at a time, each with fifty.
async fn black_hole(answer: &str) -> (f64, Ends) {
    let well = [SimPod::start().await, SimPod::start().await, SimPod::start().await];
    let bad = RawPod::answering(answer).await;
    let endpoints = well.iter().map(SimPod::endpoint).chain([bad.endpoint()]);
    let gateway = Gateway::over(endpoints).start().await;
    gateway.sees_all_pods().await;
    ask(&gateway, 40).await;
    let sent = || gateway.pods().iter().map(|pod| pod.ledger.sent()).collect::<Vec<_>>();
    let before = sent();
    let mut ends = Ends::new();
    let clients = (0..8).map(|_| ask(&gateway, 50));
    for each in futures_util::future::join_all(clients).await {
        for (status, many) in each {
            *ends.entry(status).or_default() += many;
        }
    }
    let since: Vec<u64> = sent().iter().zip(&before).map(|(now, before)| now - before).collect();
    gateway.quiet().await;
    (since[3] as f64 / since.iter().sum::<u64>() as f64, ends)
}

fn said(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// One that prices a no, one that passes over whoever said it, and one that looks at no load.
const POLICIES: [&str; 3] = ["least-cost", "least-request", "round-robin"];

#[tokio::test]
async fn a_pod_that_says_no_in_a_millisecond_does_not_become_everybodys_favourite() {
    let queue_full = r#"{"object":"error","message":"The request queue is full.","code":503}"#;
    let overloaded = r#"{"error":"Model is overloaded","error_type":"overloaded"}"#;
    let unknown = r#"{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","code":404}}"#;
    for (status, body) in
        [("503 Service Unavailable", queue_full), ("429 Too Many Requests", overloaded), ("404 Not Found", unknown)]
    {
        let (share, ends) = black_hole(&said(status, body)).await;
        assert!(share <= 0.02, "{share} of all went to {status}");
        assert_eq!(ends, Ends::from([(200, 400)]), "{status}");
    }
}

#[tokio::test]
async fn a_pod_that_fails_in_a_millisecond_is_ejected_and_attracts_nothing_before() {
    for (status, body) in [
        ("500 Internal Server Error", "{}"),
        ("503 Service Unavailable", "words that nobody knows"),
        ("200 OK", ""),
        ("200 OK", "{}"),
    ] {
        let (share, ends) = black_hole(&said(status, body)).await;
        assert!(share <= 0.02, "{share} of all went to {status} {body}");
        assert!(ends[&200] >= 392, "{ends:?} {status} {body}");
    }
}

#[tokio::test]
async fn a_pod_that_answers_nothing_is_ejected_for_it() {
    // Somebody else's server on the pod's port.
    let (bad, well) = (RawPod::answering(said("200 OK", "<html>welcome</html>")).await, SimPod::start().await);
    let gateway = Gateway::over([bad.endpoint(), well.endpoint()]).yaml(IN_TURN).start().await;
    gateway.sees_all_pods().await;
    let ejected = async {
        // It is passed over for a while after each failure.
        while conditions(&gateway.pods())[0] != "ejected" {
            ask(&gateway, 4).await;
        }
    };
    within("the ejection", ejected).await;
    assert_eq!(gateway.counted("tidegate_cuts_total", &["empty_answer"]).await, 5.0);
}

#[tokio::test]
async fn an_answer_of_no_token_that_says_why_is_one() {
    let whole = r#"{"choices":[{"message":{"content":""},"finish_reason":"stop"}]}"#;
    let pod = RawPod::answering(said("200 OK", whole)).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    ask(&gateway, 8).await;
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_pod_that_fails_every_other_request_is_ejected_though_never_five_in_a_row() {
    let (sick, well) = (SimPod::start().await, SimPod::start().await);
    let gateway = Gateway::over([sick.endpoint(), well.endpoint()]).yaml(IN_TURN).start().await;
    gateway.sees_all_pods().await;
    sick.faults().change(|faults| faults.error_rate = 0.5);
    let pods = gateway.pods();
    let ejected = async {
        while conditions(&pods)[0] != "ejected" {
            ask(&gateway, 2).await;
        }
    };
    within("the ejection", ejected).await;
    let seen = gateway.admin_json("/debug/fleet").await;
    assert_eq!(seen["pools"][0]["pods"][0]["ejection"], "failure_share", "{seen}");
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let explained = Call::post("/debug/explain", body).send(gateway.admin()).await.json().await;
    let excluded = &explained["decision"]["candidates"][0]["excluded"];
    assert_eq!(excluded, "ejected: too many failures of late", "{explained}");
}

#[tokio::test]
async fn traffic_alone_ejects_at_most_half_of_a_pool() {
    let mut pods = Vec::new();
    for _ in 0..4 {
        pods.push(SimPod::start().await);
        pods.last().unwrap().faults().change(|faults| faults.error_rate = 1.0);
    }
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint)).yaml(IN_TURN).start().await;
    gateway.sees_all_pods().await;
    let seen = gateway.pods();
    let failing = async {
        while count(&conditions(&seen), "ejected") < 2 {
            ask(&gateway, 4).await;
        }
    };
    within("two ejections", failing).await;
    ask(&gateway, 60).await;
    assert_eq!(count(&conditions(&seen), "ejected"), 2, "{:?}", conditions(&seen));
    let asked = |pod: &SimPod| pod.asked() > 0;
    assert!(pods.iter().all(asked));
    for pod in &pods {
        pod.faults().heal();
    }
    assert_eq!(ask(&gateway, 4).await, Ends::from([(200, 4)]));
}

#[tokio::test]
async fn what_one_listener_and_model_find_out_of_a_pod_holds_for_every_other() {
    let (sick, well) = (SimPod::start().await, SimPod::start().await);
    let gateway = Gateway::over([sick.endpoint(), well.endpoint()])
        .listener("{ name: other, address: 127.0.0.1:0 }")
        .models(&["{ modelName: m, poolRef: pods }", "{ modelName: a, poolRef: pods }"])
        .yaml(IN_TURN)
        .start()
        .await;
    gateway.sees_all_pods().await;
    sick.faults().change(|faults| faults.error_rate = 1.0);
    let pods = gateway.pods();
    let ejected = async {
        while conditions(&pods)[0] != "ejected" {
            ask(&gateway, 2).await;
        }
    };
    within("the ejection", ejected).await;
    let asked = sick.asked();
    let other = gateway.running.listeners[1].1;
    for _ in 0..6 {
        let body = r#"{"model":"a","messages":[{"role":"user","content":"hi"}],"max_tokens":1}"#;
        assert_eq!(Call::post("/v1/chat/completions", body).send(other).await.status(), 200);
    }
    assert_eq!(sick.asked(), asked, "five failures of `m` on one listener were enough for `a` on the other");
}

#[tokio::test]
async fn a_fleet_in_which_every_pod_says_no_stays_in_use() {
    for status in [429, 503] {
        for policy in POLICIES {
            let pods = [SimPod::start().await, SimPod::start().await, SimPod::start().await];
            let gateway = Gateway::over(pods.iter().map(SimPod::endpoint))
                .yaml(&format!("scheduler: {{ policy: {policy} }}"))
                .start()
                .await;
            gateway.sees_all_pods().await;
            for pod in &pods {
                pod.faults().change(|faults| faults.status = Some(status));
            }
            assert_eq!(ask(&gateway, 40).await, Ends::from([(status, 40)]));
            assert_eq!(count(&conditions(&gateway.pods()), "ejected"), 0);
            assert!(pods.iter().all(|pod| pod.asked() > 0), "{policy}: the least bad one is asked, and that changes");
            for pod in &pods {
                pod.faults().heal();
            }
            assert_eq!(ask(&gateway, 4).await, Ends::from([(200, 4)]));
        }
    }
}

#[tokio::test]
async fn a_no_is_a_price_that_can_be_read() {
    let (no, yes) = (SimPod::start().await, SimPod::start().await);
    let gateway = Gateway::over([no.endpoint(), yes.endpoint()]).start().await;
    gateway.sees_all_pods().await;
    no.faults().change(|faults| faults.status = Some(503));
    let pods = gateway.pods();
    while pods[0].health.pushback(clock::now()).is_zero() {
        ask(&gateway, 1).await;
    }
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let explained = Call::post("/debug/explain", body).send(gateway.admin()).await.json().await;
    let candidate = &explained["decision"]["candidates"][0];
    let term = |name: &str| {
        let terms = candidate["terms"].as_array().unwrap();
        terms.iter().find(|it| it["name"] == name).unwrap()["value"].as_f64().unwrap()
    };
    assert!((1.0..=1_000.0).contains(&term("pushback")), "{candidate}");
    assert_eq!(candidate["condition"], "ready");
    let seen = gateway.admin_json("/debug/fleet").await;
    assert!(seen["pools"][0]["pods"][0]["pushback_ms"].as_u64().is_some_and(|ms| ms <= 1_000), "{seen}");
    // It decays by itself.
    eventually("the price to be gone", || pods[0].health.pushback(clock::now()).is_zero()).await;
}
