//! Pods that fail, in every place where one can: who is blamed, what is tried again, what the client is told.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::clock;

use crate::harness::{
    Call, Client, Gateway, RawPod, SimPod, chat, chat_stream, events, eventually, refusing_endpoint, sse_head,
    whole_json,
};

const FIRST_EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

/// Round robin, so that every pod gets its turn whatever is known of it.
const IN_TURN: &str = "scheduler: { policy: round-robin }";

#[tokio::test]
async fn a_pod_that_refuses_connections_is_passed_over() {
    let pod = RawPod::answering(whole_json("{}")).await;
    let (refusing, _reserved) = refusing_endpoint(&pod);
    let gateway = Gateway::over([refusing, pod.endpoint()]).yaml(IN_TURN).start().await;
    let mut attempts = Vec::new();
    for _ in 0..4 {
        let reply = chat("hi", 1).send(gateway.addr).await;
        assert_eq!(reply.status(), 200);
        attempts.push(reply.header("x-tidegate-attempts").map(str::to_owned));
    }
    assert!(attempts.contains(&Some("2".to_owned())), "{attempts:?}");
    assert!(gateway.counted("tidegate_retries_total", &["connection_refused"]).await >= 1.0);
    gateway.quiet().await;
}

#[tokio::test]
async fn when_no_pod_can_be_reached_the_client_is_told_to_come_again() {
    let witness = RawPod::start().await;
    let (one, _reserved) = refusing_endpoint(&witness);
    let (two, _reserved_too) = refusing_endpoint(&witness);
    let gateway = Gateway::over([one, two]).start().await;
    // Until they are ejected, and after.
    for _ in 0..12 {
        let reply = chat("hi", 1).send(gateway.addr).await;
        assert!(reply.header("retry-after").is_some_and(|it| it.parse::<u32>().is_ok()));
        assert!(reply.header("x-tidegate-refused").is_some());
        let error = reply.error(503).await;
        assert_eq!(error["type"], "server_error");
        assert!(!error.to_string().contains("127.0.0.1"), "no pod's address may leave: {error}");
    }
    gateway.quiet().await;
}

#[tokio::test]
async fn a_kept_connection_that_dies_as_it_is_used_is_no_failure() {
    let (mut one, two) = (RawPod::start().await, RawPod::answering(whole_json("{\"pod\":2}")).await);
    let gateway = Gateway::over([one.endpoint(), two.endpoint()]).yaml(IN_TURN).start().await;
    // The first pod answers once and keeps the connection; of the next request it sees the bytes and hangs up.
    let raced = async {
        let mut asked = one.asked().await;
        asked.say(whole_json("{\"pod\":1}")).await;
        asked.keep_alive();
        drop(one.asked().await);
    };
    let ask = async {
        for _ in 0..4 {
            let reply = chat("hi", 1).send(gateway.addr).await;
            assert_eq!(reply.status(), 200);
            let (retried, pod) = (reply.header("x-tidegate-attempts").is_some(), reply.json().await["pod"].clone());
            if retried {
                assert_eq!(pod, 2);
                return;
            }
        }
        panic!("no request met the closed connection");
    };
    tokio::join!(raced, ask);
    assert_eq!(gateway.counted("tidegate_retries_total", &["reuse_race"]).await, 1.0);
}

#[tokio::test]
async fn a_pod_that_dies_on_a_request_is_not_given_another_pods_time() {
    let (mut one, mut two) = (RawPod::start().await, RawPod::start().await);
    let gateway = Gateway::over([one.endpoint(), two.endpoint()]).yaml(IN_TURN).start().await;
    for nth in 0..2 {
        let reply = chat("hi", 1).begin(gateway.addr);
        // A new connection: the pod read the whole request, so it may have run.
        tokio::select! {
            asked = one.asked() => asked.reset(),
            asked = two.asked() => drop(asked),
        }
        let reply = reply.await.unwrap();
        assert_eq!(reply.header("x-tidegate-attempts"), None, "{nth}");
        let error = reply.error(502).await;
        assert_eq!(error["code"], "upstream_failed");
    }
    assert!(!one.asked_again() && !two.asked_again());
    assert_eq!(gateway.counted("tidegate_retries_total", &[]).await, 0.0);
    assert_eq!(gateway.counted("tidegate_attempt_failures_total", &["connection_died"]).await, 2.0);
    gateway.quiet().await;
}

