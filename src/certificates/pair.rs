//! A certificate with its key, ready to be shown.

use std::{io, sync::Arc};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{Followed, provider};
use crate::config::KeyPair;

/// A certificate with its chain and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    /// As it is shown.
    pub key: Arc<CertifiedKey>,
    /// The DNS names that it is for, in small letters; `*.example.com` among them.
    pub names: Vec<String>,
    /// When it ends, seconds since 1970.
    pub not_after: i64,
}

/// The pair in these files.
///
/// # Errors
/// If they cannot be read, or do not belong together.
pub fn follow_pair(files: &KeyPair) -> io::Result<Followed<Pair>> {
    Followed::open([files.cert_file.clone(), files.key_file.clone()], |files| match files {
        [certificate, key] => parsed(certificate, key),
        _ => Err(io::ErrorKind::InvalidData.into()),
    })
}

/// A pair of our own making, which proves nothing about who we are.
///
/// # Errors
/// If the system gives no randomness.
pub fn made_here() -> io::Result<Pair> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(io::Error::other)?;
    parsed(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())
}

/// Certificate and key, if they belong together.
fn parsed(certificate: &[u8], key: &[u8]) -> io::Result<Pair> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    let Some(first) = chain.first() else { return Err(io::Error::other("the first holds no certificate")) };
    let (names, not_after) = said(first)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| io::Error::other(format!("the key: {error}")))?;
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(io::Error::other)?;
    Ok(Pair { key: Arc::new(key), names, not_after })
}

/// The same for tests of those who show it.
#[cfg(test)]
pub(crate) fn parsed_for_test(certificate: &str, key: &str) -> Pair {
    parsed(certificate.as_bytes(), key.as_bytes()).unwrap()
}

/// The names that a certificate is for, and when it ends.
fn said(certificate: &CertificateDer<'_>) -> io::Result<(Vec<String>, i64)> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(io::Error::other)?;
    let alternative = parsed.subject_alternative_name().map_err(io::Error::other)?;
    let names = alternative.into_iter().flat_map(|it| &it.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok((names.collect(), parsed.validity().not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_the_key_of_another_do_not_belong_together() {
        let [one, two] = [0, 1].map(|_| rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap());
        let pem = |it: &rcgen::CertifiedKey<rcgen::KeyPair>| (it.cert.pem(), it.signing_key.serialize_pem());
        let ((certificate, key), (_, other)) = (pem(&one), pem(&two));
        assert!(parsed(certificate.as_bytes(), other.as_bytes()).is_err());
        assert!(parsed(b"", key.as_bytes()).is_err());
        assert!(parsed(certificate.as_bytes(), b"half a key").is_err());
        assert_eq!(parsed(certificate.as_bytes(), key.as_bytes()).unwrap().names, ["a"]);
    }
}
