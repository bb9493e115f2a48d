//! Keys that are kept in a cluster: what discovery hears of its Secrets goes to the keyring.

use std::sync::Arc;

use super::StartError;
use crate::{config::Config, keys::Keyring, tasks::Tasks};

/// Keys are there when this returns, if any are kept in a cluster, and follow what it says for as long as `tasks` run.
#[cfg(feature = "kubernetes")]
pub(super) async fn follow(config: &Config, keyring: &Arc<Keyring>, tasks: &Tasks) -> Result<(), StartError> {
    let Some(which) = &config.identity.key_secrets else { return Ok(()) };
    let heard = crate::discovery::follow_secrets(config.kubernetes.as_ref(), which, tasks).await;
    let mut heard = heard.map_err(StartError::Secrets)?;
    let take = |ring: &Keyring, now: crate::discovery::Secrets| ring.take_entries(&now.entries, now.problem.as_deref());
    take(keyring, heard.borrow_and_update().clone());
    let keyring = Arc::clone(keyring);
    tasks.spawn_until_stop(async move {
        while heard.changed().await.is_ok() {
            let now = heard.borrow_and_update().clone();
            take(&keyring, now);
        }
    });
    Ok(())
}

/// Nothing can be heard of a cluster.
#[cfg(not(feature = "kubernetes"))]
#[expect(clippy::unused_async, reason = "as with the feature")]
pub(super) async fn follow(config: &Config, _: &Arc<Keyring>, _: &Tasks) -> Result<(), StartError> {
    if config.identity.key_secrets.is_none() {
        return Ok(());
    }
    let remedy = "build it with `--features kubernetes`, or mount a Secret and write `identity.keys.file`";
    let problem = "this binary was built without the means to watch a cluster";
    Err(StartError::Secrets(crate::config::Report::whole_file("identity.keys.secrets", problem, remedy)))
}
