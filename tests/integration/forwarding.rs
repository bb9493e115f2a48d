//! What a pod sees of a request, and a client of an answer: every byte that nobody asked to change.

use std::{fs, time::Duration};

use crate::harness::{Call, Client, Exchange, Gateway, Plan, RawClient, RawPod, chat, eventually, whole_json, within};

/// A body as no serialiser would write it: spacing, escapes, numbers beyond any type, unknown and repeated inner keys.
const ODD_BODY: &str = "{ \"messages\" :[ {\"role\":\"user\",\"content\":\"caf\\u00e9 \u{1f30a} \\/ \\\"m\\\"\"} ],\r\n\
    \"temperature\":1.0e0 , \"seed\": 9007199254740993, \"top_p\":0.30000000000000004,\t\"model\":\"m\",\
    \"logit_bias\":{\"50256\":-1E2}, \"x_unknown\":{\"a\":1,\"a\":2,\"model\":\"m\"}, \"stop\":null}\n ";

async fn seen_by_pod(call: Call, plan: impl FnOnce(Plan) -> Plan) -> Exchange {
    let mut pod = RawPod::start().await;
    let gateway = plan(Gateway::over([pod.endpoint()])).start().await;
    let reply = call.begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
    asked
}

#[tokio::test]
async fn a_body_reaches_the_pod_byte_by_byte() {
    let asked = seen_by_pod(Call::post("/v1/chat/completions", ODD_BODY), |plan| plan).await;
    assert_eq!(String::from_utf8_lossy(&asked.body), ODD_BODY);
    assert_eq!(asked.header("content-length"), Some(&*ODD_BODY.len().to_string()));
}

