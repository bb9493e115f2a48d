//! What went wrong with one attempt: whose fault, did bytes leave, may another pod be tried.

use std::{borrow::Cow, fmt, time::Duration};

use crate::config::RetryOn;

/// Whose fault a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client.
    Client,
    /// The pod, or the way to it.
    Pod,
    /// Nobody: the pod has no room for it, or not that model.
    Refusal,
    /// Nobody: a kept connection was closed by the pod just as we used it.
    Race,
    /// This gateway.
    Gateway,
}

impl Fault {
    /// Whom an operator should look at.
    pub fn culprit(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Gateway => "gateway",
            Self::Pod | Self::Refusal | Self::Race => "pod",
        }
    }
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
    /// This process may open no further files.
    OutOfFiles,
    /// The pod said that its queue is full: nothing ran.
    QueueFull,
    /// The pod said that it is still loading: nothing ran.
    NotReady,
    /// The pod said that it has no such model: nothing ran.
    ModelUnknown,
    /// A bad gateway before a pod that is on its way out.
    Leaving,
    /// An answer without a body, where one was to be generated.
    EmptyAnswer,
    /// An answer with this status, which may be tried again at the operator's word.
    Status(u16),
}

impl FailureKind {
    /// Every kind after which another pod may be asked, if the operator says so; one status stands for all.
    pub const RETRIED: [Self; 14] = [
        Self::Refused,
        Self::Connect,
        Self::ConnectTimeout,
        Self::Tls,
        Self::Unsent,
        Self::ReuseRace,
        Self::Died,
        Self::FirstByteTimeout,
        Self::QueueFull,
        Self::NotReady,
        Self::ModelUnknown,
        Self::Leaving,
        Self::EmptyAnswer,
        Self::Status(500),
    ];

    /// The word in metrics.
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
            Self::OutOfFiles => "out_of_files",
            Self::QueueFull => "queue_full",
            Self::NotReady => "not_ready",
            Self::ModelUnknown => "model_unknown",
            Self::Leaving => "leaving",
            Self::EmptyAnswer => "empty_answer",
            Self::Status(_) => "status",
        }
    }

    /// The word in a request's log line, where there is room to say which status it was.
    pub fn detail(self) -> Cow<'static, str> {
        match self {
            Self::Status(status) => format!("status_{status}").into(),
            _ => self.name().into(),
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
            FailureKind::Unbuildable | FailureKind::OutOfFiles => Fault::Gateway,
            FailureKind::QueueFull
            | FailureKind::NotReady
            | FailureKind::ModelUnknown
            // That the operator says it may be tried again makes a sick pod of nobody.
            | FailureKind::Status(429 | 503) => Fault::Refusal,
            _ => Fault::Pod,
        }
    }

    /// Whether any byte of the request may have reached the pod.
    pub fn bytes_left(&self) -> bool {
        use FailureKind::{Connect, ConnectTimeout, OutOfFiles, Refused, Tls, Unbuildable, Unsent};
        !matches!(self.kind, Refused | Connect | ConnectTimeout | Tls | Unsent | Unbuildable | OutOfFiles)
    }

    /// Whether the pod may have died of it: the request had left, and then the connection died. That the pod's idle
    /// timer was the cause, as it most often is on a kept connection, cannot be told from here.
    pub fn may_have_killed(&self) -> bool {
        matches!(self.kind, FailureKind::Died | FailureKind::ReuseRace)
    }

    /// Whether another pod may be tried: nothing ran (no byte left, or the pod said so), or the pod closed a kept
    /// connection in the race that idle timers lose. A pod that died on the request or is slow with it may have spent
    /// minutes of GPU on it, and the next one would too; that is tried only `on` what the operator said.
    pub fn may_retry(&self, on: &[RetryOn]) -> bool {
        use FailureKind as K;
        match self.kind {
            K::OutOfFiles | K::NotHttp => false,
            K::FirstByteTimeout => on.contains(&RetryOn::FirstByteTimeout),
            K::Died => on.contains(&RetryOn::ConnectionDied),
            K::EmptyAnswer => on.contains(&RetryOn::EmptyAnswer),
            K::Status(status) => on.contains(&RetryOn::Status(status)),
            // Another pod may need no token, or have one that can be read.
            K::Unbuildable
            | K::Refused
            | K::Connect
            | K::ConnectTimeout
            | K::Tls
            | K::Unsent
            | K::ReuseRace
            | K::QueueFull
            | K::NotReady
            | K::ModelUnknown
            | K::Leaving => true,
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
        use FailureKind as K;
        let may = |kind| Failure::new(kind, "").may_retry(&[]);
        let refusals = [K::QueueFull, K::NotReady, K::ModelUnknown, K::Leaving];
        for kind in
            [K::Refused, K::Connect, K::ConnectTimeout, K::Tls, K::Unsent, K::ReuseRace].into_iter().chain(refusals)
        {
            assert!(may(kind), "{}", kind.name());
        }
        for kind in [K::Died, K::FirstByteTimeout, K::NotHttp, K::OutOfFiles, K::EmptyAnswer, K::Status(500)] {
            assert!(!may(kind), "{}", kind.name());
        }
    }

    #[test]
    fn what_may_have_run_is_tried_again_at_the_operators_word_and_no_other() {
        use FailureKind as K;
        let words = [RetryOn::FirstByteTimeout, RetryOn::ConnectionDied, RetryOn::EmptyAnswer, RetryOn::Status(500)];
        let kinds = [K::FirstByteTimeout, K::Died, K::EmptyAnswer, K::Status(500)];
        for (nth, kind) in kinds.into_iter().enumerate() {
            let allowed = words.map(|word| Failure::new(kind, "").may_retry(&[word]));
            assert_eq!(allowed.iter().position(|it| *it), Some(nth));
            assert_eq!(allowed.iter().filter(|it| **it).count(), 1);
        }
        let all = [&words[..], &[RetryOn::Status(502)]].concat();
        assert!(K::RETRIED.into_iter().all(|kind| Failure::new(kind, "").may_retry(&all)), "each is listed rightly");
        assert!(!Failure::new(K::NotHttp, "").may_retry(&all) && !Failure::new(K::Status(501), "").may_retry(&all));
    }

    #[test]
    fn who_is_to_blame_and_whether_anything_left_is_known() {
        use FailureKind as K;
        let told = |kind| {
            let failure = Failure::new(kind, "");
            (failure.fault().culprit(), failure.bytes_left(), failure.may_have_killed())
        };
        assert_eq!(told(K::Refused), ("pod", false, false));
        assert_eq!(told(K::Unbuildable), ("gateway", false, false));
        assert_eq!(told(K::OutOfFiles), ("gateway", false, false));
        assert_eq!(told(K::Died), ("pod", true, true));
        assert_eq!(told(K::ReuseRace), ("pod", true, true));
        assert_eq!(told(K::QueueFull), ("pod", true, false));
        assert_eq!(Failure::new(K::QueueFull, "").fault(), Fault::Refusal);
        assert_eq!(Failure::new(K::Status(500), "").fault(), Fault::Pod);
        assert_eq!((K::Status(500).name(), &*K::Status(500).detail()), ("status", "status_500"));
    }
}
