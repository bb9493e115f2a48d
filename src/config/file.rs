//! The configuration as typed: what serde reads and what the JSON schema shows.
//!
//! Nothing is judged here but types and words; [`super::check`] does the rest. A value that a check may have to point
//! at is an [`At`]. Names follow the Gateway API Inference Extension where it has one, `snake_case` elsewhere.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    Bytes, Criticality, LogFormat, Ratio, RetryOn, Scorer, Sticky,
    identity::IdentityFile,
    listener::{AdminFile, KeyPairFile, ListenerFile},
    overload::{SaturationFile, WaitingFile},
    quotas::QuotasFile,
    resources::{KubernetesFile, PodsFile, ReferenceFile, ServiceFile},
    tree::At,
    units::{AddressText, Span, Weight},
};

/// A Tidegate configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map that begins with `listeners:` or another section")]
// Both lists have defaults so that a file without them is still checked for all else.
#[schemars(title = "Tidegate configuration", extend("required" = ["listeners"], "anyOf" = [{"required": ["pools"]}, {"required": ["kubernetes"]}]))]
pub(super) struct File {
    /// Where clients come in; at least one.
    #[serde(default)]
    pub(super) listeners: At<Vec<ListenerFile>>,
    /// Whether another process of the same user may listen on the same addresses, so that a successor can start before
    /// this one stops. Default: false.
    pub(super) reuse_port: Option<bool>,
    /// The groups of pods; at least one, unless `kubernetes` brings them. A pool's pods serve the same base model.
    #[serde(default)]
    pub(super) pools: At<Vec<PoolFile>>,
    /// Inference resources: from the cluster, or from files. Default: none.
    pub(super) kubernetes: Option<KubernetesFile>,
    /// The names that clients ask for. Default: none, so that clients use the names that pods report.
    pub(super) models: Option<At<Vec<ModelFile>>>,
    /// How a pod is chosen, unless the listener says otherwise. Default: least-cost.
    pub(super) scheduler: Option<SchedulerFile>,
    /// The operator's listener: probes, metrics, state, and all that changes something.
    pub(super) admin: Option<AdminFile>,
    /// Probes and metrics alone, for kubelet and Prometheus. Default: on the admin address only.
    pub(super) probes: Option<DoorFile>,
    /// Bounds on what one request, or all of them together, may hold.
    pub(super) limits: Option<LimitsFile>,
    /// How long each step may take.
    pub(super) timeouts: Option<TimeoutsFile>,
    /// When a request may be tried on another pod. Only before the first byte of an answer.
    pub(super) retry: Option<RetryFile>,
    /// How long and how many requests may wait while no pod is ready.
    pub(super) waiting: Option<WaitingFile>,
    /// When a pool is full, so that what is sheddable is refused.
    pub(super) saturation: Option<SaturationFile>,
    /// Who may come, and how they show who they are. Default: nobody is known.
    pub(super) identity: Option<IdentityFile>,
    /// Who may use up how much, and what it costs.
    pub(super) quotas: Option<QuotasFile>,
    /// How requests name the session they belong to.
    pub(super) sessions: Option<SessionsFile>,
    /// Which paths are open, and what is added to requests and answers.
    pub(super) api: Option<ApiFile>,
    /// Log level and shape.
    pub(super) log: Option<LogFile>,
}

/// How a pod is chosen.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a scheduler, such as `{ policy: least-cost }`")]
pub(super) struct SchedulerFile {
    /// The policy.
    pub(super) policy: At<PolicyFile>,
    /// The scorers of `weighted` and their weights. Default: queue 2, kv-cache 2, prefix-cache 3, lora-affinity 1.
    pub(super) scorers: Option<At<Vec<ScorerFile>>>,
}

/// The policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PolicyFile {
    /// The pod on which this request costs the fewest milliseconds.
    LeastCost,
    /// Weighted sum of scores, as in the Inference Extension.
    Weighted,
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

