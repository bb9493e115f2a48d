//! Inference resources from a cluster: one list and watch for each kind and namespace.
//!
//! Lists, watches, bookmarks, lost versions and pauses between tries are kube's watcher's. Ours is what it does not know:
//! which version of a kind the cluster serves, that a kind may come later, that an object which cannot be read is told
//! of and passed over, and that what was said last stays while nobody answers.

use std::{path::Path, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        utils::Backoff as _,
        watcher::{self, DefaultBackoff, watcher},
    },
};
use rand::RngExt as _;
use tokio::sync::watch;

use super::{
    hub::{Hub, Standing, Watched},
    resources::{Heard, Outlook},
    status,
};
use crate::{
    clock,
    config::{
        Kubernetes, Report,
        resources::{Kind, Object, ObjectName, Objects},
    },
    tasks::Tasks,
    telemetry::logs::causes,
};

/// How often a kind that the cluster does not have, or does not let us see, is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Every such wait is drawn this much shorter or longer, so that a fleet of gateways does not ask at once.
const JITTER: f64 = 0.2;

/// How long one watch lasts. A connection that dropped without a word is noticed after it; the usual 290 s would leave
/// pods that are long gone in use as long.
pub(super) const WATCH_SECONDS: u32 = 60;

/// How long a watch that failed has to be silent to be taken for well: longer than a connection may take.
pub(super) const SETTLED: Duration = Duration::from_secs(10);

/// How long connecting to the API server may take; the usual 30 s would hide for so long that it is gone.
const CONNECT: Duration = Duration::from_secs(5);

/// Where what was heard goes.
pub(super) struct Outlets {
    pub(super) worlds: watch::Sender<Arc<Heard>>,
    pub(super) outlook: watch::Sender<Outlook>,
    /// Whether anybody wants to hear of slices.
    pub(super) slices: watch::Receiver<bool>,
    /// What is to be said of models.
    pub(super) verdicts: status::Verdicts,
}

/// Begins to follow the cluster for as long as `tasks` run; it has not answered when this returns.
///
/// # Errors
/// If it cannot be told where the cluster is.
pub(super) async fn start(kubernetes: &Kubernetes, outlets: Outlets, tasks: &Tasks) -> Result<(), Report> {
    let (client, server) = client(kubernetes.kubeconfig.as_deref()).await.map_err(|error| {
        let remedy =
            "run it in a cluster, set `kubernetes.kubeconfig` or KUBECONFIG, or read files with `--manifests DIR`";
        Report::whole_file("kubernetes", format!("there is no way to reach a cluster: {error}"), remedy)
    })?;
    let home = kubernetes.home().unwrap_or(client.default_namespace()).to_owned();
    let namespaces: Vec<Option<String>> = match &kubernetes.namespaces[..] {
        _ if kubernetes.everywhere() => vec![None],
        [] => vec![Some(home.clone())],
        named => named.iter().cloned().map(Some).collect(),
    };
    let watched: Vec<Watched> =
        Kind::ALL.into_iter().flat_map(|kind| namespaces.iter().map(move |it| (kind, it.clone()))).collect();
    let Outlets { worlds, outlook, slices, verdicts } = outlets;
    let hub = Hub::new((&home, kubernetes.workload_label.as_deref()), &watched, worlds, outlook);
    for watched in watched {
        let (client, server) = (client.clone(), Arc::clone(&server));
        let follower = Follower { client, server, hub: Arc::clone(&hub), watched, slices: slices.clone() };
        tasks.spawn_until_stop(async move { follower.follow().await });
    }
    tasks.spawn_until_stop(async move { hub.give_out().await });
    if kubernetes.write_status {
        tasks.spawn_until_stop(async move {
            loop {
                if let Ok(Some(resource)) = served(&client, Kind::Model).await {
                    return status::write(client, resource, verdicts).await;
                }
                pause().await;
            }
        });
    }
    Ok(())
}

/// As a pod in the cluster has it; else as kubectl does. With where the API server is.
pub(super) async fn client(kubeconfig: Option<&Path>) -> Result<(Client, Arc<str>), Box<dyn std::error::Error>> {
    let mut config = match kubeconfig {
        Some(path) => {
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
        }
        None => match kube::Config::incluster() {
            Ok(config) => config,
            Err(_) => kube::Config::infer().await?,
        },
    };
    // Tries are counted and spaced in one place, the watcher, so that an outage is noticed and said at once.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT);
    let server = config.cluster_url.to_string().into();
    Ok((Client::try_from(config)?, server))
}

async fn pause() {
    let jitter = clock::rng().random_range(1.0 - JITTER..=1.0 + JITTER);
    tokio::time::sleep(ASK_AGAIN.mul_f64(jitter)).await;
}

