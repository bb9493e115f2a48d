//! Stopping: what runs may end, what does not end in time is cut and counted, and nothing is left behind.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::harness::{Call, Client, Gateway, RawPod, SimPod, chat, chat_stream, eventually, sse_head, whole_json};

/// Far longer than these tests take.
const GRACE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_stop_lets_every_open_request_end() {
    let pod = SimPod::start().await;
    pod.faults().change(|faults| faults.slow = 5.0);
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut shared = Client::h2(gateway.addr).await;
    let mut replies = Vec::new();
    for nth in 0..5 {
        replies.push(chat_stream(&nth.to_string(), 100).send(gateway.addr).await);
        replies.push(shared.ask(chat_stream(&nth.to_string(), 100)).await.unwrap());
    }
    let whole = chat("whole", 100).begin(gateway.addr);
    eventually("all at the pod", || pod.state().live == 11).await;
    let to = gateway.addr;
    let stopped = tokio::spawn(gateway.stop(GRACE));
    for reply in replies {
        let text = reply.text().await;
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("error"), "{text}");
    }
    assert_eq!(whole.await.unwrap().json().await["usage"]["completion_tokens"], 100);
    assert_eq!(stopped.await.unwrap().cut, 0);
    assert_eq!((pod.state().served, pod.state().aborts), (11, 0));
    assert!(TcpStream::connect(to).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_does_not_end_within_the_grace_is_cut_and_counted() {
    let pod = SimPod::slow().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut replies = Vec::new();
    for nth in 0..3 {
        replies.push(chat_stream(&nth.to_string(), 10_000).send(gateway.addr).await);
    }
    eventually("all at the pod", || pod.state().live == 3).await;
    let stopped = gateway.stop(Duration::from_millis(50)).await;
    assert_eq!(stopped.cut, 3);
    for reply in replies {
        let text = reply.text().await;
        assert!(text.contains("stream_cut"), "a cut stream must be told so: {text}");
    }
    eventually("the pod to stop", || pod.state().aborts == 3).await;
}

#[tokio::test]
async fn a_stream_whose_pod_always_has_more_is_told_of_the_stop() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat_stream("hi", 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let event = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let events = format!("{:x}\r\n{event}\r\n", event.len()).repeat(100);
    let flood = async { while asked.try_say(&events, GRACE).await {} };
    let text = async { reply.await.unwrap().text().await };
    let ((), text, stopped) = tokio::join!(flood, text, gateway.stop(Duration::from_millis(50)));
    assert!(text.contains("stream_cut"), "{} bytes", text.len());
    assert_eq!(stopped.cut, 1);
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_stop() {
    // Neither a client's that waits for its next request nor one to a pod that never closes its own.
    let pod = RawPod::answering(whole_json("{}")).await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { pool_idle: 1h }").start().await;
    let mut h1 = Client::h1(gateway.addr).await;
    let mut h2 = Client::h2(gateway.addr).await;
    let _silent = TcpStream::connect(gateway.addr).await.unwrap();
    assert_eq!(h1.ask(chat("hi", 1)).await.unwrap().text().await, "{}");
    assert_eq!(h2.ask(chat("hi", 1)).await.unwrap().text().await, "{}");
    assert_eq!(gateway.stop(GRACE).await.cut, 0);
    assert!(h1.ask(chat("hi", 1)).await.is_err());
}

#[tokio::test]
async fn a_stopping_gateway_is_not_ready_but_still_serves_for_a_while() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    chat("hi", 1).send(gateway.addr).await.bytes().await;
    assert_eq!(Call::get("/readyz").send(gateway.admin()).await.status(), 200);
    let (to, admin) = (gateway.addr, gateway.admin());
    let (hurry, hurried) = tokio::sync::oneshot::channel::<()>();
    let stopped = tokio::spawn(gateway.running.stop(GRACE, GRACE, async { _ = hurried.await }));
    let not_ready = async { while Call::get("/readyz").send(admin).await.status() != 503 {} };
    crate::harness::within("the probe to fail", not_ready).await;
    assert_eq!(chat("hi", 1).send(to).await.status(), 200);
    let mut open = chat_stream("hi", 100_000).send(to).await;
    open.piece().await.unwrap().unwrap();
    hurry.send(()).unwrap();
    assert_eq!(stopped.await.unwrap().cut, 1, "a second signal ends both waits");
}

#[tokio::test]
async fn kept_connections_are_told_to_go_while_it_stops() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat_stream("hi", 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let reply = reply.await.unwrap();
    let to = gateway.addr;
    let stopped = tokio::spawn(gateway.stop(GRACE));
    // The listener is gone while the stream goes on.
    let closed = async { while TcpStream::connect(to).await.is_ok() {} };
    crate::harness::within("the listener to close", closed).await;
    asked.chunk("data: {\"choices\":[]}\n\ndata: [DONE]\n\n").await;
    asked.say("0\r\n\r\n").await;
    assert!(reply.text().await.ends_with("[DONE]\n\n"));
    assert_eq!(stopped.await.unwrap().cut, 0);
}
