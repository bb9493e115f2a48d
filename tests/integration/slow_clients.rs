//! Clients that send slowly, read slowly or do nothing at all, and what they may cost: a deadline each, a pod that waits
//! with them, no memory.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::harness::{Call, Client, Gateway, RawClient, RawPod, SimPod, chat, eventually, sse_head, within};

/// A client with a small window, which reads nothing unless told to.
async fn lazy(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(128 << 10).unwrap();
    socket.connect(to).await.unwrap()
}

const ASK: &str = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 41\r\n\r\n\
                   {\"model\":\"m\",\"prompt\":\"hi\",\"stream\":true}";

const STALL: &str = "timeouts: { write_stall: 300ms }";

/// Streams events until nobody takes them any more; returns how many bytes went.
async fn pour(exchange: &mut crate::harness::Exchange) -> usize {
    exchange.say(sse_head()).await;
    let event = format!("data: {{\"choices\":[{{\"text\":\"{}\"}}]}}\n\n", "x".repeat(1000));
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    let mut poured = 0;
    while exchange.try_say(&chunk, Duration::from_secs(10)).await {
        poured += chunk.len();
    }
    poured
}

/// What two sockets on loopback hold in each direction, with room to spare; a gateway that read on would take all.
const BUFFERS: usize = 24 << 20;

#[tokio::test]
async fn a_client_that_stops_reading_stops_its_pod_and_is_let_go() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml(STALL).start().await;
    let mut client = lazy(gateway.addr).await;
    client.write_all(ASK.as_bytes()).await.unwrap();
    let mut asked = pod.asked().await;
    let poured = pour(&mut asked).await;
    assert!(poured < BUFFERS, "{poured} bytes were taken for a client that reads none");
    asked.abandoned().await;
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["write_stall"]).await, 1.0);
    assert_eq!(gateway.counted("tidegate_aborts_total", &["relaying"]).await, 1.0);
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0, "it was not the pod's fault");
    assert_eq!(gateway.counted("tidegate_pod_condition", &["ready"]).await, 1.0);
}

#[tokio::test]
async fn a_stream_that_is_not_read_leaves_the_others_of_its_connection_alone() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml(STALL).start().await;
    let client = Client::h2(gateway.addr).await;
    let stream = |text: &str| {
        Call::post("/v1/completions", format!("{{\"model\":\"m\",\"prompt\":\"{text}\",\"stream\":true}}"))
    };
    let stuck = client.begin_stream(stream("stuck"));
    let mut asked = pod.asked().await;
    let pouring = tokio::spawn(async move {
        let poured = pour(&mut asked).await;
        asked.abandoned().await;
        poured
    });
    // It holds its answer and does not ask for more of it.
    let stuck = within("the head of an answer", stuck).await.unwrap();
    // Meanwhile another stream of the same connection is slow, but reads: it goes on far longer than the limit.
    let read = client.begin_stream(stream("read"));
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let mut read = within("the head of an answer", read).await.unwrap();
    for at in 0..8 {
        asked.chunk(&format!("data: {{\"choices\":[{{\"text\":\"{at}\"}}]}}\n\n")).await;
        let piece = within("an event", read.piece()).await.unwrap().unwrap();
        assert!(piece.starts_with(b"data: "));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let poured = pouring.await.unwrap();
    assert!(poured < BUFFERS, "{poured} bytes were taken for a client that reads none");
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["write_stall"]).await, 1.0);
    asked.chunk("data: [DONE]\n\n").await;
    asked.say("0\r\n\r\n").await;
    assert!(within("an event", read.piece()).await.unwrap().unwrap().starts_with(b"data: [DONE]"));
    drop((stuck, read));
    asked.keep_alive();
    // The connection is still good.
    let again = client.begin_stream(stream("again"));
    pod.asked().await.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
    assert_eq!(again.await.unwrap().status(), 200);
    gateway.quiet().await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_its_whole_answer() {
    let answer = "x".repeat(4 << 20);
    let pod = RawPod::answering(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len())).await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { write_stall: 2s }").start().await;
    let mut client = lazy(gateway.addr).await;
    client.write_all(ASK.replace("host: a", "host: a\r\nconnection: close").as_bytes()).await.unwrap();
    let mut got = Vec::new();
    let mut piece = vec![0; 4 << 10];
    loop {
        let read = within("bytes", client.read(&mut piece)).await.unwrap();
        if read == 0 {
            break;
        }
        got.extend_from_slice(&piece[..read]);
        // Twice the limit in all; each third of the socket's buffer well within it.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &[]).await, 0.0);
    assert!(got.ends_with(answer.as_bytes()), "{} bytes", got.len());
    gateway.quiet().await;
}

