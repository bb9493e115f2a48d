//! The rest of tests/RELIABILITY.md: what hurts people elsewhere and had no test of ours yet; and that every test which
//! that table names exists.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use serde_json::{Value, json};
use tidegate::tasks::Tasks;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::harness::{Call, Gateway, RawPod, SimPod, chat, chat_stream, eventually, whole_json};

const POLICIES: [&str; 7] =
    ["least-cost", "weighted", "least-request", "power-of-two", "round-robin", "random", "session-hash"];

#[tokio::test]
async fn under_every_policy_what_was_sent_and_not_answered_is_counted() {
    for policy in POLICIES {
        let pods = [SimPod::slow().await, SimPod::slow().await];
        let scorers = if policy == "weighted" { ", scorers: [{ name: queue-scorer }]" } else { "" };
        let plan = Gateway::over(pods.iter().map(SimPod::endpoint))
            .yaml(&format!("scheduler: {{ policy: {policy}{scorers} }}"));
        let gateway = plan.start().await;
        let calls: Vec<_> = (0..6).map(|_| chat_stream("hi", 500).begin(gateway.addr)).collect();
        let in_flight = || gateway.pods().iter().map(|pod| pod.ledger.in_flight()).sum::<u64>();
        eventually("six in flight", || in_flight() == 6).await;
        eventually("six at the pods", || pods.iter().map(|pod| pod.state().live).sum::<usize>() == 6).await;
        for call in &calls {
            call.abort();
        }
        gateway.quiet().await;
    }
}

#[tokio::test]
async fn a_beginning_that_all_share_does_not_pile_all_on_its_holder() {
    let mut pods = Vec::new();
    for _ in 0..4 {
        pods.push(SimPod::slow().await);
    }
    let gateway = Gateway::over(pods.iter().map(SimPod::endpoint)).start().await;
    gateway.sees_all_pods().await;
    let shared = "You are a helpful assistant of the harbour. ".repeat(95);
    let calls: Vec<_> = (0..64).map(|nth| chat(&format!("{shared}{nth}"), 200).begin(gateway.addr)).collect();
    eventually("all at work", || pods.iter().map(|pod| pod.state().live).sum::<usize>() == 64).await;
    let spread: Vec<usize> = pods.iter().map(|pod| pod.state().live).collect();
    // 16 each is even. Whoever followed the prefix alone would put 64 on one.
    assert!(spread.iter().all(|live| (8..=32).contains(live)), "{spread:?}");
    for call in &calls {
        call.abort();
    }
    gateway.quiet().await;
}

