//! All pods are full: requests wait, those that matter more first and tenants in turns, and go on one by one as others end.
//!
//! The pod reads requests and answers when the test says so; a prompt of its own fills it.

use std::net::SocketAddr;

use serde_json::json;
use tidegate::{clock, fleet::Saturation};
use tokio::task::JoinHandle;

use crate::harness::{
    Call, Exchange, Gateway, Plan, RawPod, Reply,
    envoy::{Envoy, Talk, body, head},
    eventually, sse_head, whole_json, within,
};

/// Bytes of a prompt that is more than a millisecond's work, however fast the pod has shown itself to be.
const LONG: usize = 200_000;

/// A pod that one prompt fills, and doors for clients, for trusted ones, and for Envoy.
struct House {
    gateway: Gateway,
    pod: RawPod,
    trusted: SocketAddr,
    picker: SocketAddr,
}

impl House {
    async fn with(waiting: &str, change: impl FnOnce(Plan) -> Plan) -> Self {
        let pod = RawPod::start().await;
        let plan = Gateway::over([pod.endpoint()])
            .pool("saturation: { wait: 1ms }")
            .listener("{ name: trusted, address: 127.0.0.1:0, trust_headers: true }")
            .listener("{ name: picker, address: 127.0.0.1:0, protocol: ext-proc, ext_proc: { secure: false } }")
            .models(&[
                "{ modelName: m, poolRef: pods }",
                "{ modelName: vip, poolRef: pods, criticality: Critical, targetModels: [{ name: m }] }",
                "{ modelName: batch, poolRef: pods, criticality: Sheddable, targetModels: [{ name: m }] }",
            ])
            .yaml(&format!("waiting: {waiting}"));
        let gateway = change(plan).start().await;
        let [_, (_, trusted), (_, picker)] = gateway.running.listeners[..] else { panic!("three doors") };
        Self { gateway, pod, trusted, picker }
    }

    /// One whose pod works on a prompt until it is answered.
    async fn full(waiting: &str) -> (Self, JoinHandle<Reply>, Exchange) {
        let mut house = Self::with(waiting, |plan| plan).await;
        let there = asking("m", "first").begin(house.gateway.addr);
        let exchange = house.pod.asked().await;
        (house, there, exchange)
    }

    fn waiting(&self) -> usize {
        self.gateway.running.house.waiting.len()
    }

    /// Sends `call`, which then waits as the `nth`.
    async fn waits(&self, nth: usize, door: SocketAddr, call: Call) -> JoinHandle<Reply> {
        let reply = call.begin(door);
        eventually("it waits", || self.waiting() == nth).await;
        reply
    }

    /// The pod answers; who is sent next is told by what it asks.
    async fn answers(&mut self, mut exchange: Exchange) -> (String, Exchange) {
        exchange.say(whole_json("{}")).await;
        exchange.keep_alive();
        let next = self.pod.asked().await;
        assert!(!self.pod.asked_again(), "one answer makes room for one");
        (tag(&next), next)
    }
}

fn asking(model: &str, tag: &str) -> Call {
    Call::post("/v1/chat/completions", prompt(model, tag))
}

fn prompt(model: &str, tag: &str) -> String {
    let content = format!("{tag} {}", "x".repeat(LONG));
    let messages = [json!({"role": "user", "content": content})];
    json!({"model": model, "messages": messages, "max_tokens": 1, "stream": true}).to_string()
}