/// A scorer and its weight.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a scorer, such as `{ name: queue-scorer, weight: 2 }`")]
pub(super) struct ScorerFile {
    /// The scorer, by the Inference Extension's name.
    pub(super) name: At<Scorer>,
    /// How much it counts, 0 or more. Default: 1.
    pub(super) weight: Option<At<f64>>,
}

/// A group of pods that serve the same base model.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a pool, such as `{ name: vllm, endpoints: [ { url: \"http://10.0.0.1:8000\" } ] }`"
)]
pub(super) struct PoolFile {
    /// Its name, which `poolRef` uses; unique.
    pub(super) name: At<String>,
    /// Whose metric names the pods speak. Default: auto.
    pub(super) engine: Option<At<EngineFile>>,
    /// Where the pods are: any mixture of `url`, `dns`, `file`, `inferencePool`, `pods` and `service`.
    pub(super) endpoints: At<Vec<At<EndpointFile>>>,
    /// A file with the bearer token for all endpoints that name none; read again when it changes.
    pub(super) token_file: Option<At<PathBuf>>,
    /// How the pods' load is read.
    pub(super) metrics: Option<MetricsFile>,
    /// Whether a client's Authorization header goes on to the pods. Default: false.
    pub(super) forward_authorization: Option<At<bool>>,
    /// Further certificate authorities (PEM) trusted for this pool's https pods. Default: the system's alone.
    pub(super) ca_file: Option<At<PathBuf>>,
    /// What is shown to https pods that ask who calls; read again when it changes. Default: nothing.
    pub(super) client_certificate: Option<At<KeyPairFile>>,
    /// The name that https pods' certificates have to be for. Default: the host name or address of each.
    pub(super) server_name: Option<At<String>>,
    /// When this pool is full. Default: the common one.
    pub(super) saturation: Option<SaturationFile>,
    /// Whether its pods schedule by priority (vLLM's `--scheduling-policy priority`), so that they are told it. Default: false.
    pub(super) priority_scheduling: Option<bool>,
}

/// The engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum EngineFile {
    /// Told from the page itself.
    Auto,
    /// vLLM, V0 and V1.
    Vllm,
    /// SGLang.
    Sglang,
    /// TensorRT-LLM's own server.
    TrtllmServe,
    /// Triton with the TensorRT-LLM backend, or plain; metrics on port 8002.
    Triton,
    /// llama.cpp's server.
    #[serde(rename = "llamacpp")]
    LlamaCpp,
    /// Another: name its metrics under `metrics.custom`.
    Custom,
}

/// One entry of `endpoints`: where one pod is, or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an endpoint, such as `{ url: \"http://10.0.0.1:8000\" }`")]
#[schemars(extend("oneOf" = [{"required": ["url"]}, {"required": ["dns"]}, {"required": ["file"]},
    {"required": ["inferencePool"]}, {"required": ["pods"]}, {"required": ["service"]}]))]
pub(super) struct EndpointFile {
    /// One pod: http or https, host, port, and a base path if it has one (without /v1).
    pub(super) url: Option<At<String>>,
    /// The same, but every address that the host name resolves to is a pod; asked again from time to time.
    pub(super) dns: Option<At<String>>,
    /// A YAML list of `{ url: ... }`, read again when it changes.
    pub(super) file: Option<At<PathBuf>>,
    /// The pods of an `InferencePool`; its models lead here.
    #[serde(rename = "inferencePool")]
    pub(super) inference_pool: Option<At<ReferenceFile>>,
    /// Pods in the cluster that carry these labels.
    pub(super) pods: Option<At<PodsFile>>,
    /// What is behind a Service in the cluster, pod by pod.
    pub(super) service: Option<At<ServiceFile>>,
    /// A file with the bearer token for this endpoint. Default: the pool's.
    pub(super) token_file: Option<At<PathBuf>>,
    /// The page of metrics, with `url` only, if it is not at the pool's metrics path and port.
    pub(super) metrics_url: Option<At<String>>,
}