#[tokio::test]
async fn a_kept_connection_that_dies_late_is_a_crash_and_not_tried_again() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let first = chat("hi", 1).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(whole_json("{}")).await;
    first.await.unwrap().bytes().await;
    asked.keep_alive();
    let reply = chat("hi", 1).begin(gateway.addr);
    let asked = pod.asked().await;
    // Past the window in which the pod's idle timer could have been the cause.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(asked);
    reply.await.unwrap().error(502).await;
    assert!(!pod.asked_again());
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_the_pods_fault() {
    for answer in ["SSH-2.0-OpenSSH_9.6\r\n\r\n", "HTTP/1.1 abc OK\r\n\r\n"] {
        let pod = RawPod::answering(answer).await;
        let gateway = Gateway::over([pod.endpoint()]).start().await;
        let error = chat("hi", 1).send(gateway.addr).await.error(502).await;
        assert_eq!(error["code"], "upstream_failed", "{answer}");
    }
}

#[tokio::test]
async fn a_pod_that_switches_protocols_is_not_followed() {
    let pod =
        RawPod::answering("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let error = chat("hi", 1).send(gateway.addr).await.error(502).await;
    assert_eq!(error["code"], "upstream_failed");
}

#[tokio::test]
async fn a_wrong_length_beside_chunks_does_not_cut_the_answer() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
    let pod = RawPod::answering(format!("{head}8\r\n{{\"ok\":1}}\r\n0\r\n\r\n")).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    assert_eq!(reply.header("content-length"), None);
    assert_eq!(reply.text().await, "{\"ok\":1}");
    assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, 0.0);
}

/// The client has seen the first event; the pod dies.
async fn stream_cut_by(break_it: impl FnOnce(crate::harness::Exchange), h2: bool) -> String {
    let (mut one, mut two) = (RawPod::start().await, RawPod::start().await);
    let gateway = Gateway::over([one.endpoint(), two.endpoint()]).start().await;
    let to = gateway.addr;
    let reply = tokio::spawn(async move {
        let client = if h2 { Client::h2(to).await } else { Client::h1(to).await };
        client.send(chat_stream("hi", 9)).await
    });
    let mut asked = tokio::select! { asked = one.asked() => asked, asked = two.asked() => asked };
    asked.say(sse_head()).await;
    asked.chunk(FIRST_EVENT).await;
    let mut reply = reply.await.unwrap();
    assert_eq!(reply.piece().await.unwrap().unwrap(), FIRST_EVENT);
    break_it(asked);
    let rest = reply.text().await;
    assert!(!one.asked_again() && !two.asked_again(), "nothing is tried again after the first byte");
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 1.0);
    assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, 0.0);
    gateway.quiet().await;
    rest
}

fn assert_tells_of_the_cut(rest: &str) {
    let told: Vec<Value> = events(rest).iter().filter_map(|it| serde_json::from_str(it).ok()).collect();
    assert_eq!(told.len(), 1, "{rest}");
    assert_eq!(told[0]["error"]["code"], "stream_cut", "{rest}");
}

#[tokio::test]
async fn a_stream_whose_pod_dies_ends_with_an_error_event() {
    assert_tells_of_the_cut(&stream_cut_by(drop, false).await);
    assert_tells_of_the_cut(&stream_cut_by(crate::harness::Exchange::reset, false).await);
    assert_tells_of_the_cut(&stream_cut_by(drop, true).await);
}

