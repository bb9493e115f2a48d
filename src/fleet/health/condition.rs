//! The words on a pod's health: what was seen of it, what it is, why it is out, whether a request may go there.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What was seen of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Its page of metrics was read; the engine says whether it sleeps.
    ScrapeOk {
        /// The engine has put itself to sleep.
        asleep: bool,
    },
    /// Nobody listens at its address.
    ScrapeRefused,
    /// A request was answered (also with an error that is the client's own).
    RequestOk {
        /// When it was sent there: an answer to what was sent before an ejection says nothing of what came after.
        sent: Instant,
    },
    /// A request failed by the pod's fault.
    RequestFailed {
        /// Whether the pool can do without it: traffic's word alone does not empty a pool.
        spare: bool,
    },
    /// It says of itself that it is well (`/health` 200).
    HealthOk,
    /// It says of itself that it is not (`/health` 503), or not even that, long silent as it was.
    HealthBad,
    /// Discovery no longer lists it: no new requests, those in flight may end.
    Gone,
}

/// What a pod is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Condition {
    /// Nothing was heard of it yet.
    Unknown,
    /// In use.
    Ready,
    /// In use, with a growing share.
    Warming,
    /// Out of use for a while, then tried with one request.
    Ejected,
    /// Sleeping by its own account.
    Asleep,
    /// No longer listed.
    Draining,
}

impl Condition {
    /// The word, for labels and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Ready => "ready",
            Self::Warming => "warming",
            Self::Ejected => "ejected",
            Self::Asleep => "asleep",
            Self::Draining => "draining",
        }
    }

    /// Every condition, for metric families with one series each.
    pub const ALL: [Self; 6] = [Self::Unknown, Self::Ready, Self::Warming, Self::Ejected, Self::Asleep, Self::Draining];

    pub(super) fn of(code: u8) -> Self {
        Self::ALL.get(usize::from(code)).copied().unwrap_or(Self::Unknown)
    }
}

/// Whether a request may go to a pod now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Admission {
    /// Yes.
    Yes,
    /// Yes, with this share (0 to 1) of what a warm pod would get.
    Warming(f64),
    /// One request may find out whether it is well again.
    Probe,
    /// No.
    No(Condition),
}

/// Why a pod is ejected, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Ejection {
    /// So many of its requests failed one after the other.
    FailuresInARow,
    /// So large a share of its requests of late failed.
    FailureShare,
    /// It says itself that it is not well, or not even that.
    OwnWord,
    /// Nobody listens at its address.
    Unreachable,
}

impl Ejection {
    const ALL: [Self; 4] = [Self::FailuresInARow, Self::FailureShare, Self::OwnWord, Self::Unreachable];

    /// The words, for people.
    pub fn told(self) -> &'static str {
        match self {
            Self::FailuresInARow => "ejected: failures in a row",
            Self::FailureShare => "ejected: too many failures of late",
            Self::OwnWord => "ejected: not well by its own word, or silent for long",
            Self::Unreachable => "ejected: nobody listens there",
        }
    }

    /// Whether only its traffic says so.
    pub fn is_suspicion(self) -> bool {
        matches!(self, Self::FailuresInARow | Self::FailureShare)
    }

    pub(super) fn of(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|it| *it as u8 == value)
    }
}
