//! What a listener shows and asks for when it speaks TLS: as typed, and as checked.

use std::{fmt, path::PathBuf};

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use crate::config::tree::At;

/// How a listener speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// What it may show; at least one, and the first to whoever names none of them.
    pub certificates: Vec<KeyPair>,
    /// Whose certificates clients may show, if they are asked for one.
    pub client_certificates: Option<ClientCertificates>,
    /// The oldest version spoken.
    pub min_version: TlsVersion,
}

/// A certificate with its chain and its key: two PEM files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyPair {
    /// The certificate, and after it those that vouch for it.
    pub cert_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

impl KeyPair {
    /// The two in a folder, by the names that Kubernetes gives them in a `kubernetes.io/tls` secret.
    pub fn in_folder(folder: &std::path::Path) -> Self {
        Self { cert_file: folder.join("tls.crt"), key_file: folder.join("tls.key") }
    }
}

/// Whom clients' certificates have to come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    /// The authorities (PEM).
    pub ca_file: PathBuf,
    /// Whether a client without one is turned away.
    pub required: bool,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    V12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V13,
}

/// How a listener speaks TLS.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ certificates: [ { folder: /etc/tidegate/tls } ] }`")]
pub(in crate::config) struct ListenerTlsFile {
    /// What it shows, by the name that a client asks for; the first to whoever asks for none of them.
    #[schemars(with = "Vec<KeyPairFile>")]
    pub(in crate::config) certificates: At<CertificatesFile>,
    /// Whether clients are asked for a certificate. Default: they are not.
    pub(in crate::config) client_certificates: Option<ClientCertificatesFile>,
    /// The oldest version spoken: "1.2" or "1.3", in quotes. Default: "1.2".
    pub(in crate::config) min_version: Option<TlsVersion>,
}

/// What may be shown.
#[derive(Debug)]
pub(in crate::config) struct CertificatesFile(pub(in crate::config) Vec<At<KeyPairFile>>);

impl<'de> Deserialize<'de> for CertificatesFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;

        impl<'de> Visitor<'de> for List {
            type Value = CertificatesFile;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a list, such as `[ { cert_file: tls.crt, key_file: tls.key } ]`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<CertificatesFile, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(CertificatesFile(all))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// A certificate and its key, read again when they change: `folder`, or both files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a certificate, such as `{ folder: /etc/tidegate/tls }`")]
pub(in crate::config) struct KeyPairFile {
    /// The certificate and its chain (PEM).
    pub(in crate::config) cert_file: Option<At<PathBuf>>,
    /// Its key (PEM).
    pub(in crate::config) key_file: Option<At<PathBuf>>,
    /// A folder that holds both as `tls.crt` and `tls.key`, as Kubernetes mounts a TLS secret.
    pub(in crate::config) folder: Option<At<PathBuf>>,
}

/// Whose certificates clients show.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ ca_file: /etc/tidegate/clients-ca.pem }`")]
pub(in crate::config) struct ClientCertificatesFile {
    /// The authorities that vouch for clients (PEM), read again when it changes.
    pub(in crate::config) ca_file: At<PathBuf>,
    /// Whether a client without a certificate is turned away. Default: true.
    pub(in crate::config) required: Option<bool>,
}
