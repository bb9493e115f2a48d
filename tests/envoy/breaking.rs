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
    assert_eq!(reply.await.unwrap().status(), 503);
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
async fn client(to: SocketAddr, tally: Arc<Tally>, stop: Arc<AtomicUsize>) {
    while stop.load(Relaxed) == 0 {
        let reply = chat_stream("x", 20).send(to).await;
        let which = match (reply.status(), reply.collected().await) {
            (200, Ok((text, _))) if text.ends_with(b"data: [DONE]\n\n") => &tally.done,
            (200, _) => &tally.broken,
            _ => &tally.refused,
        };
        which.fetch_add(1, Relaxed);
    }
}

/// Kills one pod of four while 40 clients ask, and says what came of it.
async fn one_of_four_dies(deployed: &str, keys: &str) -> Option<Tally> {
    let mut scene = Scene::with(4, Different { deployed, keys, ..PLAIN }).await?;
    let (tally, stop, tasks) = (Arc::<Tally>::default(), Arc::<AtomicUsize>::default(), Tasks::new());
    let clients: Vec<_> =
        (0..40).map(|_| tasks.spawn(client(scene.envoy.addr, Arc::clone(&tally), Arc::clone(&stop)))).collect();
    let done = || tally.done.load(Relaxed);
    eventually("a warm fleet", || done() >= 100).await;
    drop(scene.pods.remove(0));
    let before = done();
    eventually("as many without it", || done() >= before + 400).await;
    stop.store(1, Relaxed);
    for client in clients {
        within("a client", client).await.unwrap();
    }
    scene.quiet().await;
    drop((scene, tasks));
    Arc::try_unwrap(tally).ok()
}

#[tokio::test]
async fn a_pod_that_dies_under_load_costs_what_it_had_begun_and_no_more_where_there_is_a_list() {
    let Some(tally) = one_of_four_dies("override-host", "fallbacks: 2").await else { return };
    eprintln!("override-host: {tally:?}");
    assert_eq!(tally.refused.load(Relaxed), 0, "who had not begun was served by another: {tally:?}");
    assert!(tally.broken.load(Relaxed) <= 40, "{tally:?}");
    let Some(tally) = one_of_four_dies("original-dst", "fallbacks: 0").await else { return };
    eprintln!("original-dst: {tally:?}");
    assert!(tally.refused.load(Relaxed) <= 40, "the picker hears of it and goes elsewhere: {tally:?}");
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
async fn without_a_picker(deployed: &str, keys: &str, killed: bool, unseen: bool) -> Option<(bool, u16)> {
    let program = program()?;
    let pod = SimPod::start().await;
    pod.faults().change(|faults| faults.slow = 20.0);
    let gateway = picker(vec![pod.endpoint()], keys, "").await;
    gateway.sees_all_pods().await;
    let wire = Wire::to(gateway.addr).await;
    let mut config = super::process::deployed(deployed, wire.addr, &[pod.addr()])
        .replace("message_timeout: 35s", "message_timeout: 2s");
    if unseen {
        config = config
            .replace("response_body_mode: FULL_DUPLEX_STREAMED", "response_body_mode: NONE")
            .replace("response_trailer_mode: SEND", "response_trailer_mode: SKIP");
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
    for (name, keys) in [("override-host", "fallbacks: 1"), ("original-dst", "fallbacks: 0")] {
        for killed in [false, true] {
            for unseen in [false, true] {
                let Some(got) = without_a_picker(name, keys, killed, unseen).await else { return };
                eprintln!("{name} killed {killed} unseen {unseen}: {got:?}");
            }
        }
    }
}
