//! Making a connection to a pod: TCP, TLS where the pod wants it, and the HTTP/1.1 handshake.

use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{Failure, FailureKind};
use crate::{fleet::Pod, tasks::Tasks};

/// The largest response header list, bytes: what hyper allows by default at its server side (16 KB) four times over,
/// for pods behind proxies that add their own.
const MAX_RESPONSE_HEAD: usize = 64 << 10;

/// What Linux and the BSDs say when this process, or the whole system, may open no further files (errno.h).
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// The most that is read of an answer ahead of its client: the largest head fits, and so do hundreds of token events.
/// hyper's own bound, six times that, is held for every stream whose client does not read.
const MAX_READ_AHEAD: usize = MAX_RESPONSE_HEAD;

/// The request type of our connections.
pub(super) type Sender = http1::SendRequest<Full<Bytes>>;

/// A live connection. Dropping it closes the socket at once, which is how an abandoned request reaches the pod.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) sender: Sender,
    task: AbortHandle,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How to speak TLS, by pool.
pub type PoolTls = BTreeMap<Arc<str>, Arc<ClientConfig>>;

/// Makes connections.
#[derive(Clone, Debug)]
pub struct Connector {
    tls: Arc<ArcSwap<PoolTls>>,
    tasks: Tasks,
}

impl Connector {
    /// Connections whose tasks are tracked by `tasks`, with each pool's own TLS.
    pub fn new(tls: PoolTls, tasks: Tasks) -> Self {
        Self { tls: Arc::new(ArcSwap::from_pointee(tls)), tasks }
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
            return self.handshake(tcp).await;
        }
        let tls_failed = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Tls, error);
        let name = ServerName::try_from(origin.host.clone()).map_err(|error| tls_failed(&error))?;
        let config = self.tls.load().get(&pod.pool).cloned();
        let connector = TlsConnector::from(config.ok_or_else(|| tls_failed(&"the pool has no TLS set-up"))?);
        let tls = connector.connect(name, tcp).await.map_err(|error| tls_failed(&error))?;
        self.handshake(tls).await
    }

    async fn handshake<S>(&self, stream: S) -> Result<Live, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut builder = http1::Builder::new();
        builder.max_header_size(MAX_RESPONSE_HEAD).max_buf_size(MAX_READ_AHEAD);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(|error| Failure::new(FailureKind::Connect, error))?;
        // Boxed, because a task that waits for two things has room for each twice.
        let connection = Box::pin(connection);
        // Its end is seen by whoever holds the sender or the body. An idle one ends with the gateway: a pod may keep it
        // open for ever.
        let carried = async move { _ = connection.await };
        let task = self.tasks.spawn_until_stop(carried).abort_handle();
        Ok(Live { sender, task })
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
