//! What breaks: pods in the middle of answers and under load, clients that leave, a picker that is killed.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tidegate::{clock, fleet::Condition, tasks::Tasks};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::{
    harness::{Gateway, RawPod, SimPod, chat, chat_stream, eventually, sse_head, within},
    process::{Envoy, deployed, program},
    scene::{Different, PLAIN, Scene, picker},
};

const TOKEN: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";

/// Counts of aborts by their reason, and of cuts.
async fn told(gateway: &Gateway, reason: &str) -> (f64, f64) {
    let reason = format!("reason=\"{reason}\"");
    (gateway.counted("tidegate_aborts_total", &[&reason]).await, gateway.counted("tidegate_cuts_total", &[]).await)
}

#[tokio::test]
async fn who_broke_off_a_stream_is_not_told_and_nobody_is_blamed() {
    let Some(program) = program() else { return };
    let mut pod = RawPod::start().await;
    let gateway = picker(vec![pod.endpoint()], "secure: true", "").await;
    gateway.sees_all_pods().await;
    let envoy = Envoy::start(&program, &deployed("original-dst", gateway.addr, &[])).await;
    let ready = || gateway.pods().iter().all(|pod| pod.condition(clock::now()) == Condition::Ready);
    for (nth, pod_dies) in [(1.0, true), (2.0, false)] {
        let reply = chat_stream("x", 9).begin(envoy.addr);
        let mut asked = pod.asked().await;
        asked.say(sse_head()).await;
        asked.chunk(TOKEN).await;
        let mut reply = reply.await.unwrap();
        reply.piece().await.unwrap().unwrap();
        if pod_dies {
            drop(asked);
            assert!(reply.collected().await.is_err(), "its client sees that it broke off");
        } else {
            drop(reply);
            asked.abandoned().await;
        }
        gateway.quiet().await;
        assert_eq!(told(&gateway, "client_or_pod").await, (nth, 0.0));
        assert!(ready());
    }
}

#[tokio::test]
async fn who_leaves_before_the_answer_is_the_client_and_a_pod_that_hangs_up_is_the_pod() {
    let Some(program) = program() else { return };
    let mut pod = RawPod::start().await;
    let gateway = picker(vec![pod.endpoint()], "secure: true", "").await;
    gateway.sees_all_pods().await;
    let envoy = Envoy::start(&program, &deployed("original-dst", gateway.addr, &[])).await;
    let reply = chat_stream("x", 9).begin(envoy.addr);
    let mut asked = pod.asked().await;
    reply.abort();
    asked.abandoned().await;
    gateway.quiet().await;
    assert_eq!(told(&gateway, "waiting_for_pod").await, (1.0, 0.0));
    let reply = chat_stream("x", 9).begin(envoy.addr);
    drop(pod.asked().await);
    let reply = reply.await.unwrap();
    assert_eq!(reply.header("retry-after"), Some("1"));
    let error = reply.error(503).await;
    assert_eq!(error["type"], "server_error");
    assert!(error["code"].as_str().unwrap().starts_with("upstream_reset_before_response_started"), "{error}");
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_requests_total", &["code=\"503\""]).await, 1.0);
    assert_eq!(told(&gateway, "waiting_for_pod").await.0, 1.0, "not this one");
}

/// What came of the requests of many clients.
#[derive(Debug, Default)]
struct Tally {
    done: AtomicUsize,
    refused: AtomicUsize,
    broken: AtomicUsize,
}

/// A client that asks again and again until it is told to stop.
async fn client(name: usize, to: SocketAddr, tally: Arc<Tally>, stop: Arc<AtomicUsize>) {
    let mut asked = 0;
    while stop.load(Relaxed) == 0 {
        asked += 1;
        let reply = chat_stream(&format!("{name}, for the {asked}th time"), 4).send(to).await;
        let which = match (reply.status(), reply.collected().await) {
            (200, Ok((text, _))) if text.ends_with(b"data: [DONE]\n\n") => &tally.done,
            (200, _) => &tally.broken,
            _ => &tally.refused,
        };
        which.fetch_add(1, Relaxed);
    }
}

/// Requests that reach a pod between our last look and its death.
const ON_THEIR_WAY: u64 = 5;

