//! A pod that is not there: vLLM's scheduler, cache, endpoints, metrics and failures, without a GPU.
//!
//! The engine is pure and runs on virtual time, so that the lab can run an hour in seconds; the server around it is a
//! thin rim that runs the same engine in real time. It imitates what a gateway can see of vLLM, not what vLLM says:
//! answers are made of nonsense words that a test can predict.

mod answers;
pub mod asked;
pub mod cache;
mod driver;
mod endpoints;
pub mod engine;
pub mod faults;
mod metrics;
pub mod profiles;
mod server;
pub mod step;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{driver::LiveEngine, endpoints::Shelf, profiles::PROFILES, server::Journal, step::StepModel};
pub use self::{
    engine::EngineConfig,
    faults::{FaultSwitch, Faults},
};
use crate::{clock, tasks::Tasks};

/// How many sets of adapters `lora_requests_info` remembers: more than any page recorded so far had.
const KEPT_ADAPTER_SETS: usize = 256;

/// What a pod is to be like.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// The base model's name.
    pub model: String,
    /// Names of the adapters it serves.
    pub adapters: Vec<String>,
    /// The engine behind it.
    pub engine: EngineConfig,
    /// Real time per virtual time: 0.1 makes everything ten times as fast.
    pub time_scale: f64,
    /// Prompt and answer have at most this many tokens (`--max-model-len`).
    pub max_model_len: u32,
    /// More waiting requests than this get 503 (`--max-num-queued-reqs`).
    pub max_queued: Option<usize>,
    /// Idle connections are closed after this long.
    pub keep_alive: Duration,
    /// What is wrong from the start; `warm_up` with `for_ms` makes a pod that becomes ready.
    pub faults: Faults,
}

impl PodConfig {
    /// A healthy pod for `model` on the default profile (Llama-3.1-8B on an H100), with uvicorn's keep-alive of 5 s.
    pub fn new(model: impl Into<String>) -> Self {
        let [profile, ..] = &PROFILES;
        Self {
            model: model.into(),
            adapters: Vec::new(),
            engine: EngineConfig::new(StepModel::new(profile, 1.0)),
            time_scale: 1.0,
            max_model_len: 131_072, // Llama 3.1's context
            max_queued: None,
            keep_alive: Duration::from_secs(5),
            faults: Faults::default(),
        }
    }

    /// The same pod, `speed` times as fast.
    #[must_use]
    pub fn speed(mut self, speed: f64) -> Self {
        self.engine.step = StepModel::new(self.engine.step.profile(), speed);
        self
    }

    /// The same pod, serving these adapters.
    #[must_use]
    pub fn adapters(mut self, names: &[&str]) -> Self {
        self.adapters = names.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// The same pod, living `scale` seconds in each of its own seconds.
    #[must_use]
    pub fn time_scale(mut self, scale: f64) -> Self {
        self.time_scale = scale;
        self
    }
}

/// Where pods come from.
#[derive(Debug)]
pub struct Pod;

impl Pod {
    /// Starts a pod on `address` (port 0: any free port). It runs until [`RunningPod::stop`] or `tasks` stops.
    pub async fn start(config: PodConfig, address: SocketAddr, tasks: &Tasks) -> io::Result<RunningPod> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let faults = FaultSwitch::new(config.faults.clone());
        let engine = LiveEngine::new(
            config.engine.clone(),
            faults.clone(),
            config.time_scale,
            config.max_queued,
        );
        let inside = Arc::new(Inside {
            engine: Arc::new(engine),
            faults,
            journal: Journal::default(),
            responses: Shelf::default(),
            loras: Mutex::default(),
            started: clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default(),
            started_at: clock::now(),
            config,
        });
        let stop = CancellationToken::new();
        let steps = Arc::clone(&inside.engine).run();
        tasks.spawn_until_stop(until(stop.clone(), steps));
        tasks.spawn_until_stop(until(stop.clone(), server::heal_in_time(Arc::clone(&inside))));
        let doors = server::listen(Arc::clone(&inside), listener, tasks.clone(), stop.clone());
        let doors = tasks.spawn_until_stop(until(stop.clone(), doors));
        Ok(RunningPod {
            address,
            inside,
            stop,
            doors,
        })
    }
}

