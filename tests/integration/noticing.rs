//! What the gateway notices of its pods by itself while it serves: who is there, who sleeps, who died.

use std::{fs, time::Duration};

use tidegate::{clock, sim::PodConfig};

use crate::harness::{Gateway, SimPod, chat, chat_stream, eventually, refusing_endpoint};

fn condition(gateway: &Gateway, pod: &SimPod) -> Option<&'static str> {
    let address = pod.addr().to_string();
    let pods = gateway.pods();
    let found = pods.iter().find(|it| **it.address() == *address)?;
    Some(found.condition(clock::now()).name())
}

#[tokio::test]
async fn a_sleeping_pod_gets_nothing_until_it_wakes() {
    let (sleeper, other) = (SimPod::start().await, SimPod::start().await);
    let gateway =
        Gateway::over([sleeper.endpoint(), other.endpoint()]).yaml("scheduler: { policy: round-robin }").start().await;
    gateway.sees_all_pods().await;
    sleeper.faults().change(|faults| faults.sleep = true);
    eventually("the sleep to be seen", || condition(&gateway, &sleeper) == Some("asleep")).await;
    for nth in 0..6 {
        assert_eq!(chat(&nth.to_string(), 1).send(gateway.addr).await.status(), 200);
    }
    assert_eq!((sleeper.asked(), other.asked()), (0, 6));
    sleeper.faults().heal();
    eventually("the waking to be seen", || matches!(condition(&gateway, &sleeper), Some("warming" | "ready"))).await;
}

#[tokio::test]
async fn a_pod_whose_engine_died_is_found_out_by_its_first_failure_and_taken_back_when_well() {
    let (sick, well) = (SimPod::start().await, SimPod::start().await);
    let gateway =
        Gateway::over([sick.endpoint(), well.endpoint()]).yaml("scheduler: { policy: round-robin }").start().await;
    gateway.sees_all_pods().await;
    // Its page of metrics still answers, with what it showed last.
    sick.faults().change(|faults| faults.engine_dead = true);
    let mut failed = 0;
    for nth in 0..2 {
        failed += u32::from(chat(&nth.to_string(), 1).send(gateway.addr).await.status() == 500);
    }
    assert_eq!(failed, 1);
    eventually("the ejection", || condition(&gateway, &sick) == Some("ejected")).await;
    for nth in 0..6 {
        assert_eq!(chat(&nth.to_string(), 1).send(gateway.addr).await.status(), 200);
    }
    sick.faults().heal();
    let returned = async {
        while sick.state().served == 0 {
            assert_eq!(chat("again", 1).send(gateway.addr).await.status(), 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    crate::harness::within("the pod to be tried again", returned).await;
}

#[tokio::test]
async fn pods_come_and_go_with_their_file_and_those_that_go_end_what_they_do() {
    let (first, second) = (SimPod::start().await, SimPod::start().await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pods.yaml");
    let list = |pods: &[&SimPod]| {
        let text: String = pods.iter().map(|pod| format!("- url: {}\n", pod.url())).collect();
        fs::write(&file, text).unwrap();
    };
    list(&[&first]);
    let gateway = Gateway::over([format!("{{ file: \"{}\" }}", file.display())]).start().await;
    eventually("the first pod", || condition(&gateway, &first) == Some("ready")).await;
    first.faults().change(|faults| faults.slow = 20.0);
    let mut open = chat_stream("hi", 100).send(gateway.addr).await;
    open.piece().await.unwrap().unwrap();
    list(&[&second]);
    eventually("the change", || condition(&gateway, &first).is_none() && condition(&gateway, &second).is_some()).await;
    assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    assert_eq!((first.asked(), second.asked()), (1, 1));
    first.faults().heal();
    let text = open.text().await;
    assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("stream_cut"), "{text}");
    // A list that cannot be read changes nothing.
    fs::write(&file, "- url: [\n").unwrap();
    assert_eq!(chat("hi", 1).send(gateway.addr).await.status(), 200);
    gateway.quiet().await;
}

#[tokio::test]
async fn least_cost_sends_less_to_a_pod_that_is_slow() {
    // Five times slower than the other tests' pods: their speed, not this machine's, must be what is learned.
    let pod = || SimPod::like(PodConfig::new("m").time_scale(0.5));
    let (slow, fast) = (pod().await, pod().await);
    slow.faults().change(|faults| faults.slow = 8.0);
    let gateway = Gateway::over([slow.endpoint(), fast.endpoint()]).start().await;
    gateway.sees_all_pods().await;
    let worker = async |nth: usize| {
        for turn in 0..8 {
            let prompt = format!("{nth} {turn} {}", "tide ".repeat(400));
            let text = chat_stream(&prompt, 40).send(gateway.addr).await.text().await;
            assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        }
    };
    futures_util::future::join_all((0..6).map(worker)).await;
    let (slow, fast) = (slow.state().served, fast.state().served);
    assert_eq!(slow + fast, 48);
    assert!(fast > 2 * slow, "slow served {slow}, fast {fast}");
}

#[tokio::test]
async fn a_pod_whose_metrics_alone_answer_is_not_used() {
    let well = SimPod::start().await;
    let witness = crate::harness::RawPod::start().await;
    let (refusing, _reserved) = refusing_endpoint(&witness);
    let gateway = Gateway::over([refusing, well.endpoint()]).start().await;
    gateway.sees_all_pods().await;
    for nth in 0..20 {
        assert_eq!(chat(&nth.to_string(), 1).send(gateway.addr).await.status(), 200);
    }
    assert_eq!(well.asked(), 20);
}

#[tokio::test]
async fn a_pod_that_is_frozen_gets_no_more_once_it_was_silent_for_long() {
    // Its kernel accepts connections and takes what is written; nobody ever answers.
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("{{ url: \"http://{}\" }}", frozen.local_addr().unwrap());
    let well = SimPod::start().await;
    let gateway = Gateway::over([endpoint, well.endpoint()]).yaml("scheduler: { policy: round-robin }").start().await;
    let stuck = [chat("one", 1).begin(gateway.addr), chat("two", 1).begin(gateway.addr)];
    let ejected = || gateway.pods().iter().any(|pod| pod.condition(clock::now()).name() == "ejected");
    eventually("the ejection", ejected).await;
    assert_eq!(well.asked(), 1);
    for nth in 0..6 {
        assert_eq!(chat(&nth.to_string(), 1).send(gateway.addr).await.status(), 200);
    }
    assert_eq!(well.asked(), 7);
    for one in stuck {
        one.abort();
    }
    gateway.quiet().await;
}
