//! What happens when not all can be served at once: who may wait, and from when on a pool counts as full. As typed, and
//! as checked.

use std::{sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Bytes, Ratio, tree::At, units::Span};

/// What may wait while no pod is ready or all are full, and how it takes turns.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// How long one request may; zero: not at all.
    pub timeout: Duration,
    /// How many requests may, over all pools.
    pub requests: usize,
    /// How many bytes of bodies they may hold together.
    pub bytes: Bytes,
    /// How many of one tenant's may.
    pub tenant_requests: usize,
    /// How many bytes those may hold.
    pub tenant_bytes: Bytes,
    /// The least that lower priorities get while higher ones wait.
    pub shares: Arc<[Share]>,
    /// Whether running sheddable streams are ended while critical requests wait.
    pub evict_sheddable: bool,
}

/// What a priority gets of what a pool admits, by tokens, while requests of it wait, whatever waits above it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// The priority.
    pub priority: i32,
    /// Its least share.
    pub share: Ratio,
}

/// When a pool is saturated, so that what is sheddable is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saturation {
    /// If a request would wait for so long even at the best of its pods.
    pub wait: Duration,
    /// How many requests one pod runs at once; learned from its pages if it is not said.
    pub batch: Option<u32>,
}

/// What may wait while no pod is ready or all are full.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ timeout: 30s }`")]
pub(super) struct WaitingFile {
    /// How long one request may wait; 0s: it is refused at once. Default: 30s.
    pub(super) timeout: Option<At<Span>>,
    /// How many requests may wait, over all pools. Default: 1000.
    pub(super) requests: Option<At<u32>>,
    /// How many bytes of bodies they may hold together. Default: 256MiB.
    pub(super) bytes: Option<At<Bytes>>,
    /// How many of one tenant's requests may wait. Default: as many as may wait in all.
    pub(super) tenant_requests: Option<At<u32>>,
    /// How many bytes those may hold. Default: as many as all may.
    pub(super) tenant_bytes: Option<At<Bytes>>,
    /// What priorities get of what a pool admits while higher ones wait. Sheddable requests wait only if theirs has a
    /// share. Default: none.
    pub(super) shares: Option<Vec<ShareFile>>,
    /// Whether running sheddable streams are ended, the youngest first, while critical requests wait for room. Default: false.
    pub(super) evict_sheddable: Option<bool>,
}

/// A priority's least share of what a pool admits, by tokens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ priority: -1, share: 5% }`")]
pub(super) struct ShareFile {
    /// The priority: 1 is critical, 0 standard, -1 sheddable, or what an objective or a key says.
    pub(super) priority: At<i32>,
    /// Its share, such as 5%.
    pub(super) share: At<Ratio>,
}

/// When a pool is saturated. What is sheddable is then refused with 429; everything else waits in line.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ wait: 1s }`")]
pub(super) struct SaturationFile {
    /// How long a request would wait before its own prefill at the best of its pods. Default: 1s.
    pub(super) wait: Option<At<Span>>,
    /// How many requests one pod runs at once (vLLM's --max-num-seqs, SGLang's --max-running-requests). Default: learned,
    /// while requests wait at a pod; a burst that comes before that is sent on.
    pub(super) batch: Option<At<u32>>,
}
