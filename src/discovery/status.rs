//! Writes into the status of `InferenceModel`s what became of them.
//!
//! No leader is elected for it: all gateways come to the same words, each waits a moment of its own length, and whoever
//! comes second finds them said. It is server-side apply under one name, so that even two at once only say it twice.

use std::{sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use rand::RngExt as _;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    clock,
    config::resources::{Condition, Verdict},
};

/// The most that a gateway waits for another to say it: several gateways' watches tell of it in that time.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How long nothing is written after a write failed.
const PAUSE: Duration = Duration::from_secs(30);

/// The name under which fields are written.
const MANAGER: &str = "tidegate";

/// What is to be said, as it was last found.
pub(super) type Verdicts = watch::Receiver<Arc<Vec<Verdict>>>;

/// Writes what is not said yet, for as long as there are verdicts.
pub(super) async fn write(client: Client, resource: ApiResource, mut verdicts: Verdicts) {
    let mut refused = false;
    loop {
        let due = verdicts.borrow_and_update().iter().any(|verdict| !verdict.said);
        if due {
            let wait = LONGEST_WAIT.mul_f64(clock::rng().random_range(0.0..1.0));
            tokio::time::sleep(wait).await;
            let found = Arc::clone(&verdicts.borrow_and_update());
            let failed = say(&client, &resource, &found).await;
            if let Some(error) = &failed
                && !refused
            {
                tracing::warn!(%error, "status of InferenceModels cannot be written; give the service account the right to patch it");
            }
            refused = failed.is_some();
            if refused {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        }
        if verdicts.changed().await.is_err() {
            return;
        }
    }
}

/// Says all that is not said; the first error ends it.
async fn say(client: &Client, resource: &ApiResource, verdicts: &[Verdict]) -> Option<kube::Error> {
    for Verdict { name, condition, .. } in verdicts.iter().filter(|verdict| !verdict.said) {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name.namespace, resource);
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": &*name.name},
            "status": {"conditions": [words(condition)]},
        });
        let written = api.patch_status(&name.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await;
        match written {
            Ok(_) => {}
            // It went while we waited.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Some(error),
        }
    }
    None
}

fn words(condition: &Condition) -> serde_json::Value {
    let now = || Timestamp::try_from(clock::wall()).map(|now| now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let since = condition.last_transition_time.clone().or_else(|| now().ok());
    json!({
        "type": condition.what,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": condition.observed_generation,
        "lastTransitionTime": since,
    })
}
