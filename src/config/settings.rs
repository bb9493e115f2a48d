//! The sections of single values: bounds, times, retries, what is open and how it is told.
//!
//! What holds where nothing is said is in `defaults`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Bytes, Ratio, defaults};

/// Bounds, each enforced in exactly one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request body.
    pub body: Bytes,
    /// All buffered request bodies together, and what is held back of answers.
    pub buffered_bodies: Bytes,
    /// Client connections open at once, over all listeners.
    pub connections: usize,
    /// Header fields of one request.
    pub header_fields: usize,
    /// Bytes of one request's header list.
    pub header_bytes: Bytes,
    /// Concurrent HTTP/2 streams on one connection.
    pub http2_streams: u32,
}

impl Limits {
    /// Whether there may be as many connections as where nobody says how many.
    pub fn has_usual_connections(&self) -> bool {
        self.connections == defaults::LIMITS.connections
    }
}

/// How long each step may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Client sends its request headers.
    pub header_read: Duration,
    /// Client sends its request body.
    pub body_read: Duration,
    /// Between two requests on one client connection.
    pub client_idle: Duration,
    /// Client takes nothing of its answer.
    pub write_stall: Duration,
    /// TCP (and TLS) connect to a pod.
    pub connect: Duration,
    /// Pod answers with response headers; for a whole answer that is when it is complete.
    pub first_byte: Duration,
    /// Pod sends a stream's first token. Comments and events without content do not count.
    pub first_token: Duration,
    /// Between two pieces of a response body. Comments do not count.
    pub idle: Duration,
    /// The whole request; `None` = no limit.
    pub total: Option<Duration>,
    /// Pod connections kept idle; below uvicorn's 5 s.
    pub pool_idle: Duration,
    /// After SIGTERM: not ready, still accepting.
    pub drain_delay: Duration,
    /// After that: waiting for open streams to end.
    pub drain_grace: Duration,
}

impl Timeouts {
    /// The same for a model that has some of its own.
    #[must_use]
    pub fn with(self, own: &ModelTimeouts) -> Self {
        Self {
            first_byte: own.first_byte.unwrap_or(self.first_byte),
            first_token: own.first_token.unwrap_or(self.first_token),
            idle: own.idle.unwrap_or(self.idle),
            total: own.total.or(self.total),
            ..self
        }
    }
}

/// What one model's requests may take; `None` = as the common [`Timeouts`] say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ModelTimeouts {
    /// See [`Timeouts::first_byte`].
    pub first_byte: Option<Duration>,
    /// See [`Timeouts::first_token`].
    pub first_token: Option<Duration>,
    /// See [`Timeouts::idle`].
    pub idle: Option<Duration>,
    /// See [`Timeouts::total`].
    pub total: Option<Duration>,
}

/// What may be tried again besides what is certain not to have run, at the operator's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    /// No first byte came in time.
    FirstByteTimeout,
    /// The connection died after the request had left.
    ConnectionDied,
    /// An answer without a body, where one was to be generated.
    EmptyAnswer,
    /// An answer with this status.
    Status(u16),
}

/// When a request may be tried on another pod.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Further attempts after the first.
    pub attempts: u32,
    /// Retries as a share of requests.
    pub budget: Ratio,
    /// Retries a second that are always allowed.
    pub budget_floor: u32,
    /// What is tried again although it may have run.
    pub on: Vec<RetryOn>,
}

/// Where a request's session name is looked for, first found wins.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Request header (lower case), before the body's `session_id` and `user`.
    pub header: String,
}

/// What is open and what is added.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub struct Api {
    /// Paths passed on besides the known ones, exactly as written.
    pub extra_paths: Vec<String>,
    /// Whether models that only pods report may be asked for.
    pub serve_reported_models: bool,
    /// Whether `stream_options.include_usage` is added to streams that did not ask (and its chunk removed again).
    pub inject_usage: bool,
    /// Whether answers carry `x-tidegate-pod` and `x-tidegate-decision`.
    pub decision_headers: bool,
    /// Whether answers are read along, so that a conversation's next turn finds the pod that holds them.
    pub index_answers: bool,
    /// After how much silence a stream whose pod has sent nothing yet gets a comment; `None` = never.
    pub heartbeat: Option<Duration>,
}

/// Log level and shape.
#[derive(Clone, Debug)]
pub struct Log {
    /// A tracing filter, such as `info` or `tidegate::scrape=debug`.
    pub level: String,
    /// JSON, pretty, or by whether stdout is a terminal.
    pub format: LogFormat,
}

/// The shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}