#[tokio::test]
async fn only_the_name_of_the_model_is_spliced_in() {
    let plan = |plan: Plan| {
        plan.models(&["{ modelName: m, poolRef: pods, targetModels: [{ name: \"served/\\\"name\\\"\" }] }"])
    };
    let asked = seen_by_pod(Call::post("/v1/chat/completions", ODD_BODY), plan).await;
    let expected = ODD_BODY.replacen("\"model\":\"m\"", r#""model":"served/\"name\"""#, 1);
    assert_eq!(String::from_utf8_lossy(&asked.body), expected);
    assert_eq!(asked.header("content-length"), Some(&*expected.len().to_string()));
}

#[tokio::test]
async fn a_chunked_body_arrives_whole_and_with_a_length() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = RawClient::connect(gateway.addr).await;
    client.say("POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.say("b\r\n{\"model\":\"m\r\n10\r\n\",\"prompt\":\"hi\"}\r\n0\r\n\r\n").await;
    let asked = pod.asked().await;
    assert_eq!(
        (String::from_utf8_lossy(&asked.body).as_ref(), asked.header("content-length")),
        ("{\"model\":\"m\",\"prompt\":\"hi\"}", Some("27"))
    );
    assert_eq!(asked.header("transfer-encoding"), None);
}

#[tokio::test]
async fn headers_pass_but_for_hops_routing_control_and_credentials() {
    let call = chat("hi", 1)
        .header("authorization", "Bearer client")
        .header("x-api-key", "client")
        .header("x-custom", "kept")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("openai-organization", "org")
        .header("cookie", "a=b; c=d")
        .header("x-gateway-destination-endpoint", "10.0.0.9:8000")
        .header("x-vllm-priority", "-9")
        .header("x-forwarded-for", "1.2.3.4")
        .header("x-tidegate-anything", "1")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("accept-encoding", "gzip")
        .header("x-request-id", "mine-1");
    let asked = seen_by_pod(call, |plan| plan).await;
    for (name, value) in [
        ("x-custom", Some("kept")),
        ("openai-organization", Some("org")),
        ("cookie", Some("a=b; c=d")),
        ("content-type", Some("application/json")),
        ("accept-encoding", Some("identity")),
        ("x-request-id", Some("mine-1")),
        ("authorization", None),
        ("x-api-key", None),
        ("x-gateway-destination-endpoint", None),
        ("x-vllm-priority", None),
        ("x-forwarded-for", None),
        ("x-tidegate-anything", None),
        ("x-hop", None),
        ("keep-alive", None),
    ] {
        assert_eq!(asked.header(name), value, "{name} in {}", asked.head);
    }
    assert!(asked.header("traceparent").is_some());
}

#[tokio::test]
async fn the_path_keeps_its_query_and_the_host_is_the_pods() {
    let call = Call::post("/v1/completions?api-version=2024-06-01&x=%20y", r#"{"model":"m","prompt":"hi"}"#);
    let asked = seen_by_pod(call, |plan| plan).await;
    assert!(
        asked.head.starts_with("POST /v1/completions?api-version=2024-06-01&x=%20y HTTP/1.1\r\n"),
        "{}",
        asked.head
    );
    assert!(asked.header("host").unwrap().starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn a_clients_authorization_goes_on_where_the_pool_says_so() {
    let call = chat("hi", 1).header("authorization", "Bearer client");
    let asked = seen_by_pod(call, |plan| plan.pool("forward_authorization: true")).await;
    assert_eq!(asked.header("authorization"), Some("Bearer client"));
}

#[tokio::test]
async fn the_pools_token_replaces_the_clients_and_is_read_again_when_its_file_changes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    fs::write(&file, "first\n").unwrap();
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()])
        .pool(&format!("token_file: {}", file.display()))
        .pool("forward_authorization: true")
        .start()
        .await;
    let mut ask = async || {
        let reply = chat("hi", 1).header("authorization", "Bearer client").begin(gateway.addr);
        let mut asked = pod.asked().await;
        asked.say(whole_json("{}")).await;
        reply.await.unwrap();
        let token = asked.header("authorization").unwrap().to_owned();
        asked.keep_alive();
        token
    };
    assert_eq!(ask().await, "Bearer first");
    fs::write(&file, "second\n").unwrap();
    let rotated = async {
        while ask().await != "Bearer second" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    within("the new token", rotated).await;
}

#[tokio::test]
async fn an_answer_keeps_its_status_its_headers_and_its_bytes() {
    let body = "{ \"odd\" : 1.0e0,\r\n\"model\":\"whatever\" }\n";
    let answer = format!(
        "HTTP/1.1 418 Teapot\r\ncontent-type: application/json\r\nx-custom: a\r\nx-custom: b\r\nset-cookie: c=d\r\n\
         server: uvicorn\r\nx-request-id: theirs\r\nkeep-alive: timeout=5\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let pod = RawPod::answering(answer).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat("hi", 1).header("x-request-id", "mine").send(gateway.addr).await;
    assert_eq!(reply.status(), 418);
    let custom: Vec<_> = reply.head.headers.get_all("x-custom").iter().collect();
    assert_eq!(custom, ["a", "b"]);
    assert_eq!((reply.header("set-cookie"), reply.header("x-request-id")), (Some("c=d"), Some("mine")));
    assert_eq!((reply.header("server"), reply.header("keep-alive")), (None, None));
    assert_eq!(reply.header("content-length"), Some(&*body.len().to_string()));
    assert_eq!(reply.text().await, body);
}

#[tokio::test]
async fn http2_clients_get_the_same_answers() {
    let pod = RawPod::answering(whole_json("{\"ok\": 1 }")).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = Client::h2(gateway.addr).await;
    for _ in 0..3 {
        let reply = client.ask(chat("hi", 1)).await.unwrap();
        assert_eq!((reply.status(), reply.head.version), (200, http::Version::HTTP_2));
        assert_eq!(reply.text().await, "{\"ok\": 1 }");
    }
}

#[tokio::test]
async fn connections_to_pods_are_kept_and_closed_before_the_pod_would() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { pool_idle: 300ms }").start().await;
    let reply = chat("one", 1).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(whole_json("{}")).await;
    reply.await.unwrap().bytes().await;
    let upstream = &gateway.running.house.upstream;
    eventually("the connection to be kept", || upstream.idle_connections() == 1).await;
    asked.abandoned().await;
    assert_eq!(upstream.idle_connections(), 0);
}

#[tokio::test]
async fn a_client_that_asks_for_continue_is_told_to() {
    let pod = RawPod::answering(whole_json("{}")).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = RawClient::connect(gateway.addr).await;
    let body = r#"{"model":"m","prompt":"hi"}"#;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    client.say(head).await;
    assert_eq!(client.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.say(body).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
}
