//! An API server that is not one: objects by name, lists in pages, watches with versions, bookmarks and lost versions,
//! and everything that goes wrong with them, on command.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Query, State},
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::watch;

/// A cluster on loopback.
pub(crate) struct Cluster {
    etcd: Arc<Etcd>,
    folder: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

/// What the server knows, and a mark that changes with everything that whoever watches has to look at.
struct Etcd {
    state: Mutex<Known>,
    stirred: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    version: u64,
    /// By resource (`group/version/plural`, of the core group `v1/plural`), namespace and name.
    objects: BTreeMap<(String, String, String), Value>,
    /// Every change: version, resource, namespace, event.
    log: Vec<(u64, String, String, Value)>,
    /// Changes up to here are forgotten.
    compacted: u64,
    /// Custom resources that are installed.
    served: BTreeSet<String>,
    /// Watches that began before this are cut.
    generation: u64,
    down: bool,
    /// Resources, by plural, that may not be seen.
    forbidden: BTreeSet<String>,
    asked: Vec<String>,
    /// What each open watch is of, and up to which version it was told, by number.
    told: BTreeMap<u64, (String, u64)>,
    watches: u64,
}

/// The installed definitions of today.
pub(crate) const POOLS: &str = "inference.networking.k8s.io/v1/inferencepools";
pub(crate) const ALPHA_POOLS: &str = "inference.networking.x-k8s.io/v1alpha2/inferencepools";
pub(crate) const MODELS: &str = "inference.networking.x-k8s.io/v1alpha2/inferencemodels";
pub(crate) const PODS: &str = "v1/pods";
pub(crate) const SLICES: &str = "discovery.k8s.io/v1/endpointslices";
pub(crate) const SECRETS: &str = "v1/secrets";

impl Cluster {
    /// An empty one with these custom resources.
    pub(crate) async fn start(installed: &[&str]) -> Self {
        let etcd = Arc::new(Etcd { state: Mutex::default(), stirred: watch::channel(0).0 });
        etcd.state().version = 1;
        etcd.state().served.extend(installed.iter().map(ToString::to_string));
        let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&etcd));
        let server = tokio::spawn(async move { axum::serve(socket, router).await.unwrap() });
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{addr}")}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
        });
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        Self { etcd, folder, server }
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Creates or changes an object.
    pub(crate) fn put(&self, resource: &str, mut object: Value) {
        let mut state = self.etcd.state();
        state.version += 1;
        let version = state.version;
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or("default").to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (resource.to_owned(), namespace.clone(), name);
        let event = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        let event = json!({"type": event, "object": object});
        state.objects.insert(key, object);
        state.log.push((version, resource.to_owned(), namespace, event));
        drop(state);
        self.etcd.stir();
    }

    pub(crate) fn delete(&self, resource: &str, name: &str) {
        let mut state = self.etcd.state();
        state.version += 1;
        let version = state.version;
        let key = (resource.to_owned(), "default".to_owned(), name.to_owned());
        let mut object = state.objects.remove(&key).unwrap();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        state.log.push((version, key.0, key.1, json!({"type": "DELETED", "object": object})));
        drop(state);
        self.etcd.stir();
    }

    /// Installs a custom resource.
    pub(crate) fn install(&self, resource: &str) {
        self.etcd.state().served.insert(resource.to_owned());
    }

    /// Cuts every watch.
    pub(crate) fn cut(&self) {
        self.etcd.state().generation += 1;
        self.etcd.stir();
    }

    /// Forgets every change so far: whoever resumes a watch from before is told that it is gone.
    pub(crate) fn compact(&self) {
        let mut state = self.etcd.state();
        state.compacted = state.version;
        state.log.clear();
    }

    /// Tells every watch which version it has seen all of.
    pub(crate) fn bookmark(&self) {
        let mut state = self.etcd.state();
        state.version += 1;
        let (version, served) = (state.version, state.served.clone());
        for resource in served.iter().map(String::as_str).chain([PODS]) {
            let metadata = json!({"resourceVersion": version.to_string()});
            let object = json!({"kind": "Some", "apiVersion": "v1", "metadata": metadata});
            let event = json!({"type": "BOOKMARK", "object": object});
            state.log.push((version, resource.to_owned(), "default".to_owned(), event));
        }
        drop(state);
        self.etcd.stir();
    }

    /// Waits until a watch of this resource was told everything.
    pub(crate) async fn told(&self, resource: &str) {
        super::eventually("a watch to be told", || {
            let state = self.etcd.state();
            state.told.values().any(|(of, told)| of == resource && *told == state.version)
        })
        .await;
    }

    /// Nobody gets an answer any more, or again.
    pub(crate) fn down(&self, down: bool) {
        self.etcd.state().down = down;
        self.cut();
    }

    /// Lists and watches of this plural are refused, or no more.
    pub(crate) fn forbid(&self, plural: &str, forbidden: bool) {
        let mut state = self.etcd.state();
        if forbidden {
            state.forbidden.insert(plural.to_owned())
        } else {
            state.forbidden.remove(plural)
        };
    }

    /// An object as it is now.
    pub(crate) fn get(&self, resource: &str, name: &str) -> Value {
        self.etcd.state().objects[&(resource.to_owned(), "default".to_owned(), name.to_owned())].clone()
    }

    /// How many requests there were whose path and query contain all of these.
    pub(crate) fn asked(&self, words: &[&str]) -> usize {
        self.etcd.state().asked.iter().filter(|asked| words.iter().all(|word| asked.contains(word))).count()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Etcd {
    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap()
    }

    /// Server-side apply of a status, as far as one writer needs it: what is written replaces what was there.
    fn apply_status(&self, key: (String, String, String), body: &str) -> Response {
        let applied: Value = serde_json::from_str(body).unwrap();
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let Some(object) = state.objects.get_mut(&key) else { return status(StatusCode::NOT_FOUND, "NotFound") };
        object["status"] = applied["status"].clone();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let object = object.clone();
        state.log.push((version, key.0, key.1, json!({"type": "MODIFIED", "object": object})));
        drop(state);
        self.stir();
        Json(object).into_response()
    }

    fn stir(&self) {
        self.stirred.send_modify(|mark| *mark += 1);
    }
}

