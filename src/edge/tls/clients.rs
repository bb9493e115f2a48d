//! What a client's certificate says of it.

use std::io;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use crate::admission::PeerCertificate;

/// Reads names.
pub(super) trait Names: Sized {
    /// The names in a certificate that was found trusted.
    fn read(certificate: &CertificateDer<'_>) -> io::Result<Self>;
}

impl Names for PeerCertificate {
    fn read(certificate: &CertificateDer<'_>) -> io::Result<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(io::Error::other)?;
        let mut names = Self { subject: parsed.subject().to_string(), ..Self::default() };
        let alternative = parsed.subject_alternative_name().map_err(io::Error::other)?;
        for name in alternative.into_iter().flat_map(|it| &it.value.general_names) {
            match name {
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
                GeneralName::RFC822Name(mail) => names.emails.push((*mail).to_owned()),
                _ => {}
            }
        }
        Ok(names)
    }
}
