//! Conversations as no Envoy would hold them, and moments in which a real one is not itself: what one of them does costs
//! the others nothing, least of all the connection that they share.

use std::time::Duration;

use super::{
    harness::{
        Gateway, SimPod,
        envoy::{Envoy, body, chat_head},
        eventually, within,
    },
    hostile_http2::{
        ACK, Attacker, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
        field, frame, streams,
    },
};

async fn picker(pod: &SimPod, rest: &str) -> Gateway {
    let text = format!(
        "listeners:
  - {{ name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: {{ secure: false }} }}
pools: [{{ name: pods, engine: vllm, endpoints: [{}] }}]
admin: {{ address: 127.0.0.1:0 }}
{rest}",
        pod.endpoint()
    );
    let gateway = Gateway::from(&text).await;
    gateway.sees_all_pods().await;
    gateway
}

/// The head of a gRPC call for a conversation.
fn call(stream: u32) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/envoy.service.ext_proc.v3.ExternalProcessor/Process"),
        (":authority", "a"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| field(name, value)).collect();
    frame(HEADERS, END_HEADERS, stream, &block)
}

/// One message of so many bytes, of which these come.
fn message(stream: u32, length: usize, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    frame(DATA, 0, stream, &[&[0][..], &length, bytes].concat())
}

/// A piece of an answer that says as much as a token does.
const TOKEN: &[u8] = b"\x2a\x09\x0a\x07tokens!";

/// Asks for a sign of life behind all that was said; gives how many conversations ended before it.
async fn still_there(attacker: &mut Attacker) -> usize {
    assert!(attacker.say(&frame(PING, 0, 0, b"are you?")).await);
    let mut ended = 0;
    loop {
        let heard = attacker.hear().await.expect("the connection stays");
        assert_ne!(heard.kind, GOAWAY, "sent away: {heard:?}");
        ended += usize::from(heard.kind == HEADERS && heard.flags & END_STREAM != 0);
        if heard.kind == PING && heard.flags & ACK != 0 {
            return ended;
        }
    }
}

/// The larger windows may be used once both sides know of them.
async fn knows_the_windows(attacker: &mut Attacker) {
    while attacker.hear().await.unwrap().kind != WINDOW_UPDATE {}
    assert!(attacker.say(&frame(SETTINGS, ACK, 0, b"")).await);
}

#[tokio::test]
async fn tokens_that_piled_up_while_we_were_held_up_do_not_end_the_connection() {
    let pod = SimPod::start().await;
    let gateway = picker(&pod, "").await;
    let mut attacker = Attacker::connect(gateway.addr).await;
    knows_the_windows(&mut attacker).await;
    let mut burst = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes());
    streams(100).for_each(|stream| burst.extend(call(stream)));
    // All in one piece, as they come after a pause.
    for _ in 0..60 {
        streams(100).for_each(|stream| burst.extend(message(stream, TOKEN.len(), TOKEN)));
    }
    assert!(attacker.say(&burst).await);
    let mut echoed = 0;
    while echoed < 6_000 * (5 + 2) {
        let heard = attacker.hear().await.expect("the connection stays");
        assert_ne!(heard.kind, GOAWAY, "sent away: {heard:?}");
        echoed += if heard.kind == DATA { heard.payload.len() } else { 0 };
    }
}

