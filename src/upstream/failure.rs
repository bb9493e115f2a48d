//! What went wrong with one attempt: whose fault, did bytes leave, may another pod be tried.

use std::{fmt, time::Duration};

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The pod, or the way to it.
    Pod,
    /// Nobody: a kept connection was closed by the pod just as we used it.
    Race,
    /// This gateway.
    Gateway,
}

/// How an attempt failed before any byte of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Nobody listens there.
    Refused,
    /// The connection could not be made: unreachable, reset, name not found.
    Connect,
    /// The connection took too long.
    ConnectTimeout,
    /// The TLS handshake failed.
    Tls,
    /// A kept connection was closed before the request was written.
    Unsent,
    /// A kept connection died right after the request was written, as happens when the pod's idle timer wins the race.
    ReuseRace,
    /// The connection died after the request was written: the pod crashed on it or while it worked.
    Died,
    /// No first byte in time. The pod may well be working on it.
    FirstByteTimeout,
    /// The answer was not HTTP.
    NotHttp,
    /// The request could not be built (a token file that cannot be read).
    Unbuildable,
}

impl FailureKind {
    /// The word in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "connection_refused",
            Self::Connect => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls => "tls_failed",
            Self::Unsent => "stale_connection",
            Self::ReuseRace => "reuse_race",
            Self::Died => "connection_died",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::NotHttp => "not_http",
            Self::Unbuildable => "unbuildable",
        }
    }
}

/// An attempt that brought no answer.
#[derive(Debug)]
pub struct Failure {
    /// How.
    pub kind: FailureKind,
    /// What the system said, for logs only.
    pub cause: String,
}

impl Failure {
    /// A failure and what the system said.
    pub fn new(kind: FailureKind, cause: impl fmt::Display) -> Self {
        Self { kind, cause: cause.to_string() }
    }

    /// A step that took longer than it may.
    pub fn timeout(kind: FailureKind, after: Duration) -> Self {
        Self { kind, cause: format!("nothing within {after:?}") }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self.kind {
            FailureKind::Unsent | FailureKind::ReuseRace => Fault::Race,
            FailureKind::Unbuildable => Fault::Gateway,
            _ => Fault::Pod,
        }
    }

    /// Whether any byte of the request may have reached the pod.
    pub fn bytes_left(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::ReuseRace | FailureKind::Died | FailureKind::FirstByteTimeout | FailureKind::NotHttp
        )
    }

    /// Whether another pod may be tried: nothing ran (no byte left), or the pod closed a kept connection in the race
    /// that idle timers lose. A pod that died on the request or is slow with it may have spent minutes of GPU on it,
    /// and the next one would too.
    pub fn may_retry(&self) -> bool {
        match self.kind {
            FailureKind::Unbuildable => false,
            FailureKind::ReuseRace => true,
            _ => !self.bytes_left(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.cause)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_have_run_is_tried_again() {
        let may = |kind| Failure::new(kind, "").may_retry();
        for kind in [FailureKind::Refused, FailureKind::ConnectTimeout, FailureKind::Unsent, FailureKind::ReuseRace] {
            assert!(may(kind), "{}", kind.name());
        }
        for kind in [FailureKind::Died, FailureKind::FirstByteTimeout, FailureKind::NotHttp, FailureKind::Unbuildable] {
            assert!(!may(kind), "{}", kind.name());
        }
    }
}
