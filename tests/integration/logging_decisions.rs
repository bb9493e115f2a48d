//! The decision log, from real requests to the lab that plays them again.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;
use tidegate::lab::{
    Ask,
    workloads::{Order, Rate, Workload},
};

use crate::harness::{Gateway, RawPod, SimPod, chat, chat_stream, whole_json};

/// With the turn's mark and role before it, three whole blocks of 256 bytes and 203 bytes more.
fn shared() -> String {
    "tide ".repeat(193)
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the lab would play of it in its first minute and later.
fn played(path: &Path) -> Vec<Ask> {
    let order = Order {
        workload: "trace".to_owned(),
        rate: Rate::Times(1.0),
        minutes: 10.0,
        pods: 1,
        trace: Some(path.to_owned()),
    };
    Workload::new(&order).unwrap().script(1).asks
}

fn in_common(one: &Ask, other: &Ask) -> usize {
    one.prompt.iter().zip(&other.prompt).take_while(|(one, other)| one == other).count()
}

#[tokio::test]
async fn the_lab_plays_what_a_gateway_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decisions.jsonl");
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).decision_log(&path).start().await;
    let first = format!("{}{}", shared(), "one ".repeat(200));
    let second = format!("{}{}", shared(), "two ".repeat(300));
    chat(&first, 4).header("x-session-id", "ann").send(gateway.addr).await.bytes().await;
    chat_stream(&second, 6).send(gateway.addr).await.text().await;
    chat("unlike", 3).header("x-session-id", "ann").send(gateway.addr).await.bytes().await;
    chat(&first, 2).send(gateway.addr).await.bytes().await;
    gateway.quiet().await;
    assert_eq!(gateway.counted("tidegate_decision_log_dropped_lines_total", &[]).await, 0.0);
    gateway.stop(Duration::from_secs(5)).await;

    let lines = lines(&path);
    assert_eq!(lines.len(), 4);
    assert!(lines.iter().all(|line| line["outcome"] == "complete" && line["pool"] == "pods" && line["model"] == "m"));
    assert!(lines[1]["ttft_ms"].is_f64() && lines[0]["ttft_ms"].is_null(), "only a stream shows its first token");
    let text = fs::read_to_string(&path).unwrap();
    assert!(["tide", "unlike", "ann"].iter().all(|word| !text.contains(word)), "{text}");

    let asks = played(&path);
    assert_eq!(asks[..4].iter().map(|ask| ask.answer.tokens).collect::<Vec<_>>(), [4, 6, 3, 2]);
    assert!(asks[..4].is_sorted_by(|one, next| one.at_ms < next.at_ms));
    let told = |line: &Value| line["prompt_tokens"].as_u64().unwrap();
    for (ask, line) in asks.iter().zip(&lines) {
        assert_eq!(u64::from(ask.prompt_tokens()), told(line), "as the pod counted");
    }
    let blocks = lines[0]["blocks"].as_array().unwrap().len();
    assert_eq!((in_common(&asks[0], &asks[1]), in_common(&asks[0], &asks[2])), (3, 0));
    assert_eq!(in_common(&asks[0], &asks[3]), blocks, "all but the bytes behind the last whole block");
    assert!(asks[0].session.is_some() && asks[0].session == asks[2].session && asks[1].session.is_none());
    assert_eq!(in_common(&asks[0], &asks[4]), 0, "the next loop has other texts");
    assert_eq!(tokens(&asks[0]), tokens(&asks[4]));
}

fn tokens(ask: &Ask) -> Vec<u32> {
    ask.prompt.iter().map(|piece| piece.tokens).collect()
}

#[tokio::test]
async fn a_pod_that_tells_no_usage_leaves_an_estimate_and_what_was_not_routed_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decisions.jsonl");
    let pod = RawPod::answering(whole_json(r#"{"choices":[]}"#)).await;
    let gateway = Gateway::over([pod.endpoint()]).decision_log(&path).start().await;
    let unknown = r#"{"model":"nobody","messages":[]}"#;
    crate::harness::Call::post("/v1/chat/completions", unknown).send(gateway.addr).await.bytes().await;
    chat(&"tide ".repeat(200), 5).send(gateway.addr).await.bytes().await;
    gateway.quiet().await;
    gateway.stop(Duration::from_secs(5)).await;
    let lines = lines(&path);
    assert_eq!(lines.len(), 1);
    // With the turn's mark and role 1,006 bytes, at 4 a token.
    assert_eq!((&lines[0]["prompt_bytes"], &lines[0]["blocks"].as_array().unwrap().len()), (&1_006.into(), &3));
    assert!((250..=252).contains(&lines[0]["prompt_tokens"].as_u64().unwrap()), "{lines:?}");
    assert!(lines[0]["output_tokens"].is_null() && lines[0]["cached_tokens"].is_null());
    assert_eq!(played(&path)[0].answer.tokens, 1);
}
