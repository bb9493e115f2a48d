//! Certificates, keys and authorities in files, read again when they change; and the provider of cryptography.
//!
//! Doors show them and pods are judged by them; both read them here, so that both follow a swapped secret in the same
//! way: what is new and sound counts within a second, what is broken leaves the one before in place and is told once.
//! Nothing here speaks TLS.

mod followed;
mod pair;

use std::{io, path::Path, sync::Arc};

pub use followed::Followed;
#[cfg(test)]
pub(crate) use pair::parsed_for_test;
pub use pair::{Pair, follow_pair, made_here};
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, pem::PemObject as _},
};

/// How often files are looked at: a few KiB from the page cache. Certificates are renewed days before they end; a person
/// who waits for it to be taken over would rather have seconds, and one who takes an authority away too.
pub const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

/// The only place that names a provider of cryptography.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The authorities of a PEM file.
pub type Authorities = Followed<RootCertStore>;

/// Reads the authorities in `file`, and those in `besides` count as well.
///
/// # Errors
/// If it cannot be read, or holds no certificate.
pub fn follow_authorities(file: &Path, besides: RootCertStore) -> io::Result<Authorities> {
    Followed::open([file.to_owned()], move |files| {
        let [pem] = files else { return Err(io::ErrorKind::InvalidData.into()) };
        let mut roots = besides.clone();
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(io::Error::other)?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no certificate in it"));
        }
        Ok(roots)
    })
}
