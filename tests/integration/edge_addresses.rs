//! Where clients come from: the PROXY protocol, proxies that are trusted, and lists of who may come.

use std::net::SocketAddr;

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::harness::{
    Client, Gateway, RawClient, SimPod, chat, chat_stream,
    lines::{Lines, told},
    papers::{Authority, Secret, shake},
};

const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\x0a\x00\x00\x01\x30\x39\x01\xbb";
const HEALTH: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// A client that begins with `header`.
async fn after(header: &[u8], to: SocketAddr) -> Client {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(header).await.unwrap();
    Client::over(stream).await.unwrap()
}

#[tokio::test]
async fn a_balancers_header_says_whose_connection_it_is_in_clear_text_and_before_tls() {
    let authority = Authority::new("ours");
    let secret = Secret::of(&authority.issue(&["localhost"]));
    let pod = SimPod::start().await;
    let behind = "proxy_protocol: required, trusted_proxies: [127.0.0.0/8], deny: [198.51.100.0/24]";
    let (lines, _guard) = Lines::kept();
    let gateway = Gateway::over([pod.endpoint()]).main(behind).start().await;
    for (header, client) in [
        (&b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 443\r\n"[..], "192.0.2.7:12345"),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n", "[2001:db8::7]:12345"),
        (BINARY, "192.0.2.7:12345"),
    ] {
        assert_eq!(after(header, gateway.addr).await.send(chat("hi", 1)).await.status(), 200);
        assert_eq!(told(&lines.one(&gateway).await, ["client"]), [client]);
    }
    assert_eq!(after(HEALTH, gateway.addr).await.send(chat("hi", 1)).await.status(), 200);
    assert!(told(&lines.one(&gateway).await, ["client"])[0].starts_with("127.0.0.1:"), "the balancer itself");

    let mut denied = RawClient::connect(gateway.addr).await;
    denied.say(b"PROXY TCP4 198.51.100.9 10.0.0.1 1 443\r\nGET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(denied.rest().await, "", "closed without a word");
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["denied_address"]).await, 1.0);

    let tls = format!("{behind}, tls: {{ certificates: [{{ folder: \"{}\" }}] }}", secret.path().display());
    let gateway = Gateway::over([pod.endpoint()]).main(&tls).start().await;
    let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
    stream.write_all(BINARY).await.unwrap();
    let mut config = authority.client(None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = shake(&config, stream, "localhost").await.unwrap();
    let client = Client::speaking(stream, gateway.addr, true).await.unwrap();
    assert!(client.send(chat_stream("hi", 5)).await.text().await.ends_with("data: [DONE]\n\n"));
    assert_eq!(told(&lines.one(&gateway).await, ["client"]), ["192.0.2.7:12345"]);
}

#[tokio::test]
async fn who_is_not_trusted_cannot_say_whose_connection_it_is_and_a_broken_header_is_none() {
    let pod = SimPod::start().await;
    let header = b"PROXY TCP4 192.0.2.7 10.0.0.1 1 443\r\n";
    let request = b"GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let elsewhere = "proxy_protocol: required, trusted_proxies: [10.0.0.0/8]";
    let gateway = Gateway::over([pod.endpoint()]).main(elsewhere).start().await;
    let mut stranger = RawClient::connect(gateway.addr).await;
    stranger.try_say([&header[..], request].concat()).await;
    assert_eq!(stranger.rest().await, "");
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["untrusted_proxy"]).await, 1.0);

    let some = "proxy_protocol: from-trusted, trusted_proxies: [10.0.0.0/8]";
    let gateway = Gateway::over([pod.endpoint()]).main(some).start().await;
    let mut direct = RawClient::connect(gateway.addr).await;
    direct.say(request).await;
    assert!(direct.rest().await.starts_with("HTTP/1.1 200 OK\r\n"), "who is no balancer speaks for itself");
    let mut liar = RawClient::connect(gateway.addr).await;
    liar.say([&header[..], request].concat()).await;
    assert!(
        liar.rest().await.starts_with("HTTP/1.1 400 Bad Request\r\n"),
        "to him it is no header but a broken request"
    );

    let trusted = "proxy_protocol: required, trusted_proxies: [127.0.0.1]";
    let gateway = Gateway::over([pod.endpoint()]).main(trusted).yaml("timeouts: { header_read: 300ms }").start().await;
    for broken in [&request[..], b"PROXY TCP4 192.0.2.7 10.0.0.1 x 443\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"] {
        let mut broken_off = RawClient::connect(gateway.addr).await;
        broken_off.say(broken).await;
        assert_eq!(broken_off.rest().await, "");
    }
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["proxy_protocol"]).await, 3.0);
    for half in [&b""[..], b"PROX", b"PROXY TCP4 192.0.2.7", BINARY.split_last().unwrap().1] {
        let mut slow = RawClient::connect(gateway.addr).await;
        slow.say(half).await;
        assert_eq!(slow.rest().await, "");
    }
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["silent"]).await, 4.0);
    assert_eq!(pod.asked(), 0);
}

#[tokio::test]
async fn a_trusted_proxy_says_where_its_client_comes_from_and_pods_are_told_nothing_of_it() {
    let pod = SimPod::start().await;
    let (lines, _guard) = Lines::kept();
    let gateway = Gateway::over([pod.endpoint()])
        .main("trusted_proxies: [127.0.0.1], allow: [192.0.2.0/24], deny: [192.0.2.66]")
        .start()
        .await;
    let from = |list: &str| chat("hi", 1).header("x-forwarded-for", list);
    let reply = from("6.6.6.6, 192.0.2.7, 127.0.0.1").send(gateway.addr).await;
    assert_eq!(reply.status(), 200);
    assert_eq!(told(&lines.one(&gateway).await, ["client"]), ["192.0.2.7"]);
    assert_eq!(pod.state().last[0].header("x-forwarded-for"), None);
    for (list, why) in
        [("192.0.2.66", "denied"), ("198.51.100.1", "not allowed"), ("192.0.2.7, 198.51.100.1", "the same")]
    {
        let mut client = Client::h1(gateway.addr).await;
        let error = client.ask(from(list)).await.unwrap().error(403).await;
        assert_eq!(error["code"], "address_not_allowed", "{why}");
        assert_eq!(client.ask(from("192.0.2.7")).await.unwrap().status(), 200, "another client of the same proxy");
    }
    let error = chat("hi", 1).send(gateway.addr).await.error(403).await;
    assert_eq!(error["code"], "address_not_allowed", "the proxy for itself is on no list");
    assert_eq!(gateway.counted("tidegate_rejections_total", &["denied_address"]).await, 4.0);
    let wary = Gateway::over([pod.endpoint()]).main("deny: [192.0.2.0/24]").start().await;
    assert_eq!(from("192.0.2.7").send(wary.addr).await.status(), 200, "nobody believes it");
}

#[tokio::test]
async fn who_may_not_come_is_closed_before_a_word() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).main("allow: [10.0.0.0/8]").start().await;
    let mut stranger = RawClient::connect(gateway.addr).await;
    stranger.try_say("GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(stranger.rest().await, "");
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["main", "denied_address"]).await, 1.0);
    assert_eq!(gateway.counted("tidegate_connections", &[]).await, 0.0);
}