/// The best version of a kind that the cluster serves.
async fn served(client: &Client, kind: Kind) -> Result<Option<ApiResource>, kube::Error> {
    for version in kind.versions() {
        let gvk = GroupVersionKind::gvk(kind.group(), version, kind.word());
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural());
        if !kind.is_custom() {
            return Ok(Some(resource));
        }
        match client.list_api_group_resources(&resource.api_version).await {
            Ok(list) if list.resources.iter().any(|it| it.name == kind.plural()) => return Ok(Some(resource)),
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whoever follows one kind in one namespace.
struct Follower {
    client: Client,
    /// Where it asks.
    server: Arc<str>,
    hub: Arc<Hub>,
    watched: Watched,
    slices: watch::Receiver<bool>,
}

impl Follower {
    async fn follow(mut self) {
        if self.watched.0 == Kind::Slice && !*self.slices.borrow_and_update() {
            // Nobody asked for services so far: a cluster may have thousands of them.
            self.hub.stand(&self.watched, Standing::Unwanted);
            if self.slices.wait_for(|wanted| *wanted).await.is_err() {
                return;
            }
        }
        loop {
            match served(&self.client, self.watched.0).await {
                Ok(Some(resource)) => {
                    self.hub.fails(&self.watched, None);
                    self.watch(&resource).await;
                }
                Ok(None) => {
                    self.hub.fails(&self.watched, None);
                    self.hub.stand(&self.watched, Standing::NotServed);
                }
                Err(error) => self.failed(&error),
            }
            pause().await;
        }
    }

    /// Follows the kind until the cluster has it no more, or does not let us.
    async fn watch(&self, resource: &ApiResource) {
        let api: Api<DynamicObject> = match &self.watched.1 {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        };
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let mut events = pin!(watcher(api, config));
        let (mut listed, mut backoff, mut errors) = (Objects::new(), DefaultBackoff::default(), 0_u32);
        loop {
            // A watch that was taken up again says nothing until something changes: silence is the sign that it stands.
            let next = match errors {
                0 => Ok(events.next().await),
                _ => tokio::time::timeout(SETTLED, events.next()).await,
            };
            let error = match next {
                Ok(None) => return,
                Ok(Some(Err(error))) => error,
                heard => {
                    errors = 0;
                    backoff.reset();
                    self.hub.fails(&self.watched, None);
                    if let Ok(Some(Ok(event))) = heard {
                        self.take(event, &mut listed);
                    }
                    continue;
                }
            };
            match code_of(&error) {
                Some(404) => return self.hub.stand(&self.watched, Standing::NotServed),
                Some(401 | 403) => return self.hub.stand(&self.watched, Standing::Forbidden),
                // What it knew is too old: it lists anew.
                Some(410) => {}
                code => {
                    // A connection that ends is nothing yet; one that cannot be had again is.
                    if code.is_some() || errors > 0 || !matches!(error, watcher::Error::WatchFailed(_)) {
                        self.failed(&error);
                    }
                    errors = errors.saturating_add(1);
                    tokio::time::sleep(backoff.next().unwrap_or(ASK_AGAIN)).await;
                }
            }
        }
    }

    fn take(&self, event: watcher::Event<DynamicObject>, listed: &mut Objects) {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(object) => {
                listed.extend(self.read(object).map(|(name, object)| (name, Arc::new(object))));
            }
            watcher::Event::InitDone => self.hub.replace(&self.watched, std::mem::take(listed)),
            watcher::Event::Apply(object) => {
                let name = name_of(&object);
                match self.read(object) {
                    Some((name, object)) => self.hub.put(self.watched.0, name, object),
                    // It is there, but nobody can say what it means.
                    None => self.hub.take(self.watched.0, &name),
                }
            }
            watcher::Event::Delete(object) => self.hub.take(self.watched.0, &name_of(&object)),
        }
    }

    fn read(&self, mut object: DynamicObject) -> Option<(ObjectName, Object)> {
        let name = name_of(&object);
        // By far the largest part of many objects, and nothing to us.
        object.metadata.managed_fields = None;
        let read = serde_json::to_value(object).and_then(|json| Object::from_json(self.watched.0, json));
        let tell = |error| {
            let kind = self.watched.0.word();
            tracing::warn!(kind, object = %name, %error, "object cannot be understood, it is passed over");
        };
        read.map_err(tell).ok()
    }

    fn failed(&self, error: &dyn std::error::Error) {
        self.hub.fails(&self.watched, Some(&format!("{}: {}", self.server, causes(error))));
    }
}

/// The status with which the API server refused.
fn code_of(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn name_of(object: &DynamicObject) -> ObjectName {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    ObjectName::new(&text(&object.metadata.namespace), &text(&object.metadata.name))
}
