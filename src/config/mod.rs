//! What the operator asked for, checked and with every default filled in.
//!
//! `File` (as typed, with source positions) becomes `Config` in one place, [`check`]; every other room sees only
//! `Config`. Units live in types: `Duration`, [`Bytes`], [`Ratio`].

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

mod change;
mod check;
mod defaults;
mod file;
mod identity;
mod listener;
mod overload;
mod quotas;
mod report;
pub mod resources;
mod settings;
mod shape;
mod target;
mod tree;
mod units;

pub use change::{Change, compare};
pub use check::{Given, load, load_bytes, load_file, load_given, read_file, schema, wrong_levels};
pub use identity::{
    Algorithm, AllowedModels, CertificateName, Certificates, Claims, Credentials, Identity, Issuer, IssuerKeys,
    KeyHash, KeyRecord, KeySecrets, LONGEST_NAME, MAX_KEY_FILE, NameKind, moment, parse_keys, shown_moment,
};
pub use listener::{
    AddressHeader, Admin, BodyMode, ClientCertificates, Cors, ExtProc, KeyPair, Listener, ListenerTls, Network,
    Networks, ProxyProtocol, TlsVersion,
};
pub use overload::{Saturation, Share, Waiting};
pub use quotas::{GpuPrice, Money, Outage, Price, Quota, Quotas, Redis, TokenPrice};
pub use report::{Place, Problem, Report, Severity, nearest};
pub use resources::{Kubernetes, Members, Objective, PortRef};
pub use settings::{Api, Limits, Log, LogFormat, ModelTimeouts, Retry, RetryOn, Sessions, Timeouts};
pub use target::parse_endpoints;
pub use units::{bytes, duration, ratio};

/// A count of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A share between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

/// The whole configuration of one gateway.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients come in; at least one.
    pub listeners: Vec<Listener>,
    /// Whether another process of the same user may listen on the same addresses, as a successor does.
    pub reuse_port: bool,
    /// The groups of pods; at least one, unless a cluster has them.
    pub pools: Vec<Arc<Pool>>,
    /// Names that clients ask for and what they mean.
    pub models: Vec<Model>,
    /// Models whose names those of other pools have in `models`: they are served where a listener belongs to their pool.
    pub pool_models: Vec<Model>,
    /// What every other name becomes that leads to a pool, at most one for each; the oldest rule first.
    pub other_models: Vec<Model>,
    /// What `InferenceObjective`s say.
    pub objectives: Vec<Objective>,
    /// Whether all was heard that belongs to it. Until a cluster has said everything once, what is not here may still come.
    pub whole: bool,
    /// Where inference resources come from, if they do.
    pub kubernetes: Option<Kubernetes>,
    /// How a pod is chosen where a listener says nothing else.
    pub scheduler: Scheduler,
    /// The operator's listener: probes, metrics, state, and all that changes something.
    pub admin: Admin,
    /// Probes and metrics alone, for kubelet and Prometheus.
    pub probes: Option<SocketAddr>,
    /// Bounds on what one request or all of them together may hold.
    pub limits: Limits,
    /// How long each step may take.
    pub timeouts: Timeouts,
    /// When a request may be tried on another pod.
    pub retry: Retry,
    /// How long and how many requests may wait while no pod is ready.
    pub waiting: Waiting,
    /// When a pool is full that says nothing of its own.
    pub saturation: Saturation,
    /// Who may come.
    pub identity: Identity,
    /// Who may use up how much, and what it costs.
    pub quotas: Quotas,
    /// How requests name the session they belong to.
    pub sessions: Sessions,
    /// Which paths are open and what is added to requests and answers.
    pub api: Api,
    /// Log level and shape.
    pub log: Log,
}

/// A group of pods that serve the same base model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Unique name.
    pub name: Arc<str>,
    /// Which engine's metric names to expect.
    pub engine: Engine,
    /// Where its pods are.
    pub endpoints: Vec<Endpoint>,
    /// How its pods' load is read.
    pub metrics: Metrics,
    /// Whether a client's `Authorization` goes on to the pods.
    pub forward_authorization: bool,
    /// Further certificate authorities (PEM) trusted for this pool's https pods.
    pub ca_file: Option<PathBuf>,
    /// What it shows to https pods that ask who calls.
    pub client_certificate: Option<KeyPair>,
    /// The name that its https pods' certificates have to be for, instead of each pod's own.
    pub server_name: Option<String>,
    /// When it is full.
    pub saturation: Saturation,
    /// Whether its pods are told requests' priorities, because they schedule by them.
    pub priority_scheduling: bool,
}

