//! No pod is ready: requests wait, bounded and in order, and go on as soon as one is.

use std::{fs, path::PathBuf, time::Duration};

use tidegate::{
    sim::{Pod, PodConfig},
    tasks::Tasks,
};

use crate::harness::{
    Call, Client, Gateway, Plan, RawClient, RawPod, SimPod, chat, chat_stream, eventually, refusing_endpoint,
    whole_json, within,
};

const WAITING: &str = "waiting: { timeout: 15s }";

/// A pool whose pods stand in a file, which lists none yet.
struct Listed {
    _folder: tempfile::TempDir,
    file: PathBuf,
}

impl Listed {
    fn none() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pods.yaml");
        fs::write(&file, "[]").unwrap();
        Self { _folder: folder, file }
    }

    fn plan(&self) -> Plan {
        Gateway::over([format!("{{ file: {} }}", self.file.display())])
    }

    fn list(&self, pods: &[&SimPod]) {
        let lines: String = pods.iter().map(|pod| format!("- url: {}\n", pod.url())).collect();
        let new = self.file.with_extension("new");
        fs::write(&new, lines).unwrap();
        fs::rename(new, &self.file).unwrap();
    }
}

#[tokio::test]
async fn requests_wait_through_a_gap_without_pods_and_then_all_succeed() {
    let listed = Listed::none();
    let gateway = listed.plan().yaml(WAITING).start().await;
    let pods = [SimPod::start().await, SimPod::start().await];
    let house = std::sync::Arc::clone(&gateway.running.house);
    let mut asked = Vec::new();
    for nth in 0..100 {
        asked.push(chat(&format!("{nth}"), 5).begin(gateway.addr));
    }
    eventually("all in line", || house.waiting.len() == 100).await;
    assert_eq!(gateway.counted("tidegate_waiting_requests", &["pods"]).await, 100.0);
    listed.list(&[&pods[0], &pods[1]]);
    for reply in asked {
        let reply = reply.await.unwrap();
        assert_eq!(reply.status(), 200);
        reply.bytes().await;
    }
    let served = pods.each_ref().map(|pod| pod.state().served);
    assert_eq!(served[0] + served[1], 100);
    assert!(served.iter().all(|served| *served >= 30), "the burst was spread as any other: {served:?}");
    assert_eq!(gateway.counted("tidegate_waited_seconds_count", &["served"]).await, 100.0);
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_waiting_requests", &[]).await, 0.0);
}

