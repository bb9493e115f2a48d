//! Clients that leave: the pod stops at once, whatever it was doing, and nothing stays counted.

use std::time::Duration;

use crate::harness::{Client, Gateway, RawPod, Reply, SimPod, chat, chat_stream, eventually, sse_head};

/// How many leave in each way.
const KILLS: usize = 12;

/// `KILLS` clients ask, wait until the pod works on all of them, and leave.
async fn leave_while_the_pod_works(h2: bool, stream: bool) {
    let pod = SimPod::slow().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let shared = Client::h2(gateway.addr).await;
    let mut kept = Vec::new();
    for nth in 0..KILLS {
        let prompt = format!("{nth} a long prompt ").repeat(200);
        let call = if stream { chat_stream(&prompt, 200) } else { chat(&prompt, 200) };
        let to = gateway.addr;
        if h2 {
            kept.push(tokio::spawn(shared.ask_later(call)));
        } else {
            kept.push(tokio::spawn(async move {
                let reply = Client::h1(to).await.send(call).await;
                _ = reply.collected().await;
            }));
        }
    }
    eventually("the pod to work on all", || pod.state().live == KILLS).await;
    assert_eq!(gateway.counted("tidegate_requests_open", &[]).await, KILLS as f64);
    for client in &kept {
        client.abort();
    }
    eventually("as many aborts as kills", || pod.state().aborts == KILLS as u64).await;
    eventually("an idle pod", || {
        let state = pod.state();
        state.live + state.running + state.waiting == 0
    })
    .await;
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, KILLS as f64);
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
    // A stream's head was told before the client left; a whole answer's was not.
    let code = if stream { "code=\"200\"" } else { "code=\"499\"" };
    assert_eq!(gateway.counted("tidegate_requests_total", &[code]).await, KILLS as f64);
    assert_eq!(pod.state().served, 0);
    drop(shared);
    assert_eq!(gateway.stop(Duration::ZERO).await.cut, 0);
}

#[tokio::test]
async fn whole_answers_over_http1() {
    leave_while_the_pod_works(false, false).await;
}

#[tokio::test]
async fn streams_before_their_first_event_over_http1() {
    leave_while_the_pod_works(false, true).await;
}

#[tokio::test]
async fn whole_answers_over_http2() {
    leave_while_the_pod_works(true, false).await;
}

#[tokio::test]
async fn streams_before_their_first_event_over_http2() {
    leave_while_the_pod_works(true, true).await;
}

/// `KILLS` clients read the first events of their streams and leave.
async fn leave_mid_stream(h2: bool) {
    let pod = SimPod::start().await;
    pod.faults().change(|faults| faults.slow = 5.0);
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut shared = Client::h2(gateway.addr).await;
    let mut replies: Vec<Reply> = Vec::new();
    for nth in 0..KILLS {
        let call = chat_stream(&format!("{nth}"), 20_000);
        let mut reply = if h2 { shared.ask(call).await.unwrap() } else { call.send(gateway.addr).await };
        reply.piece().await.unwrap().unwrap();
        reply.piece().await.unwrap().unwrap();
        replies.push(reply);
    }
    assert_eq!(pod.state().live, KILLS);
    drop(replies);
    eventually("as many aborts as kills", || pod.state().aborts == KILLS as u64).await;
    eventually("an idle pod", || pod.state().live == 0 && pod.state().running == 0).await;
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_aborts_total", &["reason=\"relaying\""]).await, KILLS as f64);
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
    if h2 {
        let after = shared.ask(chat("still here?", 1)).await.unwrap();
        assert_eq!(after.status(), 200, "leaving one stream leaves the connection alone");
    }
}

#[tokio::test]
async fn mid_stream_over_http1() {
    leave_mid_stream(false).await;
}

#[tokio::test]
async fn mid_stream_over_http2() {
    leave_mid_stream(true).await;
}

#[tokio::test]
async fn a_client_that_leaves_right_after_the_last_event_has_its_whole_answer() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat_stream("hi", 1).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let mut reply = reply.await.unwrap();
    asked.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n").await;
    reply.piece().await.unwrap().unwrap();
    drop(reply);
    asked.abandoned().await;
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, 0.0, "SDKs leave at [DONE]");
}

#[tokio::test]
async fn a_client_that_stops_reading_stops_its_pod() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat_stream("hi", 1).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let reply = reply.await.unwrap();
    // Nobody reads `reply`. What fits the sockets' buffers goes on, and then the pod has to wait.
    let event = format!("data: {}\n\n", "x".repeat(64 << 10));
    let flood = async {
        for _ in 0..2_000 {
            asked.chunk(&event).await;
        }
    };
    let stalled = tokio::time::timeout(Duration::from_secs(2), flood).await.is_err();
    assert!(stalled, "128 MB were taken from the pod for a client that reads nothing");
    drop(reply);
    asked.abandoned().await;
    gateway.quiet().await;
}
