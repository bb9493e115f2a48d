//! What the scheduler answers: the pod, the price it was chosen at, what the decision stood on; or why there is none.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::fleet::{Pod, Send};

/// The pod to send a request to.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The pod.
    pub pod: Arc<Pod>,
    /// What to reserve there.
    pub send: Send,
    /// What it was chosen at.
    pub price: Price,
    /// How many pods could have been chosen.
    pub considered: u16,
    /// What knowledge the decision stood on.
    pub sight: Sight,
    /// The policy's name.
    pub policy: &'static str,
    /// No pod was admitted, so one that is out was taken: better a likely failure than a certain one.
    pub failed_open: bool,
}

/// What knowledge a decision stood on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sight {
    /// At least one reading was fresh.
    Fresh,
    /// All readings were stale or missing: only what we sent ourselves was known.
    InFlightOnly,
    /// Nothing told the pods apart: they took turns.
    RoundRobin,
    /// The policy looks at no load (round-robin, random, session-hash).
    Unneeded,
}

impl Sight {
    /// Every sight, for metric families with one series each.
    pub const ALL: [Self; 4] = [Self::Fresh, Self::InFlightOnly, Self::RoundRobin, Self::Unneeded];

    /// The word, for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::InFlightOnly => "in-flight-only",
            Self::RoundRobin => "round-robin",
            Self::Unneeded => "unneeded",
        }
    }
}

/// What a policy says of one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Price {
    /// `least-cost`: milliseconds, fewer are better.
    Cost(Cost),
    /// `weighted`: points, more are better.
    Points(Points),
    /// `least-request`, `power-of-two`, and `session-hash` without a session: requests there, this one included, over
    /// the pod's share.
    Requests(f64),
    /// `round-robin`: turns to wait.
    Turns(u32),
    /// `session-hash`: the pod's place in the session's race; the earliest wins.
    Race(f64),
    /// `random`: every pod costs the same.
    Any,
}

/// One named part of a price.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// Its name.
    pub name: Cow<'static, str>,
    /// Its value, in the unit of the price.
    pub value: f64,
}

impl Price {
    /// The number that is compared: the lowest wins.
    #[inline]
    pub fn rank(&self) -> f64 {
        match self {
            Self::Cost(cost) => cost.total_ms(),
            Self::Points(points) => -points.total(),
            Self::Requests(requests) => *requests,
            Self::Turns(turns) => f64::from(*turns),
            Self::Race(time) => *time,
            Self::Any => 0.0,
        }
    }

    /// The number that is shown: milliseconds, points, requests, turns.
    pub fn total(&self) -> f64 {
        match self {
            Self::Points(points) => points.total(),
            other => other.rank(),
        }
    }

    /// What the number counts.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Cost(_) => "ms",
            Self::Points(_) => "points",
            Self::Requests(_) => "requests",
            Self::Turns(_) => "turns",
            Self::Race(_) => "race",
            Self::Any => "none",
        }
    }

    /// Its parts.
    pub fn terms(&self) -> SmallVec<[Term; 9]> {
        let term = |(name, value): (&'static str, f64)| Term { name: name.into(), value };
        match self {
            Self::Cost(cost) => cost.terms().into_iter().map(term).collect(),
            Self::Points(points) => points.terms().into_iter().map(term).collect(),
            _ => SmallVec::new(),
        }
    }
}

/// What sending a request to a pod adds, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Prefill that is ahead of it.
    pub wait_ms: f64,
    /// Its own prefill.
    pub prefill_ms: f64,
    /// What that delays those who come while the queue lasts.
    pub later_ms: f64,
    /// What its prefill delays the streams that are there.
    pub delay_ms: f64,
    /// What one more stream slows the others.
    pub decode_ms: f64,
    /// Waiting or recomputing for want of KV cache.
    pub kv_ms: f64,
    /// Loading its adapter.
    pub adapter_ms: f64,
    /// What is left of the time for which it looks slow because it said no.
    pub pushback_ms: f64,
    /// The pod's share of load while it warms up; what it has before it was divided by it.
    pub share: f64,
}

impl Cost {
    /// More than any other cost.
    pub(super) const NEVER: Self = Self {
        wait_ms: f64::INFINITY,
        prefill_ms: 0.0,
        later_ms: 0.0,
        delay_ms: 0.0,
        decode_ms: 0.0,
        kv_ms: 0.0,
        adapter_ms: 0.0,
        pushback_ms: 0.0,
        share: 1.0,
    };

    /// The whole price.
    pub fn total_ms(&self) -> f64 {
        let own = self.wait_ms + self.prefill_ms + self.kv_ms + self.adapter_ms;
        own + self.later_ms + self.delay_ms + self.decode_ms + self.pushback_ms
    }

    fn terms(&self) -> [(&'static str, f64); 9] {
        [
            ("wait", self.wait_ms),
            ("prefill", self.prefill_ms),
            ("later", self.later_ms),
            ("delay", self.delay_ms),
            ("decode", self.decode_ms),
            ("kv", self.kv_ms),
            ("adapter", self.adapter_ms),
            ("pushback", self.pushback_ms),
            ("share", self.share),
        ]
    }
}

/// Scores times weights, by scorer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Points {
    /// `queue-scorer`.
    pub queue: f64,
    /// `running-requests-size-scorer`.
    pub running: f64,
    /// `kv-cache-utilization-scorer`.
    pub kv_cache: f64,
    /// `prefix-cache-scorer`.
    pub prefix_cache: f64,
    /// `lora-affinity-scorer`.
    pub lora_affinity: f64,
    /// The pod's share of load while it warms up; the sum is multiplied by it.
    pub share: f64,
}

impl Points {
    /// The weighted sum.
    pub fn total(&self) -> f64 {
        (self.queue + self.running + self.kv_cache + self.prefix_cache + self.lora_affinity) * self.share
    }

    fn terms(&self) -> [(&'static str, f64); 6] {
        [
            ("queue-scorer", self.queue),
            ("running-requests-size-scorer", self.running),
            ("kv-cache-utilization-scorer", self.kv_cache),
            ("prefix-cache-scorer", self.prefix_cache),
            ("lora-affinity-scorer", self.lora_affinity),
            ("share", self.share),
        ]
    }
}

/// Why no pod can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPod {
    /// The pool has no pods.
    #[error("the pool has no pods")]
    PoolEmpty,
    /// Every pod that could serve it was tried for this request.
    #[error("every pod that could serve the request has been tried")]
    AllTried,
    /// No pod says that it serves the model.
    #[error("no pod of the pool serves the model")]
    NotServed,
    /// Every pod that serves it is out of use.
    #[error("every pod that serves the model is out of use ({0})")]
    AllOut(Outs),
}

/// Pods out of use, by condition. Ejected ones are not among them: before there is no pod, they are tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outs {
    /// Asleep by their own account.
    pub asleep: u32,
    /// No longer listed.
    pub draining: u32,
}

impl std::fmt::Display for Outs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} asleep, {} draining", self.asleep, self.draining)
    }
}
