//! What a door turned away before it was a request: counted, and told only where it is a mistake of the operator's.

use std::{fmt::Display, io, sync::Arc, time::Duration};

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

/// A connection from elsewhere than a trusted proxy, where only those may make one.
pub(super) const UNTRUSTED: &str = "untrusted_proxy";

/// No PROXY header where there has to be one, or a broken one.
pub(super) const NO_HEADER: &str = "proxy_protocol";

/// A client's certificate that nobody here vouches for, or none where one is asked for. Counted as a failed handshake.
const CERTIFICATE: &str = "client_certificate";

/// What clients and balancers of the operator's do if somebody set them wrong: they are told of by name.
const TOLD: [&str; 3] = [UNTRUSTED, NO_HEADER, CERTIFICATE];

/// How often: whoever looks for the cause sees the line soon, and an attack does not fill the log.
const TOLD_EACH: Duration = Duration::from_secs(60);

/// Counts what a door turned away before it was a request, by why.
#[derive(Clone, Debug)]
pub struct Rejected {
    counts: Arc<(Name, Family<ReasonLabels, Counter>)>,
    /// When one of [`TOLD`] was last.
    told: Arc<[Seldom; TOLD.len()]>,
    /// Where every client is a gateway of the operator's: when one was last told to speak otherwise.
    gateways: Option<Arc<Seldom>>,
}

impl Rejected {
    /// Counts in `family` for the listener of that name.
    pub fn new(listener: &Arc<str>, family: &Family<ReasonLabels, Counter>) -> Self {
        Self { counts: Arc::new((Name::from(listener), family.clone())), told: Arc::default(), gateways: None }
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

    /// One more at whose door somebody trusted should stand: who it was and what was wrong is told now and then.
    pub(super) fn turned_away(&self, reason: &'static str, peer: &str, cause: &dyn Display) {
        self.count(reason);
        self.tell(reason, peer, cause);
    }

    fn tell(&self, reason: &'static str, peer: &str, cause: &dyn Display) -> bool {
        let last = TOLD.iter().zip(&*self.told).find(|(it, _)| **it == reason);
        let due = last.is_some_and(|(_, last)| last.is_due_each(TOLD_EACH, clock::now()));
        if due {
            let listener = &*self.counts.0.0;
            tracing::warn!(listener, reason, peer, %cause, "a client was turned away; others are told of at most once a minute");
        }
        due
    }

    /// A handshake failed, or did not come in time. One that was not begun is nobody's fault: so balancers look whether
    /// anybody is there.
    pub(super) fn no_handshake(&self, peer: &str, error: Option<&io::Error>) {
        match error {
            None => self.count(SILENT),
            Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Some(error) if is_clear_text(error) => self.clear_text(),
            Some(error) => {
                self.count(HANDSHAKE);
                if let Some(cause) = certificate_refused(error) {
                    self.tell(CERTIFICATE, peer, &cause);
                }
            }
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

/// What was wrong with a client's certificate, if that is what a handshake failed for.
fn certificate_refused(error: &io::Error) -> Option<String> {
    use rustls::{CertificateError, Error};
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::NoCertificatesPresented => Some("it showed no certificate, and here one is asked for".to_owned()),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("none of the authorities in `ca_file` vouches for its certificate".to_owned())
        }
        Error::InvalidCertificate(error) => Some(format!("its certificate: {error}")),
        _ => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_was_turned_away_is_told_of_with_its_cause_and_at_most_once_a_minute_for_each() {
        use rustls::{CertificateError, Error};
        let rejected = Rejected::default();
        assert!(rejected.tell(CERTIFICATE, "192.0.2.1:5", &"why"));
        assert!(!rejected.clone().tell(CERTIFICATE, "192.0.2.2:5", &"why"), "clones are of one door");
        assert!(rejected.tell(NO_HEADER, "192.0.2.1:5", &"why"), "that is another reason");
        assert!(!rejected.tell("http2", "192.0.2.1:5", &"why"), "strangers' own faults are counted");
        for (error, told) in [
            (Error::NoCertificatesPresented, Some("showed no certificate")),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), Some("vouches for its certificate")),
            (Error::InvalidCertificate(CertificateError::Expired), Some("its certificate: ")),
            (Error::DecryptError, None),
        ] {
            let cause = certificate_refused(&io::Error::other(error));
            assert_eq!(cause.is_some(), told.is_some(), "{cause:?}");
            assert!(told.is_none_or(|told| cause.is_some_and(|cause| cause.contains(told))));
        }
    }
}
