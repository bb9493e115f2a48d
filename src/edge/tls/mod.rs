//! TLS at a door: a certificate from a folder, read again when it changes, or one of our own making.
//!
//! Our own proves nothing about who we are; it only keeps what is said from being read on the way. Gateways that call
//! endpoint pickers do not verify unless they are told an authority. Nobody is asked for a client's certificate.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{io::AsyncRead, io::AsyncWrite, time::sleep};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// The names of the files in a folder, as Kubernetes mounts a `kubernetes.io/tls` secret.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// How often a folder is looked at: a certificate is renewed days before it ends, so any minute would do; people who wait
/// for it to be taken over would rather have seconds.
const READ_EVERY: Duration = Duration::from_secs(5);

/// HTTP/2 first, because gRPC is nothing else.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Speaks TLS with whoever comes in. Clones share their certificate.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    shown: Arc<Shown>,
}

/// The certificate that is shown now.
#[derive(Debug)]
struct Shown {
    key: ArcSwap<CertifiedKey>,
    /// Where it comes from, and what was read there last.
    folder: Option<(PathBuf, Mutex<Files>)>,
}

/// What lies in the folder.
type Files = (Vec<u8>, Vec<u8>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

impl Tls {
    /// With the certificate in `folder`.
    ///
    /// # Errors
    /// If there is none that can be used.
    pub fn from_folder(folder: &Path) -> io::Result<Self> {
        let files = read(folder)?;
        let key = parsed(&files)?;
        Self::showing(key, Some((folder.to_owned(), Mutex::new(files))))
    }

    /// With a certificate of our own making.
    ///
    /// # Errors
    /// If the system gives no randomness.
    pub fn self_signed() -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(io::Error::other)?;
        let files = (made.cert.pem().into_bytes(), made.signing_key.serialize_pem().into_bytes());
        Self::showing(parsed(&files)?, None)
    }

    fn showing(key: CertifiedKey, folder: Option<(PathBuf, Mutex<Files>)>) -> io::Result<Self> {
        let shown = Arc::new(Shown { key: ArcSwap::from_pointee(key), folder });
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(io::Error::other)?.with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), shown })
    }

    /// The handshake.
    pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> io::Result<TlsStream<S>> {
        self.acceptor.accept(stream).await
    }

    /// Takes over what the folder holds whenever that changes; one that cannot be used is told of, and the one before
    /// stays.
    pub async fn follow_forever(self) {
        loop {
            sleep(READ_EVERY).await;
            match self.read_again() {
                Ok(false) => {}
                Ok(true) => tracing::info!("a new certificate is shown"),
                Err(error) => tracing::warn!(%error, "the certificate's files cannot be used; the one before is shown"),
            }
        }
    }

    /// Whether there is a new one, which is shown from now on.
    ///
    /// # Errors
    /// Told once for the same files.
    pub fn read_again(&self) -> io::Result<bool> {
        let Some((folder, last)) = &self.shown.folder else { return Ok(false) };
        let files = read(folder)?;
        {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == files {
                return Ok(false);
            }
            last.clone_from(&files);
        }
        self.shown.key.store(Arc::new(parsed(&files)?));
        Ok(true)
    }
}

fn read(folder: &Path) -> io::Result<Files> {
    let file = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    Ok((file(CERTIFICATE)?, file(KEY)?))
}

/// Certificate and key, if they belong together.
fn parsed((certificate, key): &Files) -> io::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    if chain.is_empty() {
        return Err(io::Error::other(format!("{CERTIFICATE} holds no certificate")));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| io::Error::other(format!("{KEY}: {error}")))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path) {
        let made = rcgen::generate_simple_self_signed(["picker".to_owned()]).unwrap();
        fs::write(folder.join(CERTIFICATE), made.cert.pem()).unwrap();
        fs::write(folder.join(KEY), made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn a_new_certificate_is_shown_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Tls::from_folder(folder.path()).is_err(), "nothing is there");
        write(folder.path());
        let tls = Tls::from_folder(folder.path()).unwrap();
        let shown = || tls.shown.key.load().cert.clone();
        let first = shown();
        assert!(!tls.read_again().unwrap());
        write(folder.path());
        assert!(tls.read_again().unwrap());
        let second = shown();
        assert_ne!(first, second);
        fs::write(folder.path().join(KEY), "half a key").unwrap();
        assert!(tls.read_again().is_err());
        assert!(!tls.read_again().unwrap(), "told once");
        assert_eq!(shown(), second);
    }

    #[test]
    fn a_certificate_and_the_key_of_another_do_not_belong_together() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path());
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
        fs::write(folder.path().join(KEY), other.signing_key.serialize_pem()).unwrap();
        assert!(Tls::from_folder(folder.path()).is_err());
    }
}