/// Kills one pod of four while 40 clients ask, and says what came of them, and how many the pod had.
async fn one_of_four_dies(deployed: &str, keys: &str) -> Option<(Tally, u64)> {
    let mut scene = Scene::with(4, Different { deployed, keys, ..PLAIN }).await?;
    // Long enough that the pods hold most of what is asked.
    scene.pods.iter().for_each(|pod| pod.faults().change(|faults| faults.slow = 100.0));
    let (tally, stop, tasks) = (Arc::<Tally>::default(), Arc::<AtomicUsize>::default(), Tasks::new());
    let clients: Vec<_> = (0..40)
        .map(|name| tasks.spawn(client(name, scene.envoy.addr, Arc::clone(&tally), Arc::clone(&stop))))
        .collect();
    let done = || tally.done.load(Relaxed);
    eventually("a warm fleet", || done() >= 40).await;
    // The busiest: nothing promises any other one a share worth losing, and one of four has a quarter of 40 or more.
    let busiest = || {
        let pods = scene.gateway.pods();
        let most = pods.iter().max_by_key(|pod| pod.ledger.in_flight()).unwrap();
        (most.ledger.in_flight(), most.address().to_string())
    };
    eventually("a share of them at a pod", || busiest().0 >= 8).await;
    let (begun, address) = busiest();
    let dies = scene.pods.iter().position(|pod| pod.addr().to_string() == address).unwrap();
    drop(scene.pods.remove(dies));
    let before = done();
    eventually("as many without it", || done() >= before + 120).await;
    stop.store(1, Relaxed);
    for client in clients {
        within("a client", client).await.unwrap();
    }
    eprintln!("{deployed}: the pod had {begun}: {tally:?}");
    scene.quiet().await;
    drop((scene, tasks));
    Some((Arc::try_unwrap(tally).unwrap(), begun))
}

#[tokio::test]
async fn a_pod_that_dies_under_load_costs_what_it_had_begun_and_little_more() {
    // Where Envoy has a list, whoever meets the pod afterwards is served by another.
    let Some((tally, begun)) = one_of_four_dies("override-host", "fallbacks: 2").await else { return };
    let lost = tally.broken.load(Relaxed) + tally.refused.load(Relaxed);
    assert!((1..=begun + ON_THEIR_WAY).contains(&(lost as u64)), "of {begun}: {tally:?}");
    // Where it has not, some meet it before the picker has heard of it: each of the 40 clients perhaps once.
    let Some((tally, begun)) = one_of_four_dies("original-dst", "fallbacks: 0").await else { return };
    let lost = tally.broken.load(Relaxed) + tally.refused.load(Relaxed);
    assert!((1..=begun + 40).contains(&(lost as u64)), "of {begun}: {tally:?}");
}

/// Carries bytes between Envoy and its picker until it is dropped: then neither hears another word of the other.
struct Wire {
    addr: SocketAddr,
    tasks: Tasks,
}

impl Wire {
    async fn to(picker: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, tasks) = (listener.local_addr().unwrap(), Tasks::new());
        let spawner = tasks.clone();
        tasks.spawn_until_stop(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let Ok(mut far) = TcpStream::connect(picker).await else { return };
                spawner.spawn_until_stop(async move { _ = copy_bidirectional(&mut near, &mut far).await });
            }
        });
        Self { addr, tasks }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// Whether a stream under way, and a request after it, are served where the picker stops at once or is killed meanwhile.
async fn without_a_picker(deployed: &str, keys: &str, killed: bool, answers: &str) -> Option<(bool, u16)> {
    let program = program()?;
    let pod = SimPod::start().await;
    pod.faults().change(|faults| faults.slow = 20.0);
    let gateway = picker(vec![pod.endpoint()], keys, "").await;
    gateway.sees_all_pods().await;
    let wire = Wire::to(gateway.addr).await;
    let mut config = super::process::deployed(deployed, wire.addr, &[pod.addr()])
        .replace("message_timeout: 35s", "message_timeout: 2s");
    for mode in ["FULL_DUPLEX_STREAMED", "STREAMED"] {
        config = config.replace(&format!("response_body_mode: {mode}"), &format!("response_body_mode: {answers}"));
    }
    if answers == "NONE" {
        config = config.replace("response_trailer_mode: SEND", "response_trailer_mode: SKIP");
    }
    let envoy = Envoy::start(&program, &config).await;
    let mut reply = chat_stream("x", 30).send(envoy.addr).await;
    reply.piece().await.unwrap().unwrap();
    if killed {
        drop(wire);
    } else {
        gateway.stop(Duration::ZERO).await;
    }
    let whole = reply.collected().await.is_ok_and(|(text, _)| text.ends_with(b"data: [DONE]\n\n"));
    Some((whole, chat("x", 1).send(envoy.addr).await.status()))
}

#[tokio::test]
async fn what_is_under_way_and_what_comes_next_when_the_picker_is_gone() {
    const DUPLEX: &str = "FULL_DUPLEX_STREAMED";
    let (open, closed) = (("override-host", "fallbacks: 1", 200), ("original-dst", "fallbacks: 0", 500));
    for ((name, keys, next), killed, answers, whole) in [
        // One that stops, even at once, ends its conversations in order: Envoy goes on without it.
        (open, false, "STREAMED", true),
        (closed, false, DUPLEX, true),
        // One that is killed takes with it what Envoy had given away to it, and all where Envoy fails closed...
        (open, true, DUPLEX, false),
        (open, true, "STREAMED", true),
        (closed, true, DUPLEX, false),
        // ... but for answers that it is not shown.
        (closed, true, "NONE", true),
    ] {
        let Some(got) = without_a_picker(name, keys, killed, answers).await else { return };
        assert_eq!(got, (whole, next), "{name}, killed: {killed}, answers {answers}");
    }
}
