//! Requests behind requests: shapes that two readers frame differently, each with a second request behind it, over raw
//! sockets. A pod that keeps every byte it was sent tells what came through.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use tidegate::tasks::Tasks;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::harness::{Gateway, PATIENCE, RawClient, how_it_is, whole_json};

/// A pod that keeps every byte of every request for inference, and answers each.
struct Recorder {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<Vec<u8>>>>,
    tasks: Tasks,
}

impl Recorder {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (addr, seen, tasks) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<Vec<u8>>>>::default(), Tasks::new());
        let (spawner, seen_by) = (tasks.clone(), Arc::clone(&seen));
        tasks.spawn_until_stop(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawner.spawn_until_stop(record(stream, Arc::clone(&seen_by)));
            }
        });
        Self { addr, seen, tasks }
    }

    fn endpoint(&self) -> String {
        format!("{{ url: \"http://{}\" }}", self.addr)
    }

    /// What came since the last time.
    fn take(&self) -> Vec<String> {
        let seen = std::mem::take(&mut *self.seen.lock().unwrap());
        seen.into_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// Takes lengths at their word and nothing else: what is left over would be the next request.
async fn record(mut stream: TcpStream, seen: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut read = Vec::new();
    loop {
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read_buf(&mut read).await {
                Ok(0) | Err(_) => break,
                Ok(_) => continue,
            }
        };
        let head = String::from_utf8_lossy(&read[..end + 4]).into_owned();
        let length = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok();
        let length: usize = head.lines().find_map(length).unwrap_or(0);
        while read.len() < end + 4 + length {
            if matches!(stream.read_buf(&mut read).await, Ok(0) | Err(_)) {
                break;
            }
        }
        let rest = read.split_off((end + 4 + length).min(read.len()));
        let request = std::mem::replace(&mut read, rest);
        let answer = how_it_is(&head).unwrap_or_else(|| {
            seen.lock().unwrap().push(request);
            whole_json("{}")
        });
        if stream.write_all(answer.as_bytes()).await.is_err() {
            break;
        }
    }
    if !read.is_empty() {
        seen.lock().unwrap().push(read);
    }
}

const BODY: &str = r#"{"model":"m","prompt":"hi"}"#;

