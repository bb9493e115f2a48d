//! How we speak TLS to pods: whom we believe, and what we show, each from files that are read again.
//!
//! There is no switch that believes everybody: a pod that cannot show who it is gets `http`, or an authority of its own.

use std::{fmt, io, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        ClientSessionMemoryCache, ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue,
        Tls13ClientSessionValue, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};

use crate::{
    certificates::{Authorities, Followed, Pair, follow_authorities, follow_pair, provider},
    config::Pool,
};

/// Sessions remembered: as many pods as a large fleet has, and rustls's own default.
const SESSIONS: usize = 256;

/// How TLS is spoken to the pods of one pool.
#[derive(Clone, Debug)]
pub struct PodTls {
    /// For whoever makes connections.
    pub config: Arc<ClientConfig>,
    /// The name asked for, if it is not each pod's own.
    pub(super) name: Option<ServerName<'static>>,
    files: Option<Arc<Files>>,
}

/// What is read again.
#[derive(Debug)]
struct Files {
    judge: Arc<Judge>,
    shown: Option<Arc<Shown>>,
    sessions: Arc<Sessions>,
}

/// What became of files that changed: each by its path.
pub type Looked = Vec<(String, io::Result<()>)>;

impl PodTls {
    /// Believes the system's authorities, whatever the pod.
    ///
    /// # Errors
    /// Never, with the provider that there is.
    pub fn common() -> io::Result<Self> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = builder.map_err(io::Error::other)?.with_root_certificates(system()).with_no_client_auth();
        Ok(Self { config: Arc::new(config), name: None, files: None })
    }

    /// Whether a pool needs more than the common set-up.
    pub fn is_common(pool: &Pool) -> bool {
        pool.ca_file.is_none() && pool.client_certificate.is_none() && pool.server_name.is_none()
    }

    /// As a pool's configuration says.
    ///
    /// # Errors
    /// If a file cannot be read or used.
    pub fn of_pool(pool: &Pool) -> io::Result<Self> {
        let name = pool.server_name.clone().map(ServerName::try_from).transpose().map_err(io::Error::other)?;
        let judge = Arc::new(Judge::new(pool.ca_file.as_deref(), name.clone())?);
        let shown = pool.client_certificate.as_ref().map(|files| follow_pair(files).map(|pair| Arc::new(Shown(pair))));
        let shown = shown.transpose()?;
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(io::Error::other)?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::clone(&judge) as _);
        let mut config = match &shown {
            Some(shown) => builder.with_client_cert_resolver(Arc::clone(shown) as _),
            None => builder.with_no_client_auth(),
        };
        let sessions = Arc::new(Sessions::default());
        config.resumption = Resumption::store(Arc::clone(&sessions) as _);
        Ok(Self { config: Arc::new(config), name, files: Some(Arc::new(Files { judge, shown, sessions })) })
    }

    /// Looks at the files again. What is new counts for every connection made from now on.
    pub fn look(&self) -> Looked {
        let Some(Files { judge, shown, sessions }) = self.files.as_deref() else { return Looked::new() };
        let mut looked = Looked::new();
        let mut note = |path: &Path, said: io::Result<bool>| {
            if let Some(outcome) = said.map(|new| new.then_some(())).transpose() {
                looked.push((path.display().to_string(), outcome));
            }
        };
        if let Some(more) = &judge.more {
            note(
                more.path(),
                more.look().and_then(|new| if new { judge.believe(&more.now()).map(|()| true) } else { Ok(false) }),
            );
        }
        if let Some(shown) = shown {
            note(shown.0.path(), shown.0.look());
        }
        if looked.iter().any(|(_, outcome)| outcome.is_ok()) {
            // Who resumes a session is not asked again who it is.
            sessions.forget();
        }
        looked
    }

    /// The file of what is shown, and when that ends.
    pub fn ends(&self) -> Option<(String, i64)> {
        let shown = self.files.as_ref()?.shown.as_ref()?;
        Some((shown.0.path().display().to_string(), shown.0.now().not_after))
    }
}

/// The system's authorities. A machine without any can still reach http pods and those of a given authority.
fn system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Judges pods' certificates as webpki does, by authorities that may change and for a name that may be given.
struct Judge {
    more: Option<Authorities>,
    name: Option<ServerName<'static>>,
    inner: ArcSwap<WebPkiServerVerifier>,
}

impl Judge {
    fn new(ca_file: Option<&Path>, name: Option<ServerName<'static>>) -> io::Result<Self> {
        let more = ca_file.map(|file| follow_authorities(file, system())).transpose()?;
        let roots = more.as_ref().map_or_else(|| Arc::new(system()), Authorities::now);
        Ok(Self { more, name, inner: ArcSwap::new(verifier(&roots)?) })
    }

    fn believe(&self, roots: &Arc<RootCertStore>) -> io::Result<()> {
        self.inner.store(verifier(roots)?);
        Ok(())
    }
}

fn verifier(roots: &Arc<RootCertStore>) -> io::Result<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider()).build().map_err(io::Error::other)
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let name = self.name.as_ref().unwrap_or(server_name);
        self.inner.load().verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.load().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.load().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.load().supported_verify_schemes()
    }
}

/// What pods are shown that ask who calls.
#[derive(Debug)]
struct Shown(Followed<Pair>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.now().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Sessions with pods, which may be forgotten all at once.
#[derive(Debug)]
struct Sessions(ArcSwap<ClientSessionMemoryCache>);

impl Default for Sessions {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(ClientSessionMemoryCache::new(SESSIONS)))
    }
}

impl Sessions {
    fn forget(&self) {
        self.0.store(Arc::new(ClientSessionMemoryCache::new(SESSIONS)));
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: rustls::NamedGroup) {
        self.0.load().set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.0.load().kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.load().set_tls12_session(name, value);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.load().tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.0.load().remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.load().insert_tls13_ticket(name, value);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.load().take_tls13_ticket(name)
    }
}