#[tokio::test]
async fn a_connection_may_rest_between_requests_but_not_for_ever() {
    let pod = SimPod::start().await;
    let yaml = "timeouts: { header_read: 150ms, client_idle: 1s }";
    let gateway = Gateway::over([pod.endpoint()]).yaml(yaml).start().await;
    for h2 in [false, true] {
        let mut client = if h2 { Client::h2(gateway.addr).await } else { Client::h1(gateway.addr).await };
        let began = std::time::Instant::now();
        client.ask(chat("hi", 1)).await.unwrap().bytes().await;
        // A load balancer in front of us keeps its connections longer than a head may take.
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.ask(chat("hi", 1)).await.unwrap().bytes().await;
        within("the idle connection to be closed", client.closed()).await;
        assert!(began.elapsed() > Duration::from_millis(1400), "{:?}", began.elapsed());
    }
    let house = &gateway.running.house;
    eventually("all connections to be closed", || house.metrics.connections.get() == 0).await;
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &[]).await, 0.0, "resting is no fault");
}

#[tokio::test]
async fn heads_that_come_byte_by_byte_are_cut_off_on_every_request_of_a_connection() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { header_read: 300ms }").start().await;
    for first in ["", "GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut client = RawClient::connect(gateway.addr).await;
        client.say(first).await;
        if !first.is_empty() {
            assert!(client.head().await.starts_with("HTTP/1.1 200 OK"));
        }
        let began = std::time::Instant::now();
        let (mut reader, mut writer) = client.split();
        let drip = async {
            loop {
                if writer.write_all(b"x").await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let cut = async { while !matches!(reader.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} };
        tokio::select! { () = drip => {}, () = within("the connection to be cut", cut) => {} }
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    let turned_away = async |why| gateway.counted("tidegate_edge_rejected_total", &[why]).await;
    assert_eq!((turned_away("silent").await, turned_away("header_timeout").await), (1.0, 1.0));
}

#[tokio::test]
async fn bodies_that_come_byte_by_byte_are_cut_off_and_reach_no_pod() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { body_read: 300ms }").start().await;
    let mut clients = Vec::new();
    let drops = [" ", "1\r\n \r\n"];
    for framing in ["content-length: 1000", "transfer-encoding: chunked"] {
        let mut client = RawClient::connect(gateway.addr).await;
        client.say(format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n")).await;
        clients.push(client);
    }
    for _ in 0..40 {
        for (client, drop) in clients.iter_mut().zip(drops) {
            // Once refused, nobody listens any more.
            client.try_say(drop).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for client in &mut clients {
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_timeout"), "{answer}");
    }
    assert!(!pod.asked_again());
    gateway.quiet().await;
}

/// The answer must not be lost to the reset that unread bytes cause.
#[tokio::test]
async fn a_client_in_the_middle_of_a_large_body_can_read_why_it_was_refused() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("limits: { body: 1KiB }").start().await;
    for _ in 0..5 {
        let mut client = RawClient::connect(gateway.addr).await;
        client.say("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 20000000\r\n\r\n").await;
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..300 {
            if !client.try_say(&piece).await {
                break;
            }
        }
        let answer = client.rest().await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer:?}");
    }
    gateway.quiet().await;
}

/// A pod that never takes its request's body is waited for by its client alone.
#[tokio::test]
async fn a_pod_that_does_not_read_holds_no_more_than_its_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let witness = RawPod::start().await;
    let endpoint = format!(
        "{{ url: \"http://{}\", metrics_url: \"http://{}/metrics\" }}",
        listener.local_addr().unwrap(),
        witness.addr
    );
    let gateway =
        Gateway::over([endpoint]).yaml("timeouts: { first_byte: 500ms }\nretry: { attempts: 0 }").start().await;
    let reply = chat(&"x".repeat(8 << 20), 1).send(gateway.addr).await;
    assert_eq!(reply.error(504).await["code"], "upstream_timeout");
    gateway.quiet().await;
}
