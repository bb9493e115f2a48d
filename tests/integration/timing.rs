//! How long each step may take, on a clock that the test moves: what the client is told and when, what counts as
//! progress, and what streams show while their pod is still silent.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tidegate::clock;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::harness::{Gateway, LoneDesk, Plan, RawPod, events, sse_head, whole_json};

const SECOND: Duration = Duration::from_secs(1);
const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const ROLE: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const COMMENT: &str = ": keep-alive\n\n";
const DONE: &str = "data: [DONE]\n\n";
const LAST_CHUNK: &str = "0\r\n\r\n";

/// A gateway that seldom looks at its pods: minutes of the test's time are short then.
fn over(endpoints: impl IntoIterator<Item = String>) -> Plan {
    Gateway::over(endpoints).pool("metrics: { interval: 1h }")
}

/// What a client got, and when: seconds from its request to the head, and to the end.
struct Told {
    head: String,
    body: String,
    head_after: u64,
    end_after: u64,
}

impl Told {
    fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    fn last_event(&self) -> Value {
        serde_json::from_str(events(&self.body).last().unwrap()).unwrap()
    }
}

/// Asks as a client that waits for ever. The answer is told without its chunks' sizes.
fn ask(to: SocketAddr, path: &str, body: &str) -> JoinHandle<Told> {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    tokio::spawn(async move {
        let began = Instant::now();
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            read.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(read).unwrap();
        let head_after = began.elapsed().as_secs();
        let mut rest = Vec::new();
        _ = stream.read_to_end(&mut rest).await;
        let rest = String::from_utf8(rest).unwrap();
        let body = if head.contains("chunked") { unchunked(&rest) } else { rest };
        Told { head, body, head_after, end_after: began.elapsed().as_secs() }
    })
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    panic!("the last chunk never came behind {body}");
}

