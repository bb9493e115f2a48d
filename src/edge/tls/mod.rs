//! TLS at a door: certificates from files, read again when they change, or one of our own making; and clients' own, where
//! they are asked for.
//!
//! Our own proves nothing about who we are; it only keeps what is said from being read on the way. Gateways that call
//! endpoint pickers do not verify unless they are told an authority.
//!
//! A session is resumed only where no client shows a certificate: who resumes is not asked for it again, and would come
//! in after its authority was taken away. There is no early data either, since it can be played twice.

mod clients;
mod shown;

use std::{io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::{TLS12, TLS13},
};
use tokio::{io::AsyncRead, io::AsyncWrite, time::sleep};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use self::{
    clients::Names,
    shown::{New, Shown, Source},
};
use crate::{
    admission::PeerCertificate,
    certificates::{Authorities, LOOK_EVERY, Pair, follow_authorities, follow_pair, made_here, provider},
    clock,
    config::{ClientCertificates, ListenerTls, TlsVersion},
    telemetry::{CertificateMetrics, Name},
};

/// HTTP/2 first, because gRPC is nothing else.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Speaks TLS with whoever comes in. Clones share their certificates.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Spoken>);

#[derive(Debug)]
struct Spoken {
    config: ArcSwap<ServerConfig>,
    shown: Arc<Shown>,
    clients: Option<Clients>,
    min_version: TlsVersion,
}

/// Whose certificates are asked for.
#[derive(Debug)]
struct Clients {
    authorities: Authorities,
    required: bool,
}

impl Tls {
    /// As a listener's configuration says.
    ///
    /// # Errors
    /// If a file cannot be read or used.
    pub fn of_listener(tls: &ListenerTls) -> io::Result<Self> {
        let pairs = tls.certificates.iter().map(|files| follow_pair(files).map(Source::Files));
        Self::new(pairs.collect::<io::Result<_>>()?, tls.client_certificates.as_ref(), tls.min_version)
    }

    /// With the certificate of a picker: of our own making if no folder is named.
    ///
    /// # Errors
    /// If a file cannot be read or used.
    pub fn of_picker(files: Option<&crate::config::KeyPair>, clients: Option<&ClientCertificates>) -> io::Result<Self> {
        let source = match files {
            Some(files) => Source::Files(follow_pair(files)?),
            None => Source::MadeHere(Arc::new(made_here()?)),
        };
        Self::new(vec![source], clients, TlsVersion::V12)
    }

    fn new(pairs: Vec<Source>, clients: Option<&ClientCertificates>, min_version: TlsVersion) -> io::Result<Self> {
        let clients = clients.map(|asked| {
            let authorities = follow_authorities(&asked.ca_file, RootCertStore::empty())?;
            Ok::<_, io::Error>(Clients { authorities, required: asked.required })
        });
        let clients = clients.transpose()?;
        let shown = Arc::new(Shown::new(pairs));
        let config = ArcSwap::from_pointee(config(&shown, clients.as_ref(), min_version)?);
        Ok(Self(Arc::new(Spoken { config, shown, clients, min_version })))
    }

    /// The handshake, and what the client's certificate says if it was asked for one and showed it.
    pub(super) async fn greet<S>(&self, stream: S) -> io::Result<(TlsStream<S>, Option<Arc<PeerCertificate>>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsAcceptor::from(self.0.config.load_full()).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let names = shown.map(|certificate| PeerCertificate::read(certificate)).transpose()?;
        Ok((stream, names.map(Arc::new)))
    }

    /// Takes over what the files hold whenever that changes; what cannot be used is told of, and the one before stays.
    pub async fn follow_forever(self, listener: Name, metrics: CertificateMetrics) {
        for (file, pair) in self.0.shown.in_use() {
            tell_untimely(&listener, &file, &pair);
            metrics.ends(&listener, &file, pair.not_after);
        }
        loop {
            sleep(LOOK_EVERY).await;
            for (file, looked) in self.look() {
                match looked {
                    Ok(New::Certificate(pair)) => {
                        let (not_after, names) = (pair.ends(), few(&pair.names));
                        tracing::info!(listener = &*listener.0, file, not_after, names, "a new certificate is in use");
                        tell_untimely(&listener, &file, &pair);
                        metrics.ends(&listener, &file, pair.not_after);
                    }
                    Ok(New::Authorities) => {
                        tracing::info!(
                            listener = &*listener.0,
                            file,
                            "new authorities for clients' certificates are in use"
                        );
                    }
                    Err(error) => {
                        tracing::warn!(listener = &*listener.0, %error, "a certificate's files cannot be used; the one before stays");
                        metrics.failed(&listener, &file);
                    }
                }
            }
        }
    }

    /// What changed since it was last asked, by file: in use from now on, or why not.
    fn look(&self) -> Vec<(String, io::Result<New>)> {
        let mut looked = self.0.shown.look();
        if let Some(clients) = &self.0.clients {
            let file = clients.authorities.path().display().to_string();
            match clients.authorities.look() {
                Ok(false) => {}
                Ok(true) => looked.push((file, self.believe_anew(clients))),
                Err(error) => looked.push((file, Err(error))),
            }
        }
        looked
    }

    fn believe_anew(&self, clients: &Clients) -> io::Result<New> {
        self.0.config.store(Arc::new(config(&self.0.shown, Some(clients), self.0.min_version)?));
        Ok(New::Authorities)
    }
}

/// A certificate that clients refuse is in use nevertheless: there is no better one.
fn tell_untimely(listener: &Name, file: &str, pair: &Pair) {
    if let Some(why) = pair.untimely(clock::wall()) {
        tracing::warn!(listener = &*listener.0, file, "{why}");
    }
}

/// The first of a certificate's names: some have hundreds.
fn few(names: &[String]) -> String {
    /// As many as fit a line.
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(",");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn config(shown: &Arc<Shown>, clients: Option<&Clients>, min_version: TlsVersion) -> io::Result<ServerConfig> {
    let versions: &[_] = match min_version {
        TlsVersion::V12 => &[&TLS13, &TLS12],
        TlsVersion::V13 => &[&TLS13],
    };
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions);
    let config = config.map_err(io::Error::other)?;
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(Clients { authorities, required }) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(authorities.now(), provider());
            let verifier = if *required { verifier } else { verifier.allow_unauthenticated() };
            config.with_client_cert_verifier(verifier.build().map_err(io::Error::other)?)
        }
    };
    let mut config = config.with_cert_resolver(Arc::clone(shown) as _);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    if clients.is_some() {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        // What is remembered is with the client, so that any number of them may come again.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(io::Error::other)?;
    }
    Ok(config)
}
