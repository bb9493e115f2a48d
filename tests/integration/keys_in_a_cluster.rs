//! Keys that are kept in Secrets of a cluster: who is let in follows what the API server says, and stays while it is away.

use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tidegate::keys::hash_of;

use crate::harness::{
    Call, Cluster, Gateway, Plan, SECRETS, SimPod, chat, eventually,
    lines::{Lines, told},
};

const ANN: &str = "ann-s-key-0123456789-0123456789-0123456789";
const BEA: &str = "bea-s-key-0123456789-0123456789-0123456789";
const CAM: &str = "cam-s-key-0123456789-0123456789-0123456789";

/// A list of these keys, as a file has it.
fn list(keys: &[&str]) -> String {
    let line = |key: &&str| format!("- {{ id: id-{}, hash: {}, tenant: {0} }}\n", &key[..3], hash_of(key.as_bytes()));
    if keys.is_empty() { "[]".to_owned() } else { keys.iter().map(line).collect() }
}

/// A Secret with this text in it, and the label that is selected by.
fn secret(name: &str, text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": name, "labels": {"tidegate-keys": "yes"}}, "data": {"keys.yaml": ByteString(text.into())}})
}

fn plan(cluster: &Cluster, pod: &SimPod) -> Plan {
    Gateway::over([pod.endpoint()])
        .yaml(&format!("kubernetes: {{ kubeconfig: {} }}", cluster.kubeconfig().display()))
        .yaml("identity: { keys: { secrets: { labels: tidegate-keys=yes } } }")
}

async fn asked(gateway: &Gateway, key: &str) -> u16 {
    chat("hi", 1).header("authorization", &format!("Bearer {key}")).send(gateway.addr).await.status()
}

/// Waits until this key is answered so.
async fn until(gateway: &Gateway, key: &str, status: u16) {
    let began = Instant::now();
    while asked(gateway, key).await != status {
        assert!(began.elapsed() < crate::harness::PATIENCE, "{status} does not come for {key:.3}");
    }
}

#[tokio::test]
async fn who_is_let_in_follows_the_secrets_that_have_the_label_and_no_others() {
    let (lines, _guard) = Lines::kept();
    let (cluster, pod) = (Cluster::start(&[]).await, SimPod::start().await);
    cluster.put(SECRETS, secret("shop", &list(&[ANN])));
    let mut other = secret("other", &list(&[BEA]));
    other["metadata"]["labels"] = json!({"app": "other"});
    cluster.put(SECRETS, other);
    let mut elsewhere = secret("elsewhere", &list(&[CAM]));
    elsewhere["metadata"]["namespace"] = json!("elsewhere");
    cluster.put(SECRETS, elsewhere);
    let gateway = plan(&cluster, &pod).start().await;
    // Known from the start, not a moment later.
    assert_eq!(asked(&gateway, ANN).await, 200);
    assert_eq!(told(&lines.one(&gateway).await, ["tenant", "key"]), ["ann", "id-ann"]);
    assert_eq!((asked(&gateway, BEA).await, asked(&gateway, CAM).await), (401, 401));
    assert_eq!(gateway.counted("tidegate_api_keys", &[]).await, 1.0);

    cluster.told(SECRETS).await;
    cluster.put(SECRETS, secret("bank", &list(&[BEA, CAM])));
    until(&gateway, BEA, 200).await;
    // The best of several: what else the machine does only makes it later.
    let mut taken = Vec::new();
    for _ in 0..3 {
        cluster.put(SECRETS, secret("bank", &list(&[CAM])));
        let began = Instant::now();
        until(&gateway, BEA, 401).await;
        taken.push(began.elapsed());
        assert_eq!((asked(&gateway, ANN).await, asked(&gateway, CAM).await), (200, 200));
        cluster.put(SECRETS, secret("bank", &list(&[BEA, CAM])));
        until(&gateway, BEA, 200).await;
    }
    assert!(taken.iter().min().unwrap() < &Duration::from_secs(1), "{taken:?}");
    // A Secret that loses the label, or goes, takes its keys with it.
    let mut bare = secret("bank", &list(&[BEA, CAM]));
    bare["metadata"]["labels"] = json!({});
    cluster.put(SECRETS, bare);
    until(&gateway, CAM, 401).await;
    cluster.delete(SECRETS, "shop");
    until(&gateway, ANN, 401).await;
    assert_eq!(gateway.counted("tidegate_api_keys", &[]).await, 0.0);
}

