//! Envoy and its picker set against each other: what is counted, and what an operator is told of it, once.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    binary::Served,
    harness::{Gateway, SimPod, eventually, lines::Lines, within},
};

/// How Envoy begins without TLS.
const CLEAR_TEXT: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How it begins with it: a record of a handshake, and in it the hello of a client.
const TLS: &[u8] = b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00";

/// A record of TLS that begins no conversation: that a certificate is not trusted.
const ALERT: &[u8] = b"\x15\x03\x03\x00\x02\x02\x30";

async fn picker(pod: &SimPod, keys: &str) -> Gateway {
    let text = format!(
        "listeners:
  - {{ name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: {{ {keys} }} }}
  - {{ name: http, address: 127.0.0.1:0 }}
pools: [{{ name: pods, engine: vllm, endpoints: [{}] }}]
admin: {{ address: 127.0.0.1:0 }}",
        pod.endpoint()
    );
    Gateway::from(&text).await
}

/// Says this and hears the other side out, which hangs up.
async fn say(to: SocketAddr, what: &[u8]) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(what).await.unwrap();
    let mut heard = Vec::new();
    // It may well be a reset.
    _ = within("the end of a connection", stream.read_to_end(&mut heard)).await;
}

async fn turned_away(gateway: &Gateway, why: &str) -> f64 {
    gateway.counted("tidegate_edge_rejected_total", &["listener=\"picker\"", &format!("reason=\"{why}\"")]).await
}

#[tokio::test]
async fn a_gateway_that_speaks_clear_text_to_a_picker_with_tls_is_counted_and_told_of_once() {
    let (lines, _guard) = Lines::kept();
    let pod = SimPod::start().await;
    let gateway = picker(&pod, "secure: true").await;
    for _ in 0..3 {
        say(gateway.addr, CLEAR_TEXT).await;
    }
    say(gateway.addr, ALERT).await;
    // As balancers look whether anybody is there.
    drop(TcpStream::connect(gateway.addr).await.unwrap());
    assert_eq!(turned_away(&gateway, "clear_text").await, 3.0);
    assert_eq!(turned_away(&gateway, "tls_failed").await, 1.0);
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &[]).await, 4.0);
    let warnings = lines.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert_eq!(warnings[0]["listener"], "picker");
    assert!(warnings[0]["message"].contains("speak clear text") && warnings[0]["message"].contains("transport_socket"));
}

#[tokio::test]
async fn a_gateway_that_speaks_tls_to_a_picker_without_is_told_of_once_and_the_internet_is_not() {
    let (lines, _guard) = Lines::kept();
    let pod = SimPod::start().await;
    let gateway = picker(&pod, "secure: false").await;
    say(gateway.running.listeners[1].1, TLS).await;
    assert_eq!(lines.warnings().len(), 0, "anybody may try that at a door for everybody");
    for _ in 0..3 {
        say(gateway.addr, TLS).await;
    }
    assert_eq!(turned_away(&gateway, "not_http").await, 3.0);
    let warnings = lines.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0]["message"].contains("speak TLS") && warnings[0]["message"].contains("--secure-serving=false"));
}

#[tokio::test]
async fn at_the_start_it_is_said_what_is_spoken_where_and_where_health_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.yaml");
    let text = "listeners:
  - { name: main, address: 127.0.0.1:0 }
  - { name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: { health: { address: 127.0.0.1:0 } } }
pools: [{ name: pods, endpoints: [{ url: \"http://127.0.0.1:9\" }] }]
admin: { address: 127.0.0.1:0 }
log: { format: json }";
    std::fs::write(&file, text).unwrap();
    let served = Served::start(file.to_str().unwrap());
    eventually("all addresses", || served.said().contains("admin listening")).await;
    served.signal("INT");
    let (_, log) = served.ended().await;
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |listener: &str, message: &str| {
        let line = lines.iter().find(|line| line["listener"] == listener && line["message"] == message);
        line.unwrap_or_else(|| panic!("{message} of {listener} not in {log}"))
    };
    let spoken = |listener| (of(listener, "listening")["protocol"].clone(), of(listener, "listening")["tls"].clone());
    assert_eq!(spoken("main"), ("http".into(), false.into()));
    assert_eq!(spoken("picker"), ("ext-proc".into(), true.into()));
    let health = of("picker", "health listening (gRPC)")["address"].as_str().unwrap();
    assert!(!health.ends_with(":0"), "where it really is: {health}");
}