#[tokio::test]
async fn a_stream_without_framing_that_just_stops_ends_with_an_error_event() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat_stream("hi", 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say("HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await;
    asked.say(FIRST_EVENT).await;
    // In the middle of an event: the error must still be an event of its own.
    asked.say("data: {\"choices\":[{\"del").await;
    drop(asked);
    let text = reply.await.unwrap().text().await;
    let last: Value = serde_json::from_str(events(&text)[2]).unwrap();
    assert_eq!(last["error"]["code"], "stream_cut", "{text}");
    assert_eq!(gateway.counted("tidegate_cuts_total", &["no_end"]).await, 1.0);
}

#[tokio::test]
async fn each_dialect_is_told_of_a_cut_in_its_own_words() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    pod.faults().change(|faults| faults.cut_mid_stream = Some(2));
    let cut = async |path: &str, prompt: &str| {
        let body = format!(r#"{{"model":"m","stream":true,"max_tokens":50,"max_output_tokens":50,{prompt}}}"#);
        Call::post(path, body).send(gateway.addr).await.text().await
    };
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let prompt = if path.contains("chat") { messages } else { r#""prompt":"hi""# };
        let text = cut(path, prompt).await;
        assert!(text.contains("data: {\"error\":{"), "{text}");
        assert!(!text.contains("[DONE]"), "that is how a clean end looks: {text}");
    }
    let text = cut("/v1/messages", messages).await;
    let last = text.rsplit("\n\n").nth(1).unwrap();
    assert!(last.starts_with("event: error\ndata: {"), "{text}");
    assert!(last.contains("\"type\":\"api_error\""), "{text}");
    let text = cut("/v1/responses", r#""input":"hi""#).await;
    let last = text.rsplit("\n\n").nth(1).unwrap();
    assert!(last.starts_with("event: response.failed\ndata: {"), "{text}");
    assert!(!text.contains("response.completed"));
    gateway.quiet().await;
}

#[tokio::test]
async fn a_whole_answer_that_breaks_off_never_looks_complete() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"half\":",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{\"half\":\r\n",
    ] {
        for h2 in [false, true] {
            let mut pod = RawPod::start().await;
            let gateway = Gateway::over([pod.endpoint()]).start().await;
            let to = gateway.addr;
            let reply = tokio::spawn(async move {
                let client = if h2 { Client::h2(to).await } else { Client::h1(to).await };
                client.send(chat("hi", 9)).await.collected().await
            });
            let mut asked = pod.asked().await;
            asked.say(head).await;
            drop(asked);
            assert!(reply.await.unwrap().is_err(), "h2: {h2}, {head}");
            gateway.quiet().await;
            assert_eq!(gateway.counted("tidegate_cuts_total", &["connection_died"]).await, 1.0);
        }
    }
}

#[tokio::test]
async fn an_error_in_a_stream_and_an_abort_are_cuts_and_pass_as_they_are() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    pod.faults().change(|faults| faults.error_event = Some(2));
    let text = chat_stream("hi", 9).send(gateway.addr).await.text().await;
    assert!(text.contains("InternalServerError") && !text.contains("stream_cut"), "{text}");
    assert_eq!(gateway.counted("tidegate_cuts_total", &["error_event"]).await, 1.0);
    pod.faults().heal();
    pod.faults().change(|faults| faults.finish_abort = Some(2));
    let text = chat_stream("hi", 9).send(gateway.addr).await.text().await;
    assert!(text.contains("\"finish_reason\":\"abort\"") && !text.contains("stream_cut"), "{text}");
    assert_eq!(gateway.counted("tidegate_cuts_total", &["aborted_by_pod"]).await, 1.0);
    let body = chat("hi", 9).send(gateway.addr).await.json().await;
    assert_eq!(body["choices"][0]["finish_reason"], "abort");
    assert_eq!(gateway.counted("tidegate_cuts_total", &["aborted_by_pod"]).await, 2.0);
}