/// Prompt tokens of this request that the only pod is believed to hold.
async fn known(gateway: &Gateway, path: &str, body: Value) -> u64 {
    gateway.quiet().await;
    let told = Call::post(&format!("/debug/explain?path={path}"), body.to_string()).send(gateway.admin()).await;
    let told = told.json().await;
    let decision = &told["decision"];
    decision["prompt_tokens"].as_u64().unwrap() - decision["candidates"][0]["uncached_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn conversations_that_part_in_their_seventh_message_share_exactly_what_was_before() {
    let pod = RawPod::answering(whole_json("{\"usage\":{\"prompt_tokens\":2000,\"completion_tokens\":1}}")).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let turns = |seventh: &str| {
        let turn = |nth: usize| {
            let role = if nth.is_multiple_of(2) { "user" } else { "assistant" };
            let content = if nth == 6 { seventh.repeat(100) } else { format!("message {nth} ").repeat(50) };
            json!({"role": role, "content": content})
        };
        json!({"model": "m", "messages": (0..7).map(turn).collect::<Vec<_>>()})
    };
    assert_eq!(Call::post("/v1/chat/completions", turns("ebb ").to_string()).send(gateway.addr).await.status(), 200);
    let same = known(&gateway, "/v1/chat/completions", turns("ebb ")).await;
    let parted = known(&gateway, "/v1/chat/completions", turns("flow ")).await;
    // Six messages of 500 bytes or so are eleven blocks of 256 bytes, 64 tokens each, and a part of the twelfth.
    assert!(parted >= 11 * 64 && parted + 64 <= same, "{parted} of {same}");
}

#[tokio::test]
async fn prompts_of_token_numbers_are_told_apart_by_their_numbers() {
    let pod = RawPod::answering(whole_json("{}")).await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let prompt = |from: u32| json!({"model": "m", "prompt": (from..from + 1_000).collect::<Vec<_>>()});
    assert_eq!(Call::post("/v1/completions", prompt(10_000).to_string()).send(gateway.addr).await.status(), 200);
    assert!(known(&gateway, "/v1/completions", prompt(10_000)).await > 0);
    assert_eq!(known(&gateway, "/v1/completions", prompt(20_000)).await, 0, "as long, and another prompt");
}

#[tokio::test]
async fn words_inside_a_prompt_name_no_session() {
    let mut pods = Vec::new();
    for nth in 0..3 {
        pods.push(
            RawPod::answering(whole_json(&format!("{{\"pod\":{nth},\"usage\":{{\"completion_tokens\":1}}}}"))).await,
        );
    }
    let gateway =
        Gateway::over(pods.iter().map(RawPod::endpoint)).yaml("scheduler: { policy: session-hash }").start().await;
    gateway.sees_all_pods().await;
    let mut seen = BTreeSet::new();
    for nth in 0..24 {
        // The real session is at the top level; each of the lures names another.
        let lure = format!("\",\"user\":\"{nth}\",\"session_id\":\"{nth}\"");
        let body = json!({"model": "m", "user": "one and the same", "prompt": lure, "metadata": {"user": nth}});
        let reply = Call::post("/v1/completions", body.to_string()).send(gateway.addr).await;
        seen.insert(reply.json().await["pod"].as_u64().unwrap());
    }
    assert_eq!(seen.len(), 1, "{seen:?}");
}

#[tokio::test]
async fn gateways_that_know_the_same_do_not_all_begin_with_the_same_pod() {
    let mut pods = Vec::new();
    for nth in 0..4 {
        pods.push(
            RawPod::answering(whole_json(&format!("{{\"pod\":{nth},\"usage\":{{\"completion_tokens\":1}}}}"))).await,
        );
    }
    let mut first = BTreeSet::new();
    for _ in 0..12 {
        let gateway = Gateway::over(pods.iter().map(RawPod::endpoint)).start().await;
        gateway.sees_all_pods().await;
        first.insert(chat("hi", 1).send(gateway.addr).await.json().await["pod"].as_u64().unwrap());
    }
    // By chance alone all twelve would choose one pod once in four million runs.
    assert!(first.len() > 1, "every gateway began with pod {first:?}");
}

/// A server whose page is the same at every address of this machine.
async fn everywhere(tasks: &Tasks) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
    let (port, spawner) = (listener.local_addr().unwrap().port(), tasks.clone());
    tasks.spawn_until_stop(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawner.spawn_until_stop(async move {
                let page = "vllm:num_requests_running 0.0\nvllm:num_requests_waiting 0.0\n";
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len());
                let mut read = Vec::new();
                while stream.read_buf(&mut read).await.is_ok_and(|read| read > 0) {
                    while let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                        read.drain(..end + 4);
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn of_four_hundred_pods_that_join_at_once_none_is_forgotten() {
    let tasks = Tasks::new();
    let port = everywhere(&tasks).await;
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("pods.yaml");
    fs::write(&list, "[]").unwrap();
    let gateway = Gateway::over([format!("{{ file: \"{}\" }}", list.display())]).start().await;
    assert!(gateway.pods().is_empty(), "it starts without any");
    let addresses = (0..400_u32).map(|nth| SocketAddr::from((Ipv4Addr::from(0x7f00_0100 + nth), port)));
    fs::write(&list, addresses.map(|address| format!("- {{ url: \"http://{address}\" }}\n")).collect::<String>())
        .unwrap();
    eventually("four hundred pods", || gateway.pods().len() == 400).await;
    gateway.sees_all_pods().await;
    tasks.stop();
    gateway.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_pod_taken_off_the_list_and_put_back_while_it_streams_counts_to_zero() {
    let pod = SimPod::start().await;
    pod.faults().change(|faults| faults.slow = 5.0);
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("pods.yaml");
    let listed = format!("- {}\n", pod.endpoint());
    fs::write(&list, &listed).unwrap();
    let gateway = Gateway::over([format!("{{ file: \"{}\" }}", list.display())]).start().await;
    eventually("the pod", || gateway.pods().len() == 1).await;
    gateway.sees_all_pods().await;
    let call = chat_stream("hi", 1_000).begin(gateway.addr);
    let reply = call.await.unwrap();
    for round in 0..2 {
        fs::write(&list, "[]").unwrap();
        eventually("no pod", || gateway.pods().is_empty()).await;
        fs::write(&list, &listed).unwrap();
        eventually("the pod again", || gateway.pods().len() == 1).await;
        assert_eq!(gateway.pods()[0].ledger.in_flight(), 0, "round {round}: what is new has nothing on its hands");
    }
    assert!(reply.text().await.ends_with("data: [DONE]\n\n"), "the stream went on");
    gateway.quiet().await;
}

#[test]
fn every_row_of_the_table_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("tests/RELIABILITY.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| what hurts"));
    let mut missing = Vec::new();
    for row in rows {
        let owner = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let named: Vec<&str> = owner.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
        if named.is_empty() && !owner.starts_with("does not apply: ") && !owner.starts_with("not tested: ") {
            missing.push(format!("no test and no reason: {row}"));
        }
        for name in named {
            let (file, test) = name.split_once("::").unwrap();
            let source = fs::read_to_string(root.join(file)).unwrap_or_default();
            if !source.contains(&format!("fn {test}(")) {
                missing.push(format!("there is no {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
