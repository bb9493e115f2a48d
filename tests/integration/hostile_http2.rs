//! HTTP/2 frames as no library would send them, over raw sockets: floods, bombs and streams that never end, and what
//! they may cost us. Beside each attacker a well-behaved client keeps being served.

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::sleep,
};

use crate::harness::{Call, Gateway, PATIENCE, RawPod, SimPod, chat, eventually, sse_head, within};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const ACK: u8 = 1;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header field, literal and not indexed (RFC 7541, 6.2.2), with lengths below 127.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).ok().filter(|it| *it < 127).unwrap();
    [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
}

/// A field that enters the dynamic table (6.2.1), where it has index 62 while it is the youngest.
fn remembered(name: &str, value: &str) -> Vec<u8> {
    let mut field = field(name, value);
    field[0] = 0x40;
    field
}

fn request(method: &str, path: &str) -> Vec<u8> {
    [field(":method", method), field(":scheme", "http"), field(":path", path), field(":authority", "a")].concat()
}

fn settings(pairs: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        pairs.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

const INITIAL_WINDOW: u16 = 4;

/// An attacker's connection.
pub(crate) struct Attacker(TcpStream);

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Attacker {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::with(to, &[]).await
    }

    async fn with(to: SocketAddr, pairs: &[(u16, u32)]) -> Self {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&settings(pairs)).await.unwrap();
        Self(stream)
    }

    /// False if nobody listens any more.
    pub(crate) async fn say(&mut self, bytes: &[u8]) -> bool {
        matches!(tokio::time::timeout(PATIENCE, self.0.write_all(bytes)).await, Ok(Ok(())))
    }

    /// The next frame; `None` at the end.
    pub(crate) async fn hear(&mut self) -> Option<Frame> {
        let heard = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        within("a frame", heard).await
    }

    /// Reads until we are sent away; gives the error code of GOAWAY, if that was said before.
    async fn sent_away(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some(frame) = self.hear().await {
            if frame.kind == GOAWAY {
                code = Some(u32::from_be_bytes(frame.payload[4..8].try_into().unwrap()));
            }
        }
        code
    }
}

/// Odd numbers, as clients use for their streams.
pub(crate) fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|at| 1 + 2 * at)
}

/// Resident memory of this process, bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Plays an attack to its end, while a client that does no harm is served; says what memory it cost.
async fn attacked(gateway: &Gateway, attack: impl Future<Output = ()>) -> u64 {
    let before = memory();
    let served = async {
        for _ in 0..5 {
            assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
        }
    };
    within("attack and service", async { tokio::join!(attack, served) }).await;
    let house = &gateway.running.house;
    eventually("all connections to be closed", || house.metrics.connections.get() == 0).await;
    gateway.quiet().await;
    memory().saturating_sub(before)
}

/// Other tests run in this process as well, so this is no measurement but a fence: the attacks, unbounded, cost far
/// more.
const FENCE: u64 = 256 << 20;

#[tokio::test]
async fn the_frame_writer_can_ask_as_others_do() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = Attacker::connect(gateway.addr).await;
    client.say(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/v1/models"))).await;
    let mut body = Vec::new();
    loop {
        let frame = client.hear().await.unwrap();
        if frame.stream == 1 && frame.kind == DATA {
            body.extend(frame.payload);
        }
        if frame.stream == 1 && frame.flags & END_STREAM != 0 {
            break;
        }
    }
    assert!(String::from_utf8(body).unwrap().contains("\"id\":\"m\""));
}

/// What a table of fields remembers holds the buffers that it was read into: half a MiB a connection for 4 KiB of fields.
#[tokio::test]
async fn no_client_is_offered_a_table_of_fields() {
    const HEADER_TABLE_SIZE: u16 = 1;
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut client = Attacker::connect(gateway.addr).await;
    let first = client.hear().await.unwrap();
    assert_eq!((first.kind, first.flags), (SETTINGS, 0));
    let offered = first.payload.chunks(6).find(|pair| pair[..2] == HEADER_TABLE_SIZE.to_be_bytes()).unwrap();
    assert_eq!(offered[2..], 0_u32.to_be_bytes());
}

/// Sends the same frames for one stream after the other until nobody listens, and more of them than any socket holds.
async fn flood(gateway: &Gateway, of_stream: impl Fn(u32) -> Vec<u8>) {
    let mut attacker = Attacker::connect(gateway.addr).await;
    for stream in streams(200_000) {
        if !attacker.say(&of_stream(stream)).await {
            break;
        }
    }
    attacker.sent_away().await;
}

