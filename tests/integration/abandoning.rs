//! Clients that leave in every state that a request can be in: the pod hears of it at once. And what requests hold:
//! given back as early as can be, and bounded whatever clients do.
//!
//! On a clock that the test moves, "at once" can be told exactly: had anything waited for a timer, time would have
//! passed.

use std::{
    net::SocketAddr,
    sync::{atomic::Ordering::Relaxed, mpsc},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::harness::{
    Client, Exchange, Gateway, RawClient, RawPod, chat, chat_stream, eventually, sse_head, whole_json,
};

const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

/// A pod hears of it within this time.
const AT_ONCE: Duration = Duration::from_millis(50);

/// How far a request is when its client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Prefill,
    BehindTheHead,
    MidStream,
    WholeAtWork,
    MidWhole,
    Heartbeat,
}

const STATES: [State; 6] =
    [State::Prefill, State::BehindTheHead, State::MidStream, State::WholeAtWork, State::MidWhole, State::Heartbeat];

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Close,
    Reset,
    HalfClose,
    Http2Reset,
    Http2Close,
}

/// What is sent, with nothing behind it.
fn request(body: &str) -> String {
    let length = body.len();
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn body(state: State) -> String {
    let stream = !matches!(state, State::WholeAtWork | State::MidWhole);
    format!(r#"{{"model":"m","stream":{stream},"messages":[{{"role":"user","content":"hi"}}]}}"#)
}

/// While it is held the test's clock stands still, so that no timer runs out because the system takes a moment to carry a
/// packet. What waits for a timer is found out all the same: after ten seconds of real time the clock runs on.
struct StandStill {
    _held: mpsc::Sender<()>,
}

impl StandStill {
    fn begin() -> Self {
        let (held, let_go) = mpsc::channel::<()>();
        // The clock of a test never runs on its own while blocking work is under way.
        tokio::task::spawn_blocking(move || let_go.recv_timeout(Duration::from_secs(10)));
        Self { _held: held }
    }
}

/// Brings the pod's side there.
async fn bring_to(state: State, asked: &mut Exchange) {
    match state {
        State::Prefill | State::WholeAtWork => {}
        State::BehindTheHead => asked.say(sse_head()).await,
        State::MidStream => {
            asked.say(sse_head()).await;
            asked.chunk(TOKEN).await;
        }
        State::MidWhole => {
            asked.say("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"a\":").await;
        }
        State::Heartbeat => sleep(Duration::from_secs(16)).await,
    }
    // Let it arrive everywhere.
    sleep(Duration::from_secs(1)).await;
}

/// Leaves in this way, and says when.
async fn leave(way: Way, state: State, to: SocketAddr, pod: &mut RawPod) -> (Exchange, (Instant, StandStill)) {
    if matches!(way, Way::Http2Reset | Way::Http2Close) {
        let client = Client::h2(to).await;
        let call = if body(state).contains("true") { chat_stream("hi", 9) } else { chat("hi", 9) };
        let asking = tokio::spawn(client.ask_later(call));
        let mut asked = pod.asked().await;
        bring_to(state, &mut asked).await;
        let left = (Instant::now(), StandStill::begin());
        asking.abort();
        _ = asking.await;
        if way == Way::Http2Reset {
            // The connection stays.
            tokio::spawn(async move {
                sleep(Duration::from_secs(60)).await;
                drop(client);
            });
        }
        return (asked, left);
    }
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request(&body(state)).as_bytes()).await.unwrap();
    let mut asked = pod.asked().await;
    bring_to(state, &mut asked).await;
    let left = (Instant::now(), StandStill::begin());
    match way {
        Way::Reset => stream.set_zero_linger().unwrap(),
        Way::HalfClose => {
            stream.shutdown().await.unwrap();
            tokio::spawn(async move { while !matches!(stream.read(&mut [0; 1024]).await, Ok(0) | Err(_)) {} });
            return (asked, left);
        }
        _ => {}
    }
    drop(stream);
    (asked, left)
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_stops_the_pod_at_once_in_every_state_and_way() {
    for way in [Way::Close, Way::Reset, Way::HalfClose, Way::Http2Reset, Way::Http2Close] {
        for state in STATES {
            let mut pod = RawPod::start().await;
            let heartbeat = if state == State::Heartbeat { "api: { heartbeat: 15s }" } else { "" };
            let gateway =
                Gateway::over([pod.endpoint()]).pool("metrics: { interval: 1h }").yaml(heartbeat).start().await;
            let (mut asked, (left, still)) = leave(way, state, gateway.addr, &mut pod).await;
            asked.abandoned().await;
            let after = left.elapsed();
            drop(still);
            assert!(after < AT_ONCE, "{way:?} {state:?}: after {after:?}");
            gateway.quiet().await;
            assert_eq!(gateway.counted("tidegate_aborts_total", &[]).await, 1.0, "{way:?} {state:?}");
            assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0, "{way:?} {state:?}");
            assert!(!pod.asked_again());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_while_a_connection_is_made_or_a_body_read_leaves_nothing() {
    let pod = RawPod::start().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let hole: TcpListener = socket.listen(1).unwrap();
    let address = hole.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    let nowhere = format!("{{ url: \"http://{address}\", metrics_url: \"http://{}/metrics\" }}", pod.addr);
    let gateway = Gateway::over([nowhere]).yaml("timeouts: { connect: 1h }").start().await;
    let whole = request(&body(State::Prefill));
    for (sent, step) in [(whole.as_str(), "waiting_for_pod"), (&whole[..whole.len() - 1], "reading_body")] {
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(gateway.running.house.requests_open.load(Relaxed), 1, "{step}");
        let (left, still) = (Instant::now(), StandStill::begin());
        drop(stream);
        let open = &gateway.running.house.requests_open;
        while open.load(Relaxed) != 0 && left.elapsed() < AT_ONCE {
            tokio::task::yield_now().await;
        }
        assert!(left.elapsed() < AT_ONCE, "{step}: after {:?}", left.elapsed());
        drop(still);
        gateway.quiet().await;
    }
}

/// What all requests hold now.
fn held(gateway: &Gateway) -> u64 {
    gateway.running.house.bodies.held()
}

fn large(bytes: usize) -> String {
    format!(r#"{{"model":"m","prompt":"{}"}}"#, "x".repeat(bytes))
}

#[tokio::test(start_paused = true)]
async fn a_body_is_let_go_as_soon_as_no_other_pod_can_get_it() {
    const SIZE: usize = 100_000;
    let mut pod = RawPod::start().await;
    for (retry, kept) in [("retry: { attempts: 2 }", SIZE as u64), ("retry: { attempts: 0 }", 0)] {
        let gateway = Gateway::over([pod.endpoint()])
            .models(&["{ modelName: m, poolRef: pods, targetModels: [{ name: served }] }"])
            .yaml(retry)
            .start()
            .await;
        let mut client = TcpStream::connect(gateway.addr).await.unwrap();
        client.write_all(request(&large(SIZE)).as_bytes()).await.unwrap();
        let mut asked = pod.asked().await;
        sleep(Duration::from_secs(1)).await;
        let now = held(&gateway);
        assert!((kept..=kept + 100).contains(&now), "one copy while it may be needed again, {retry}: {now}");
        // The pod works on a whole answer for a long time.
        sleep(Duration::from_secs(5)).await;
        assert_eq!(held(&gateway), 0, "{retry}");
        asked.say(whole_json("{}")).await;
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}

#[tokio::test]
async fn a_stream_holds_nothing_of_its_request() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let reply = chat_stream(&"x".repeat(500_000), 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    asked.chunk(TOKEN).await;
    let mut reply = reply.await.unwrap();
    reply.piece().await.unwrap().unwrap();
    eventually("the body to be let go", || held(&gateway) <= 20_000).await;
    // Half an event is held while it is half, and not a moment longer.
    let half = format!("data: {{\"x\":\"{}", "y".repeat(300_000));
    asked.chunk(&half).await;
    eventually("half an event to be held", || held(&gateway) >= 300_000).await;
    asked.chunk("\"}\n\n").await;
    eventually("the event to be let go", || held(&gateway) <= 20_000).await;
}

#[tokio::test]
async fn a_full_budget_holds_back_nothing_of_answers_and_they_go_on() {
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()])
        .yaml("limits: { body: 100KB, buffered_bodies: 100KB }\napi: { inject_usage: true }")
        .start()
        .await;
    let reply = chat_stream("hi", 9).begin(gateway.addr);
    let mut asked = pod.asked().await;
    asked.say(sse_head()).await;
    let mut said = String::new();
    for (nth, size) in [(0, 200_000), (1, 10), (2, 90_000), (3, 200_000)] {
        let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{nth}{}\"}}}}]}}\n\n", "y".repeat(size));
        for piece in event.as_bytes().chunks(30_000) {
            asked.chunk(std::str::from_utf8(piece).unwrap()).await;
        }
        said += &event;
    }
    asked.chunk("data: [DONE]\n\n").await;
    asked.say("0\r\n\r\n").await;
    assert!(reply.await.unwrap().text().await == said + "data: [DONE]\n\n");
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_cuts_total", &[]).await, 0.0);
}

#[tokio::test]
async fn many_slow_uploads_fill_the_budget_and_no_more() {
    const LIMIT: u64 = 1_000_000;
    let mut pod = RawPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).yaml("limits: { body: 200KB, buffered_bodies: 1MB }").start().await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = RawClient::connect(gateway.addr).await;
        client.say("POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
        // Three quarters of a body, in pieces; its end never comes.
        for _ in 0..5 {
            client.say(format!("{:x}\r\n{}\r\n", 30_000, "x".repeat(30_000))).await;
        }
        clients.push(client);
        assert!(held(&gateway) <= LIMIT);
    }
    let open = || gateway.running.house.requests_open.load(Relaxed);
    eventually("all but six to be refused", || open() == 6 && held(&gateway) == 6 * 150_000).await;
    assert_eq!(gateway.counted("tidegate_rejections_total", &["buffers_full"]).await, 94.0);
    let reply = chat(&"x".repeat(190_000), 1).send(gateway.addr).await;
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(reply.error(503).await["code"], "overloaded");
    drop(clients);
    gateway.quiet().await;
    let reply = chat(&"x".repeat(190_000), 1).begin(gateway.addr);
    pod.asked().await.say(whole_json("{}")).await;
    assert_eq!(reply.await.unwrap().status(), 200);
}
