//! The doors of a simulated pod: accepting, uvicorn's habits, what happens to every request before it is understood
//! (it is written down, and faults may strike), and the paths that tell about the pod itself.
//!
//! HTTP/1.1 only and without compression, like uvicorn. The paths that ask for work are in `generate.rs` and
//! `pooling.rs`.

mod answers;
pub mod asked;
mod generate;
mod pooling;
mod refusals;
mod visits;

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderValue, Method, StatusCode, header::HeaderName},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::get,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub use self::visits::Visit;
pub(super) use self::{generate::Shelf, visits::Visits};
use self::{
    refusals::{engine_died, error},
    visits::Visiting,
};
use super::{Faults, Inside, Received, metrics::Page, proof, until};
use crate::{clock, tasks::Tasks};

/// Bodies above this are refused: far above what any test sends (a 1M-token prompt is 4 MB).
const BODY_CAP: usize = 64 << 20;
/// How many requests for inference are kept for tests to look at.
const KEPT_REQUESTS: usize = 64;
/// How much of each body is kept.
const KEPT_BODY: usize = 64 << 10;
/// How many different paths are counted; beyond that they are "other".
const COUNTED_PATHS: usize = 64;
/// How long to wait before asking for the port again when somebody else took it meanwhile.
const REBIND_AFTER: Duration = Duration::from_millis(20);

/// How long bytes get to leave before a connection is cut: hyper drops what it has not written yet.
const LEAVING: Duration = Duration::from_millis(5);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What came in, for tests; bounded.
#[derive(Debug, Default)]
pub(super) struct Journal(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    by_path: BTreeMap<String, u64>,
    last: VecDeque<Received>,
    unanswered: usize,
    connections: usize,
}

/// An open connection.
struct Connected<'a>(&'a Journal);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).connections -= 1;
    }
}

/// A request that has no answer yet, not even a head.
struct Unanswered<'a>(&'a Journal);

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).unanswered -= 1;
    }
}

impl Journal {
    /// How many came to which path, and the last ones.
    pub(super) fn read(&self) -> (BTreeMap<String, u64>, Vec<Received>) {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (entries.by_path.clone(), entries.last.iter().cloned().collect())
    }

    /// How many requests have no answer yet.
    pub(super) fn unanswered(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unanswered
    }

    /// How many connections are open, whatever for.
    pub(super) fn connections(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).connections
    }

    fn connected(&self) -> Connected<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).connections += 1;
        Connected(self)
    }

    fn open(&self) -> Unanswered<'_> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).unanswered += 1;
        Unanswered(self)
    }

    fn count(&self, path: &str) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = entries.by_path.len() >= COUNTED_PATHS && !entries.by_path.contains_key(path);
        let path = if full { "other" } else { path };
        *entries.by_path.entry(path.to_owned()).or_default() += 1;
    }

    fn keep(&self, received: Received) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.last.len() == KEPT_REQUESTS {
            entries.last.pop_front();
        }
        entries.last.push_back(received);
    }
}

/// Accepts until the pod is stopped; while it refuses connections nobody listens and every open one is closed.
pub(super) async fn listen(inside: Arc<Inside>, listener: TcpListener, tasks: Tasks, stop: CancellationToken) {
    let Ok(address) = listener.local_addr() else { return };
    let service = router(Arc::clone(&inside));
    let mut faults = inside.faults.watch();
    let mut open = Some(listener);
    loop {
        if faults.borrow_and_update().refuse_connections {
            open = None;
            if faults.changed().await.is_err() {
                return;
            }
            continue;
        }
        let listener = match open.take() {
            Some(listener) => open.insert(listener),
            None => open.insert(rebind(address).await),
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = faults.changed() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let connection = serve(Arc::clone(&inside), stream, service.clone());
        tasks.spawn_until_stop(until(stop.clone(), connection));
    }
}

async fn rebind(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(REBIND_AFTER).await,
        }
    }
}

async fn serve(inside: Arc<Inside>, stream: TcpStream, service: Router) {
    // Without this the first token waits for an acknowledgement, which one real router was found to do.
    let Ok(()) = stream.set_nodelay(true) else { return };
    let _open = inside.journal.connected();
    let mut faults = inside.faults.watch();
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper's clock for the next head starts with the wait for it: this is uvicorn's keep-alive.
        .header_read_timeout(inside.config.keep_alive)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::select! {
        // How a connection ended is of no interest: whatever it carried was a ticket, and that is dropped.
        _ = connection => {}
        _ = faults.wait_for(|now| now.refuse_connections) => {}
    }
}

/// Heals faults whose time is over.
pub(super) async fn heal_in_time(inside: Arc<Inside>) {
    let mut faults = inside.faults.watch();
    loop {
        let heal_after = faults.borrow_and_update().for_ms.map(Duration::from_millis);
        let Some(after) = heal_after else {
            if faults.changed().await.is_err() {
                return;
            }
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep(after) => inside.faults.heal(),
            _ = faults.changed() => {}
        }
    }
}

fn router(inside: Arc<Inside>) -> Router {
    let not_found = async || json_response(StatusCode::NOT_FOUND, &json!({"detail": "Not Found"}));
    let not_allowed = async || json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({"detail": "Method Not Allowed"}));
    let version = async || json_response(StatusCode::OK, &json!({"version": "0.32.0"})); // the one imitated
    generate::routes()
        .merge(pooling::routes())
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .route("/ping", get(health).post(health))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .route("/sim/state", get(state))
        .route("/sim/faults", get(faults).post(set_faults))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(Arc::clone(&inside), front))
        .layer(DefaultBodyLimit::disable()) // `front` has its own
        .with_state(inside)
}

