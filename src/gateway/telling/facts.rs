//! The facts of a request that are more than a number: how far it is, what it waits for, where it went, how it ended.

use std::sync::Arc;

use crate::telemetry::Name;

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Step {
    /// Its body is being read.
    Reading,
    /// No pod is ready, or all are full, and it waits for one.
    Waiting,
    /// It is at a pod, without an answer yet.
    AtPod,
    /// Its answer is being relayed.
    Relaying,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum WaitsFor {
    /// A pod that can be used.
    Pod,
    /// Room at one.
    Room,
}

impl WaitsFor {
    pub(in crate::gateway) fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Room => "room",
        }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Outcome {
    /// Not yet: if it stays so, the client left.
    Open,
    /// Its answer is complete.
    Complete,
    /// We said no, or Envoy for a pod that we chose.
    Refused(&'static str),
    /// The answer broke off.
    Cut(&'static str),
    /// The answer broke off, and whether its client or its pod had had enough is not told to us.
    BrokeOff,
}

/// The pod that was chosen.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Chosen {
    pub(in crate::gateway) pool: Name,
    pub(in crate::gateway) pod: Arc<str>,
    /// The one that was, where Envoy went elsewhere.
    pub(in crate::gateway) asked_pod: Option<Arc<str>>,
    pub(in crate::gateway) served_model: Name,
    pub(in crate::gateway) policy: &'static str,
    pub(in crate::gateway) sight: &'static str,
    pub(in crate::gateway) cost_ms: f64,
}

impl Step {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Reading => "reading_body",
            Self::Waiting => "in_line",
            Self::AtPod => "waiting_for_pod",
            Self::Relaying => "relaying",
        }
    }
}