/// CVE-2023-44487: requests that are reset as soon as they are sent cost their client nothing.
#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let head = request("POST", "/v1/completions");
    let of_stream = |stream| {
        let mut all = frame(HEADERS, END_HEADERS, stream, &head);
        all.extend(frame(DATA, END_STREAM, stream, br#"{"model":"m","prompt":"hi","stream":true}"#));
        all.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        all
    };
    attacked(&gateway, flood(&gateway, of_stream)).await;
    let (asked, began) = (pod.asked(), gateway.counted("tidegate_requests_total", &[]).await);
    assert!(began < 1000.0 && asked < 500, "{began} were begun, {asked} of them reached the pod");
}

/// The same, each a moment later, when its request is at the pod already.
#[tokio::test]
async fn resets_of_requests_that_reached_their_pod_end_the_connection() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let head = request("POST", "/v1/completions");
    let mut attacker = Attacker::connect(gateway.addr).await;
    let mut reached = 0;
    for stream in streams(1000) {
        let mut all = frame(HEADERS, END_HEADERS, stream, &head);
        all.extend(frame(DATA, END_STREAM, stream, br#"{"model":"m","prompt":"hi","stream":true}"#));
        if !attacker.say(&all).await {
            break;
        }
        let mut asked = tokio::select! {
            asked = pod.asked() => asked,
            _ = attacker.sent_away() => break,
        };
        reached += 1;
        if !attacker.say(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await {
            break;
        }
        asked.abandoned().await;
    }
    assert!((50..200).contains(&reached), "{reached}");
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["resets"]).await, 1.0);
    gateway.quiet().await;
}

/// CVE-2025-8671: frames that make *us* reset streams, which then count as closed for the peer.
#[tokio::test]
async fn making_us_reset_streams_ends_the_connection() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let head = request("POST", "/v1/completions");
    let of_stream = |stream| {
        let mut all = frame(HEADERS, END_HEADERS, stream, &head);
        // An increment of zero is an error of the stream.
        all.extend(frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes()));
        all
    };
    attacked(&gateway, flood(&gateway, of_stream)).await;
    let began = gateway.counted("tidegate_requests_total", &[]).await;
    assert!(began < 2000.0, "{began} were begun");
}

#[tokio::test]
async fn continuations_without_end_are_refused() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let mut sent = 0_u64;
    let grown = attacked(&gateway, async {
        let mut attacker = Attacker::connect(gateway.addr).await;
        attacker.say(&frame(HEADERS, 0, 1, &request("GET", "/v1/models"))).await;
        let more: Vec<u8> = field("x", &"y".repeat(100)).repeat(150);
        let more = frame(CONTINUATION, 0, 1, &more);
        for _ in 0..20_000 {
            if !attacker.say(&more).await {
                break;
            }
            sent += more.len() as u64;
        }
        attacker.sent_away().await;
    })
    .await;
    assert!(sent < 32 << 20, "{sent} bytes of one head were taken");
    assert!(grown < FENCE, "{grown} bytes");
}

/// The HTTP/2 bomb: a field of 4 KB that is remembered once and then said again with one byte each time.
#[tokio::test]
async fn a_few_bytes_cannot_become_a_large_head() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let good = SimPod::start().await;
    let beside = Gateway::over([good.endpoint()]).start().await;
    for name in ["x-bomb", "cookie"] {
        let grown = attacked(&beside, async {
            let mut attacker = Attacker::connect(gateway.addr).await;
            let mut taken = 0;
            for stream in streams(100) {
                let mut head = request("POST", "/v1/completions");
                head.extend(remembered(name, &"v".repeat(120)));
                head.extend(std::iter::repeat_n(0x80 + 62_u8, 15_000));
                if !attacker.say(&frame(HEADERS, END_HEADERS, stream, &head)).await {
                    break;
                }
                taken += 1;
            }
            assert!(taken > 0);
            let mut refused = 0;
            while let Some(frame) = attacker.hear().await {
                refused +=
                    u32::from(frame.kind == RST_STREAM || (frame.kind == HEADERS && frame.flags & END_STREAM != 0));
                if frame.kind == GOAWAY || refused == taken {
                    break;
                }
            }
        })
        .await;
        assert!(grown < FENCE, "{grown} bytes for {name}");
    }
    // Small fields are counted as well, each for itself: crumbs of cookies too.
    for name in ["x-crumb", "cookie"] {
        let mut attacker = Attacker::connect(gateway.addr).await;
        let mut head = request("POST", "/v1/completions");
        head.extend(field(name, "a").repeat(70));
        attacker.say(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)).await;
        let mut answer = Vec::new();
        while let Some(frame) = attacker.hear().await {
            let over = frame.stream == 1 && frame.flags & END_STREAM != 0;
            if frame.stream == 1 && frame.kind == DATA {
                answer.extend(frame.payload);
            }
            if over {
                break;
            }
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("headers_too_large"), "{name}: {answer}");
    }
    assert!(!pod.asked_again());
    gateway.quiet().await;
}

