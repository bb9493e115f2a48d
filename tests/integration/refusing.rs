//! What Tidegate itself says no to, in whose words, and what it says besides.

use serde_json::json;

use crate::harness::{Call, Client, Gateway, RawClient, RawPod, SimPod, chat, eventually, whole_json};

#[tokio::test]
async fn a_body_that_two_readers_could_take_differently_is_refused() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    for (what, body) in [
        ("a repeated model", br#"{"model":"m","prompt":"hi","model":"other"}"#.to_vec()),
        ("an escaped repetition", br#"{"model":"m","prompt":"hi","mod\u0065l":"other"}"#.to_vec()),
        ("any repeated key", br#"{"model":"m","prompt":"hi","prompt":"ho"}"#.to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{\"model\":\"m\",\"prompt\":\"hi\"}".to_vec()),
        ("bytes that are not UTF-8", b"{\"model\":\"m\",\"prompt\":\"\xff\"}".to_vec()),
        ("no JSON", b"model=m".to_vec()),
        ("half of it", br#"{"model":"m","prompt":"#.to_vec()),
        ("something after it", br#"{"model":"m","prompt":"hi"} {}"#.to_vec()),
        ("no object", br#"["m"]"#.to_vec()),
        ("no model", br#"{"prompt":"hi"}"#.to_vec()),
        ("a model that is no string", br#"{"model":7,"prompt":"hi"}"#.to_vec()),
        ("nothing", Vec::new()),
    ] {
        let reply = Call::post("/v1/completions", body).send(gateway.addr).await;
        assert_eq!(reply.header("x-tidegate-refused"), Some("malformed"), "{what}");
        let error = reply.error(400).await;
        assert_eq!(error["type"], "invalid_request_error", "{what}: {error}");
        assert!(error["message"].as_str().is_some_and(|it| !it.is_empty()), "{what}: {error}");
    }
    assert!(!pod.asked_again(), "none of these may reach a pod");
    gateway.quiet().await;
}

#[tokio::test]
async fn an_unknown_model_is_answered_with_what_is_served() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("api: { serve_reported_models: false }").start().await;
    let reply = Call::post("/v1/completions", r#"{"model":"gpt-9","prompt":"hi"}"#).send(gateway.addr).await;
    assert_eq!(reply.header("x-tidegate-refused"), Some("unknown_model"));
    let error = reply.error(404).await;
    assert_eq!(
        error,
        json!({"message": "the model `gpt-9` does not exist; served here: `m`", "type": "invalid_request_error",
               "param": "model", "code": "model_not_found"})
    );
}

#[tokio::test]
async fn an_anthropic_client_is_refused_in_its_own_words() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply =
        Call::post("/v1/messages", r#"{"model":"claude","max_tokens":1,"messages":[]}"#).send(gateway.addr).await;
    assert_eq!(reply.status(), 404);
    let body = reply.json().await;
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("not_found_error")));
}

#[tokio::test]
async fn only_known_paths_pass_and_those_that_the_operator_allows() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("api: { extra_paths: [/v1/moderations] }").start().await;
    let body = r#"{"model":"m","input":"hi"}"#;
    for path in ["/metrics", "/v1/chat/completion", "/sleep", "/v1/load_lora_adapter", "/", "/v1/moderations/"] {
        let error = Call::post(path, body).send(gateway.addr).await.error(404).await;
        assert_eq!(error["code"], "unknown_url", "{path}");
    }
    for path in ["/v1%2fcompletions", "//v1/completions", "/v1/../metrics", "/v1/%63ompletions"] {
        Call::post(path, body).send(gateway.addr).await.error(400).await;
    }
    let reply = Call::get("/v1/completions").send(gateway.addr).await;
    assert_eq!(reply.header("allow"), Some("POST"));
    reply.error(405).await;
    assert!(!pod.asked_again());
    let reply = Call::post("/v1/moderations", body).begin(gateway.addr);
    let mut asked = pod.asked().await;
    assert!(asked.head.starts_with("POST /v1/moderations HTTP/1.1\r\n"));
    asked.say(whole_json("{}")).await;
    asked.keep_alive();
    assert_eq!(reply.await.unwrap().status(), 200);
    // Such a path may name no model: it goes to the first model's pool as it is.
    let reply = Call::post("/v1/moderations", r#"{"input":"hi"}"#).begin(gateway.addr);
    let mut asked = pod.asked().await;
    assert_eq!(asked.body, br#"{"input":"hi"}"#);
    asked.say(whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_refused_path_leaves_its_connection_open_because_its_end_is_in_no_doubt() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = Client::h1(gateway.addr).await;
    for path in ["/v1%2Fcompletions", "/v1/completions%20", "/v1/completions;a"] {
        let reply = client.ask(Call::post(path, r#"{"model":"m","prompt":"hi"}"#)).await.unwrap();
        assert_eq!((reply.header("x-tidegate-refused"), reply.header("connection")), (Some("path"), None), "{path}");
        reply.error(400).await;
    }
    assert_eq!(client.ask(chat("hi", 1)).await.unwrap().status(), 200);
}

fn upgrade(path: &str, to: &str) -> String {
    let body = r#"{"model":"m","prompt":"hi"}"#;
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: {to}\r\n\
         http2-settings: AAMAAABk\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn an_endpoint_that_is_the_gateway_itself_costs_six_requests_and_not_every_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let pods = folder.path().join("pods.yaml");
    std::fs::write(&pods, "[]").unwrap();
    // By way of a file, whose endpoints no check of the configuration sees.
    let gateway = Gateway::over([format!("{{ file: \"{}\" }}", pods.display())]).start().await;
    std::fs::write(&pods, format!("- url: http://{}", gateway.addr)).unwrap();
    eventually("the endpoint", || !gateway.pods().is_empty()).await;
    let reply = chat("hi", 1).send(gateway.addr).await;
    assert_eq!(reply.header("x-tidegate-refused"), Some("loop"));
    let error = reply.error(508).await;
    assert_eq!((&error["code"], &error["type"]), (&json!("loop"), &json!("server_error")));
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_requests_total", &["code=\"508\""]).await, 6.0);
    assert_eq!(gateway.counted("tidegate_rejections_total", &["reason=\"loop\""]).await, 1.0);
}

#[tokio::test]
async fn a_websocket_is_refused_clearly() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let key = "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nconnection: upgrade, close";
    for path in ["/v1/realtime", "/v1/responses"] {
        let mut client = RawClient::connect(gateway.addr).await;
        let method = if path == "/v1/responses" { "POST" } else { "GET" };
        client
            .say(format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n{key}\r\ncontent-length: 0\r\n\r\n"
            ))
            .await;
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
        assert!(answer.contains("\"code\":\"upgrade_not_supported\""), "{answer}");
    }
}

/// Java's `HttpClient` offers h2c with the first request of every connection, as `curl --http2` does; a server that
/// does not take the offer just answers.
#[tokio::test]
async fn an_offer_to_upgrade_to_http2_is_ignored_and_the_request_is_served() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = RawClient::connect(gateway.addr).await;
    client.say(upgrade("/v1/completions", "h2c")).await;
    let mut asked = pod.asked().await;
    assert_eq!((asked.header("upgrade"), asked.header("http2-settings")), (None, None));
    asked.say(whole_json("{}")).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
}

#[tokio::test]
async fn a_compressed_body_is_refused() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat("hi", 1).header("content-encoding", "gzip").send(gateway.addr).await;
    reply.error(415).await;
    let twice = chat("hi", 1).header("content-encoding", "identity").header("content-encoding", "gzip");
    twice.send(gateway.addr).await.error(415).await;
}

#[tokio::test]
async fn a_body_beyond_its_cap_is_refused_before_it_is_read() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("limits: { body: 1KiB }").start().await;
    let large = "x".repeat(1024);
    let error = chat(&large, 1).send(gateway.addr).await.error(413).await;
    assert_eq!(error["code"], "request_too_large");
    // One that does not say how long it is is stopped where the cap is.
    let mut client = RawClient::connect(gateway.addr).await;
    client.say("POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.say(format!("401\r\n{}\r\n", "x".repeat(0x401))).await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(!pod.asked_again());
    gateway.quiet().await;
}

#[tokio::test]
async fn all_bodies_together_have_one_budget() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("limits: { body: 2KiB, buffered_bodies: 3KiB }").start().await;
    let large = "x".repeat(1800);
    let first = chat(&large, 1).begin(gateway.addr);
    let mut asked = pod.asked().await;
    let reply = chat(&large, 1).send(gateway.addr).await;
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(reply.header("x-tidegate-refused"), Some("buffers_full"));
    let error = reply.error(503).await;
    assert_eq!((&error["type"], &error["code"]), (&json!("server_error"), &json!("overloaded")));
    asked.say(whole_json("{}")).await;
    asked.keep_alive();
    first.await.unwrap().bytes().await;
    gateway.quiet().await;
    let third = chat(&large, 1).begin(gateway.addr);
    pod.asked().await.say(whole_json("{}")).await;
    assert_eq!(third.await.unwrap().status(), 200);
}

#[tokio::test]
async fn bodies_that_are_announced_and_never_sent_keep_nobody_out() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("limits: { body: 2KiB, buffered_bodies: 3KiB }").start().await;
    let mut promising = Vec::new();
    for _ in 0..4 {
        let mut client = RawClient::connect(gateway.addr).await;
        client.say("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n").await;
        promising.push(client);
    }
    let open = &gateway.running.house.requests_open;
    eventually("all promises to be heard", || open.load(std::sync::atomic::Ordering::Relaxed) == 4).await;
    assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    drop(promising);
    gateway.quiet().await;
}