/// Writes a request down, lets faults strike, echoes the request's id.
async fn front(State(inside): State<Arc<Inside>>, request: Request, next: Next) -> Response {
    inside.journal.count(request.uri().path());
    let id = request.headers().get(REQUEST_ID).cloned();
    let mut response = if is_inference(&request) {
        let _unanswered = inside.journal.open();
        let name = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let visiting = Visiting::begin(Arc::clone(&inside.visits), name.clone());
        let answer = match strike_or_keep(&inside, request).await {
            Ok((request, body)) => signed(&inside, next.run(request).await, &name, &body).await,
            Err(struck) => struck,
        };
        visiting.until_told(answer)
    } else {
        next.run(request).await
    };
    if let Some(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.headers_mut().insert("server", HeaderValue::from_static("uvicorn"));
    response
}

/// Everything that asks for work; not the probes, the metrics or the simulation's own paths.
fn is_inference(request: &Request) -> bool {
    let path = request.uri().path();
    request.method() == Method::POST && !path.starts_with("/sim/") && path != "/ping"
}

/// Gives a whole answer its checksum, if the pod is to prove what it says.
async fn signed(inside: &Inside, answer: Response, request_id: &str, asked: &[u8]) -> Response {
    let json = answer.headers().get("content-type").is_some_and(|kind| kind == "application/json");
    if !inside.config.checksum || !json {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    // It is there already, so nothing is waited for and nothing can break.
    let body = to_bytes(body, BODY_CAP).await.unwrap_or_default();
    if let Ok(sum) = HeaderValue::try_from(proof::of_whole(asked, request_id, &body)) {
        head.headers.insert(proof::CHECKSUM, sum);
    }
    Response::from_parts(head, Body::from(body))
}

/// The request as it came and its body, or the fault that strikes it.
async fn strike_or_keep(inside: &Inside, request: Request) -> Result<(Request, Bytes), Response> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_CAP)
        .await
        .map_err(|cause| error(StatusCode::PAYLOAD_TOO_LARGE, "Bad Request", &cause.to_string()))?;
    inside.journal.keep(Received {
        method: parts.method.to_string(),
        path: parts.uri.to_string(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        body: String::from_utf8_lossy(body.get(..KEPT_BODY).unwrap_or(&body)).into_owned(),
    });
    let mut faults = inside.faults.watch();
    // The switch lives as long as the pod, so this cannot fail; if it did, nothing would be wrong.
    let now = faults.wait_for(|now| !now.hang_before_headers).await.map(|now| now.clone()).unwrap_or_default();
    if now.engine_dead || inside.faults.next_fails() {
        return Err(engine_died());
    }
    if now.warm_up {
        return Err(error(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The engine is warming up."));
    }
    if let Some(status) = now.status {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Err(error(status, "ServiceUnavailable", "Too many requests are waiting; try a different instance."));
    }
    Ok((Request::from_parts(parts, Body::from(body.clone())), body))
}

async fn models(State(inside): State<Arc<Inside>>) -> Response {
    let (created, base, length) = (inside.started.as_secs(), &inside.config.model, inside.config.max_model_len);
    let card = |id: &str, root: &str, parent: Option<&str>| {
        let max = parent.is_none().then_some(length);
        json!({"id": id, "object": "model", "created": created, "owned_by": "vllm", "root": root, "parent": parent,
               "max_model_len": max, "permission": []})
    };
    let adapters = inside.config.adapters.iter().map(|name| card(name, &format!("/adapters/{name}"), Some(base)));
    let data: Vec<Value> = [card(base, base, None)].into_iter().chain(adapters).collect();
    json_response(StatusCode::OK, &json!({"object": "list", "data": data}))
}

/// An asleep pod is healthy, as in vLLM; a dead engine and a pod that warms up are not.
async fn health(State(inside): State<Arc<Inside>>) -> StatusCode {
    let now = inside.faults.now();
    if now.engine_dead || now.warm_up { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

async fn metrics(State(inside): State<Arc<Inside>>) -> Response {
    let now = inside.faults.now();
    if now.slow_metrics_ms > 0 {
        tokio::time::sleep(Duration::from_millis(now.slow_metrics_ms)).await;
    }
    let shown = inside.engine.shown();
    if !now.stale_metrics && !now.engine_dead {
        inside.note_adapters(&shown.gauges.running_adapters);
    }
    let loras = inside.loras.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let page = Page {
        model: &inside.config.model,
        config: &inside.config.engine,
        shown: &shown,
        asleep: now.sleep,
        loras: &loras,
        started: inside.started.as_secs_f64(),
        uptime: clock::now().duration_since(inside.started_at).as_secs_f64(),
    };
    let mut response = Response::new(Body::from(page.render()));
    let kind = HeaderValue::from_static("text/plain; version=1.0.0; charset=utf-8");
    response.headers_mut().insert("content-type", kind);
    response
}

async fn state(State(inside): State<Arc<Inside>>) -> Response {
    json_response(StatusCode::OK, &json!(inside.state()))
}

async fn faults(State(inside): State<Arc<Inside>>) -> Response {
    json_response(StatusCode::OK, &json!(inside.faults.now()))
}

async fn set_faults(State(inside): State<Arc<Inside>>, body: Bytes) -> Response {
    match serde_json::from_slice::<Faults>(&body) {
        Ok(faults) => {
            inside.faults.set(faults.clone());
            json_response(StatusCode::OK, &json!(faults))
        }
        Err(cause) => error(StatusCode::BAD_REQUEST, "Bad Request", &cause.to_string()),
    }
}

/// A whole JSON answer.
fn json_response(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

/// The breaking of a connection in the middle of a body, once what was said before has left.
async fn cut() -> io::Result<Bytes> {
    tokio::time::sleep(LEAVING).await;
    Err(io::Error::new(io::ErrorKind::ConnectionReset, "cut by a fault"))
}