#[tokio::test]
async fn many_clients_that_leave_in_one_moment_take_nobody_along() {
    let pod = SimPod::start().await;
    let gateway = picker(&pod, "").await;
    let mut attacker = Attacker::connect(gateway.addr).await;
    let leave = |stream| [call(stream), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat();
    assert!(attacker.say(&streams(2_000).flat_map(leave).collect::<Vec<_>>()).await);
    still_there(&mut attacker).await;
    drop(attacker);
    gateway.quiet().await;
}

#[tokio::test]
async fn what_cannot_be_read_ends_its_conversation_and_what_comes_behind_it_nothing() {
    let pod = SimPod::start().await;
    let gateway = picker(&pod, "").await;
    let mut attacker = Attacker::connect(gateway.addr).await;
    let garbage = |stream| [call(stream), message(stream, 4, b"\xff\xff\xff\xff")].concat();
    assert!(attacker.say(&streams(1_200).flat_map(garbage).collect::<Vec<_>>()).await);
    let mut ended = 0;
    while ended < 1_200 {
        ended += still_there(&mut attacker).await;
    }
    // As a body does that was on its way.
    assert!(attacker.say(&streams(1_200).flat_map(|stream| frame(DATA, 0, stream, b"x")).collect::<Vec<_>>()).await);
    still_there(&mut attacker).await;
    // A message that announces more than may be sent at all.
    assert!(attacker.say(&[call(4_001), message(4_001, u32::MAX as usize, b"")].concat()).await);
    while still_there(&mut attacker).await == 0 {}
}

#[tokio::test]
async fn who_says_nothing_is_let_go_and_who_does_not_finish_is_told_so() {
    let pod = SimPod::start().await;
    let gateway = picker(&pod, "timeouts: { header_read: 1s, body_read: 1s }").await;
    let envoy = Envoy::connect(gateway.addr).await;
    let (mut silent, mut slow) = (envoy.talk().await, envoy.talk().await);
    slow.say(chat_head());
    slow.say(body("{\"model\":", false));
    assert_eq!(silent.fails().await, tonic::Code::DeadlineExceeded);
    let choice = slow.choice().await;
    assert_eq!((choice.status, choice.error()["type"].as_str().unwrap()), (408, "invalid_request_error"));
    gateway.quiet().await;
}

#[tokio::test]
async fn halves_of_messages_count_as_bodies_do() {
    let pod = SimPod::start().await;
    let gateway = picker(&pod, "limits: { body: 1MiB, buffered_bodies: 1MiB }").await;
    let mut attacker = Attacker::connect(gateway.addr).await;
    knows_the_windows(&mut attacker).await;
    let half = |stream| {
        let pieces = (0..40).flat_map(move |_| frame(DATA, 0, stream, &[0; 16_000]));
        [call(stream), message(stream, 1 << 20, b"")].concat().into_iter().chain(pieces).collect::<Vec<_>>()
    };
    assert!(attacker.say(&half(1)).await);
    let house = &gateway.running.house;
    eventually("the half to be counted", || house.bodies.held() >= 640_000).await;
    assert!(attacker.say(&half(3)).await);
    loop {
        let heard = attacker.hear().await.unwrap();
        if heard.kind == HEADERS && heard.flags & END_STREAM != 0 {
            assert_eq!(heard.stream, 3, "there is no room for a second");
            break;
        }
    }
    drop(attacker);
    gateway.quiet().await;
}

#[tokio::test]
async fn who_watches_its_health_hears_of_a_stop_and_does_not_hold_it_up() {
    const SERVING: i32 = 1;
    const NOT_SERVING: i32 = 2;
    const SERVICE_UNKNOWN: i32 = 3;
    let pod = SimPod::start().await;
    let gateway = picker(&pod, "").await;
    let envoy = Envoy::connect(gateway.addr).await;
    let names = [
        "",
        "readiness",
        "envoy.service.ext_proc.v3.ExternalProcessor",
        "inference-extension",
        "liveness",
        "no-such-thing",
    ];
    let mut watches = Vec::new();
    for name in names {
        watches.push(envoy.watch(name).await);
    }
    let first = [SERVING, SERVING, SERVING, SERVING, SERVING, SERVICE_UNKNOWN];
    for (watch, status) in watches.iter_mut().zip(first) {
        assert_eq!(within("its health", watch.message()).await.unwrap().unwrap().status, status);
    }
    let stopping = tokio::spawn(gateway.stop(Duration::from_secs(600)));
    for (name, watch) in names.iter().zip(&mut watches) {
        if !matches!(*name, "liveness" | "no-such-thing") {
            assert_eq!(within("the news", watch.message()).await.unwrap().unwrap().status, NOT_SERVING, "{name}");
        }
        assert!(within("the end", watch.message()).await.unwrap().is_none(), "{name}");
    }
    assert_eq!(within("the stop", stopping).await.unwrap().cut, 0);
}
