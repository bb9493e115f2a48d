//! What holds where the operator says nothing, and where each number came from.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{
    Api, BodyMode, Bytes, ExtProc, Limits, Log, LogFormat, Metrics, Ratio, Retry, Saturation, Scheduler, Scorer,
    Sessions, Timeouts, Waiting, WeightedScorer,
};

/// The operator's listener: loopback, because it tells everything and asks for no token there; 9090 because metrics live there
/// in most gateways.
pub(super) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// Bounds on what requests may hold.
pub(super) const LIMITS: Limits = Limits {
    // Images in base64 reach 20 MiB; gateways with smaller caps were asked to raise them again and again.
    body: Bytes(32 << 20),
    // 32 of the largest bodies at once, and a quarter of the 4 GiB that such a gateway is usually given.
    buffered_bodies: Bytes(1 << 30),
    // Each may hold a second descriptor towards a pod: both fit an eighth of the usual hard limit of 1,048,576.
    connections: 65_536,
    // Real clients send fewer than 30 fields and 8 KiB; header-list bombs need thousands.
    header_fields: 64,
    header_bytes: Bytes(32 << 10),
    // Envoy's recommendation for an edge.
    http2_streams: 100,
};

/// How long each step may take.
pub(super) const TIMEOUTS: Timeouts = Timeouts {
    // A head of 32 KiB arrives in this time over any line that could carry the stream afterwards.
    header_read: Duration::from_secs(10),
    // 32 MiB in a minute are 4.5 Mbit/s.
    body_read: Duration::from_secs(60),
    // Cloud load balancers keep connections for 60 s and must be the first to close them.
    client_idle: Duration::from_secs(75),
    // A line that carries nothing for a minute is not slow but gone; nginx and HAProxy say the same.
    write_stall: Duration::from_secs(60),
    // One lost SYN is repeated after 1 s; a pod that needs two of them is not there.
    connect: Duration::from_secs(2),
    // What the OpenAI SDKs wait: giving up earlier turns a long queue into errors.
    first_byte: Duration::from_secs(600),
    // The same: the SDKs' own clocks start again with every comment, so only the gateway can see that no token comes.
    first_token: Duration::from_secs(600),
    // Long enough for a preempted request to be prefilled again, short enough to notice a pod that is gone.
    idle: Duration::from_secs(120),
    // A long generation is no fault.
    total: None,
    // uvicorn, under vLLM and most other engines, closes idle connections after 5 s; we must be first.
    pool_idle: Duration::from_secs(4),
    // Load balancers and kube-proxy take a few seconds to see that an instance is not ready.
    drain_delay: Duration::from_secs(5),
    // As long as the longest wait for a first byte.
    drain_grace: Duration::from_secs(600),
};

/// Retries: two further pods at most, as a share of requests that cannot become a storm (Envoy's and linkerd's 20 %),
/// with Envoy's floor of 3 so that a quiet gateway may retry at all.
/// Nothing that may have run: it may have cost minutes of GPU, and would again.
pub(super) const RETRY: Retry = Retry { attempts: 2, budget: Ratio(0.2), budget_floor: 3, on: Vec::new() };

/// Waiting while no pod is ready, or all are full.
pub(super) fn waiting() -> Waiting {
    // 30 s of 33 requests a second; after a longer line a client waits for the line, not for the pod.
    let requests = 1_000;
    // A quarter of the buffers: those who wait for one pool must not refuse those whose pool works. 256 KiB each.
    let bytes = Bytes(256 << 20);
    Waiting {
        // Half of the 60 s after which most load balancers and proxies in front give up on an idle request: the client
        // hears from us why, and when to come again, before it is cut off.
        timeout: Duration::from_secs(30),
        requests,
        bytes,
        // Where the line is full, a tenant with few there takes a place of the one with the most.
        tenant_requests: requests,
        tenant_bytes: bytes,
        // Strict, as in the Inference Extension: who is more important comes first for as long as it asks.
        shares: [].into(),
        // What was computed for them would be lost.
        evict_sheddable: false,
    }
}