#[tokio::test]
async fn who_lost_the_race_for_a_kept_connection_and_then_reached_nobody_waits_for_the_pod_to_return() {
    let mut pod = RawPod::start().await;
    let (addr, gateway) = (pod.addr, Gateway::over([pod.endpoint()]).yaml(WAITING).start().await);
    let first = chat("hi", 1).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(whole_json("{}")).await;
    first.await.unwrap().bytes().await;
    asked.keep_alive();
    // The kept connection is closed as its next request is read, and nobody listens any more.
    drop(pod);
    let closed = async { while tokio::net::TcpStream::connect(addr).await.is_ok() {} };
    within("the listener to close", closed).await;
    let reply = chat("hi", 1).begin(gateway.addr);
    let house = std::sync::Arc::clone(&gateway.running.house);
    eventually("it waits", || house.waiting.len() == 1).await;
    let _again = RawPod::answering_at(addr, whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_pod_that_comes_back_where_it_was_gets_those_who_waited_for_it() {
    let pod = Pod::start(PodConfig::new("m").time_scale(0.1), ([127, 0, 0, 1], 0).into(), &Tasks::new()).await.unwrap();
    let address = pod.addr();
    let gateway = Gateway::over([format!("{{ url: \"{}\" }}", pod.url())]).yaml(WAITING).start().await;
    assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    pod.stop().await;
    // At once, before anybody noticed, and after.
    let early = chat("early", 1).begin(gateway.addr);
    let house = std::sync::Arc::clone(&gateway.running.house);
    eventually("it waits", || house.waiting.len() == 1).await;
    let ejected = || gateway.pods()[0].condition(tidegate::clock::now()).name() == "ejected";
    eventually("it is noticed", ejected).await;
    let late = chat("late", 1).begin(gateway.addr);
    eventually("both wait", || house.waiting.len() == 2).await;
    let tasks = Tasks::new();
    let _again = Pod::start(PodConfig::new("m").time_scale(0.1), address, &tasks).await.unwrap();
    assert_eq!(early.await.unwrap().status(), 200);
    assert_eq!(late.await.unwrap().status(), 200);
    tasks.stop();
}

#[tokio::test]
async fn an_adapter_that_no_pod_has_yet_is_waited_for_and_an_unknown_model_is_not() {
    let listed = Listed::none();
    let models = ["{ modelName: m, poolRef: pods }", "{ modelName: c, poolRef: pods }"];
    let gateway = listed.plan().models(&models).yaml(WAITING).start().await;
    let without = SimPod::start().await;
    listed.list(&[&without]);
    eventually("the pod's models", || gateway.pods().iter().any(|pod| pod.serves("c") == Some(false))).await;
    let call = |model: &str| {
        let body = format!("{{\"model\":\"{model}\",\"prompt\":\"hi\",\"max_tokens\":1}}");
        Call::post("/v1/completions", body)
    };
    let waiting = call("c").begin(gateway.addr);
    let house = std::sync::Arc::clone(&gateway.running.house);
    eventually("it waits", || house.waiting.len() == 1).await;
    assert_eq!(call("m").send(gateway.addr).await.status(), 200, "who waits for another model is no obstacle");
    assert_eq!(call("nobody").send(gateway.addr).await.error(404).await["code"], "model_not_found");
    let with = SimPod::like(PodConfig::new("m").adapters(&["c"]).time_scale(0.1)).await;
    listed.list(&[&without, &with]);
    assert_eq!(waiting.await.unwrap().status(), 200);
}

#[tokio::test]
async fn who_waited_in_vain_is_told_when_to_come_again() {
    let listed = Listed::none();
    let gateway = listed.plan().yaml("waiting: { timeout: 100ms }").start().await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    assert_eq!(reply.header("retry-after"), Some("10"), "nothing was measured yet");
    assert_eq!(reply.header("x-tidegate-refused"), Some("no_pod_in_time"));
    let error = reply.error(503).await;
    assert_eq!(error["code"], "no_ready_pod");
    assert!(error["message"].as_str().unwrap().contains("within 100"), "{error}");
    assert_eq!(gateway.counted("tidegate_waited_seconds_count", &["expired"]).await, 1.0);
    gateway.quiet().await;
}

#[tokio::test]
async fn one_too_many_is_refused_at_once_and_who_leaves_makes_room() {
    let listed = Listed::none();
    let gateway = listed.plan().yaml("waiting: { timeout: 15s, requests: 1 }").start().await;
    let house = std::sync::Arc::clone(&gateway.running.house);
    let mut first = RawClient::connect(gateway.addr).await;
    let body = "{\"model\":\"m\",\"prompt\":\"hi\"}";
    let length = body.len();
    first.say(format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")).await;
    eventually("it waits", || house.waiting.len() == 1).await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    assert_eq!(reply.header("x-tidegate-refused"), Some("line_full"));
    reply.error(503).await;
    drop(first);
    eventually("it has left", || house.waiting.is_empty()).await;
    assert_eq!(gateway.counted("tidegate_waited_seconds_count", &["left"]).await, 1.0);
    let client = Client::h2(gateway.addr).await;
    let second = tokio::spawn(client.ask_later(chat_stream("hi", 1)));
    eventually("another waits", || house.waiting.len() == 1).await;
    second.abort();
    eventually("it has left as well", || house.waiting.is_empty()).await;
    gateway.quiet().await;
}

#[tokio::test]
async fn whoever_allows_no_further_attempt_does_not_wait_for_a_pod_that_refused() {
    let witness = RawPod::start().await;
    let (refusing, _reserved) = refusing_endpoint(&witness);
    let gateway = Gateway::over([refusing]).yaml(WAITING).yaml("retry: { attempts: 0 }").start().await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    assert_eq!(reply.header("x-tidegate-refused"), Some("upstream_unreachable"));
}

#[tokio::test]
async fn a_stop_does_not_wait_for_those_who_wait() {
    let listed = Listed::none();
    let gateway = listed.plan().yaml(WAITING).start().await;
    let house = std::sync::Arc::clone(&gateway.running.house);
    let waiting = chat("hi", 1).begin(gateway.addr);
    eventually("it waits", || house.waiting.len() == 1).await;
    assert_eq!(gateway.stop(Duration::from_millis(50)).await.cut, 1);
    assert_eq!(waiting.await.unwrap().error(503).await["code"], "stopping");
}