#[tokio::test]
async fn floods_of_frames_that_say_nothing_cost_no_memory_and_keep_nobody_out() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { header_read: 1s, body_read: 2s }").start().await;
    let one = frame(HEADERS, END_HEADERS, 1, &request("POST", "/v1/completions"));
    let floods = [
        ("empty data", one.clone(), frame(DATA, 0, 1, &[])),
        ("settings", Vec::new(), settings(&[(INITIAL_WINDOW, 1)])),
        ("pings", Vec::new(), frame(PING, 0, 0, &[7; 8])),
        ("acknowledgements of nothing", Vec::new(), frame(PING, ACK, 0, &[7; 8])),
        ("priorities", Vec::new(), frame(2, 0, 1, &[0, 0, 0, 0, 9])),
        ("frames of no known kind", Vec::new(), frame(0xfa, 0, 0, &[0; 64])),
    ];
    for (what, first, flood) in floods {
        let many = flood.repeat(500);
        let grown = attacked(&gateway, async {
            let mut attacker = Attacker::connect(gateway.addr).await;
            attacker.say(&first).await;
            // It never reads: what it asks for must not pile up here.
            for _ in 0..200 {
                if tokio::time::timeout(Duration::from_millis(500), attacker.0.write_all(&many)).await.is_err() {
                    break;
                }
            }
        })
        .await;
        assert!(grown < FENCE, "{what}: {grown} bytes");
    }
}

/// Answers that are asked for through windows of nothing: each is held back at its pod, and let go.
#[tokio::test]
async fn streams_without_windows_are_held_back_and_let_go() {
    let pod =
        RawPod::answering(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", 4 << 20, "x".repeat(4 << 20)))
            .await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("timeouts: { write_stall: 500ms }").start().await;
    let good = SimPod::start().await;
    let beside = Gateway::over([good.endpoint()]).start().await;
    let body = br#"{"model":"m","prompt":"hi"}"#;
    let grown = attacked(&beside, async {
        let mut attacker = Attacker::with(gateway.addr, &[(INITIAL_WINDOW, 0)]).await;
        for stream in streams(100) {
            let mut all = frame(HEADERS, END_HEADERS, stream, &request("POST", "/v1/completions"));
            all.extend(frame(DATA, END_STREAM, stream, body));
            attacker.say(&all).await;
        }
        let mut reset = 0;
        while reset < 100 {
            let frame = attacker.hear().await.expect("the connection itself stays");
            assert!(frame.kind != DATA || frame.payload.is_empty(), "data without a window");
            reset += u32::from(frame.kind == RST_STREAM);
        }
    })
    .await;
    // A hundred answers of 4 MiB would be 400; here each has a piece in hand.
    assert!(grown < FENCE, "{grown} bytes");
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["write_stall"]).await, 100.0);
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
}

