//! Connections kept to pods, and pods that close them first: nobody but the log may notice.

use crate::harness::{Call, Gateway, RawPod, chat, whole_json};

#[tokio::test]
async fn a_lone_pod_that_closed_its_kept_connection_is_asked_again_over_a_new_one() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let asks = async {
        for _ in 0..3 {
            assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
        }
    };
    let answers = async {
        let mut asked = pod.asked().await;
        asked.say(whole_json("{}")).await;
        asked.keep_alive();
        // The next request's bytes arrive as the pod hangs up, as when its idle timer strikes.
        drop(pod.asked().await);
        for _ in 0..2 {
            let mut asked = pod.asked().await;
            asked.say(whole_json("{}")).await;
            asked.keep_alive();
        }
    };
    tokio::join!(asks, answers);
    assert_eq!(gateway.counted("tidegate_retries_total", &["reuse_race"]).await, 1.0);
    assert_eq!(gateway.counted("tidegate_rejections_total", &[]).await, 0.0);
    gateway.quiet().await;
}

#[tokio::test]
async fn a_pod_restarted_on_its_address_is_used_again_at_once_however_many_connections_were_kept() {
    let pod = RawPod::answering(whole_json("{}")).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    gateway.sees_all_pods().await;
    let calls: Vec<_> = (0..12).map(|_| chat("hi", 1).begin(gateway.addr)).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().status(), 200);
    }
    let addr = pod.addr;
    drop(pod);
    let _again = RawPod::answering_at(addr, whole_json("{}")).await;
    for nth in 0..12 {
        let reply = Call::post("/v1/completions", r#"{"model":"m","prompt":"hi"}"#).send(gateway.addr).await;
        assert_eq!(reply.status(), 200, "request {nth} after the restart");
    }
    gateway.quiet().await;
}

#[tokio::test]
async fn a_pod_that_closes_its_kept_connections_unsaid_costs_no_request_and_no_budget_and_soon_none_is_kept() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("retry: { budget: 0%, budget_floor: 0 }").start().await;
    let asks = async {
        for nth in 0..6 {
            let reply = chat("hi", 1).send(gateway.addr).await;
            assert_eq!(reply.status(), 200, "request {nth}");
            reply.bytes().await;
        }
    };
    let answers = async {
        let mut asked = pod.asked().await;
        asked.say(whole_json("{}")).await;
        asked.keep_alive();
        for _ in 0..3 {
            drop(pod.asked().await);
            let mut asked = pod.asked().await;
            asked.say(whole_json("{}")).await;
            asked.keep_alive();
        }
        for _ in 0..2 {
            let mut asked = pod.asked().await;
            asked.say(whole_json("{}")).await;
            asked.abandoned().await;
        }
    };
    tokio::join!(asks, answers);
    assert_eq!(gateway.counted("tidegate_retries_total", &["reuse_race"]).await, 3.0);
    assert_eq!(gateway.counted("tidegate_retries_denied_total", &[]).await, 0.0);
    gateway.quiet().await;
}
