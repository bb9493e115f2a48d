//! Web pages that call from a browser.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{Call, Gateway, RawPod, SimPod, chat, chat_stream};

const PAGE: &str = "https://chat.example.com";

fn preflight(origin: &str) -> Call {
    Call::options("/v1/chat/completions")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type")
}

#[tokio::test]
async fn a_page_that_may_call_is_told_so_without_a_key_or_a_pod_and_reads_answers_and_errors() {
    let pod = SimPod::start().await;
    let cors = format!("cors: {{ origins: [\"{PAGE}\"] }}");
    let gateway = Gateway::over([pod.endpoint()]).main(&cors).start().await;
    let reply = preflight(PAGE).send(gateway.addr).await;
    assert_eq!(reply.status(), 204);
    assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(reply.header("access-control-allow-headers"), Some("authorization,content-type"));
    assert!(reply.header("x-request-id").is_some());
    assert_eq!(pod.asked(), 0);
    assert_eq!(gateway.counted("tidegate_requests_total", &["endpoint=\"preflight\"", "code=\"204\""]).await, 1.0);

    let reply = chat_stream("hi", 3).header("origin", PAGE).send(gateway.addr).await;
    assert_eq!(reply.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(reply.header("vary"), Some("origin"));
    assert!(reply.text().await.ends_with("data: [DONE]\n\n"));
    let reply = Call::post("/v1/chat/completions", "{").header("origin", PAGE).send(gateway.addr).await;
    assert_eq!((reply.status(), reply.header("access-control-allow-origin")), (400, Some(PAGE)));

    let other = preflight("https://evil.example").send(gateway.addr).await;
    assert_eq!((other.status(), other.header("access-control-allow-origin")), (204, None));
    let other = chat("hi", 1).header("origin", "https://evil.example").send(gateway.addr).await;
    assert_eq!((other.status(), other.header("access-control-allow-origin")), (200, None), "its browser keeps it");
    let plain = Call::options("/v1/chat/completions").send(gateway.addr).await;
    assert_eq!(plain.status(), 405, "no page asks");
    gateway.quiet().await;
}

#[tokio::test]
async fn a_preflight_that_reads_in_two_ways_is_refused_and_its_connection_closed() {
    let pod = SimPod::start().await;
    let cors = format!("cors: {{ origins: [\"{PAGE}\"] }}");
    let gateway = Gateway::over([pod.endpoint()]).main(&cors).start().await;
    for odd in
        ["transfer-encoding: identity, chunked", "host: other.example", "upgrade: websocket\r\nconnection: upgrade"]
    {
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        let head = format!(
            "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: a\r\norigin: {PAGE}\r\naccess-control-request-method: POST\r\n\
             {odd}\r\n\r\n0\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // To its end: the connection is closed.
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(["400", "501"].contains(&status), "{odd}: {answer}");
    }
}

#[tokio::test]
async fn without_a_list_no_page_may_call_whatever_the_pod_says() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = preflight(PAGE).send(gateway.addr).await;
    assert_eq!((reply.status(), reply.header("access-control-allow-origin")), (405, None));
    let asking = chat("hi", 1).header("origin", PAGE).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked
        .say("HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\nx-kept: 1\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    let reply = asking.await.unwrap();
    assert_eq!((reply.status(), reply.header("x-kept")), (200, Some("1")));
    assert_eq!(reply.header("access-control-allow-origin"), None);
    assert_eq!(reply.header("access-control-allow-credentials"), None);
}
