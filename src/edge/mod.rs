//! The doors for clients: accept connections, bound what one client may do to us, and close in good order.
//!
//! HTTP/1.1 and HTTP/2 without TLS (prior knowledge), told apart by the first bytes. What a request means is the
//! desk's business.

mod accept;
mod drain;

pub use accept::{Door, Limits, run};
pub use drain::{Phase, Stage};
