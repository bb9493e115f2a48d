//! The hands: carry one request to one pod, and when that fails, know whose fault it was, whether bytes left and
//! whether another pod may be tried.
//!
//! HTTP/1.1 of our own (`http1`) over kept connections of our own, not a general client's, because a retry needs to know
//! for certain whether a connection was reused and whether the request had left, and because a stream that waits should
//! cost next to nothing. This room never chooses a pod and never retries by itself.

mod attempt;
mod body;
mod connect;
mod credentials;
mod failure;
mod http1;
mod idle;
mod refusals;
mod retry;
mod socket;
mod tls;

pub use attempt::{Answer, Carry, Over, Upstream};
pub use body::PodBody;
pub use connect::{Connector, PoolTls};
pub use failure::{Failure, FailureKind, Fault};
pub use http1::{Broken, Nonsense};
pub use retry::RetryBudget;
pub use tls::{Looked, PodTls};