#[tokio::test]
async fn too_many_requests_is_load_and_not_sickness() {
    for status in [429, 503] {
        let pod = SimPod::start().await;
        let gateway = Gateway::over([pod.endpoint()]).start().await;
        chat("hi", 1).send(gateway.addr).await.bytes().await;
        pod.faults().change(|faults| faults.status = Some(status));
        for _ in 0..20 {
            let reply = chat("hi", 1).send(gateway.addr).await;
            assert_eq!(reply.status(), status);
            assert_eq!(reply.header("x-tidegate-refused"), None, "the pod said it");
            assert!(reply.text().await.contains("try a different instance"));
        }
        assert_eq!(pod.asked(), 21, "none was tried again");
        let now = clock::now();
        assert_eq!(gateway.pods()[0].condition(now).name(), "ready");
        pod.faults().heal();
        assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    }
}

#[tokio::test]
async fn a_pod_that_keeps_failing_is_left_alone() {
    let (sick, well) = (SimPod::start().await, SimPod::start().await);
    let gateway = Gateway::over([sick.endpoint(), well.endpoint()]).yaml(IN_TURN).start().await;
    chat("hi", 1).send(gateway.addr).await.bytes().await;
    chat("hi", 1).send(gateway.addr).await.bytes().await;
    sick.faults().change(|faults| faults.error_rate = 1.0);
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(chat("hi", 1).send(gateway.addr).await.status() == 500);
    }
    assert!((1..=6).contains(&failed), "{failed} of 40 failed");
}

#[tokio::test]
async fn a_pod_that_never_answers_is_given_up() {
    let (one, two) = (SimPod::start().await, SimPod::start().await);
    let gateway = Gateway::over([one.endpoint(), two.endpoint()]).yaml("timeouts: { first_byte: 150ms }").start().await;
    for pod in [&one, &two] {
        pod.faults().change(|faults| faults.hang_before_headers = true);
    }
    let error = chat("hi", 1).send(gateway.addr).await.error(504).await;
    assert_eq!(error["code"], "upstream_timeout");
    assert_eq!(one.asked() + two.asked(), 1, "not tried again: it may be working on it");
    gateway.quiet().await;
}

#[tokio::test]
async fn a_stream_must_begin_in_time_and_may_not_fall_silent() {
    for events_said in [0, 1] {
        let mut pod = RawPod::start().await;
        let gateway =
            Gateway::over([pod.endpoint()]).yaml("timeouts: { first_token: 200ms, idle: 200ms }").start().await;
        let reply = chat_stream("hi", 9).begin(gateway.addr);
        let mut asked = pod.asked().await;
        asked.say(sse_head()).await;
        for _ in 0..events_said {
            asked.chunk(FIRST_EVENT).await;
        }
        let text = reply.await.unwrap().text().await;
        assert_eq!(text.matches(FIRST_EVENT).count(), events_said);
        assert!(text.contains("stream_cut"), "{text}");
        asked.abandoned().await;
        gateway.quiet().await;
        let why = ["first_token_timeout", "idle_timeout"][events_said];
        assert_eq!(gateway.counted("tidegate_cuts_total", &[why]).await, 1.0);
    }
}