/// A small answer fits into the connection's own buffer, so that nothing is open any more: the connection is idle.
#[tokio::test]
async fn a_small_answer_that_is_never_taken_does_not_keep_the_connection() {
    let pod = SimPod::start().await;
    let yaml = "timeouts: { header_read: 300ms, client_idle: 300ms }";
    let gateway = Gateway::over([pod.endpoint()]).yaml(yaml).start().await;
    let mut attacker = Attacker::with(gateway.addr, &[(INITIAL_WINDOW, 1)]).await;
    attacker.say(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/v1/models"))).await;
    attacker.sent_away().await;
    let house = &gateway.running.house;
    eventually("the connection to be closed", || house.metrics.connections.get() == 0).await;
}

/// Pings are no requests: they keep no connection.
#[tokio::test]
async fn a_connection_that_only_pings_is_idle() {
    let pod = SimPod::start().await;
    let yaml = "timeouts: { header_read: 200ms, client_idle: 600ms }";
    let gateway = Gateway::over([pod.endpoint()]).yaml(yaml).start().await;
    let mut client = Attacker::connect(gateway.addr).await;
    client.say(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request("GET", "/v1/models"))).await;
    for _ in 0..200 {
        if !client.say(&frame(PING, 0, 0, &[1; 8])).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.sent_away().await;
    let house = &gateway.running.house;
    eventually("the connection to be closed", || house.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn heads_that_would_be_ambiguous_behind_us_are_refused() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let base = |path: &str| request("POST", path);
    let with = |name: &str, value: &str| [base("/v1/completions"), field(name, value)].concat();
    let without = |name: &str| {
        let all = [(":method", "POST"), (":scheme", "http"), (":path", "/v1/completions"), (":authority", "a")];
        all.iter().filter(|(it, _)| *it != name).flat_map(|(name, value)| field(name, value)).collect::<Vec<u8>>()
    };
    for (what, head) in [
        ("a line end in a value", with("x", "a\r\nhost: b")),
        ("a NUL in a value", with("x", "a\0b")),
        ("a line end in a path", base("/v1/completions HTTP/1.1\r\nx: y\r\n\r\n")),
        ("a space in a path", base("/v1/completions HTTP/1.1")),
        ("a colon in a name", with("x: y", "z")),
        ("an upper-case name", with("Host", "a")),
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("connection", with("connection", "close")),
        ("another host", with("host", "b")),
        ("a pseudo-header at the end", with(":path", "/metrics")),
        ("an authority with a path", [without(":authority"), field(":authority", "a/b")].concat()),
        ("an authority with a user", [without(":authority"), field(":authority", "u@a")].concat()),
        ("no authority", without(":authority")),
        ("no path", without(":path")),
        ("an empty path", [without(":path"), field(":path", "")].concat()),
        ("no method", without(":method")),
        ("a length that is not kept", with("content-length", "5")),
        ("two lengths", [with("content-length", "27"), field("content-length", "28")].concat()),
        ("CONNECT", [field(":method", "CONNECT"), field(":authority", "a:80")].concat()),
    ] {
        let mut client = Attacker::connect(gateway.addr).await;
        let mut all = frame(HEADERS, END_HEADERS, 1, &head);
        all.extend(frame(DATA, END_STREAM, 1, br#"{"model":"m","prompt":"hi"}"#));
        client.say(&all).await;
        loop {
            let Some(frame) = client.hear().await else { break };
            assert!(!(frame.kind == HEADERS && frame.payload.first() == Some(&0x88)), "{what}: 200");
            let over = frame.kind == DATA && frame.flags & END_STREAM != 0;
            if frame.kind == RST_STREAM || frame.kind == GOAWAY || over {
                break;
            }
        }
        assert!(!pod.asked_again(), "{what} reached the pod");
    }
    // The control: without any of it, it does.
    let reply = Call::post("/v1/completions", r#"{"model":"m","prompt":"hi"}"#).begin(gateway.addr);
    pod.asked().await.say(crate::harness::whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
    gateway.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_vanished_behind_an_open_stream_is_noticed_because_it_answers_no_ping() {
    let mut pod = RawPod::start().await;
    let gateway =
        Gateway::over([pod.endpoint()]).pool("metrics: { interval: 1h }").yaml("timeouts: { idle: 2h }").start().await;
    let open = &gateway.running.house.requests_open;
    let body = br#"{"model":"m","stream":true,"messages":[]}"#;
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    let ask =
        [frame(HEADERS, END_HEADERS, 1, &request("POST", "/v1/chat/completions")), frame(DATA, END_STREAM, 1, body)]
            .concat();

    // Whoever answers may wait for its next token as long as it likes.
    let mut client = Attacker::connect(gateway.addr).await;
    assert!(client.say(&ask).await);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    asked.chunk(token).await;
    let answers = tokio::spawn(async move {
        let mut head = [0; 9];
        while client.0.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            client.0.read_exact(&mut payload).await.unwrap();
            if (head[3], head[4]) == (PING, 0) {
                client.0.write_all(&frame(PING, ACK, 0, &payload)).await.unwrap();
            }
        }
    });
    // In small steps, so that time does not outrun what is on its way.
    for _ in 0..3_600 {
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(open.load(Relaxed), 1);
    answers.abort();
    asked.abandoned().await;

    let mut client = Attacker::connect(gateway.addr).await;
    assert!(client.say(&ask).await);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    asked.chunk(token).await;
    sleep(Duration::from_secs(115)).await;
    assert_eq!(open.load(Relaxed), 1);
    asked.abandoned().await;
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, 2.0);
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &[]).await, 0.0, "it broke no rule");
    drop(client);
}
