//! Which certificate a client is shown: the one for the name that it asks for, else the first.

use std::{collections::HashMap, io, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::certificates::{Followed, Pair};

/// Where a certificate comes from.
#[derive(Debug)]
pub(super) enum Source {
    Files(Followed<Pair>),
    MadeHere(Arc<Pair>),
}

impl Source {
    fn now(&self) -> Arc<Pair> {
        match self {
            Self::Files(files) => files.now(),
            Self::MadeHere(pair) => Arc::clone(pair),
        }
    }
}

/// What is in use from now on.
#[derive(Debug)]
pub(super) enum New {
    /// A certificate of ours.
    Certificate(Arc<Pair>),
    /// Those who vouch for clients.
    Authorities,
}

/// All that may be shown.
#[derive(Debug)]
pub(super) struct Shown {
    sources: Vec<Source>,
    table: ArcSwap<Table>,
}

/// The certificates, and which of them are for a name; several may be, with keys of several kinds.
#[derive(Debug, Default)]
struct Table {
    all: Vec<Arc<CertifiedKey>>,
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
}

impl Shown {
    pub(super) fn new(sources: Vec<Source>) -> Self {
        let table = ArcSwap::from_pointee(Table::of(&sources));
        Self { sources, table }
    }

    /// The files' names, and the certificate that is in use of each.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (String, Arc<Pair>)> {
        self.sources.iter().filter_map(|source| match source {
            Source::Files(files) => Some((files.path().display().to_string(), files.now())),
            Source::MadeHere(_) => None,
        })
    }

    /// Looks at the files again: those that changed, and those that could not be used.
    pub(super) fn look(&self) -> Vec<(String, io::Result<New>)> {
        let mut looked = Vec::new();
        for source in &self.sources {
            let Source::Files(files) = source else { continue };
            match files.look() {
                Ok(false) => {}
                Ok(true) => looked.push((files.path().display().to_string(), Ok(New::Certificate(files.now())))),
                Err(error) => looked.push((files.path().display().to_string(), Err(error))),
            }
        }
        if looked.iter().any(|(_, new)| new.is_ok()) {
            self.table.store(Arc::new(Table::of(&self.sources)));
        }
        looked
    }
}

impl Table {
    fn of(sources: &[Source]) -> Self {
        let mut table = Self::default();
        for pair in sources.iter().map(Source::now) {
            for name in &pair.names {
                table.by_name.entry(name.clone()).or_default().push(Arc::clone(&pair.key));
            }
            table.all.push(Arc::clone(&pair.key));
        }
        table
    }

    /// The certificate for `name`, of a kind that the client can judge.
    fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let name = name.map(str::to_ascii_lowercase);
        // A wildcard stands for one label (RFC 9525, 6.3).
        let wild = name.as_deref().and_then(|name| name.split_once('.')).map(|(_, parent)| format!("*.{parent}"));
        let named = [name, wild].into_iter().flatten().find_map(|name| self.by_name.get(&name));
        let fitting = named.unwrap_or(&self.all);
        let judged = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        fitting.iter().find(judged).or_else(|| fitting.first()).cloned()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.table.load().find(hello.server_name(), hello.signature_schemes())
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};

    use super::*;
    use crate::certificates::parsed_for_test;

    fn source(names: &[&str], kind: &'static SignatureAlgorithm) -> Source {
        let key = rcgen::KeyPair::generate_for(kind).unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        Source::MadeHere(Arc::new(parsed_for_test(&certificate.pem(), &key.serialize_pem())))
    }

    #[test]
    fn each_name_is_shown_its_own_and_every_other_the_first() {
        let (ecdsa, ed25519) = (&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519);
        let sources = [
            source(&["first.example"], ecdsa),
            source(&["*.wild.example", "other.example"], ecdsa),
            source(&["exact.wild.example"], ecdsa),
            source(&["Both.example"], ed25519),
            source(&["both.example"], ecdsa),
        ];
        let table = Table::of(&sources);
        let all = [SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256];
        let shown = |name: Option<&str>, schemes: &[SignatureScheme]| {
            let found = table.find(name, schemes).unwrap();
            table.all.iter().position(|it| Arc::ptr_eq(it, &found)).unwrap()
        };
        for (name, number) in [
            ("first.example", 0),
            ("FIRST.example", 0),
            ("a.wild.example", 1),
            ("other.example", 1),
            ("exact.wild.example", 2),
            ("both.example", 3),
            ("wild.example", 0),
            ("a.b.wild.example", 0),
            ("unknown.example", 0),
        ] {
            assert_eq!(shown(Some(name), &all), number, "{name}");
        }
        assert_eq!(shown(None, &all), 0);
        assert_eq!(shown(Some("both.example"), &all[1..]), 4, "by the kind of key that the client can judge");
    }
}