#[tokio::test]
async fn a_slow_stream_that_keeps_moving_is_no_silence() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { first_token: 300ms, idle: 300ms }").start().await;
    let reply = chat_stream("hi", 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    // Longer in all than either limit; time must pass here, it is what is tested.
    for _ in 0..8 {
        asked.chunk(FIRST_EVENT).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    asked.chunk("data: [DONE]\n\n").await;
    asked.say("0\r\n\r\n").await;
    let text = reply.await.unwrap().text().await;
    assert_eq!((events(&text).len(), text.contains("stream_cut")), (9, false), "{text}");
}

#[tokio::test]
async fn the_whole_request_may_have_a_limit_too() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { total: 200ms }").start().await;
    chat("hi", 1).send(gateway.addr).await.error(504).await;
    pod.asked().await.abandoned().await;
    let reply = chat_stream("hi", 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let mut moving = tokio::spawn(async move {
        loop {
            asked.chunk(FIRST_EVENT).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let text = reply.await.unwrap().text().await;
    assert!(text.contains("stream_cut"), "{text}");
    moving.abort();
    assert!((&mut moving).await.is_err());
    assert_eq!(gateway.counted("tidegate_cuts_total", &["total_timeout"]).await, 1.0);
}

#[tokio::test]
async fn a_flood_does_not_outrun_the_limit_of_the_whole_request_nor_that_of_the_first_token() {
    for (event, limit, reason) in
        [(FIRST_EVENT, "total", "total_timeout"), (": ping\n\n", "first_token", "first_token_timeout")]
    {
        let mut pod = RawPod::start().await;
        let gateway = Gateway::over([pod.endpoint()]).yaml(&format!("timeouts: {{ {limit}: 200ms }}")).start().await;
        let reply = chat_stream("hi", 9).begin(gateway.addr);
        let mut asked = pod.asked().await;
        asked.say(sse_head()).await;
        let events = format!("{:x}\r\n{event}\r\n", event.len()).repeat(100);
        let flood = async { while asked.try_say(&events, Duration::from_secs(5)).await {} };
        let text = async { reply.await.unwrap().text().await };
        let ((), text) = crate::harness::within("the flood to be cut", async { tokio::join!(flood, text) }).await;
        assert!(text.contains("stream_cut"), "{reason}: {} bytes", text.len());
        assert_eq!(gateway.counted("tidegate_cuts_total", &[reason]).await, 1.0, "{reason}");
    }
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    let pod = RawPod::answering(whole_json("{}")).await;
    let mut endpoints = vec![pod.endpoint()];
    let mut reserved = Vec::new();
    for _ in 0..3 {
        let (endpoint, socket) = refusing_endpoint(&pod);
        endpoints.push(endpoint);
        reserved.push(socket);
    }
    let gateway = Gateway::over(endpoints)
        .yaml("scheduler: { policy: round-robin }\nretry: { attempts: 2, budget: 0%, budget_floor: 0 }")
        .start()
        .await;
    let mut codes = Vec::new();
    for _ in 0..4 {
        codes.push(chat("hi", 1).send(gateway.addr).await.status());
    }
    assert_eq!(codes.iter().filter(|code| **code == 503).count(), 3, "{codes:?}");
    assert_eq!(gateway.counted("tidegate_retries_total", &[]).await, 0.0);
}

#[tokio::test]
async fn at_most_two_further_pods_are_tried() {
    let witness = RawPod::start().await;
    let refusing: Vec<_> = (0..5).map(|_| refusing_endpoint(&witness)).collect();
    let gateway = Gateway::over(refusing.iter().map(|(endpoint, _)| endpoint.clone())).start().await;
    chat("hi", 1).send(gateway.addr).await.error(503).await;
    assert_eq!(gateway.counted("tidegate_attempt_failures_total", &[]).await, 3.0);
    assert_eq!(gateway.counted("tidegate_retries_total", &[]).await, 2.0);
}

#[tokio::test]
async fn a_crash_of_every_pod_and_their_return_leave_nothing_counted() {
    let pods = [SimPod::start().await, SimPod::start().await];
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint)).start().await;
    let mut replies = Vec::new();
    for nth in 0..6 {
        let mut reply = chat_stream(&nth.to_string(), 20_000).send(gateway.addr).await;
        reply.piece().await.unwrap().unwrap();
        replies.push(reply);
    }
    for pod in &pods {
        pod.faults().change(|faults| faults.refuse_connections = true);
    }
    for reply in replies {
        let text = reply.text().await;
        assert!(text.contains("stream_cut"), "{}", text.len());
    }
    gateway.quiet().await;
    assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 503);
    for pod in &pods {
        pod.faults().heal();
    }
    eventually("the pods to be idle", || pods.iter().all(|pod| pod.state().live == 0)).await;
    gateway.quiet().await;
    assert_eq!(json!(gateway.counted("tidegate_cuts_total", &[]).await), json!(6.0));
}