/// A pod that answers.
#[derive(Debug)]
pub struct RunningPod {
    address: SocketAddr,
    inside: Arc<Inside>,
    stop: CancellationToken,
    doors: JoinHandle<()>,
}

impl RunningPod {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and where it listens.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has happened in it: what `GET /sim/state` shows.
    pub fn state(&self) -> PodState {
        self.inside.state()
    }

    /// The switch for its faults.
    pub fn faults(&self) -> &FaultSwitch {
        &self.inside.faults
    }

    /// Kills it: connections break, the port is free when this returns.
    pub async fn stop(self) {
        self.stop.cancel();
        // The task only ends early; it cannot fail in a way that matters here.
        drop(self.doors.await);
    }
}

/// One request as it arrived.
#[derive(Clone, Debug, Serialize)]
pub struct Received {
    /// Its method.
    pub method: String,
    /// Its path and query.
    pub path: String,
    /// Its headers, in order.
    pub headers: Vec<(String, String)>,
    /// The beginning of its body as text.
    pub body: String,
}

impl Received {
    /// The first header called `name` (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(it, _)| it == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What has happened in a pod, as a test wants to know it.
#[derive(Clone, Debug, Serialize)]
pub struct PodState {
    /// Requests in the engine at this moment, running or waiting (the gauges lag a step behind).
    pub live: usize,
    /// The gauge `num_requests_running`.
    pub running: usize,
    /// The gauge `num_requests_waiting`.
    pub waiting: usize,
    /// The gauge `kv_cache_usage_perc`.
    pub kv_usage: f64,
    /// Requests that ran to their end.
    pub served: u64,
    /// Requests whose client left before that.
    pub aborts: u64,
    /// Tokens generated so far.
    pub generation_tokens: u64,
    /// Prompt tokens found in the cache so far.
    pub cached_tokens: u64,
    /// Preemptions so far.
    pub preemptions: u64,
    /// How many requests came to which path.
    pub received: BTreeMap<String, u64>,
    /// The last requests for inference, oldest first.
    pub last: Vec<Received>,
}

/// This pod has no such model.
#[derive(Clone, Copy, Debug)]
struct NotServed;

/// What the parts of a pod share.
#[derive(Debug)]
struct Inside {
    config: PodConfig,
    engine: Arc<LiveEngine>,
    faults: FaultSwitch,
    journal: Journal,
    responses: Shelf,
    /// Every set of adapters that was seen running, and when it last was (seconds since 1970).
    loras: Mutex<Vec<(String, f64)>>,
    started: Duration,
    started_at: Instant,
}

impl Inside {
    fn state(&self) -> PodState {
        let shown = self.engine.shown();
        let (received, last) = self.journal.read();
        PodState {
            live: self.engine.live(),
            running: shown.gauges.running,
            waiting: shown.gauges.waiting,
            kv_usage: shown.gauges.kv_usage,
            served: shown.totals.finished,
            aborts: self.engine.left_early(),
            generation_tokens: shown.totals.generation_tokens,
            cached_tokens: shown.totals.prefix_hits,
            preemptions: shown.totals.preemptions,
            received,
            last,
        }
    }

    /// Renews the time of the set of adapters that runs now; before the first adapter request there is none.
    fn note_adapters(&self, running: &[u32]) {
        let names = running
            .iter()
            .filter_map(|&at| self.config.adapters.get(at as usize).map(String::as_str));
        let names = names.collect::<Vec<_>>().join(",");
        let now = clock::wall()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        let mut seen = self.loras.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, at)) = seen.iter_mut().find(|(it, _)| *it == names) {
            *at = now;
            return;
        }
        if names.is_empty() && seen.is_empty() {
            return;
        }
        // Real vLLM forgets none; a bound keeps a long-running simulation small.
        if seen.len() == KEPT_ADAPTER_SETS {
            seen.remove(0);
        }
        seen.push((names, now));
    }

    /// Which adapter a model name means, if it is not the base model.
    fn adapter_of(&self, model: &str) -> Result<Option<u32>, NotServed> {
        // As in vLLM, a missing or empty name means the base model.
        if model.is_empty() || model == self.config.model {
            return Ok(None);
        }
        let at = self
            .config
            .adapters
            .iter()
            .position(|name| name == model)
            .ok_or(NotServed)?;
        u32::try_from(at).map(Some).map_err(|_| NotServed)
    }
}

/// Runs `work` until it ends or the pod is stopped.
async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}