/// How a pool's pods are scraped.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ path: /metrics, interval: 250ms }`")]
pub(super) struct MetricsFile {
    /// Path of the page. Default: /metrics.
    pub(super) path: Option<At<String>>,
    /// Another port than the pod's own. Default: the pod's own; 8002 for Triton.
    pub(super) port: Option<At<u16>>,
    /// Time between two reads of a busy pod; an idle one is read less often. Default: 250ms.
    pub(super) interval: Option<At<Span>>,
    /// How long one read may take. Default: 1s.
    pub(super) timeout: Option<At<Span>>,
    /// The largest page accepted. Default: 4MiB.
    pub(super) max_page: Option<At<Bytes>>,
    /// The metric names of a `custom` engine.
    pub(super) custom: Option<At<CustomFile>>,
}

/// The metric names of a `custom` engine, each `name` or `name{label="value"}`; at least one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ waiting: my_queue_size, running: my_running }`")]
pub(super) struct CustomFile {
    /// Requests waiting to be scheduled.
    pub(super) waiting: Option<At<String>>,
    /// Requests being worked on.
    pub(super) running: Option<At<String>>,
    /// KV-cache usage, 0 to 1.
    pub(super) kv_cache_usage: Option<At<String>>,
}

/// A name that clients ask for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a model, such as `{ modelName: llama2, poolRef: vllm }`")]
pub(super) struct ModelFile {
    /// The name in the client's `model` field; unique.
    #[serde(rename = "modelName")]
    pub(super) model_name: At<String>,
    /// How much it matters when not all can be served: Sheddable is refused while the pool is full. Default: Standard.
    pub(super) criticality: Option<Criticality>,
    /// The name of the pool that serves it.
    #[serde(rename = "poolRef")]
    pub(super) pool_ref: At<String>,
    /// What it is called there, split by weight. Default: its own name.
    #[serde(rename = "targetModels")]
    pub(super) target_models: Option<At<Vec<TargetModelFile>>>,
    /// What keeps a caller on the same target model. Default: session.
    pub(super) sticky: Option<Sticky>,
    /// Whether answers carry the client's name for the model instead of the target's. Default: false.
    pub(super) rewrite_response_model: Option<bool>,
    /// What its requests may take, where the common `timeouts` do not fit it.
    pub(super) timeouts: Option<ModelTimeoutsFile>,
}

/// The timeouts that a model may have of its own. Default, for each: the common one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ first_token: 5m }`")]
pub(super) struct ModelTimeoutsFile {
    /// The pod answers with headers; for a whole answer that is when it is complete.
    pub(super) first_byte: Option<At<Span>>,
    /// The pod sends a stream's first token.
    pub(super) first_token: Option<At<Span>>,
    /// Between two pieces of a response body.
    pub(super) idle: Option<At<Span>>,
    /// The whole request.
    pub(super) total: Option<At<Span>>,
}

/// One arm of a split.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a target model, such as `{ name: llama2-lora-v2, weight: 10 }`")]
pub(super) struct TargetModelFile {
    /// The served model's or adapter's name.
    pub(super) name: At<String>,
    /// Its share, relative to the other arms', 0 to 1000000. Give it to all arms or to none (equal shares).
    #[schemars(with = "Option<u32>")]
    pub(super) weight: Option<At<Weight>>,
}

/// An address of the operator's.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an address, such as `{ address: 0.0.0.0:9091 }`")]
pub(super) struct DoorFile {
    /// IP address and port.
    #[schemars(with = "String")]
    pub(super) address: At<AddressText>,
}

/// Bounds, each enforced in exactly one place.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ body: 32MiB }`")]
pub(super) struct LimitsFile {
    /// The largest request body. Default: 32MiB.
    pub(super) body: Option<At<Bytes>>,
    /// All buffered request bodies together, and what is held back of answers. Default: 1GiB.
    pub(super) buffered_bodies: Option<At<Bytes>>,
    /// Client connections open at once, over all listeners. Default: 65536.
    pub(super) connections: Option<At<u32>>,
    /// Header fields of one request. Default: 64.
    pub(super) header_fields: Option<At<u32>>,
    /// Bytes of one request's header list. Default: 32KiB.
    pub(super) header_bytes: Option<At<Bytes>>,
    /// Concurrent HTTP/2 streams on one connection. Default: 100.
    pub http2_streams: Option<At<u32>>,
}

