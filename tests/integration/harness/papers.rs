//! Authorities, the certificates that they issue, files that they lie in, and clients that judge and show them.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Client, within};

/// One that vouches for others.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) pem: String,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Paper {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these DNS names, or URIs where there is a scheme, or mail addresses.
    pub(crate) fn issue(&self, names: &[&str]) -> Paper {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        params.subject_alt_names = names
            .iter()
            .map(|name| match name {
                uri if uri.contains("://") => SanType::URI((*uri).try_into().unwrap()),
                mail if mail.contains('@') => SanType::Rfc822Name((*mail).try_into().unwrap()),
                name => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        let key = KeyPair::generate().unwrap();
        Paper { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// A file of its certificate.
    pub(crate) fn written(&self, folder: &Path) -> PathBuf {
        let file = folder.join("ca.pem");
        fs::write(&file, &self.pem).unwrap();
        file
    }

    /// A client that believes it, and shows `paper` if there is one.
    pub(crate) fn client(&self, paper: Option<&Paper>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        match paper {
            None => builder.with_no_client_auth(),
            Some(paper) => {
                let chain = vec![CertificateDer::from_pem_slice(paper.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(paper.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }
}

impl Paper {
    /// Lays both files where a TLS secret has them.
    pub(crate) fn lay(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("tls.crt"), &self.certificate).unwrap();
        fs::write(folder.join("tls.key"), &self.key).unwrap();
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

/// A folder as kubelet mounts a secret: files are links through `..data`, which is swapped whole.
pub(crate) struct Secret {
    folder: tempfile::TempDir,
    turns: u32,
}

impl Secret {
    pub(crate) fn of(paper: &Paper) -> Self {
        let mut secret = Self { folder: tempfile::tempdir().unwrap(), turns: 0 };
        secret.swap(paper);
        for file in ["tls.crt", "tls.key"] {
            std::os::unix::fs::symlink(Path::new("..data").join(file), secret.path().join(file)).unwrap();
        }
        secret
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn swap(&mut self, paper: &Paper) {
        self.turns += 1;
        let name = format!("..{}", self.turns);
        paper.lay(&self.path().join(&name));
        let link = self.path().join("..data_tmp");
        std::os::unix::fs::symlink(&name, &link).unwrap();
        fs::rename(&link, self.path().join("..data")).unwrap();
    }
}

/// A handshake for `name` over a connection of its own.
pub(crate) async fn handshake(
    config: &ClientConfig,
    to: SocketAddr,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = within("a connection", TcpStream::connect(to)).await?;
    shake(config, stream, name).await
}

/// A handshake over a connection that is there.
pub(crate) async fn shake(
    config: &ClientConfig,
    stream: TcpStream,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    within("a handshake", TlsConnector::from(Arc::new(config.clone())).connect(name, stream)).await
}

/// A client for `localhost` that speaks HTTP/1.1 or HTTP/2, as ALPN says.
pub(crate) async fn secure(config: &ClientConfig, to: SocketAddr, alpn: &[u8]) -> std::io::Result<Client> {
    let mut config = config.clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = handshake(&config, to, "localhost").await?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
    Client::speaking(stream, to, alpn == b"h2").await.map_err(std::io::Error::other)
}