/// What an attacker wants a pod, or us, to take for a request of its own.
fn second() -> String {
    format!("POST /v1/completions?smuggled HTTP/1.1\r\nhost: smuggled\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len())
}

/// A head with these lines, which stand for the whole of it.
fn head(lines: &str) -> String {
    format!("POST /v1/completions HTTP/1.1\r\n{}\r\n\r\n", lines.replace('|', "\r\n"))
}

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

/// Sends `shape` with the second request behind it, and returns all answers.
async fn sent(gateway: &Gateway, shape: &str) -> String {
    let mut client = RawClient::connect(gateway.addr).await;
    _ = client.try_say(format!("{shape}{}", second())).await;
    let shown: String = shape.chars().take(200).collect();
    tokio::time::timeout(PATIENCE / 2, client.rest()).await.unwrap_or_else(|_| panic!("still open after {shown:?}"))
}

fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

#[tokio::test]
async fn the_recorder_sees_two_requests_where_two_were_asked() {
    let pod = Recorder::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let one = head(&format!("host: a|content-length: {}", BODY.len())) + BODY;
    let mut client = RawClient::connect(gateway.addr).await;
    client.say(one.clone() + &one.replace("host: a", "host: a\r\nconnection: close")).await;
    assert_eq!(answers(&client.rest().await), 2);
    let seen = pod.take();
    assert_eq!(seen.len(), 2, "{seen:?}");
    for request in seen {
        let expected = format!("host: {}", pod.addr);
        assert!(request.contains(&expected) && request.ends_with(BODY), "{request}");
    }
}

/// Nothing of these may reach a pod: not the first request, for nobody knows what it is, nor the second.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn what_can_be_framed_in_two_ways_is_refused_whole() {
    let pod = Recorder::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let length = BODY.len();
    let te = chunked(BODY);
    let long = "x".repeat(40 << 10);
    let of = |lines: &str| head(lines) + &te;
    let plain = |lines: &str| head(&lines.replace("LEN", &length.to_string())) + BODY;
    for (what, shape) in [
        ("a length and chunks", of("host: a|content-length: 4|transfer-encoding: chunked")),
        ("chunks and a length", of("host: a|transfer-encoding: chunked|content-length: 4")),
        ("two lengths", plain("host: a|content-length: LEN|content-length: 5")),
        ("the same length twice", plain("host: a|content-length: LEN|content-length: LEN")),
        ("a list of lengths", plain("host: a|content-length: LEN, LEN")),
        ("a signed length", plain("host: a|content-length: +LEN")),
        ("a negative length", plain("host: a|content-length: -1")),
        ("a length in hexadecimal", plain("host: a|content-length: 0x1b")),
        ("a length beyond all numbers", plain("host: a|content-length: 18446744073709551643")),
        ("an empty length", plain("host: a|content-length: ")),
        ("chunked, identity", of("host: a|transfer-encoding: chunked, identity")),
        ("identity, chunked", of("host: a|transfer-encoding: identity, chunked")),
        ("gzip, chunked", of("host: a|transfer-encoding: gzip, chunked")),
        ("xchunked", of("host: a|transfer-encoding: xchunked")),
        ("chunked in quotes", of("host: a|transfer-encoding: \"chunked\"")),
        ("chunked behind a vertical tab", of("host: a|transfer-encoding: \u{b}chunked")),
        ("chunked twice", of("host: a|transfer-encoding: chunked|transfer-encoding: chunked")),
        ("identity", plain("host: a|transfer-encoding: identity|content-length: LEN")),
        ("a folded line", of("host: a|transfer-encoding:| chunked")),
        ("a folded line elsewhere", plain("host: a|x: a| b|content-length: LEN")),
        ("a space before the colon", of("host: a|transfer-encoding : chunked")),
        ("a tab before the colon", plain("host: a|content-length\t: LEN")),
        ("a space before the name", plain("host: a| content-length: LEN")),
        ("a line without a colon", plain("host: a|x|content-length: LEN")),
        ("a name of nothing", plain("host: a|: x|content-length: LEN")),
        ("a line feed alone", plain("host: a\nx: y|content-length: LEN")),
        ("line feeds alone throughout", plain("host: a|content-length: LEN").replace("\r\n", "\n")),
        (
            "an end of two line feeds",
            format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\n\n{BODY}"),
        ),
        ("a carriage return alone", plain("host: a\rx: y|content-length: LEN")),
        ("a NUL in a value", plain("host: a|x: a\0b|content-length: LEN")),
        ("a NUL in a name", plain("host: a|x\0: b|content-length: LEN")),
        ("no host", plain("content-length: LEN")),
        ("two hosts", plain("host: a|host: a|content-length: LEN")),
        ("a host with a path", plain("host: a/v1/models?|content-length: LEN")),
        ("a host with a fragment", plain("host: a#|content-length: LEN")),
        ("a host with a user", plain("host: u@a|content-length: LEN")),
        ("another host than the target's", plain("host: a|content-length: LEN").replace("/v1", "http://b/v1")),
        ("a user in the target", plain("host: u@a|content-length: LEN").replace("/v1", "http://u@a/v1")),
        ("a fragment", plain("host: a|content-length: LEN").replace("ions HTTP", "ions#x HTTP")),
        ("a space in the target", plain("host: a|content-length: LEN").replace("ions HTTP", "ions x HTTP")),
        ("HTTP/1.0 with chunks", of("host: a|transfer-encoding: chunked").replace("HTTP/1.1", "HTTP/1.0")),
        ("HTTP/0.9", "POST /v1/completions\r\n\r\n".to_owned()),
        ("HTTP/2.0 in words", plain("host: a|content-length: LEN").replace("HTTP/1.1", "HTTP/2.0")),
        ("HTTP/1.10", plain("host: a|content-length: LEN").replace("HTTP/1.1", "HTTP/1.10")),
        ("a websocket", plain("host: a|connection: upgrade|upgrade: websocket|content-length: LEN")),
        ("an upgrade to nothing known", plain("host: a|connection: upgrade|upgrade: foo|content-length: LEN")),
        ("another expectation", plain("host: a|expect: 200-ok|content-length: LEN")),
        ("CONNECT", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n".to_owned()),
        ("a field too long", plain(&format!("host: a|x: {long}|content-length: LEN"))),
        ("a target too long", plain("host: a|content-length: LEN").replace("ions HTTP", &format!("ions?{long} HTTP"))),
        ("too many fields", plain(&format!("host: a|{}content-length: LEN", "x: y|".repeat(64)))),
    ] {
        let answer = sent(&gateway, &shape).await;
        assert_eq!(pod.take(), [""; 0], "{what}: came through\n{answer}");
        assert_eq!(answers(&answer), 1, "{what}: {answer}");
        assert!(answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 501 "), "{what}: {answer}");
        // Whoever refused it, a client reads the same: an error of OpenAI's kind, with an id to ask the operator by.
        for part in ["\r\nx-request-id: ", "\r\nx-tidegate-refused: ", "\"type\":\"invalid_request_error\""] {
            assert!(answer.contains(part), "{what}: no {part} in {answer}");
        }
    }
    let turned_away = gateway.counted("tidegate_edge_rejected_total", &["not_http"]).await;
    assert!(turned_away > 20.0, "{turned_away}");
    assert_eq!(gateway.counted("tidegate_edge_rejected_total", &["headers_too_large"]).await, 3.0);
    gateway.quiet().await;
}

/// A body that breaks the rules of its framing: the request is answered 400, and nothing behind it is read.
#[tokio::test]
async fn chunks_that_two_readers_could_cut_differently_are_refused() {
    let pod = Recorder::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let size = format!("{:x}", BODY.len());
    for (what, body) in [
        ("a size in words", format!("zz\r\n{BODY}\r\n0\r\n\r\n")),
        ("no size", format!("\r\n{BODY}\r\n0\r\n\r\n")),
        ("a size with 0x", format!("0x{size}\r\n{BODY}\r\n0\r\n\r\n")),
        ("a signed size", format!("+{size}\r\n{BODY}\r\n0\r\n\r\n")),
        ("a size beyond all numbers", format!("1000000000000000{size}\r\n{BODY}\r\n0\r\n\r\n")),
        ("a size that ends in a line feed", format!("{size}\n{BODY}\r\n0\r\n\r\n")),
        ("a line feed in an extension", format!("{size};a\nb\r\n{BODY}\r\n0\r\n\r\n")),
        ("extensions without end", format!("{size};{}\r\n{BODY}\r\n0\r\n\r\n", "x".repeat(20 << 10))),
        ("a chunk longer than its size", format!("{size}\r\n{BODY}xx\r\n0\r\n\r\n")),
        ("no line end behind a chunk", format!("{size}\r\n{BODY}0\r\n\r\n")),
        ("a line feed behind a chunk", format!("{size}\r\n{BODY}\n0\r\n\r\n")),
        ("a last chunk that ends in line feeds", format!("{size}\r\n{BODY}\r\n0\n\n")),
    ] {
        let answer = sent(&gateway, &(head("host: a|transfer-encoding: chunked") + &body)).await;
        assert_eq!(pod.take(), [""; 0], "{what}: came through\n{answer}");
        assert!(answer.starts_with("HTTP/1.1 400 ") && answers(&answer) == 1, "{what}: {answer}");
    }
    gateway.quiet().await;
}

/// What is unusual and clear is served, and the pod reads it as we write it.
#[tokio::test]
async fn what_passes_reaches_the_pod_as_one_plain_request() {
    let pod = Recorder::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let length = BODY.len();
    let size = format!("{length:x}");
    let close = "host: a|connection: close";
    for (what, shape) in [
        (
            "extensions",
            head(&format!("{close}|transfer-encoding: chunked")) + &format!("{size};a=b\r\n{BODY}\r\n0\r\n\r\n"),
        ),
        (
            "trailers",
            head(&format!("{close}|transfer-encoding: chunked"))
                + &format!("{size}\r\n{BODY}\r\n0\r\nhost: smuggled\r\ncontent-length: 7\r\n\r\n"),
        ),
        ("a whole URI", (head(&format!("{close}|content-length: {length}")) + BODY).replace("/v1", "http://A/v1")),
        (
            "names with underscores",
            head(&format!("{close}|content_length: 5|transfer_encoding: chunked|content-length: {length}")) + BODY,
        ),
        ("headers named as hops", head(&format!("{close}, content-length|content-length: {length}")) + BODY),
        ("HTTP/1.0 without a host", format!("POST /v1/completions HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{BODY}")),
        ("an expectation", head(&format!("{close}|expect: 100-continue|content-length: {length}")) + BODY),
    ] {
        let answer = sent(&gateway, &shape).await;
        assert!(answer.contains(" 200 OK\r\n"), "{what}: {answer}");
        let seen = pod.take();
        let [request] = seen.as_slice() else { panic!("{what}: {seen:?}") };
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, BODY, "{what}");
        assert!(head.starts_with("POST /v1/completions HTTP/1.1\r\n"), "{what}: {head}");
        for absent in ["smuggled", "transfer", "content_length", "trailer", "expect:"] {
            assert!(!head.contains(absent), "{what}: {head}");
        }
        assert_eq!(head.matches("content-length").count(), 1, "{what}: {head}");
        assert_eq!(head.matches("host:").count(), 1, "{what}: {head}");
    }
    gateway.quiet().await;
}

#[tokio::test]
async fn a_path_has_one_spelling() {
    let pod = Recorder::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("api: { extra_paths: [/v1/extra] }").start().await;
    for path in [
        "//v1/completions",
        "/v1//completions",
        "/v1/./completions",
        "/v1/../v1/completions",
        "/v1/%2e%2e/completions",
        "/v1%2Fcompletions",
        "/v1%5Ccompletions",
        "/v1\\completions",
        "/v1/completions;a=b",
        "/v1/completions%00",
        "/v1/complétions",
        "/v1/completions/.",
        "/v1/extra/..",
        "*",
    ] {
        let length = BODY.len();
        let answer = sent(
            &gateway,
            &format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{BODY}"),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answers(&answer) == 1, "{path}: {answer}");
        assert!(answer.contains("\"type\":\"invalid_request_error\""), "{path}: {answer}");
        assert_eq!(pod.take(), [""; 0], "{path}");
    }
    gateway.quiet().await;
}