fn tag(exchange: &Exchange) -> String {
    let body: serde_json::Value = serde_json::from_slice(&exchange.body).unwrap();
    body["messages"][0]["content"].as_str().unwrap().split(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn who_matters_more_goes_first_and_each_answer_lets_one_go() {
    let (mut house, first, mut exchange) = House::full("{ timeout: 15s }").await;
    let main = house.gateway.addr;
    let mut replies = vec![first];
    for (nth, (model, name)) in [("m", "a"), ("m", "b"), ("vip", "c"), ("m", "d"), ("vip", "e")].into_iter().enumerate()
    {
        replies.push(house.waits(nth + 1, main, asking(model, name)).await);
    }
    assert_eq!(house.gateway.counted("tidegate_waiting_requests", &["band=\"critical\""]).await, 2.0);
    let fleet = house.gateway.admin_json("/debug/fleet").await;
    let bands = fleet["line"]["pods"]["bands"].as_array().unwrap();
    assert_eq!(
        bands.iter().map(|it| (&it["priority"], &it["requests"])).collect::<Vec<_>>(),
        [(&json!(1), &json!(2)), (&json!(0), &json!(3)),]
    );
    let mut order = Vec::new();
    for _ in 0..5 {
        let (name, next) = house.answers(exchange).await;
        order.push(name);
        exchange = next;
    }
    assert_eq!(order, ["c", "e", "a", "b", "d"]);
    exchange.say(whole_json("{}")).await;
    for reply in replies {
        assert_eq!(reply.await.unwrap().status(), 200);
    }
    assert_eq!(house.gateway.counted("tidegate_waited_seconds_count", &["served"]).await, 5.0);
    house.gateway.quiet().await;
}

#[tokio::test]
async fn a_tenant_that_asks_ten_times_as_much_gets_no_more_turns() {
    let (mut house, _first, mut exchange) = House::full("{ timeout: 15s }").await;
    let (trusted, mut replies) = (house.trusted, Vec::new());
    let of = |tenant: &str| asking("m", tenant).header("x-llm-d-inference-fairness-id", tenant);
    for nth in 0..22 {
        let tenant = if nth < 20 { "much" } else { "little" };
        replies.push(house.waits(nth + 1, trusted, of(tenant)).await);
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        let (tenant, next) = house.answers(exchange).await;
        order.push(tenant);
        exchange = next;
    }
    assert_eq!(order.iter().filter(|tenant| *tenant == "little").count(), 2, "{order:?}");
    replies.iter().for_each(JoinHandle::abort);
    eventually("nobody waits whose client has left", || house.waiting() == 0).await;
}

#[tokio::test]
async fn who_waits_too_long_or_finds_no_room_in_the_line_is_told_that_it_is_busy() {
    let (house, _first, _exchange) = House::full("{ timeout: 4s, requests: 2, bytes: 1MiB }").await;
    let main = house.gateway.addr;
    let late = house.waits(1, main, asking("m", "late")).await;
    let also_late = house.waits(2, main, asking("m", "also-late")).await;
    let refused = asking("m", "one-too-many").send(main).await;
    assert_eq!(refused.header("x-tidegate-refused"), Some("line_crowded"));
    let pause: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&pause));
    let error = refused.error(429).await;
    assert_eq!((&error["type"], &error["code"]), (&json!("rate_limit_error"), &json!("overloaded")));
    let urgent = asking("vip", "urgent").begin(main);
    let pushed = also_late.await.unwrap();
    assert_eq!((pushed.status(), pushed.header("x-tidegate-refused")), (429, Some("pushed_out")));
    for reply in [late, urgent] {
        let reply = reply.await.unwrap();
        assert_eq!((reply.status(), reply.header("x-tidegate-refused")), (429, Some("not_in_time")));
    }
    eventually("the line is empty", || house.waiting() == 0).await;
}

