//! Any mixture of success, error and leaving, at once, over both protocols: afterwards everything is counted back to
//! exactly zero, at the gateway and at the pods, and no task is left.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::json;

use crate::harness::{Call, Client, Gateway, SimPod, eventually};

/// What one client of a mixture does.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Whole,
    Stream,
    LeavesAtOnce,
    LeavesMidStream,
    UnknownModel,
    Malformed,
    /// The pod answers an error.
    Fails,
    /// The pod cuts the stream.
    Cut,
    /// The pod says nothing in time.
    Hangs,
}

fn fates() -> impl Strategy<Value = Vec<(Fate, bool)>> {
    use Fate::{Cut, Fails, Hangs, LeavesAtOnce, LeavesMidStream, Malformed, Stream, UnknownModel, Whole};
    let fate = prop::sample::select(vec![
        Whole,
        Stream,
        LeavesAtOnce,
        LeavesMidStream,
        UnknownModel,
        Malformed,
        Fails,
        Cut,
        Hangs,
    ]);
    prop::collection::vec((fate, any::<bool>()), 1..40)
}

/// A pool for each kind of pod, so that a mixture can be had at once: `m` is well, `fails`, `cut` and `hangs` are not.
async fn live_through(fates: Vec<(Fate, bool)>) {
    let kinds = ["fails", "cut", "hangs"];
    let well = SimPod::start().await;
    let mut plan = Gateway::over([well.endpoint()]).yaml("timeouts: { first_byte: 300ms, idle: 5s }");
    let mut pods = Vec::new();
    let mut models = vec!["{ modelName: m, poolRef: pods }".to_owned()];
    for kind in kinds {
        let pod = SimPod::start().await;
        pod.faults().change(|faults| match kind {
            "fails" => faults.status = Some(500),
            "cut" => faults.cut_mid_stream = Some(3),
            _ => faults.hang_before_headers = true,
        });
        plan = plan.other_pool(kind, &pod.endpoint());
        models.push(format!("{{ modelName: {kind}, poolRef: {kind}, targetModels: [{{ name: m }}] }}"));
        pods.push(pod);
    }
    let gateway = plan.models(&models.iter().map(String::as_str).collect::<Vec<_>>()).start().await;
    let count = fates.len();
    join_all(fates.into_iter().map(|(fate, h2)| live(fate, h2, gateway.addr))).await;
    gateway.quiet().await;
    assert!(gateway.counted("tidegate_requests_total", &[]).await <= count as f64);
    eventually("idle pods", || pods.iter().chain([&well]).all(|pod| pod.state().live == 0)).await;
    let stopped = gateway.stop(Duration::from_secs(5)).await;
    assert_eq!(stopped.cut, 0);
}

async fn live(fate: Fate, h2: bool, to: SocketAddr) {
    let client = if h2 { Client::h2(to).await } else { Client::h1(to).await };
    let model = |model: &str, stream: bool| {
        let body = json!({"model": model, "prompt": "hi", "max_tokens": 20, "stream": stream});
        Call::post("/v1/completions", body.to_string())
    };
    match fate {
        Fate::Whole => {
            // On a machine that is busy elsewhere even a well pod may miss the short deadline of this test.
            let status = client.send(model("m", false)).await.status();
            assert!(status == 200 || status == 504, "{status}");
        }
        Fate::Stream => assert!(client.send(model("m", true)).await.text().await.ends_with("[DONE]\n\n")),
        Fate::LeavesAtOnce => {
            let mut client = client;
            // Given up wherever it is by then: sent, being read, at the pod.
            _ = tokio::time::timeout(Duration::from_millis(3), client.ask(model("m", false))).await;
        }
        Fate::LeavesMidStream => {
            let mut reply = client.send(model("m", true)).await;
            _ = reply.piece().await;
        }
        Fate::UnknownModel => assert_eq!(client.send(model("none", false)).await.status(), 404),
        Fate::Malformed => assert_eq!(client.send(Call::post("/v1/completions", "{")).await.status(), 400),
        Fate::Fails => {
            let status = client.send(model("fails", false)).await.status();
            assert!(status == 500 || status == 503, "{status}");
        }
        Fate::Cut => {
            let reply = client.send(model("cut", true)).await;
            let text = reply.text().await;
            assert!(text.contains("stream_cut") || text.contains("no_ready_pod"), "{text}");
        }
        Fate::Hangs => {
            let status = client.send(model("hangs", false)).await.status();
            assert!(status == 504 || status == 503, "{status}");
        }
    }
}

#[test]
fn any_mixture_of_success_error_and_leaving_counts_back_to_zero() {
    // Each case is a gateway and four pods over real sockets: as many as fit ten seconds.
    let config = Config { cases: 24, failure_persistence: None, max_shrink_iters: 20, ..Config::default() };
    let run = |fates| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(live_through(fates));
        Ok::<(), TestCaseError>(())
    };
    TestRunner::new(config).run(&fates(), run).unwrap();
}
