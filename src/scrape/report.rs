//! What the scrape tells whoever counts: telemetry hangs itself in here.

use std::time::Duration;

use crate::fleet::{Condition, Pod};

/// Hears of every page read, every failure and every pod whose condition turned.
pub trait Report: Send + Sync {
    /// A page was read and understood.
    fn page_read(&self, _pod: &Pod, _seen: PageRead) {}

    /// A pod told which models it serves.
    fn models_read(&self, _pod: &Pod) {}

    /// A page was not read; the pod's last reading grows older.
    fn page_failed(&self, _pod: &Pod, _failure: Failure, _took: Duration) {}

    /// What was heard changed a pod's condition.
    fn turned(&self, _pod: &Pod, _condition: Condition) {}
}

/// One page, as cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRead {
    /// Its size.
    pub bytes: usize,
    /// From asking to its last byte.
    pub took: Duration,
    /// Lines that looked wanted but could not be read.
    pub unparsed_lines: u32,
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReport;

impl Report for NoReport {}

/// Why a pod's answer did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody listens at its address, or no way leads there.
    #[error("nobody listens")]
    Refused,
    /// No connection for another reason: the name does not resolve, TLS does not agree.
    #[error("cannot connect")]
    Connect,
    /// Not all of it came in time.
    #[error("too slow")]
    Timeout,
    /// Another status than 200.
    #[error("status {0}")]
    Http(u16),
    /// More bytes than a page may have.
    #[error("page too large")]
    TooLarge,
    /// The answer broke off or is not what was asked for.
    #[error("answer broke off")]
    Body,
    /// A page without one metric of this engine.
    #[error("nothing on the page that this engine would say")]
    Alien,
    /// The file with its bearer token cannot be read, or holds no token.
    #[error("no token")]
    Token,
}

impl Failure {
    /// One word, for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Http(_) => "http",
            Self::TooLarge => "too_large",
            Self::Body => "body",
            Self::Alien => "alien",
            Self::Token => "token",
        }
    }
}
