//! `/v1/responses`: a response lives in the pod that made it, so whoever comes back for it must go there.

use serde_json::{Value, json};

use crate::harness::{Call, Gateway, SimPod};

fn create(previous: Option<&Value>, stream: bool) -> Call {
    let body = json!({"model": "m", "input": "hi", "max_output_tokens": 2, "stream": stream,
                      "previous_response_id": previous});
    Call::post("/v1/responses", body.to_string())
}

fn id_in_stream(text: &str) -> Value {
    let created = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    serde_json::from_str::<Value>(created).unwrap()["response"]["id"].clone()
}

#[tokio::test]
async fn a_response_is_asked_for_where_it_was_made() {
    let pods = [SimPod::start().await, SimPod::start().await, SimPod::start().await];
    let gateway =
        Gateway::over(pods.iter().map(SimPod::endpoint)).yaml("scheduler: { policy: round-robin }").start().await;
    for turn in 0..9 {
        let reply = create(None, turn % 2 == 0).send(gateway.addr).await;
        let id = if turn % 2 == 0 { id_in_stream(&reply.text().await) } else { reply.json().await["id"].clone() };
        let path = format!("/v1/responses/{}", id.as_str().unwrap());
        let again = Call::get(&path).send(gateway.addr).await;
        assert_eq!((again.status(), &again.json().await["id"]), (200, &id));
        let cancelled = Call::post(&format!("{path}/cancel"), "").send(gateway.addr).await;
        assert_eq!((cancelled.status(), cancelled.json().await["status"].as_str()), (200, Some("cancelled")));
    }
    assert!(pods.iter().all(|pod| pod.state().received["/v1/responses"] == 3), "made everywhere");
    gateway.quiet().await;
}

#[tokio::test]
async fn the_next_turn_goes_to_the_pod_that_remembers_the_last() {
    let pods = [SimPod::start().await, SimPod::start().await, SimPod::start().await];
    let gateway =
        Gateway::over(pods.iter().map(SimPod::endpoint)).yaml("scheduler: { policy: round-robin }").start().await;
    let mut last = create(None, false).send(gateway.addr).await.json().await["id"].clone();
    for _ in 0..5 {
        last = create(Some(&last), false).send(gateway.addr).await.json().await["id"].clone();
    }
    let mut asked: Vec<_> = pods.iter().map(SimPod::asked).collect();
    asked.sort_unstable();
    assert_eq!(asked, [0, 0, 6]);
}

#[tokio::test]
async fn a_response_that_nobody_here_made_is_unknown() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let before = pod.asked();
    let reply = Call::get("/v1/responses/resp_unknown").send(gateway.addr).await;
    assert_eq!(reply.header("x-tidegate-refused"), Some("unknown_response"));
    let error = reply.error(404).await;
    assert_eq!(error["code"], "response_not_found");
    Call::post("/v1/responses/resp_unknown/cancel", "").send(gateway.addr).await.error(404).await;
    assert_eq!(pod.asked(), before);
}
