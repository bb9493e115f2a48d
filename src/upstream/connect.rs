//! Making a connection to a pod: TCP, and TLS where the pod wants it.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{Failure, FailureKind, http1::Connection, socket::Socket, tls::PodTls};
use crate::fleet::Pod;

/// What Linux and the BSDs say when this process, or the whole system, may open no further files (errno.h).
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// A connection to a pod.
pub(super) type Live = Connection<Socket>;

/// How to speak TLS, by pool.
pub type PoolTls = BTreeMap<Arc<str>, PodTls>;

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
        let spoken = self.tls.load().get(&pod.pool).cloned();
        let PodTls { config, name, .. } = spoken.ok_or_else(|| tls_failed(&"the pool has no TLS set-up"))?;
        let own = || ServerName::try_from(origin.host.clone()).map_err(|error| tls_failed(&error));
        let name = name.map_or_else(own, Ok)?;
        let connector = TlsConnector::from(config);
        let tls = connector.connect(name, tcp).await.map_err(|error| tls_failed(&error))?;
        Ok(Connection::new(Socket::Tls(Box::new(tls))))
    }
}
