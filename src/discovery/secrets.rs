//! Secrets of one namespace, chosen by labels: what is in them, and whether they are heard of now.
//!
//! What it means is not read here. They are listed once before this gives anything out, and watched from then on; what was
//! heard last stays while nobody answers, and that nobody does is told, because what is taken back meanwhile is not heard
//! of either.

use std::{collections::BTreeMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    runtime::{
        utils::Backoff as _,
        watcher::{self, DefaultBackoff, watcher},
    },
};
use tokio::sync::watch;

use super::kubernetes::{SETTLED, WATCH_SECONDS, client};
use crate::{
    config::{KeySecrets, Kubernetes, Report},
    tasks::Tasks,
    telemetry::logs::causes,
};

/// How long the first list may take: a gateway that does not know who may come is of no use.
const FIRST: Duration = Duration::from_secs(10);

/// The longest pause between two tries, where the back-off has no end of its own.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The most Secrets that are kept, a megabyte each at the most. One has room for thousands of keys.
const MOST: usize = 1_000;

/// What was heard.
#[derive(Clone, Default)]
pub struct Secrets {
    /// The entries of all Secrets, by `secret/entry`.
    pub entries: Arc<BTreeMap<String, Vec<u8>>>,
    /// Why nothing is heard now, if so.
    pub problem: Option<Arc<str>>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("problem", &self.problem).finish_non_exhaustive()
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<watcher::Event<Secret>, watcher::Error>> + Send>>;

/// Secrets as they were heard, each with its entries.
type Known = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// Begins to follow the Secrets of `which`, in the cluster that `kubernetes` names, for as long as `tasks` run. They were
/// heard of once when this returns.
///
/// # Errors
/// If they cannot be listed.
pub async fn follow_secrets(
    kubernetes: Option<&Kubernetes>,
    which: &KeySecrets,
    tasks: &Tasks,
) -> Result<watch::Receiver<Secrets>, Report> {
    let failed = |problem: String| {
        let remedy = "the service account needs the right to list and watch Secrets in that namespace; or mount one as a \
                      file and write `identity.keys.file`";
        Report::whole_file("identity.keys.secrets", format!("Secrets cannot be read: {problem}"), remedy)
    };
    let (client, server) =
        client(kubernetes.and_then(|it| it.kubeconfig.as_deref())).await.map_err(|error| failed(error.to_string()))?;
    let namespace = which.namespace.as_deref().unwrap_or(client.default_namespace()).to_owned();
    let config = watcher::Config::default().labels(&which.labels).timeout(WATCH_SECONDS);
    let mut following = Following {
        events: Box::pin(watcher(Api::namespaced(client, &namespace), config)),
        known: Known::new(),
        listed: Known::new(),
    };
    let first = async {
        loop {
            match following.events.next().await {
                Some(Ok(event)) => {
                    if following.take(event) {
                        return Ok(());
                    }
                }
                Some(Err(error)) => return Err(causes(&error)),
                None => return Err("the watch ended".to_owned()),
            }
        }
    };
    let heard = tokio::time::timeout(FIRST, first).await.unwrap_or_else(|_| Err(format!("nothing within {FIRST:?}")));
    heard.map_err(|problem| failed(format!("{server}: {problem}")))?;
    let (sender, receiver) = watch::channel(following.heard());
    tracing::info!(namespace, labels = which.labels, secrets = following.known.len(), "following Secrets with keys");
    tasks.spawn_until_stop(following.follow(sender));
    Ok(receiver)
}

struct Following {
    events: Events,
    known: Known,
    /// A list that is not complete yet.
    listed: Known,
}

impl Following {
    async fn follow(mut self, sender: watch::Sender<Secrets>) {
        let (mut backoff, mut errors) = (DefaultBackoff::default(), 0_u32);
        loop {
            // As with other kinds: a watch that stands again says nothing until something changes.
            let next = match errors {
                0 => Ok(self.events.next().await),
                _ => tokio::time::timeout(SETTLED, self.events.next()).await,
            };
            match next {
                Ok(None) => return,
                Ok(Some(Err(error))) => {
                    // A connection that ends is nothing yet; one that cannot be had again is.
                    if errors > 0 || !matches!(error, watcher::Error::WatchFailed(_)) {
                        sender.send_if_modified(|told| {
                            let is_new = told.problem.is_none();
                            told.problem.get_or_insert_with(|| causes(&error).into());
                            is_new
                        });
                    }
                    errors = errors.saturating_add(1);
                    tokio::time::sleep(backoff.next().unwrap_or(LONGEST_PAUSE)).await;
                }
                heard => {
                    errors = 0;
                    backoff.reset();
                    if let Ok(Some(Ok(event))) = heard
                        && self.take(event)
                    {
                        sender.send_replace(self.heard());
                    }
                    sender.send_if_modified(|told| told.problem.take().is_some());
                }
            }
        }
    }

    /// Whether what is known may have changed.
    fn take(&mut self, event: watcher::Event<Secret>) -> bool {
        let whole = !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(secret) => put(&mut self.listed, secret),
            watcher::Event::InitDone => self.known = std::mem::take(&mut self.listed),
            watcher::Event::Apply(secret) => put(&mut self.known, secret),
            watcher::Event::Delete(secret) => {
                self.known.remove(&secret.metadata.name.unwrap_or_default());
            }
        }
        whole
    }

    fn heard(&self) -> Secrets {
        let entries = self.known.iter().flat_map(|(secret, entries)| {
            entries.iter().map(move |(name, bytes)| (format!("{secret}/{name}"), bytes.clone()))
        });
        Secrets { entries: Arc::new(entries.collect()), problem: None }
    }
}

fn put(known: &mut Known, secret: Secret) {
    let name = secret.metadata.name.unwrap_or_default();
    if known.len() >= MOST && !known.contains_key(&name) {
        tracing::warn!(secret = name, most = MOST, "more Secrets than are kept, it is passed over");
        return;
    }
    let entries = secret.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0));
    known.insert(name, entries.collect());
}
