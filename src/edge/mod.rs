//! The doors for clients: accept connections, bound what one client may do to us, and close in good order.
//!
//! HTTP/1.1 and HTTP/2 without TLS (prior knowledge), told apart by the first bytes. What a request means is the
//! desk's business.

mod accept;
mod connection;
mod drain;
mod gather;
mod head;
mod pulse;
mod stall;
mod tls;
mod wire;

use std::sync::Arc;

pub use accept::{Door, run};
pub use connection::Limits;
pub use drain::{Phase, Stage};
use prometheus_client::metrics::{counter::Counter, family::Family};
pub use tls::Tls;

use crate::telemetry::{Name, labels::ReasonLabels};

/// Counts what a door turned away before it was a request, by why.
#[derive(Clone, Debug)]
pub struct Rejected(Arc<(Name, Family<ReasonLabels, Counter>)>);

impl Rejected {
    /// Counts in `family` for the listener of that name.
    pub fn new(listener: &Arc<str>, family: &Family<ReasonLabels, Counter>) -> Self {
        Self(Arc::new((Name::from(listener), family.clone())))
    }

    /// One more. Told at `debug`: an attack must not fill the log as well.
    fn count(&self, reason: &'static str) {
        let (listener, family) = &*self.0;
        tracing::debug!(listener = &*listener.0, reason, "a client was turned away");
        family.get_or_create(&ReasonLabels { listener: listener.clone(), reason }).inc();
    }
}

impl Default for Rejected {
    fn default() -> Self {
        Self::new(&"".into(), &Family::default())
    }
}