async fn answer(
    State(etcd): State<Arc<Etcd>>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    body: String,
) -> Response {
    let path = uri.path().trim_matches('/').to_owned();
    let parts: Vec<&str> = path.split('/').collect();
    let mut state = etcd.state();
    state.asked.push(uri.to_string());
    if state.down {
        return status(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
    }
    let (version, rest) = match parts[..] {
        ["api", version, ref rest @ ..] => (version.to_owned(), rest),
        ["apis", group, version, ref rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return status(StatusCode::NOT_FOUND, "NotFound"),
    };
    let (namespace, plural) = match rest[..] {
        [] => return resources(&state, &version),
        ["namespaces", namespace, plural] => (Some(namespace.to_owned()), plural),
        [plural] => (None, plural),
        ["namespaces", namespace, plural, name, "status"] if method == Method::PATCH => {
            let key = (format!("{version}/{plural}"), namespace.to_owned(), name.to_owned());
            drop(state);
            return etcd.apply_status(key, &body);
        }
        _ => return status(StatusCode::NOT_FOUND, "NotFound"),
    };
    let resource = format!("{version}/{plural}");
    if ![PODS, SLICES, SECRETS].contains(&resource.as_str()) && !state.served.contains(&resource) {
        return status(StatusCode::NOT_FOUND, "NotFound");
    }
    if state.forbidden.contains(plural) {
        return status(StatusCode::FORBIDDEN, "Forbidden");
    }
    if !query.contains_key("watch") {
        return list(&state, &resource, namespace.as_deref(), &query);
    }
    let from: u64 = query["resourceVersion"].parse().unwrap();
    assert_eq!(query["allowWatchBookmarks"], "true");
    let generation = state.generation;
    state.watches += 1;
    let number = state.watches;
    drop(state);
    let labels = query.get("labelSelector").cloned();
    let watching = Watching { etcd: Arc::clone(&etcd), number, resource, namespace, labels, seen: from, generation };
    let lines = stream::unfold((watching, etcd.stirred.subscribe()), |(mut watching, mut stirred)| async move {
        loop {
            stirred.borrow_and_update();
            let text = watching.news()?;
            if !text.is_empty() {
                return Some((Ok::<_, std::io::Error>(Bytes::from(text)), (watching, stirred)));
            }
            stirred.changed().await.ok()?;
        }
    });
    Response::new(Body::from_stream(lines))
}

/// What is served of one group and version.
fn resources(state: &Known, version: &str) -> Response {
    let of_it = state.served.iter().filter_map(|resource| resource.strip_prefix(version)?.strip_prefix('/'));
    let names: Vec<Value> = of_it
        .map(|name| json!({"name": name, "singularName": "", "namespaced": true, "kind": "Some", "verbs": ["list", "watch"]}))
        .collect();
    if names.is_empty() {
        return status(StatusCode::NOT_FOUND, "NotFound");
    }
    Json(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": names}))
        .into_response()
}

/// One page; the token to go on with is the number of objects that were shown.
fn list(state: &Known, resource: &str, namespace: Option<&str>, query: &BTreeMap<String, String>) -> Response {
    let shown: usize = query.get("continue").map_or(0, |token| token.parse().unwrap());
    let limit: usize = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let all =
        state.objects.iter().filter(|((of, place, _), _)| of == resource && namespace.is_none_or(|it| it == place));
    let labels = query.get("labelSelector").map(String::as_str);
    let all: Vec<&Value> = all.map(|(_, object)| object).filter(|object| is_selected(object, labels)).collect();
    let end = shown.saturating_add(limit).min(all.len());
    let go_on = if end < all.len() { end.to_string() } else { String::new() };
    let metadata = json!({"resourceVersion": state.version.to_string(), "continue": go_on});
    Json(json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": all[shown..end]})).into_response()
}

fn status(code: StatusCode, reason: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason, "reason": reason, "code": code.as_u16()});
    (code, Json(body)).into_response()
}

/// Whether an object has these labels, of the form `a=b`.
fn is_selected(object: &Value, labels: Option<&str>) -> bool {
    labels.is_none_or(|labels| {
        labels
            .split(',')
            .filter_map(|it| it.split_once('='))
            .all(|(name, value)| object["metadata"]["labels"][name] == value)
    })
}

struct Watching {
    etcd: Arc<Etcd>,
    number: u64,
    resource: String,
    namespace: Option<String>,
    labels: Option<String>,
    seen: u64,
    generation: u64,
}

impl Watching {
    /// What it has not seen, as lines; `None`: it ends.
    fn news(&mut self) -> Option<String> {
        let mut state = self.etcd.state();
        if state.generation != self.generation {
            return None;
        }
        if self.seen < state.compacted {
            self.generation = u64::MAX;
            let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "message": "too old", "code": 410});
            return Some(json!({"type": "ERROR", "object": gone}).to_string() + "\n");
        }
        let mine = |(version, resource, namespace, _): &&(u64, String, String, Value)| {
            *version > self.seen
                && *resource == self.resource
                && self.namespace.as_ref().is_none_or(|it| it == namespace)
        };
        let told = |(.., event): &(u64, String, String, Value)| {
            let is_bookmark = event["type"] == "BOOKMARK";
            if is_bookmark || is_selected(&event["object"], self.labels.as_deref()) {
                return event.to_string() + "\n";
            }
            // For whoever selects it is gone, if it was there.
            json!({"type": "DELETED", "object": event["object"]}).to_string() + "\n"
        };
        let lines = state.log.iter().filter(mine).map(told).collect();
        self.seen = state.version;
        state.told.insert(self.number, (self.resource.clone(), self.seen));
        Some(lines)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.etcd.state().told.remove(&self.number);
    }
}
