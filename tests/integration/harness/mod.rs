//! What the tests stand on: a gateway, pods simulated and scripted, clients proper and raw; all on loopback, on ports
//! that the system chooses.
//!
//! Nothing here sleeps for luck: whoever waits, waits for a condition, and gives up loudly.

mod client;
#[cfg(feature = "kubernetes")]
mod cluster;
mod desk;
pub(crate) mod envoy;
mod gateway;
pub(crate) mod lines;
pub(crate) mod papers;
mod pods;

use std::time::Duration;

pub(crate) use client::{Call, Client, RawClient, Reply, chat, chat_stream, events};
#[cfg(feature = "kubernetes")]
pub(crate) use cluster::{ALPHA_POOLS, Cluster, MODELS, PODS, POOLS, SECRETS, SLICES};
pub(crate) use desk::LoneDesk;
pub(crate) use gateway::{Gateway, Plan};
pub(crate) use pods::{Exchange, RawPod, SimPod, how_it_is, refusing_endpoint, sse_head, whole_json};

/// Far longer than anything here takes, so that a slow machine is not a failed test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `what` to become true.
pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let turns = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within(what, turns).await;
}

/// Waits for `what` to come.
pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    let Ok(done) = tokio::time::timeout(PATIENCE, work).await else {
        panic!("waited {PATIENCE:?} in vain for {what}");
    };
    done
}
