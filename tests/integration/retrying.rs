//! What is tried again and what is not: by the words with which a pod says that nothing ran, by the operator's word, and
//! never more often than is good for the fleet.

use std::time::Duration;

use tidegate::{clock, fleet::ReportedModel};

use crate::harness::{
    Call, Gateway, RawPod, SimPod, chat, chat_stream, eventually, refusing_endpoint, whole_json, within,
};

/// Round robin, so that every pod gets its turn whatever is known of it.
const IN_TURN: &str = "scheduler: { policy: round-robin }";

/// A whole answer as an engine would give it.
const ANSWER: &str = r#"{"choices":[{"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;

/// What vLLM says when `--max-num-queued-reqs` are waiting.
const QUEUE_FULL: &str = r#"{"error":{"message":"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.","type":"Service Unavailable","param":null,"code":503}}"#;

/// What it says of a model that it does not serve.
const NO_SUCH_MODEL: &str =
    r#"{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":"model","code":404}}"#;

fn said(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_pod_that_says_that_nothing_ran_is_followed_by_another_and_the_client_sees_only_that() {
    for (status, body, reason) in [
        ("503 Service Unavailable", QUEUE_FULL, "queue_full"),
        (
            "503 Service Unavailable",
            r#"{"object":"error","message":"The request queue is full.","code":503}"#,
            "queue_full",
        ),
        ("429 Too Many Requests", r#"{"error":"Model is overloaded","error_type":"overloaded"}"#, "queue_full"),
        (
            "503 Service Unavailable",
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            "not_ready",
        ),
        ("404 Not Found", NO_SUCH_MODEL, "model_unknown"),
    ] {
        let (no, yes) = (RawPod::answering(said(status, body)).await, RawPod::answering(whole_json(ANSWER)).await);
        let gateway = Gateway::over([no.endpoint(), yes.endpoint()]).yaml(IN_TURN).start().await;
        let mut attempts = Vec::new();
        for _ in 0..4 {
            let reply = chat("hi", 1).send(gateway.addr).await;
            assert_eq!(reply.status(), 200, "{body}");
            attempts.push(reply.header("x-tidegate-attempts").map(str::to_owned));
            assert_eq!(reply.text().await, ANSWER);
        }
        assert!(attempts.contains(&Some("2".to_owned())), "{attempts:?}");
        assert!(gateway.counted("tidegate_retries_total", &[reason]).await >= 1.0, "{body}");
        assert!(gateway.counted("tidegate_pod_refusals_total", &[reason]).await >= 1.0, "{body}");
        gateway.quiet().await;
    }
}

#[tokio::test]
async fn words_that_nobody_knows_pass_as_they_are_and_nothing_is_tried_again() {
    for (status, body) in [
        ("503 Service Unavailable", "upstream connect error or disconnect/reset before headers"),
        ("429 Too Many Requests", r#"{"error":{"message":"Rate limit reached"}}"#),
        ("404 Not Found", r#"{"detail":"Not Found"}"#),
        ("502 Bad Gateway", "<html>bad gateway</html>"),
        ("500 Internal Server Error", r#"{"error":{"message":"The request queue is full."}}"#),
    ] {
        let (one, two) = (RawPod::answering(said(status, body)).await, RawPod::answering(said(status, body)).await);
        let gateway = Gateway::over([one.endpoint(), two.endpoint()]).start().await;
        let reply = chat("hi", 1).send(gateway.addr).await;
        assert_eq!(reply.status().to_string(), status[..3]);
        assert_eq!((reply.header("x-tidegate-attempts"), reply.header("x-tidegate-refused")), (None, None));
        assert_eq!(reply.text().await, body);
        assert_eq!(gateway.counted("tidegate_retries_total", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn where_every_pod_says_no_the_client_reads_the_last_ones_own_words() {
    let mut pods = Vec::new();
    for nth in 0..5 {
        pods.push(RawPod::answering(said("503 Service Unavailable", &format!("{QUEUE_FULL} {nth}"))).await);
    }
    let gateway = Gateway::over(pods.iter().map(RawPod::endpoint)).start().await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (503, Some("3")));
    assert_eq!(reply.header("x-tidegate-refused"), None, "a pod said it");
    assert!(reply.text().await.starts_with(QUEUE_FULL));
    assert_eq!(gateway.counted("tidegate_pod_refusals_total", &["queue_full"]).await, 3.0);
    assert_eq!(
        gateway.counted("tidegate_attempt_failures_total", &["queue_full"]).await,
        2.0,
        "the last one is an answer"
    );
    gateway.quiet().await;
}

#[tokio::test]
async fn a_refusal_that_was_read_ahead_passes_byte_for_byte_however_it_comes() {
    // Longer than what is read ahead, in chunks that cut it anywhere, the last of them long after.
    let body = format!("{}{}", "not the words that are looked for, ".repeat(300), QUEUE_FULL);
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat("hi", 1).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say("HTTP/1.1 503 Service Unavailable\r\nretry-after: 3\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let (early, late) = body.split_at(5_000);
    for piece in early.as_bytes().chunks(700) {
        asked.chunk(std::str::from_utf8(piece).unwrap()).await;
    }
    let reply = reply.await.unwrap();
    assert_eq!((reply.status(), reply.header("retry-after")), (503, Some("3")));
    asked.chunk(late).await;
    asked.say("0\r\n\r\n").await;
    assert_eq!(reply.text().await, body);
}

#[tokio::test]
async fn a_pod_that_takes_its_time_to_refuse_does_not_hold_the_client_up() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat("hi", 1).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(format!("HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n", QUEUE_FULL.len())).await;
    asked.say(&QUEUE_FULL[..20]).await;
    // The head is passed on though the body is not over.
    let reply = reply.await.unwrap();
    assert_eq!(reply.status(), 503);
    asked.say(&QUEUE_FULL[20..]).await;
    assert_eq!(reply.text().await, QUEUE_FULL);
}

#[tokio::test]
async fn a_bad_gateway_before_a_pod_that_is_leaving_is_tried_elsewhere() {
    for leaves in [true, false] {
        let (mut one, mut two) = (RawPod::start().await, RawPod::start().await);
        let gateway = Gateway::over([one.endpoint(), two.endpoint()]).start().await;
        let reply = chat("hi", 1).begin(gateway.addr);
        let (mut asked, other) = tokio::select! {
            asked = one.asked() => (asked, &mut two),
            asked = two.asked() => (asked, &mut one),
        };
        if leaves {
            // Discovery no longer lists it.
            let stays: Vec<_> = gateway.pods().iter().map(|pod| pod.target.clone()).collect();
            let stays: Vec<_> = stays.into_iter().filter(|it| it.origin.port == other.addr.port()).collect();
            gateway.running.house.fleet.set("pods", &stays, clock::now());
        }
        asked.say(said("502 Bad Gateway", "gone")).await;
        if leaves {
            other.asked().await.say(whole_json(ANSWER)).await;
            assert_eq!(reply.await.unwrap().status(), 200);
            assert_eq!(gateway.counted("tidegate_retries_total", &["leaving"]).await, 1.0);
        } else {
            assert_eq!(reply.await.unwrap().status(), 502, "it may have run");
            assert!(!other.asked_again());
        }
    }
}

#[tokio::test]
async fn what_may_have_run_is_tried_again_at_the_operators_word_alone() {
    for (on, reason) in [
        ("first_byte_timeout", "first_byte_timeout"),
        ("connection_died", "connection_died"),
        ("500", "status"),
        ("empty_answer", "empty_answer"),
    ] {
        for told in [true, false] {
            let mut pods = [RawPod::start().await, RawPod::start().await];
            let retry = if told { format!("retry: {{ on: [{on}] }}") } else { String::new() };
            let gateway = Gateway::over(pods.iter().map(RawPod::endpoint))
                .yaml(&retry)
                .yaml("timeouts: { first_byte: 200ms }")
                .start()
                .await;
            let reply = chat("hi", 1).begin(gateway.addr);
            let [one, two] = &mut pods;
            let (mut asked, other) =
                tokio::select! { asked = one.asked() => (asked, two), asked = two.asked() => (asked, one) };
            match on {
                "first_byte_timeout" => asked.abandoned().await,
                "connection_died" => asked.reset(),
                "500" => asked.say(said("500 Internal Server Error", "{}")).await,
                _ => asked.say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await,
            }
            if told {
                other.asked().await.say(whole_json(ANSWER)).await;
                let reply = reply.await.unwrap();
                assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (200, Some("2")), "{on}");
                assert_eq!(gateway.counted("tidegate_retries_total", &[reason]).await, 1.0, "{on}");
            } else {
                assert_eq!(reply.await.unwrap().header("x-tidegate-attempts"), None, "{on}");
                assert!(!other.asked_again(), "{on}");
            }
            gateway.quiet().await;
        }
    }
}

#[tokio::test]
async fn an_empty_answer_is_seen_however_its_end_is_told() {
    for (framing, closes) in [("transfer-encoding: chunked\r\n\r\n0\r\n\r\n", false), ("\r\n", true)] {
        let (mut one, mut two) = (RawPod::start().await, RawPod::start().await);
        let gateway =
            Gateway::over([one.endpoint(), two.endpoint()]).yaml("retry: { on: [empty_answer] }").start().await;
        let reply = chat("hi", 1).begin(gateway.addr);
        let (mut asked, other) =
            tokio::select! { asked = one.asked() => (asked, &mut two), asked = two.asked() => (asked, &mut one) };
        asked.say(format!("HTTP/1.1 200 OK\r\n{framing}")).await;
        if closes {
            drop(asked);
        }
        other.asked().await.say(whole_json(ANSWER)).await;
        let reply = reply.await.unwrap();
        assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (200, Some("2")), "{framing:?}");
        assert_eq!(reply.text().await, ANSWER);
    }
}

#[tokio::test]
async fn a_request_on_which_pods_die_is_tried_at_most_once_more_whatever_the_operator_says() {
    let mut pods = Vec::new();
    for _ in 0..5 {
        pods.push(RawPod::start().await);
    }
    let gateway = Gateway::over(pods.iter().map(RawPod::endpoint))
        .yaml("retry: { attempts: 10, budget: 100%, on: [connection_died, \"500\", first_byte_timeout] }")
        .start()
        .await;
    let reply = chat("hi", 1).begin(gateway.addr);
    for _ in 0..2 {
        let asked = pods.iter_mut().map(|pod| Box::pin(pod.asked()));
        futures_util::future::select_all(asked).await.0.reset();
    }
    let reply = reply.await.unwrap();
    assert_eq!(reply.header("x-tidegate-attempts"), Some("2"), "on refusals, too");
    reply.error(502).await;
    assert!(pods.iter_mut().all(|pod| !pod.asked_again()), "two pods died of it and three live");
    assert_eq!(gateway.counted("tidegate_attempt_failures_total", &["connection_died"]).await, 2.0);
}

#[tokio::test]
async fn a_request_that_may_have_killed_a_pod_does_not_wait_for_the_next_one() {
    let mut pod = RawPod::start().await;
    let witness = RawPod::start().await;
    let (nobody, _held) = refusing_endpoint(&witness);
    let gateway = Gateway::over([pod.endpoint(), nobody])
        .yaml("retry: { attempts: 2, budget: 100%, on: [connection_died] }")
        .yaml("waiting: { timeout: 1h }")
        .start()
        .await;
    let reply = chat("hi", 1).begin(gateway.addr);
    pod.asked().await.reset();
    assert!(matches!(reply.await.unwrap().status(), 502 | 503));
    assert!(!pod.asked_again(), "it would kill whoever comes next");
}

#[tokio::test]
async fn a_pod_whose_token_is_missing_is_passed_over_and_becomes_nobodys_favourite() {
    let good = RawPod::answering(whole_json("{\"usage\":{\"completion_tokens\":1}}")).await;
    let bad = RawPod::start().await;
    let bad = format!("{{ url: \"http://{}\", token_file: /nowhere/token }}", bad.addr);
    let gateway = Gateway::over([good.endpoint(), bad]).start().await;
    for _ in 0..40 {
        assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    }
    let tried = gateway.counted("tidegate_attempt_failures_total", &["unbuildable"]).await;
    assert!(tried <= 4.0, "{tried} of 40 went there first");
}

#[tokio::test]
async fn refusals_tell_how_many_attempts_there_were() {
    let witness = RawPod::start().await;
    let refusing: Vec<_> = (0..3).map(|_| refusing_endpoint(&witness)).collect();
    let gateway = Gateway::over(refusing.iter().map(|(endpoint, _)| endpoint.clone())).start().await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    assert_eq!((reply.status(), reply.header("x-tidegate-attempts")), (503, Some("3")));
}

#[tokio::test]
async fn a_budget_that_is_spent_is_counted() {
    let (one, two) = (
        RawPod::answering(said("503 Service Unavailable", QUEUE_FULL)).await,
        RawPod::answering(said("503 Service Unavailable", QUEUE_FULL)).await,
    );
    let gateway =
        Gateway::over([one.endpoint(), two.endpoint()]).yaml("retry: { budget: 0%, budget_floor: 0 }").start().await;
    assert_eq!(chat("hi", 1).send(gateway.addr).await.text().await, QUEUE_FULL);
    assert_eq!(gateway.counted("tidegate_retries_denied_total", &["queue_full"]).await, 1.0);
    assert_eq!(gateway.counted("tidegate_retries_total", &[]).await, 0.0);
}

#[tokio::test]
async fn all_attempts_together_stay_within_the_time_that_the_request_may_take() {
    let mut pods = Vec::new();
    for _ in 0..12 {
        pods.push(SimPod::start().await);
        pods.last().unwrap().faults().change(|faults| faults.hang_before_headers = true);
    }
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint))
        .yaml("timeouts: { first_byte: 100ms, total: 350ms }")
        .yaml("retry: { attempts: 10, budget: 100%, on: [first_byte_timeout] }")
        .start()
        .await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    let attempts: u32 = reply.header("x-tidegate-attempts").unwrap().parse().unwrap();
    // At 0, 100, 200 and 300 ms at the earliest.
    assert!((2..=4).contains(&attempts), "{attempts}");
    assert_eq!(reply.error(504).await["code"], "request_timeout");
    gateway.quiet().await;
}

#[tokio::test]
async fn a_full_queue_told_in_a_stream_is_a_no_and_no_failure() {
    // SGLang's way: the head says 200 before the scheduler says no.
    let event = r#"data: {"error":{"object":"error","message":"The request queue is full.","code":503}}"#;
    let body = format!("{event}\n\ndata: [DONE]\n\n");
    let pod = RawPod::answering(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    for _ in 0..8 {
        assert_eq!(chat_stream("hi", 1).send(gateway.addr).await.text().await, body, "it passes as it is");
    }
    assert_eq!(gateway.counted("tidegate_pod_refusals_total", &["refused_in_stream"]).await, 8.0);
    let pod = &gateway.pods()[0];
    assert!(!pod.health.pushback(clock::now()).is_zero());
    assert_ne!(pod.condition(clock::now()).name(), "ejected");
}

#[tokio::test]
async fn a_pod_that_lost_its_model_is_asked_at_once_what_it_serves() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).models(&["{ modelName: lost, poolRef: pods }"]).start().await;
    let known = &gateway.pods()[0];
    eventually("the pod to be asked what it serves", || known.serves("lost") == Some(false)).await;
    let body = r#"{"model":"lost","messages":[{"role":"user","content":"hi"}],"max_tokens":1}"#;
    let asked = async {
        loop {
            // It said that it serves `lost`, and then it was unloaded; unless it was just asked again as it became ready.
            known.store_models(vec![ReportedModel { name: "lost".into(), parent: None }]);
            let reply = Call::post("/v1/chat/completions", body).send(gateway.addr).await;
            if reply.status() == 404 && reply.header("x-tidegate-refused").is_none() {
                return clock::now();
            }
        }
    };
    let since = within("the pod's own 404", asked).await;
    eventually("the pod to be asked again", || known.serves("lost") == Some(false)).await;
    assert!(clock::now().duration_since(since) < Duration::from_secs(6), "ten seconds is how often it is asked anyway");
    assert!(gateway.counted("tidegate_pod_refusals_total", &["model_unknown"]).await >= 1.0);
}
