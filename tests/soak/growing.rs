//! What must not grow, each for itself and in seconds: what long connections carried, and pods that came and went.

use std::{fs, path::Path};

use futures_util::{StreamExt as _, stream};

use tidegate::sim::PodConfig;

use crate::{
    harness::{Call, Client, SimPod, chat},
    soak::Gateway,
};

fn write_list(folder: &Path, pods: &[SimPod]) {
    let lines: String = pods.iter().map(|pod| format!("- {}\n", pod.endpoint())).collect();
    fs::write(folder.join("pods.new"), lines).unwrap();
    fs::rename(folder.join("pods.new"), folder.join("pods.yaml")).unwrap();
}

/// Waits until the gateway has read each of these pods and knows no other; gives its page.
async fn known(gateway: &Gateway, pods: &[SimPod]) -> String {
    loop {
        let page = gateway.page().await;
        let read: Vec<&str> =
            page.lines().filter(|line| line.starts_with("tidegate_pod_reading_age_seconds{")).collect();
        let is_read = |pod: &SimPod| read.iter().any(|line| line.contains(&pod.addr().to_string()));
        if read.len() == pods.len() && pods.iter().all(is_read) {
            return page;
        }
        tokio::task::yield_now().await;
    }
}

/// Each field of a head that a connection remembered once held all that was read along with it, 8 KiB and more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_connections_that_stay_keep_nothing_of_what_they_carried() {
    const CONNECTIONS: usize = 100;
    // Enough to fill the 4 KiB that a table of fields has by default, on both sides: two new fields each.
    const REQUESTS: usize = 42;
    let _alone = crate::alone().await;
    let folder = tempfile::tempdir().unwrap();
    // With a field in each answer that none has had before.
    let pods = [SimPod::like(PodConfig::new("m").time_scale(0.1).checksum()).await];
    write_list(folder.path(), &pods);
    let gateway = Gateway::start(folder.path()).await;
    known(&gateway, &pods).await;
    let clients: Vec<Client> = stream::iter(0..CONNECTIONS).then(|_| Client::h2(gateway.addr)).collect().await;
    let round = async |requests: std::ops::Range<usize>| {
        for nth in requests {
            let asked = clients.iter().enumerate().map(|(client, connection)| {
                // As long as a short conversation: what was read along with a field is kept with it.
                let prompt = "what is a tide? ".repeat(100 + nth);
                connection.begin_stream(chat(&prompt, 1).header("x-request-id", &format!("{client}-{nth}")))
            });
            for reply in asked.collect::<Vec<_>>() {
                let reply = reply.await.unwrap();
                assert_eq!(reply.status(), 200);
                reply.bytes().await;
            }
        }
        gateway.memory()
    };
    let before = round(0..2).await;
    let after = round(2..REQUESTS).await;
    println!("{before:.1} MiB, and after as many requests as fill a table of fields {after:.1}");
    // Measured: 20 MiB where both sides' tables held what they had remembered, 4 without.
    assert!(after - before < 10.0, "{before:.1} MiB, and then {after:.1}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_pods_that_came_and_went_leave_nothing() {
    const LISTED: usize = 20;
    const ROUNDS: usize = 12;
    let _alone = crate::alone().await;
    let folder = tempfile::tempdir().unwrap();
    let mut pods: Vec<SimPod> = stream::iter(0..LISTED * 2).then(|_| SimPod::start()).collect().await;
    write_list(folder.path(), &pods[..LISTED]);
    let gateway = Gateway::start(folder.path()).await;
    let mut seen = Vec::new();
    for _ in 0..ROUNDS {
        let page = known(&gateway, &pods[..LISTED]).await;
        let gone = pods[LISTED..].iter().find(|pod| page.contains(&pod.addr().to_string()));
        assert!(gone.is_none(), "a pod that left is still on the page:\n{page}");
        let asked = stream::iter(0..LISTED * 10).map(async |nth| {
            let prompt = format!("{nth} {}", "what is a tide? ".repeat(200));
            let call = if nth % 4 == 0 {
                Call::post("/v1/responses", format!(r#"{{"model":"m","input":"{prompt}","max_output_tokens":1}}"#))
            } else {
                chat(&prompt, 1)
            };
            call.send(gateway.addr).await.bytes().await
        });
        asked.buffer_unordered(20).collect::<Vec<_>>().await;
        seen.push((page.lines().count(), gateway.memory()));
        pods.rotate_left(LISTED);
        write_list(folder.path(), &pods[..LISTED]);
    }
    println!("lines of the page, and MiB, round by round: {seen:?}");
    let ((_, before), (lines, after)) = (seen[ROUNDS / 2], seen[ROUNDS - 1]);
    assert!(after - before < 2.0, "{before:.1} MiB, and then {after:.1}: {seen:?}");
    assert!(lines <= seen[ROUNDS / 2].0, "the page grew: {seen:?}");
}