fn stream(to: SocketAddr) -> JoinHandle<Told> {
    ask(to, "/v1/chat/completions", r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#)
}

fn whole(to: SocketAddr, model: &str) -> JoinHandle<Told> {
    let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#);
    ask(to, "/v1/chat/completions", &body)
}

/// An address where connections are neither taken nor refused. What is returned keeps it so.
async fn black_hole() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let (address, mut waiting) = (listener.local_addr().unwrap(), Vec::new());
    while let Ok(stream) = timeout(SECOND, TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    (address, listener, waiting)
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_day_comes_through_byte_for_byte() {
    let mut pod = RawPod::start().await;
    let desk = LoneDesk::before(&pod, |_| ()).await;
    let told = stream(desk.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let tokens = 24 * 3600 / 100;
    for _ in 0..tokens {
        sleep(100 * SECOND).await;
        asked.chunk(TOKEN).await;
    }
    asked.chunk(DONE).await;
    asked.say(LAST_CHUNK).await;
    let told = told.await.unwrap();
    assert_eq!((told.status(), told.end_after), ("200", 24 * 3600));
    assert_eq!(told.body, TOKEN.repeat(tokens) + DONE);
}

/// A pod that says `first`, and then only comments until it is left.
async fn only_comments_after(first: &str, gateway: &Gateway, pod: &mut RawPod) -> Told {
    let told = stream(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    asked.chunk(first).await;
    let murmuring = async {
        loop {
            asked.chunk(COMMENT).await;
            sleep(15 * SECOND).await;
        }
    };
    tokio::select! {
        told = told => told.unwrap(),
        () = murmuring => panic!("never"),
    }
}

#[tokio::test(start_paused = true)]
async fn comments_and_a_role_are_no_first_token() {
    let mut pod = RawPod::start().await;
    let gateway = over([pod.endpoint()]).start().await;
    let told = only_comments_after(ROLE, &gateway, &mut pod).await;
    assert_eq!((told.status(), told.end_after), ("200", 600));
    assert!(told.body.starts_with(&[ROLE, COMMENT].concat()), "what the pod said passes: {}", told.body);
    assert_eq!(told.last_event()["error"]["code"], "stream_cut");
    assert_eq!(gateway.counted("tidegate_cuts_total", &["first_token_timeout"]).await, 1.0);
    let condition = gateway.pods()[0].condition(clock::now()).name();
    assert_ne!(condition, "ejected", "one slow answer is evidence, not proof");
    gateway.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn comments_between_tokens_are_silence() {
    let mut pod = RawPod::start().await;
    let gateway = over([pod.endpoint()]).start().await;
    let told = only_comments_after(TOKEN, &gateway, &mut pod).await;
    assert_eq!(told.end_after, 120);
    assert_eq!(told.last_event()["error"]["code"], "stream_cut");
    assert_eq!(gateway.counted("tidegate_cuts_total", &["idle_timeout"]).await, 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_first_token_within_ten_minutes_is_in_time() {
    let mut pod = RawPod::start().await;
    let gateway = over([pod.endpoint()]).start().await;
    let told = stream(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    sleep(599 * SECOND).await;
    asked.chunk(&[TOKEN, DONE].concat()).await;
    asked.say(LAST_CHUNK).await;
    assert_eq!(told.await.unwrap().body, [TOKEN, DONE].concat());
}

#[tokio::test(start_paused = true)]
async fn each_model_may_have_its_own_times_for_streams_and_whole_answers() {
    let mut pod = RawPod::start().await;
    let gateway = over([pod.endpoint()])
        .models(&[
            "{ modelName: m, poolRef: pods, timeouts: { first_token: 5s } }",
            "{ modelName: quick, poolRef: pods, timeouts: { first_byte: 7s } }",
            "{ modelName: bounded, poolRef: pods, timeouts: { total: 9s } }",
            "{ modelName: common, poolRef: pods }",
        ])
        .yaml("timeouts: { first_byte: 30s, first_token: 20s }")
        .start()
        .await;
    for (model, seconds, refused) in
        [("quick", 7, "timeout"), ("bounded", 9, "total_timeout"), ("common", 30, "timeout")]
    {
        let told = whole(gateway.addr, model);
        let mut asked = pod.asked().await;
        let told = told.await.unwrap();
        assert_eq!((told.status(), told.end_after), ("504", seconds), "{model}");
        assert!(told.head.contains(&format!("x-tidegate-refused: {refused}\r\n")), "{}", told.head);
        asked.abandoned().await;
    }
    // Before the head a stream is refused, behind it its stream says so; either way after its first token's time.
    let told = stream(gateway.addr);
    let mut asked = pod.asked().await;
    let told = told.await.unwrap();
    assert_eq!((told.status(), told.end_after), ("504", 5));
    asked.abandoned().await;
    let told = stream(gateway.addr);
    let mut asked = pod.asked().await;
    sleep(3 * SECOND).await;
    asked.say(sse_head()).await;
    let told = told.await.unwrap();
    assert_eq!((told.status(), told.head_after, told.end_after), ("200", 3, 5));
    assert_eq!(told.last_event()["error"]["code"], "stream_cut");
    gateway.quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_does_not_take_connections_is_given_up_after_two_seconds() {
    let pod = RawPod::answering(whole_json("{}")).await;
    let (hole, _listener, _waiting) = black_hole().await;
    let nowhere = format!("{{ url: \"http://{hole}\", metrics_url: \"http://{}/metrics\" }}", pod.addr);
    let gateway = over([nowhere.clone()]).start().await;
    let told = whole(gateway.addr, "m").await.unwrap();
    assert_eq!((told.status(), told.end_after), ("503", 2));
    let both = over([nowhere, pod.endpoint()]).yaml("scheduler: { policy: round-robin }").start().await;
    let told = whole(both.addr, "m").await.unwrap();
    assert_eq!((told.status(), told.end_after), ("200", 2), "the other pod is tried");
}

const ALIVE: &str = "api: { heartbeat: 15s }";

#[tokio::test(start_paused = true)]
async fn a_long_prefill_shows_heartbeats_and_then_exactly_the_pods_bytes() {
    let mut pod = RawPod::start().await;
    let gateway = over([pod.endpoint()]).yaml(ALIVE).start().await;
    let told = stream(gateway.addr);
    let mut asked = pod.asked().await;
    sleep(50 * SECOND).await;
    asked.say(sse_head()).await;
    sleep(20 * SECOND).await;
    asked.chunk(ROLE).await;
    sleep(40 * SECOND).await;
    asked.chunk(&[TOKEN, DONE].concat()).await;
    asked.say(LAST_CHUNK).await;
    let told = told.await.unwrap();
    assert_eq!((told.status(), told.head_after), ("200", 15));
    assert!(told.head.contains("content-type: text/event-stream"), "{}", told.head);
    assert!(told.head.contains("x-request-id: "), "{}", told.head);
    // At 15, 30 and 45 s, and again 15 s behind the head; none once the pod has said something.
    assert_eq!(told.body, COMMENT.repeat(4) + ROLE + TOKEN + DONE);
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_requests_total", &["code=\"200\""]).await, 1.0);
}

#[tokio::test(start_paused = true)]
async fn without_the_operators_wish_and_for_whole_answers_nothing_is_committed() {
    let mut pod = RawPod::start().await;
    for plan in [over([pod.endpoint()]), over([pod.endpoint()]).yaml(ALIVE)] {
        let gateway = plan.start().await;
        let answers = [whole(gateway.addr, "m"), stream(gateway.addr)];
        for _ in 0..2 {
            let mut asked = pod.asked().await;
            let quick = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
            tokio::spawn(async move {
                sleep(14 * SECOND).await;
                asked.say(quick).await;
            });
        }
        for told in answers {
            let told = told.await.unwrap();
            assert_eq!((told.status(), told.head_after, told.body.as_str()), ("400", 14, "{}"));
        }
    }
    let gateway = over([pod.endpoint()]).yaml(ALIVE).start().await;
    let told = whole(gateway.addr, "m");
    let mut asked = pod.asked().await;
    sleep(100 * SECOND).await;
    asked.say(whole_json("{}")).await;
    let told = told.await.unwrap();
    assert_eq!((told.head_after, told.body.as_str()), (100, "{}"));
}

#[tokio::test(start_paused = true)]
async fn another_pod_is_tried_behind_heartbeats_too() {
    let mut pod = RawPod::start().await;
    let (hole, _listener, _waiting) = black_hole().await;
    let nowhere = format!("{{ url: \"http://{hole}\", metrics_url: \"http://{}/metrics\" }}", pod.addr);
    let gateway = over([nowhere, pod.endpoint()])
        .yaml("scheduler: { policy: round-robin }\ntimeouts: { connect: 20s }\napi: { heartbeat: 6s }")
        .start()
        .await;
    let told = stream(gateway.addr);
    // Longer than anything else is waited for here: the first pod has its 20 s.
    sleep(21 * SECOND).await;
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    asked.chunk(DONE).await;
    asked.say(LAST_CHUNK).await;
    assert_eq!(told.await.unwrap().body, COMMENT.repeat(3) + DONE);
    assert_eq!(gateway.counted("tidegate_retries_total", &["connect_timeout"]).await, 1.0);
}

#[tokio::test(start_paused = true)]
async fn what_fails_behind_a_heartbeat_is_an_event_in_the_clients_dialect() {
    let mut pod = RawPod::start().await;
    let gateway = over([pod.endpoint()]).yaml("api: { heartbeat: 15s }\nretry: { attempts: 0 }").start().await;
    let refused = r#"{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}"#;
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{refused}",
        refused.len()
    );
    let messages = r#""messages":[{"role":"user","content":"hi"}],"max_tokens":9"#;
    let paths = [("/v1/chat/completions", messages), ("/v1/messages", messages), ("/v1/responses", r#""input":"hi""#)];
    for (path, prompt) in paths {
        for dies in [false, true] {
            let told = ask(gateway.addr, path, &format!(r#"{{"model":"m","stream":true,{prompt}}}"#));
            let mut asked = pod.asked().await;
            sleep(16 * SECOND).await;
            if dies {
                drop(asked);
            } else {
                asked.say(&answer).await;
            }
            let told = told.await.unwrap();
            assert_eq!((told.status(), told.head_after), ("200", 15));
            let event = told.body.strip_prefix(COMMENT).unwrap();
            let name = event.lines().next().unwrap().strip_prefix("event: ");
            let data = told.last_event();
            let error = match path {
                "/v1/responses" => {
                    assert_eq!((name, &data["response"]["status"]), (Some("response.failed"), &Value::from("failed")));
                    &data["response"]["error"]
                }
                "/v1/messages" => {
                    assert_eq!((name, &data["type"]), (Some("error"), &Value::from("error")));
                    &data["error"]
                }
                _ => &data["error"],
            };
            let message = if dies { "the model server closed the connection before it answered" } else { "too long" };
            assert_eq!(error["message"], message, "{path}: {}", told.body);
        }
    }
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_rejections_total", &["late_error"]).await, 3.0);
    assert_eq!(gateway.counted("tidegate_rejections_total", &["upstream_failed"]).await, 3.0);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_told_behind_a_heartbeat_too() {
    let mut pod = RawPod::start().await;
    let gateway = over([pod.endpoint()]).yaml(ALIVE).start().await;
    let told = stream(gateway.addr);
    let mut asked = pod.asked().await;
    sleep(20 * SECOND).await;
    let stopped = gateway.stop(5 * SECOND).await;
    assert_eq!(stopped.cut, 1);
    assert_eq!(told.await.unwrap().last_event()["error"]["code"], "stopping");
    asked.abandoned().await;
}

#[tokio::test(start_paused = true)]
async fn a_whole_request_has_one_time_over_reading_attempts_and_answer() {
    let mut pod = RawPod::start().await;
    let gateway = over([pod.endpoint()]).yaml("timeouts: { total: 10s }").start().await;
    // The body takes 6 s of it.
    let (head, body) =
        ("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 27\r\n\r\n", r#"{"model":"m","prompt":"hi"}"#);
    let mut client = TcpStream::connect(gateway.addr).await.unwrap();
    let began = Instant::now();
    client.write_all(head.as_bytes()).await.unwrap();
    sleep(6 * SECOND).await;
    client.write_all(body.as_bytes()).await.unwrap();
    let mut asked = pod.asked().await;
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!((&answer, began.elapsed().as_secs()), (b"HTTP/1.1 504", 10));
    asked.abandoned().await;
}
