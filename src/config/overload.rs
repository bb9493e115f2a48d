//! What happens when not all can be served at once: who may wait, and from when on a pool counts as full. As typed, and
//! as checked.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Bytes, tree::At, units::Span};

/// What may wait while no pod is ready.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// How long one request may; zero: not at all.
    pub timeout: Duration,
    /// How many requests may, over all pools.
    pub requests: usize,
    /// How many bytes of bodies they may hold together.
    pub bytes: Bytes,
}

/// When a pool is saturated, so that what is sheddable is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saturation {
    /// If a request would wait for so long even at the best of its pods.
    pub wait: Duration,
}

/// What may wait while no pod is ready.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ timeout: 30s }`")]
pub(super) struct WaitingFile {
    /// How long one request may wait; 0s: it is refused at once. Default: 30s.
    pub(super) timeout: Option<At<Span>>,
    /// How many requests may wait, over all pools. Default: 1000.
    pub(super) requests: Option<At<u32>>,
    /// How many bytes of bodies they may hold together. Default: 256MiB.
    pub(super) bytes: Option<At<Bytes>>,
}

/// When a pool is saturated. What is sheddable is then refused with 429; nothing else is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ wait: 1s }`")]
pub(super) struct SaturationFile {
    /// How long a request would wait before its own prefill at the best of its pods. Default: 1s.
    pub(super) wait: Option<At<Span>>,
}
