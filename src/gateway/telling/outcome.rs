//! How far a request is, and how it ended.

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Step {
    /// Its body is being read.
    Reading,
    /// No pod is ready, and it waits for one.
    Waiting,
    /// It is at a pod, without an answer yet.
    AtPod,
    /// Its answer is being relayed.
    Relaying,
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
