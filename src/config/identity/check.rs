//! The section as typed to what holds, with all that is wrong or strange about it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    Algorithm, AllowedModels, CertificateName, Certificates, CertificatesFile, Claims, ClaimsFile, Identity,
    IdentityFile, Issuer, IssuerFile, IssuerKeys, KeySecrets, KeysFile, key_file::name,
};
use crate::config::{check::Sheet, target::parse_target, tree::At};

/// How far clocks that are kept by NTP are apart at the worst, and a little more.
const LEEWAY: Duration = Duration::from_secs(30);

/// Beyond this a clock is broken, and a token that has ended is not ended.
const MOST_LEEWAY: Duration = Duration::from_secs(300);

/// Issuers announce a key for hours before they sign with it; an unknown one is asked for at once besides.
const REFRESH: Duration = Duration::from_secs(600);

/// More often is a burden to an issuer that serves many.
const SHORTEST_REFRESH: Duration = Duration::from_secs(10);

/// What nearly every issuer signs with.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];

/// Who may come.
pub(in crate::config) fn identity(file: Option<&IdentityFile>, sheet: &mut Sheet) -> Identity {
    let Some(file) = file else { return Identity::default() };
    sheet.names("issuer", &file.jwt.iter().map(|it| &it.issuer).collect::<Vec<_>>());
    let by_subject = |it: &&IssuerFile| claims(it.claims.as_ref()).tenant == SUBJECT;
    if let Some(second) = file.jwt.iter().filter(by_subject).nth(1) {
        // RFC 7519, 4.1.2: a subject is unique within its issuer.
        let message = "tokens of two issuers that have the same `sub` would be of one tenant";
        let remedy = "let `claims: { tenant: ... }` of all issuers but one name another claim";
        sheet.error(second.issuer.place, message, remedy);
    }
    let (key_file, key_secrets) = file.keys.as_ref().map(|at| keys(at, sheet)).unwrap_or_default();
    Identity {
        key_file,
        key_secrets,
        issuers: file.jwt.iter().map(|it| Arc::new(issuer(it, sheet))).collect(),
        certificates: file.certificates.as_ref().map(|it| certificates(it, sheet)),
        cache_salt: file.cache_salt.as_ref().map(|it| it.secret_file.value.clone()),
    }
}

/// Where keys are kept: in a file or in a cluster.
fn keys(at: &At<KeysFile>, sheet: &mut Sheet) -> (Option<PathBuf>, Option<KeySecrets>) {
    let KeysFile { file, secrets } = &at.value;
    if file.is_some() == secrets.is_some() {
        let remedy = "write `{ file: keys.yaml }`, or `{ secrets: { labels: ... } }` for those of a Kubernetes cluster";
        sheet.error(at.place, "there has to be one place where keys are kept", remedy);
    }
    let secrets = secrets.as_ref().map(|it| {
        if it.value.labels.value.trim().is_empty() {
            let remedy = "name a label that only Secrets with keys have, such as `tidegate-keys=yes`";
            sheet.error(it.value.labels.place, "every Secret of the namespace would be read", remedy);
        }
        KeySecrets { namespace: it.value.namespace.clone(), labels: it.value.labels.value.clone() }
    });
    (file.as_ref().map(|it| it.value.clone()), secrets)
}

fn issuer(file: &IssuerFile, sheet: &mut Sheet) -> Issuer {
    if file.audiences.value.is_empty() {
        let remedy = "name what its tokens for this gateway have as `aud`: without it, those made for others would do";
        sheet.error(file.audiences.place, "there is no audience", remedy);
    }
    let algorithms = match &file.algorithms {
        None => ALGORITHMS.to_vec(),
        Some(at) => {
            if at.value.is_empty() {
                sheet.error(at.place, "there is no algorithm", "name those that this issuer signs with, such as RS256");
            }
            at.value.clone()
        }
    };
    let leeway = file.leeway.as_ref().map_or(LEEWAY, |at| at.value.0);
    if let Some(at) = file.leeway.as_ref().filter(|_| leeway > MOST_LEEWAY) {
        sheet.error(at.place, "a clock so far off is broken", "write at most `5m`, and set the clocks right");
    }
    let refresh = sheet.span(file.refresh.as_ref(), REFRESH);
    if let Some(at) = file.refresh.as_ref().filter(|_| refresh < SHORTEST_REFRESH) {
        let remedy = "write at least `10s`: an unknown key is asked for at once anyway";
        sheet.error(at.place, "keys would be fetched too often", remedy);
    }
    Issuer {
        name: file.issuer.value.as_str().into(),
        audiences: file.audiences.value.clone(),
        keys: issuer_keys(file, sheet),
        algorithms,
        leeway,
        refresh,
        claims: claims(file.claims.as_ref()),
    }
}

fn issuer_keys(file: &IssuerFile, sheet: &mut Sheet) -> IssuerKeys {
    match (&file.jwks_url, &file.jwks_file) {
        (Some(url), Some(_)) => {
            sheet.error(url.place, "`jwks_url` and `jwks_file` both say where the keys are", "keep one of the two");
            IssuerKeys::Url(url.value.clone())
        }
        (Some(url), None) => {
            over_tls(url, sheet);
            IssuerKeys::Url(url.value.clone())
        }
        (None, Some(file)) => IssuerKeys::File(file.value.clone()),
        (None, None) => {
            over_tls(&file.issuer, sheet);
            IssuerKeys::Discovery
        }
    }
}

/// Whoever can change what is fetched can sign tokens.
fn over_tls(url: &At<String>, sheet: &mut Sheet) {
    let Some(target) = parse_target(sheet, url) else { return };
    let host = target.origin.host;
    let is_here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback());
    if !target.origin.https && !is_here {
        let message = "keys that come over plain HTTP can be changed on the way, and with them who is let in";
        sheet.warning(url.place, message, "write `https://`, or mount them as `jwks_file`");
    }
}

/// Who a token is about, if nothing else is said.
const SUBJECT: &str = "sub";

fn claims(file: Option<&ClaimsFile>) -> Claims {
    let subject = || SUBJECT.to_owned();
    let empty = ClaimsFile::default();
    let given = file.unwrap_or(&empty);
    Claims {
        tenant: given.tenant.clone().unwrap_or_else(subject),
        key: given.key.clone().unwrap_or_else(subject),
        priority: given.priority.clone(),
        models: given.models.clone(),
    }
}

fn certificates(at: &At<CertificatesFile>, sheet: &mut Sheet) -> Certificates {
    let names = at.value.names.as_ref().map(|names| {
        if names.value.is_empty() {
            sheet.error(names.place, "no name is believed", "name some, or leave `names` out to believe all of them");
        }
        sheet.names("certificate", &names.value.iter().map(|it| &it.name).collect::<Vec<_>>());
        let one = |it: &super::CertificateNameFile| {
            name(&it.tenant, "tenant", sheet);
            CertificateName {
                name: it.name.value.clone(),
                tenant: it.tenant.value.as_str().into(),
                models: it.models.as_ref().map(|models| AllowedModels::new(&models.value)),
                priority: it.priority,
            }
        };
        names.value.iter().map(one).collect()
    });
    Certificates { from: at.value.from, names }
}