#[tokio::test]
async fn a_secret_that_nobody_understands_changes_nothing_and_the_others_go_on() {
    let (lines, _guard) = Lines::kept();
    let (cluster, pod) = (Cluster::start(&[]).await, SimPod::start().await);
    cluster.put(SECRETS, secret("ann", &list(&[ANN])));
    // From the start: it is told, and nobody else pays for it.
    cluster.put(SECRETS, secret("wrong", "- { id: x, hash: tg-somebody-s-key }"));
    let gateway = plan(&cluster, &pod).start().await;
    let source = async || gateway.counted("tidegate_identity_source_usable", &["keys"]).await;
    assert_eq!((asked(&gateway, ANN).await, source().await), (200, 0.0));
    let warnings = format!("{:?}", lines.warnings());
    assert!(warnings.contains("wrong/keys.yaml") && !warnings.contains("somebody-s"), "{warnings}");
    cluster.told(SECRETS).await;
    cluster.put(SECRETS, secret("wrong", &list(&[BEA])));
    until(&gateway, BEA, 200).await;
    assert_eq!(source().await, 1.0);
    cluster.put(SECRETS, secret("ann", "- what is this"));
    eventually("a warning", || format!("{:?}", lines.warnings()).contains("ann/keys.yaml")).await;
    assert_eq!((asked(&gateway, ANN).await, asked(&gateway, BEA).await, source().await), (200, 200, 0.0));
}

#[tokio::test]
async fn while_the_api_server_is_away_its_last_word_holds_and_that_it_is_away_is_told() {
    let (lines, _guard) = Lines::kept();
    let (cluster, pod) = (Cluster::start(&[]).await, SimPod::start().await);
    cluster.put(SECRETS, secret("ann", &list(&[ANN])));
    let gateway = plan(&cluster, &pod).start().await;
    cluster.told(SECRETS).await;
    cluster.down(true);
    let mut warned = String::new();
    eventually("a warning", || {
        warned.push_str(&format!("{:?}", lines.warnings()));
        warned.contains("nothing is heard of the Secrets")
    })
    .await;
    assert_eq!(asked(&gateway, ANN).await, 200);
    assert_eq!(gateway.counted("tidegate_identity_source_usable", &["keys"]).await, 0.0);
    // What changes meanwhile is heard when it is back, also what it no longer remembers.
    cluster.put(SECRETS, secret("ann", &list(&[BEA])));
    cluster.compact();
    cluster.down(false);
    until(&gateway, BEA, 200).await;
    assert_eq!(asked(&gateway, ANN).await, 401);
    assert_eq!(gateway.counted("tidegate_identity_source_usable", &["keys"]).await, 1.0);
}

#[tokio::test]
async fn a_gateway_that_may_not_read_its_keys_does_not_start() {
    let (cluster, pod) = (Cluster::start(&[]).await, SimPod::start().await);
    cluster.forbid("secrets", true);
    let text = plan(&cluster, &pod).text();
    let (config, _) = tidegate::config::load("t.yaml", &text).unwrap();
    let error = tidegate::app::start(config).await.unwrap_err().to_string();
    assert!(error.contains("right to list and watch Secrets"), "{error}");
    // And where it stands is not changed by a reload.
    cluster.forbid("secrets", false);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.yaml");
    std::fs::write(&file, text.replace("tidegate-keys=yes", "others=yes")).unwrap();
    let gateway = Gateway::from(&text).await;
    let refused = gateway.running.reloader(&file, &text, None).reload().await;
    assert!(format!("{refused:?}").contains("identity.keys.secrets"), "{refused:?}");
    // What else changes leaves the keys alone.
    cluster.put(SECRETS, secret("ann", &list(&[ANN])));
    until(&gateway, ANN, 200).await;
    let more = "secrets: { labels: tidegate-keys=yes } }, certificates: { from: dns }";
    std::fs::write(&file, text.replace("secrets: { labels: tidegate-keys=yes } }", more)).unwrap();
    let applied = gateway.running.reloader(&file, &text, None).reload().await;
    assert!(matches!(applied, tidegate::app::Reloaded::Applied(_)), "{applied:?}");
    assert_eq!(asked(&gateway, ANN).await, 200);
    assert_eq!(Call::get("/v1/models").send(gateway.addr).await.status(), 401);
}