/// Whose metric names a pod speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Told from the page itself.
    Auto,
    /// vLLM, V0 and V1.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM's own server.
    TrtllmServe,
    /// Triton with the TensorRT-LLM backend, or plain.
    Triton,
    /// llama.cpp's server.
    LlamaCpp,
    /// Names given by the operator.
    Custom(CustomMetrics),
}

/// The metric names of an engine that Tidegate does not know; each is `name` or `name{label="value"}`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CustomMetrics {
    /// Requests waiting to be scheduled.
    pub waiting: Option<String>,
    /// Requests being worked on.
    pub running: Option<String>,
    /// KV-cache usage, 0 to 1.
    pub kv_cache_usage: Option<String>,
}

/// One entry of a pool's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// One pod at a fixed URL.
    Fixed(Target),
    /// Every address that the URL's host name resolves to is a pod; asked again from time to time.
    Dns(Target),
    /// A YAML file that lists endpoints (`- url: ...`), read again when it changes.
    File(PathBuf),
    /// Pods that a cluster knows.
    Cluster {
        /// Which.
        members: Members,
        /// As [`Target::token_file`], for each of them.
        token_file: Option<PathBuf>,
    },
}

/// Where one pod is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Scheme, host and port.
    pub origin: Origin,
    /// What is put before every path, without a trailing slash; usually empty.
    pub base_path: String,
    /// A file whose trimmed content is sent as `Authorization: Bearer`; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// The page of metrics if it is not at the origin plus the pool's metrics path.
    pub metrics_url: Option<String>,
}

/// Scheme, host and port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// TLS or not.
    pub https: bool,
    /// Host name or IP address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Origin {
    /// `host:port`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

/// How a pool's pods are scraped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Path of the page.
    pub path: String,
    /// Another port than the pod's own (Triton: 8002).
    pub port: Option<u16>,
    /// Time between two reads of a busy pod; an idle one is read less often.
    pub interval: Duration,
    /// How long one read may take.
    pub timeout: Duration,
    /// The largest page accepted.
    pub max_page: Bytes,
}

/// A name that clients ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The name in the client's `model` field.
    pub name: Arc<str>,
    /// How much it matters when not all can be served.
    pub criticality: Criticality,
    /// The pool that serves it.
    pub pool: Arc<str>,
    /// What it is called there, by weight; never empty.
    pub targets: Vec<TargetModel>,
    /// What keeps a caller on the same target.
    pub sticky: Sticky,
    /// Whether answers carry the client's name for the model instead of the target's.
    pub rewrite_response_model: bool,
    /// What its requests may take.
    pub timeouts: ModelTimeouts,
}

/// One arm of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetModel {
    /// The served model's or adapter's name.
    pub name: Arc<str>,
    /// Its share, relative to the other arms'.
    pub weight: u32,
}

/// InferenceModel criticality.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Criticality {
    /// Never shed.
    Critical,
    /// Never shed either; between the two where some must wait.
    #[default]
    Standard,
    /// Refused while the pool is full.
    Sheddable,
}

/// What keeps related requests on one arm of a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sticky {
    /// A named session keeps its arm; a request without one is drawn.
    #[default]
    Session,
    /// The beginning of the conversation (system prompt and first user message) keeps its arm.
    Conversation,
    /// Every request is drawn.
    None,
}

/// How a pod is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheduler {
    /// The pod on which this request costs the fewest milliseconds.
    LeastCost,
    /// Weighted sum of scores between 0 and 1.
    Weighted(Vec<WeightedScorer>),
    /// Fewest requests in flight.
    LeastRequest,
    /// The better of two drawn at random.
    PowerOfTwo,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// A session always falls on the same pod while it is there.
    SessionHash,
}

impl Scheduler {
    /// The word in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LeastCost => "least-cost",
            Self::Weighted(_) => "weighted",
            Self::LeastRequest => "least-request",
            Self::PowerOfTwo => "power-of-two",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::SessionHash => "session-hash",
        }
    }
}

/// A scorer and its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightedScorer {
    /// Which.
    pub scorer: Scorer,
    /// How much it counts; finite and not negative.
    pub weight: f64,
}

/// The scorers of the Gateway API Inference Extension, by its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Scorer {
    /// `queue-scorer`: fewer waiting requests.
    #[serde(rename = "queue-scorer")]
    Queue,
    /// `running-requests-size-scorer`: fewer running requests.
    #[serde(rename = "running-requests-size-scorer")]
    Running,
    /// `kv-cache-utilization-scorer`: more free KV cache.
    #[serde(rename = "kv-cache-utilization-scorer")]
    KvCache,
    /// `prefix-cache-scorer`: more of the prompt already there.
    #[serde(rename = "prefix-cache-scorer")]
    PrefixCache,
    /// `lora-affinity-scorer`: the adapter is loaded there.
    #[serde(rename = "lora-affinity-scorer")]
    LoraAffinity,
}