/// How long each step may take.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ connect: 2s }`")]
pub(super) struct TimeoutsFile {
    /// The client sends its request headers. Default: 10s.
    pub(super) header_read: Option<At<Span>>,
    /// The client sends its request body. Default: 1m.
    pub(super) body_read: Option<At<Span>>,
    /// Between two requests on one client connection. Default: 75s, above the 60s of cloud load balancers.
    pub(super) client_idle: Option<At<Span>>,
    /// The client takes nothing of its answer. Default: 1m.
    pub(super) write_stall: Option<At<Span>>,
    /// TCP (and TLS) connect to a pod. Default: 2s.
    pub(super) connect: Option<At<Span>>,
    /// The pod answers with headers; for a whole answer that is when it is complete. Default: 10m, as the OpenAI SDKs.
    pub(super) first_byte: Option<At<Span>>,
    /// The pod sends a stream's first token; comments and events without content do not count. Default: 10m.
    pub(super) first_token: Option<At<Span>>,
    /// Between two pieces of a response body; comments do not count. Default: 2m.
    pub(super) idle: Option<At<Span>>,
    /// The whole request. Default: no limit.
    pub(super) total: Option<At<Span>>,
    /// How long pod connections are kept idle. Default: 4s, below the 5s after which uvicorn closes them.
    pub(super) pool_idle: Option<At<Span>>,
    /// After SIGTERM: not ready, still accepting. Default: 5s.
    pub(super) drain_delay: Option<At<Span>>,
    /// After that: waiting for open streams to end. Default: 10m.
    pub(super) drain_grace: Option<At<Span>>,
}

/// When a request may be tried on another pod.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ attempts: 2 }`")]
pub(super) struct RetryFile {
    /// Further attempts after the first, 0 to 10. Default: 2.
    pub(super) attempts: Option<At<u32>>,
    /// Retries as a share of requests. Default: 20%.
    pub(super) budget: Option<Ratio>,
    /// Retries a second that are always allowed. Default: 3.
    pub(super) budget_floor: Option<u32>,
    /// What is tried again although it may have run: `first_byte_timeout`, `connection_died`, `empty_answer`, or a
    /// status. Default: nothing.
    pub(super) on: Option<Vec<RetryOn>>,
}

/// Where a request's session name is looked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ header: x-session-id }`")]
pub(super) struct SessionsFile {
    /// The request header, before the body's `session_id` and `user`. Default: x-session-id.
    pub(super) header: At<String>,
}

/// What is open and what is added.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ decision_headers: true }`")]
pub(super) struct ApiFile {
    /// Paths passed on besides the known ones, exactly as written. Default: none.
    pub(super) extra_paths: Option<Vec<At<String>>>,
    /// Whether models that only pods report may be asked for. Default: true.
    pub(super) serve_reported_models: Option<bool>,
    /// Whether token usage is asked for in streams that did not, and its chunk removed again. Default: false.
    pub(super) inject_usage: Option<bool>,
    /// Whether answers carry `x-tidegate-pod` and `x-tidegate-decision`. Default: false.
    pub(super) decision_headers: Option<bool>,
    /// Whether answers are read along, so that a conversation's next turn finds the pod that holds them. Default: true.
    pub(super) index_answers: Option<bool>,
    /// After how much silence a stream whose pod has sent nothing yet gets a comment, so that nobody on the way takes it
    /// for dead. The first one commits status 200: what fails later is told in the stream. Default: never.
    pub(super) heartbeat: Option<At<Span>>,
}

/// Log level and shape.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ level: info }`")]
pub(super) struct LogFile {
    /// A level (error, warn, info, debug, trace), or several parts such as
    /// `info,tidegate::scrape=debug`. Default: info.
    pub(super) level: Option<At<String>>,
    /// Default: auto.
    pub(super) format: Option<LogFormat>,
}