#[tokio::test]
async fn bytes_of_those_who_wait_are_bounded_in_all_and_for_each_tenant() {
    let (house, _first, _exchange) = House::full("{ timeout: 15s, bytes: 700KiB, tenant_bytes: 500KiB }").await;
    let of = |tenant: &str| asking("m", tenant).header("x-llm-d-inference-fairness-id", tenant);
    let mut there = Vec::new();
    for nth in 1..=2 {
        there.push(house.waits(nth, house.trusted, of("a")).await);
    }
    let refused = of("a").send(house.trusted).await;
    assert_eq!((refused.status(), refused.header("x-tidegate-refused")), (429, Some("tenant_crowded")));
    there.push(house.waits(3, house.trusted, of("b")).await);
    there.push(of("c").begin(house.trusted));
    let newest = there.remove(1).await.unwrap();
    assert_eq!(newest.header("x-tidegate-refused"), Some("pushed_out"), "a tenant with nobody in line takes a place");
    assert_eq!(house.waiting(), 3);
    there.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn a_deadline_that_cannot_be_met_is_refused_at_once_where_it_is_believed() {
    let (house, _first, _exchange) = House::full("{ timeout: 15s }").await;
    let hurried = || asking("m", "hurried").header("x-slo-ttft-ms", "1");
    let refused = hurried().send(house.trusted).await;
    assert_eq!((refused.status(), refused.header("x-tidegate-refused")), (429, Some("too_late")));
    let waits = house.waits(1, house.gateway.addr, hurried()).await;
    waits.abort();
    eventually("it has left", || house.waiting() == 0).await;
    let impatient = asking("m", "impatient").header("x-stainless-read-timeout", "0.2").send(house.gateway.addr).await;
    assert_eq!(impatient.header("x-tidegate-refused"), Some("not_in_time"), "nobody waits for a client that has gone");
}

#[tokio::test]
async fn the_sheddable_are_refused_unless_they_have_a_share() {
    let (house, _first, _exchange) = House::full("{ timeout: 15s }").await;
    let refused = asking("batch", "x").send(house.gateway.addr).await;
    assert_eq!((refused.status(), refused.header("x-tidegate-refused")), (429, Some("saturated")));
    let (mut house, _first, exchange) = House::full("{ timeout: 15s, shares: [{ priority: -1, share: 5% }] }").await;
    let _batch = house.waits(1, house.gateway.addr, asking("batch", "later")).await;
    assert_eq!(house.answers(exchange).await.0, "later");
}

#[tokio::test]
async fn envoys_requests_stand_in_the_same_line() {
    let (mut house, _first, exchange) = House::full("{ timeout: 5s }").await;
    let (_envoy, mut talk) = asks(&house, "from-envoy").await;
    eventually("it waits", || house.waiting() == 1).await;
    let (_other, mut other) = asks(&house, "in-vain").await;
    eventually("both wait", || house.waiting() == 2).await;
    let mut exchange = exchange;
    exchange.say(whole_json("{}")).await;
    let choice = talk.choice().await;
    assert_eq!(choice.pod(), house.pod.addr.to_string());
    assert!(!house.pod.asked_again(), "Envoy goes there itself");
    let refused = other.choice().await;
    assert_eq!((refused.status, refused.error()["code"].as_str()), (429, Some("overloaded")));
    assert_eq!(refused.header("x-llm-d-request-dropped-reason"), Some("rejected-ttl-expired"));
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test]
async fn the_youngest_sheddable_stream_makes_room_for_the_critical_where_that_is_wanted() {
    for evicts in [true, false] {
        let mut house = House::with(&format!("{{ timeout: 15s, evict_sheddable: {evicts} }}"), |plan| plan).await;
        let mut there = asking("batch", "batch").begin(house.gateway.addr);
        let mut exchange = house.pod.asked().await;
        exchange.say(sse_head()).await;
        exchange.chunk(": nothing yet\n\n").await;
        let mut stream = within("its head", &mut there).await.unwrap();
        let vip = asking("vip", "urgent").begin(house.gateway.addr);
        if evicts {
            let told = stream.text().await;
            assert!(told.contains("a higher priority"), "{told}");
            assert_eq!(tag(&house.pod.asked().await), "urgent");
            assert_eq!(house.gateway.counted("tidegate_cuts_total", &["reason=\"evicted\""]).await, 1.0);
        } else {
            eventually("it waits", || house.waiting() == 1).await;
            assert!(stream.piece().await.is_some() && !house.pod.asked_again());
        }
        vip.abort();
    }
}

async fn asks(house: &House, tag: &str) -> (Envoy, Talk) {
    let envoy = Envoy::connect(house.picker).await;
    let talk = envoy.talk().await;
    let fields = [(":method", "POST"), (":path", "/v1/chat/completions"), ("content-type", "application/json")];
    talk.say(head(&fields, false));
    talk.say(body(prompt("m", tag), true));
    (envoy, talk)
}

#[tokio::test]
async fn explain_says_where_it_would_stand() {
    let (house, _first, _exchange) = House::full("{ timeout: 15s }").await;
    let _waiting = house.waits(1, house.gateway.addr, asking("m", "there")).await;
    let explained = async |model: &str| {
        let call = Call::post("/debug/explain", prompt(model, "asked"));
        call.send(house.gateway.admin()).await.json().await["waits"].clone()
    };
    let (usual, vip) = (explained("m").await, explained("vip").await);
    assert_eq!((&usual["waits_for"], &usual["requests"]), (&json!("room"), &json!(1)));
    assert!(usual["tokens"].as_u64().unwrap() > 10_000, "{usual}");
    assert_eq!(vip["requests"], 0);
    assert_eq!(explained("batch").await, json!(null), "it is refused");
}

#[tokio::test]
async fn pods_that_schedule_by_priority_are_told_it_as_they_count_and_others_are_not() {
    for (scheduling, vip, batch) in [("true", Some("-1"), Some("7")), ("false", None, None)] {
        let pool = format!("priority_scheduling: {scheduling}");
        let mut house = House::with("{ timeout: 15s }", |plan| plan.pool(&pool)).await;
        let _vip = asking("vip", "a").header("x-vllm-priority", "-99").begin(house.gateway.addr);
        let mut exchange = house.pod.asked().await;
        assert_eq!(exchange.header("x-vllm-priority"), vip);
        exchange.say(whole_json("{}")).await;
        exchange.keep_alive();
        let pool = house.gateway.running.house.fleet.pool("pods").unwrap();
        let full = || Saturation::of(&pool, &pool.pods(), "m", clock::now()).is_none_or(|full| full.is_full());
        eventually("room", || !full()).await;
        let _batch = asking("m", "b").header("x-tidegate-priority", "-7").begin(house.trusted);
        assert_eq!(house.pod.asked().await.header("x-vllm-priority"), batch);
    }
}
