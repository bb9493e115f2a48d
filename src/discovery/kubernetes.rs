//! Inference resources from a cluster: one list and watch for each kind and namespace.
//!
//! Lists, watches, bookmarks, lost versions and pauses between tries are kube's watcher's. Ours is what it does not know:
//! which version of a kind the cluster serves, that a kind may come later, that an object which cannot be read is told
//! of and passed over, and that what was said last stays while nobody answers.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt as _, watcher},
};
use rand::RngExt as _;
use tokio::sync::watch;

use super::{
    hub::{Hub, Standing, Watched},
    resources::Heard,
};
use crate::{
    clock,
    config::{
        Kubernetes, Report,
        resources::{Kind, Object, ObjectName, Objects},
    },
    tasks::Tasks,
};

/// How often a kind that the cluster does not have, or does not let us see, is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Every such wait is drawn this much shorter or longer, so that a fleet of gateways does not ask at once.
const JITTER: f64 = 0.2;

/// How long one watch lasts. A connection that dropped without a word is noticed after it; the usual 290 s would leave
/// pods that are long gone in use as long.
const WATCH_SECONDS: u32 = 60;

/// Where what was heard goes.
pub(super) struct Outlets {
    pub(super) worlds: watch::Sender<Arc<Heard>>,
    pub(super) waits_for: watch::Sender<Option<String>>,
    /// Whether anybody wants to hear of slices.
    pub(super) slices: watch::Receiver<bool>,
}

/// Begins to follow the cluster for as long as `tasks` run; it has not answered when this returns.
///
/// # Errors
/// If it cannot be told where the cluster is.
pub(super) async fn start(kubernetes: &Kubernetes, outlets: Outlets, tasks: &Tasks) -> Result<(), Report> {
    let client = client(kubernetes).await.map_err(|error| {
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
    let Outlets { worlds, waits_for, slices } = outlets;
    let hub = Hub::new(&home, &watched, worlds, waits_for);
    for watched in watched {
        let follower = Follower { client: client.clone(), hub: Arc::clone(&hub), watched, slices: slices.clone() };
        tasks.spawn_until_stop(async move { follower.follow().await });
    }
    tasks.spawn_until_stop(async move { hub.give_out().await });
    Ok(())
}

/// As a pod in the cluster has it; else as kubectl does.
async fn client(kubernetes: &Kubernetes) -> Result<Client, Box<dyn std::error::Error>> {
    let mut config = match &kubernetes.kubeconfig {
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
    Ok(Client::try_from(config)?)
}

/// Whoever follows one kind in one namespace.
struct Follower {
    client: Client,
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
            match self.served().await {
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
            let jitter = clock::rng().random_range(1.0 - JITTER..=1.0 + JITTER);
            tokio::time::sleep(ASK_AGAIN.mul_f64(jitter)).await;
        }
    }

    /// The best version of the kind that the cluster serves.
    async fn served(&self) -> Result<Option<ApiResource>, kube::Error> {
        let kind = self.watched.0;
        for version in kind.versions() {
            let gvk = GroupVersionKind::gvk(kind.group(), version, kind.word());
            let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural());
            if !kind.is_custom() {
                return Ok(Some(resource));
            }
            match self.client.list_api_group_resources(&resource.api_version).await {
                Ok(list) if list.resources.iter().any(|it| it.name == kind.plural()) => return Ok(Some(resource)),
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Follows the kind until the cluster has it no more, or does not let us.
    async fn watch(&self, resource: &ApiResource) {
        let api: Api<DynamicObject> = match &self.watched.1 {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, resource),
            None => Api::all_with(self.client.clone(), resource),
        };
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let mut events = pin!(watcher(api, config).default_backoff());
        let mut listed = Objects::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    self.hub.fails(&self.watched, None);
                    self.take(event, &mut listed);
                }
                Err(error) => {
                    let refused = match &error {
                        watcher::Error::InitialListFailed(kube::Error::Api(status))
                        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code,
                        _ => 0,
                    };
                    match refused {
                        404 => return self.hub.stand(&self.watched, Standing::NotServed),
                        401 | 403 => return self.hub.stand(&self.watched, Standing::Forbidden),
                        _ => self.failed(&error),
                    }
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
        self.hub.fails(&self.watched, Some(&error.to_string()));
    }
}

fn name_of(object: &DynamicObject) -> ObjectName {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    ObjectName::new(&text(&object.metadata.namespace), &text(&object.metadata.name))
}
