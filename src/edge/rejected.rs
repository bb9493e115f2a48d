//! What a door turned away before it was a request: counted, and told only where it is a mistake of the operator's.

use std::{io, sync::Arc};

use prometheus_client::metrics::{counter::Counter, family::Family};

use crate::{
    clock,
    telemetry::{Name, Seldom, labels::ReasonLabels},
};

/// How a handshake of TLS begins: a record of that kind, of a version that begins with 3 (RFC 8446, 5.1).
pub(super) const TLS_BEGINS: [u8; 2] = [22, 3];

/// A client that spoke clear text where TLS is spoken.
const CLEAR_TEXT: &str = "clear_text";

/// A handshake that came to nothing.
const HANDSHAKE: &str = "tls_failed";

/// No handshake came in time.
const SILENT: &str = "silent";

/// Counts what a door turned away before it was a request, by why.
#[derive(Clone, Debug)]
pub struct Rejected {
    counts: Arc<(Name, Family<ReasonLabels, Counter>)>,
    /// Where every client is a gateway of the operator's: when one was last told to speak otherwise.
    gateways: Option<Arc<Seldom>>,
}

impl Rejected {
    /// Counts in `family` for the listener of that name.
    pub fn new(listener: &Arc<str>, family: &Family<ReasonLabels, Counter>) -> Self {
        Self { counts: Arc::new((Name::from(listener), family.clone())), gateways: None }
    }

    /// The same for a door at which only the operator's gateways knock: what they do wrong is wrong in a configuration,
    /// and so is said. At other doors the whole internet may try how we speak.
    #[must_use]
    pub fn of_gateways(self) -> Self {
        Self { gateways: Some(Arc::default()), ..self }
    }

    /// One more. Told at `debug`: an attack must not fill the log as well.
    pub(super) fn count(&self, reason: &'static str) {
        let (listener, family) = &*self.counts;
        tracing::debug!(listener = &*listener.0, reason, "a client was turned away");
        family.get_or_create(&ReasonLabels { listener: listener.clone(), reason }).inc();
    }

    /// A handshake failed, or did not come in time. One that was not begun is nobody's fault: so balancers look whether
    /// anybody is there.
    pub(super) fn no_handshake(&self, error: Option<&io::Error>) {
        match error {
            None => self.count(SILENT),
            Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Some(error) if is_clear_text(error) => self.clear_text(),
            Some(_) => self.count(HANDSHAKE),
        }
    }

    /// A client spoke clear text where TLS is spoken.
    pub(super) fn clear_text(&self) {
        self.count(CLEAR_TEXT);
        self.advise(
            "the picker's clients speak clear text, and it speaks TLS: give Envoy's cluster for it a TLS \
             transport_socket, or start it with --secure-serving=false (`ext_proc: { secure: false }`)",
        );
    }

    /// A client began with TLS at a door without; what it said is counted as what it is not.
    pub(super) fn spoke_tls(&self) {
        self.advise(
            "the picker's clients speak TLS, and it speaks clear text: take the TLS transport_socket from Envoy's \
             cluster for it, or start it without --secure-serving=false (`ext_proc: { secure: true }`)",
        );
    }

    fn advise(&self, what: &'static str) {
        if self.gateways.as_ref().is_some_and(|last| last.is_due(clock::now())) {
            tracing::warn!(listener = &*self.counts.0.0, "{what}");
        }
    }
}

/// Whether what came was no record of TLS at all.
fn is_clear_text(error: &io::Error) -> bool {
    use rustls::{Error, InvalidMessage};
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    matches!(cause, Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)))
}

impl Default for Rejected {
    fn default() -> Self {
        Self::new(&"".into(), &Family::default())
    }
}
