//! Making a connection to a pod: TCP, and TLS where the pod wants it.

use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Failure, FailureKind, http1::Connection, socket::Socket};
use crate::fleet::Pod;

/// What Linux and the BSDs say when this process, or the whole system, may open no further files (errno.h).
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// A connection to a pod.
pub(super) type Live = Connection<Socket>;

/// How to speak TLS, by pool.
pub type PoolTls = BTreeMap<Arc<str>, Arc<ClientConfig>>;

/// Makes connections.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Arc<ArcSwap<PoolTls>>,
}

impl Connector {
    /// Connections with each pool's own TLS.
    pub fn new(tls: PoolTls) -> Self {
        Self { tls: Arc::new(ArcSwap::from_pointee(tls)) }
    }

    /// From now on speaks TLS so; connections that there are stay as they are.
    pub fn speak(&self, tls: PoolTls) {
        self.tls.store(Arc::new(tls));
    }

    /// How it speaks TLS now.
    pub fn spoken(&self) -> Arc<PoolTls> {
        self.tls.load_full()
    }

    /// A new connection to `pod` within `limit`.
    pub(super) async fn connect(&self, pod: &Pod, limit: Duration) -> Result<Live, Failure> {
        let late = |_| Failure::timeout(FailureKind::ConnectTimeout, limit);
        timeout(limit, self.make(pod)).await.map_err(late)?
    }

    async fn make(&self, pod: &Pod) -> Result<Live, Failure> {
        let origin = &pod.target.origin;
        let tcp = TcpStream::connect((origin.host.as_str(), origin.port)).await.map_err(|error| {
            let kind = match error.raw_os_error() {
                Some(EMFILE | ENFILE) => FailureKind::OutOfFiles,
                _ if error.kind() == io::ErrorKind::ConnectionRefused => FailureKind::Refused,
                _ => FailureKind::Connect,
            };
            Failure::new(kind, error)
        })?;
        // A first token must not wait for a delayed ACK.
        tcp.set_nodelay(true).map_err(|error| Failure::new(FailureKind::Connect, error))?;
        if !origin.https {
            return Ok(Connection::new(Socket::Plain(tcp)));
        }
        let tls_failed = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Tls, error);
        let name = ServerName::try_from(origin.host.clone()).map_err(|error| tls_failed(&error))?;
        let config = self.tls.load().get(&pod.pool).cloned();
        let connector = TlsConnector::from(config.ok_or_else(|| tls_failed(&"the pool has no TLS set-up"))?);
        let tls = connector.connect(name, tcp).await.map_err(|error| tls_failed(&error))?;
        Ok(Connection::new(Socket::Tls(Box::new(tls))))
    }
}

/// How we speak TLS to pods: modern versions, the system's roots and those in `more` (PEM). The only place that names a
/// cryptography provider.
///
/// # Errors
/// If `more` cannot be read, or holds no certificate.
pub fn client_tls(more: Option<&Path>) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // A machine without system roots can still reach http pods and those of a given authority.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = more {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
        let pem = CertificateDer::pem_file_iter(file).map_err(|error| named(io::Error::other(error)))?;
        let certificates: Vec<_> = pem.collect::<Result<_, _>>().map_err(|error| named(io::Error::other(error)))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(named(io::Error::new(io::ErrorKind::InvalidData, "no certificate in it")));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
