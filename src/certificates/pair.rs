//! A certificate with its key, ready to be shown.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{Followed, provider};
use crate::{
    clock,
    config::{KeyPair, shown_moment},
};

/// A certificate with its chain and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    /// As it is shown.
    pub key: Arc<CertifiedKey>,
    /// The DNS names that it is for, in small letters; `*.example.com` among them.
    pub names: Vec<String>,
    /// When it begins, seconds since 1970.
    pub not_before: i64,
    /// When it ends.
    pub not_after: i64,
}

impl Pair {
    /// When it ends, for people.
    pub fn ends(&self) -> String {
        shown(self.not_after)
    }

    /// Why whoever is shown it refuses it at `now`, if they do: its time is over, or has not come.
    pub fn untimely(&self, now: SystemTime) -> Option<String> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs().cast_signed();
        if self.not_after < now {
            Some(format!("this certificate ended on {}; whoever is shown it will refuse it", self.ends()))
        } else if self.not_before > now {
            let begins = shown(self.not_before);
            Some(format!("this certificate begins on {begins}; until then whoever is shown it will refuse it"))
        } else {
            None
        }
    }
}

fn shown(seconds: i64) -> String {
    shown_moment(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

/// The pair in these files.
///
/// # Errors
/// If they cannot be read, or do not belong together.
pub fn follow_pair(files: &KeyPair) -> io::Result<Followed<Pair>> {
    let pair = Followed::open([files.cert_file.clone(), files.key_file.clone()], |files| match files {
        [certificate, key] => parsed(certificate, key),
        _ => Err(io::ErrorKind::InvalidData.into()),
    });
    Ok(pair?.judged_by(|used, new| may_replace(used, new, clock::wall())))
}

/// A certificate that everybody refuses is no reason to give up one that they take. One that has not begun is looked at
/// until it has.
fn may_replace(used: &Pair, new: &Pair, now: SystemTime) -> io::Result<()> {
    match new.untimely(now) {
        Some(why) if used.untimely(now).is_none() => Err(io::Error::other(why)),
        _ => Ok(()),
    }
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
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| io::Error::other(format!("the certificate: {error}")))?;
    let Some(first) = chain.first() else {
        let swapped = holds(certificate, KEY) && holds(key, CERTIFICATE) && !holds(key, KEY);
        return Err(io::Error::other(if swapped {
            "the two are swapped: the first holds the key, the second the certificate"
        } else {
            "the first holds no certificate; it has to be PEM, `-----BEGIN CERTIFICATE-----`"
        }));
    };
    let (names, not_before, not_after) = said(first)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| io::Error::other(no_key(key, &error)))?;
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => io::Error::other(
            "the key does not belong to the certificate; if they are being replaced one by one, this ends with the second",
        ),
        error => io::Error::other(format!("the key: {error}")),
    })?;
    Ok(Pair { key: Arc::new(key), names, not_before, not_after })
}

/// What the line ends with that begins a key, of whatever kind.
const KEY: &str = "PRIVATE KEY-----";

/// The line that begins a certificate.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// How keys say that they are encrypted: PKCS 8, and what OpenSSL wrote before it.
const ENCRYPTED: [&str; 2] = ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "Proc-Type: 4,ENCRYPTED"];

fn holds(file: &[u8], words: &str) -> bool {
    file.windows(words.len()).any(|part| part == words.as_bytes())
}

/// Why there is no key in `file`, in which the library found none.
fn no_key(file: &[u8], error: &pem::Error) -> String {
    if ENCRYPTED.iter().any(|words| holds(file, words)) {
        return "the key is encrypted, and nobody is here to type its passphrase: write it without one by \
                `openssl pkey -in ENCRYPTED.key -out tls.key`"
            .to_owned();
    }
    match error {
        pem::Error::NoItemsFound => "the second holds no private key; it has to be PEM".to_owned(),
        error => format!("the key: {error}"),
    }
}

/// The same for tests of those who show it.
#[cfg(test)]
pub(crate) fn parsed_for_test(certificate: &str, key: &str) -> Pair {
    parsed(certificate.as_bytes(), key.as_bytes()).unwrap()
}

/// The names that a certificate is for, when it begins and when it ends.
fn said(certificate: &CertificateDer<'_>) -> io::Result<(Vec<String>, i64, i64)> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(io::Error::other)?;
    let alternative = parsed.subject_alternative_name().map_err(io::Error::other)?;
    let names = alternative.into_iter().flat_map(|it| &it.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let validity = parsed.validity();
    Ok((names.collect(), validity.not_before.timestamp(), validity.not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_and_the_key_of_another_do_not_belong_together() {
        let [one, two] = [0, 1].map(|_| rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap());
        let pem = |it: &rcgen::CertifiedKey<rcgen::KeyPair>| (it.cert.pem(), it.signing_key.serialize_pem());
        let ((certificate, key), (_, other)) = (pem(&one), pem(&two));
        let why =
            |certificate: &str, key: &str| parsed(certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string();
        assert_eq!(
            why(&certificate, &other),
            "the key does not belong to the certificate; if they are being replaced one by one, this ends with the second"
        );
        assert!(why("", &key).starts_with("the first holds no certificate"));
        assert!(why(&certificate, "half a key").starts_with("the second holds no private key"));
        assert!(why(&key, &certificate).starts_with("the two are swapped"));
        for encrypted in [
            key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"),
            format!(
                "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"
            ),
        ] {
            let told = why(&certificate, &encrypted);
            assert!(told.starts_with("the key is encrypted") && told.contains("openssl pkey -in"), "{told}");
        }
        assert_eq!(parsed(certificate.as_bytes(), key.as_bytes()).unwrap().names, ["a"]);
    }

    #[test]
    fn a_certificate_that_ended_is_told_of_and_does_not_displace_one_that_is_good() {
        let key = rcgen::KeyPair::generate().unwrap();
        let pair = |from: i32, to: i32| {
            let mut params = rcgen::CertificateParams::new(["a".to_owned()]).unwrap();
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
            parsed_for_test(&params.self_signed(&key).unwrap().pem(), &key.serialize_pem())
        };
        let now = crate::config::moment("2026-06-01").unwrap();
        let (good, ended, early) = (pair(2026, 2027), pair(2020, 2021), pair(2028, 2029));
        assert_eq!(good.untimely(now), None);
        let over = "this certificate ended on 2021-01-01T00:00:00Z; whoever is shown it will refuse it";
        assert_eq!(ended.untimely(now).as_deref(), Some(over));
        assert!(early.untimely(now).unwrap().contains("begins on 2028-01-01T00:00:00Z"));
        for bad in [&ended, &early] {
            assert!(may_replace(&good, bad, now).is_err(), "those who came in a minute ago come in");
            assert!(may_replace(bad, &good, now).is_ok());
        }
        assert!(may_replace(&ended, &early, now).is_ok(), "there is nothing to lose");
    }
}