#[tokio::test]
async fn who_connects_and_asks_nothing_is_let_go() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { header_read: 200ms }").start().await;
    let mut silent = Vec::new();
    for start in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut client = RawClient::connect(gateway.addr).await;
        client.say(start).await;
        silent.push(client);
    }
    // Who does ask is not hurried by it.
    pod.faults().change(|faults| faults.slow = 50.0);
    let busy = [Client::h1(gateway.addr).await, Client::h2(gateway.addr).await];
    let answers = busy.map(|client| tokio::spawn(async { client.send(chat("hi", 5)).await.bytes().await }));
    for client in &mut silent {
        client.rest().await;
    }
    for answer in answers {
        assert!(!answer.await.unwrap().is_empty());
    }
    let house = &gateway.running.house;
    eventually("all connections to be closed", || house.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn every_answer_has_a_request_id_and_takes_the_clients_if_it_can_be_one() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let id = async |call: Call| {
        let reply = call.send(gateway.addr).await;
        reply.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id(chat("hi", 1).header("x-request-id", "mine")).await, "mine");
    assert_eq!(id(Call::get("/v1/models").header("x-request-id", "mine")).await, "mine");
    assert_eq!(id(Call::get("/nowhere").header("x-request-id", "mine")).await, "mine");
    let (one, two) = (id(chat("hi", 1)).await, id(chat("hi", 1)).await);
    assert_ne!(one, two);
    let long = "x".repeat(129);
    assert_ne!(id(chat("hi", 1).header("x-request-id", &long)).await, long);
    assert_ne!(id(chat("hi", 1).header("x-request-id", "two words")).await, "two words");
    let last = pod.state().last;
    assert!(last.iter().all(|it| it.header("x-request-id").is_some()));
}

#[tokio::test]
async fn a_client_that_never_ends_its_body_is_let_go() {
    let pod = SimPod::start().await;
    let gateway =
        Gateway::over([pod.endpoint()]).yaml("timeouts: { body_read: 100ms, header_read: 300ms }").start().await;
    let mut client = RawClient::connect(gateway.addr).await;
    client.say("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{\"model\"").await;
    let answer = client.rest().await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let mut silent = RawClient::connect(gateway.addr).await;
    silent.say("POST /v1/comple").await;
    silent.rest().await;
    let house = &gateway.running.house;
    eventually("both connections to be closed", || house.metrics.connections.get() == 0).await;
    gateway.quiet().await;
}