/// A pool is full when even its best pod keeps a request waiting for a second before its own prefill begins. The reference
/// sheds where more than five wait at every pod: five prompts of 1,024 tokens take 0.3 s on an H100 and 1.8 s on the slowest
/// GPU we know of (0.05 and 0.35 ms a token). A second is also half of the 2 s that `MLPerf` allows its server scenario for a
/// first token (Llama 2 70B), so that those who are not sheddable keep the other half.
pub(super) const SATURATION: Saturation = Saturation { wait: Duration::from_secs(1), batch: None };

/// Where pods publish their load: the path that every engine but one uses.
pub(super) const METRICS_PATH: &str = "/metrics";

/// Triton serves its metrics on a port of its own.
pub(super) const TRITON_METRICS_PORT: u16 = 8002;

/// How a pod is scraped where the pool says nothing.
pub(super) fn metrics() -> Metrics {
    Metrics {
        path: METRICS_PATH.to_owned(),
        port: None,
        // Engines renew their gauges about every step; 4 readings a second keep the age below most prefills.
        interval: Duration::from_millis(250),
        // A page takes a few milliseconds; a pod that needs a second is too busy to be believed.
        timeout: Duration::from_secs(1),
        // Real pages have 50 to 200 KiB; adapters and data parallelism multiply that.
        max_page: Bytes(4 << 20),
    }
}

/// The policy where neither the file nor the listener names one.
pub(super) const SCHEDULER: Scheduler = Scheduler::LeastCost;

/// The Gateway API Inference Extension's default weights, and its adapter scorer.
pub(super) const SCORERS: [WeightedScorer; 4] = [
    WeightedScorer { scorer: Scorer::Queue, weight: 2.0 },
    WeightedScorer { scorer: Scorer::KvCache, weight: 2.0 },
    WeightedScorer { scorer: Scorer::PrefixCache, weight: 3.0 },
    WeightedScorer { scorer: Scorer::LoraAffinity, weight: 1.0 },
];

/// A scorer's weight where none is given, as in the Inference Extension.
pub(super) const SCORER_WEIGHT: f64 = 1.0;

/// The header by which most gateways and chat front ends name a session.
pub(super) fn sessions() -> Sessions {
    Sessions { header: "x-session-id".to_owned() }
}

/// Known paths only; what pods report may be asked for, so that a file without `models` works; nothing is added to
/// requests or answers that the client did not ask for. Answers are indexed: reading one along costs less than a
/// microsecond a token and saves the next turn their prefill. No heartbeat: it gives away the status.
pub(super) fn api() -> Api {
    Api {
        extra_paths: Vec::new(),
        serve_reported_models: true,
        inject_usage: false,
        decision_headers: false,
        index_answers: true,
        heartbeat: None,
    }
}

/// Envoy's door: TLS and the streamed protocol, as the endpoint-picker protocol and the gateways' manifests have it. One
/// pod and no list, because Envoy's clusters that go by the header alone (`ORIGINAL_DST`) take one address and refuse a
/// list. Every path gets a pod: which ones come this far is for the gateway's routes.
pub(super) const EXT_PROC: ExtProc = ExtProc {
    secure: true,
    cert_path: None,
    request_body: BodyMode::Streamed,
    response_body: BodyMode::Streamed,
    observe_responses: true,
    fallbacks: 0,
    other_paths: true,
    client_certificates: None,
    message_timeout: None,
    health: None,
};

/// As long as Chromium remembers a preflight at most on its own is two hours; ten minutes are enough that few calls pay for
/// one, and a changed list is heard of soon.
pub(super) const CORS_MAX_AGE: Duration = Duration::from_secs(600);

/// The most further pods named behind a chosen one: as many as further attempts.
pub(super) const MOST_FALLBACKS: u32 = MOST_ATTEMPTS;

/// One line a request is `info`; the shape follows the terminal.
pub(super) fn log() -> Log {
    Log { level: "info".to_owned(), format: LogFormat::Auto }
}

/// The most target models that the Inference Extension allows for one model.
pub(super) const TARGET_MODELS: usize = 10;

/// The largest weight that the Inference Extension allows.
pub(super) const LARGEST_WEIGHT: u32 = 1_000_000;

/// The most further attempts accepted: whoever needs more has another problem, and pays for each with a prefill.
pub(super) const MOST_ATTEMPTS: u32 = 10;

/// Scrape intervals below this are doubted: a decode step of a loaded pod takes 20 to 50 ms, and gauges change no faster.
pub(super) const SHORTEST_INTERVAL: Duration = Duration::from_millis(50);
