//! Who asks: which of the things that a request shows is judged, and what is said to whoever is not let in.
//!
//! Exactly one thing is judged. Two different keys are refused, because one reader would believe the first and another the
//! last. A client learns why it was refused only as far as it has proved to be somebody: that a key has ended is told to
//! whoever has the key, that one never existed to nobody.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};

use super::PeerCertificate;
use crate::{
    config::{Certificates, LONGEST_NAME, NameKind},
    keys::{Bad, BadKey, BadToken, Caller},
};

/// Where keys and tokens are shown: as OpenAI's clients do, as Anthropic's do, as Azure's do.
pub const CREDENTIALS: [&str; 3] = ["authorization", "x-api-key", "api-key"];

/// The one thing that is judged.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// Nothing was shown.
    Nothing,
    /// A key or a token.
    Secret(Secret<'a>),
    /// A certificate.
    Certificate(&'a PeerCertificate),
}

/// What a client keeps to itself. It is not shown, whatever is logged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret<'a>(&'a str);

impl<'a> Secret<'a> {
    /// The text, for whoever judges it.
    pub fn reveal(self) -> &'a str {
        self.0
    }
}

impl std::fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why somebody is not let in: exactly, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// Nothing was shown.
    Nothing,
    /// Different things were.
    Conflicting,
    /// `authorization` is no bearer token.
    NotBearer,
    /// It has characters that no key has.
    Unreadable,
    /// A key that there is not.
    UnknownKey,
    /// A key that was taken back.
    DisabledKey,
    /// A key or token whose time is over.
    Expired,
    /// A token without an end.
    NoExpiry,
    /// A token whose time has not come.
    NotYet,
    /// No token.
    BadToken,
    /// A token of somebody who is not trusted.
    UnknownIssuer,
    /// A token that is signed otherwise than its issuer's are.
    WrongAlgorithm,
    /// A token whose signing key is not known.
    UnknownSigner,
    /// A token with a wrong signature.
    WrongSignature,
    /// A token for somebody else.
    WrongAudience,
    /// A token that does not say whose it is.
    NoTenant,
    /// A certificate without a name that counts, or with several.
    UnknownName,
    /// Somebody good, but there are too many tenants.
    TooManyTenants,
}

impl Stranger {
    /// The word in the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nothing => "no_credential",
            Self::Conflicting => "conflicting_credentials",
            Self::NotBearer => "not_bearer",
            Self::Unreadable => "unreadable_credential",
            Self::UnknownKey => "unknown_key",
            Self::DisabledKey => "disabled_key",
            Self::Expired => "expired",
            Self::NoExpiry => "no_expiry",
            Self::NotYet => "not_yet_valid",
            Self::BadToken => "bad_token",
            Self::UnknownIssuer => "unknown_issuer",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::UnknownSigner => "unknown_signing_key",
            Self::WrongSignature => "wrong_signature",
            Self::WrongAudience => "wrong_audience",
            Self::NoTenant => "no_tenant",
            Self::UnknownName => "unknown_certificate_name",
            Self::TooManyTenants => "too_many_tenants",
        }
    }

    /// What the client is told.
    pub fn told(self) -> &'static str {
        match self {
            Self::Nothing => "no API key was sent; send it as `Authorization: Bearer KEY`",
            Self::Conflicting => "the request carries different API keys; send one",
            Self::NotBearer => {
                "the Authorization header is no bearer token; send the API key as `Authorization: Bearer KEY`"
            }
            Self::Expired => "this API key or token has expired",
            Self::UnknownName => "this client certificate is not known here",
            Self::TooManyTenants => "no further tenant can be served here",
            _ => "this API key or token is not valid",
        }
    }
}

impl From<Bad> for Stranger {
    fn from(bad: Bad) -> Self {
        match bad {
            Bad::Key(BadKey::Unknown) => Self::UnknownKey,
            Bad::Key(BadKey::Disabled) => Self::DisabledKey,
            Bad::Key(BadKey::Expired) | Bad::Token(BadToken::Expired) => Self::Expired,
            Bad::Token(BadToken::Malformed) => Self::BadToken,
            Bad::Token(BadToken::UnknownIssuer) => Self::UnknownIssuer,
            Bad::Token(BadToken::Algorithm) => Self::WrongAlgorithm,
            Bad::Token(BadToken::UnknownKey(_)) => Self::UnknownSigner,
            Bad::Token(BadToken::Signature) => Self::WrongSignature,
            Bad::Token(BadToken::Audience) => Self::WrongAudience,
            Bad::Token(BadToken::NoExpiry) => Self::NoExpiry,
            Bad::Token(BadToken::NotYet) => Self::NotYet,
            Bad::Token(BadToken::NoTenant) => Self::NoTenant,
            Bad::TooManyTenants => Self::TooManyTenants,
        }
    }
}

/// What of `headers` and of the connection's `certificate` is judged. A header counts before a certificate: it was meant
/// for this one request. `reads_headers`: keys or tokens are known here, else what is in headers is the pods'.
///
/// # Errors
/// If it cannot be told what to judge.
pub fn credential<'a>(
    headers: &'a HeaderMap,
    certificate: Option<&'a PeerCertificate>,
    reads_headers: bool,
) -> Result<Credential<'a>, Stranger> {
    let mut secret = None;
    for name in CREDENTIALS.into_iter().filter(|_| reads_headers) {
        for value in headers.get_all(name) {
            let found = secret_in(name, value)?;
            if secret.is_some_and(|before| before != found) {
                return Err(Stranger::Conflicting);
            }
            secret = Some(found);
        }
    }
    Ok(match (secret, certificate) {
        (Some(secret), _) => Credential::Secret(secret),
        (None, Some(certificate)) => Credential::Certificate(certificate),
        (None, None) => Credential::Nothing,
    })
}

fn secret_in<'a>(name: &str, value: &'a HeaderValue) -> Result<Secret<'a>, Stranger> {
    let text = value.to_str().map_err(|_| Stranger::Unreadable)?.trim();
    if name != header::AUTHORIZATION.as_str() {
        return if text.is_empty() { Err(Stranger::Nothing) } else { Ok(Secret(text)) };
    }
    let (scheme, secret) = text.split_once(' ').unwrap_or((text, ""));
    match (scheme.eq_ignore_ascii_case("bearer"), secret.trim_start()) {
        (false, _) => Err(Stranger::NotBearer),
        (true, "") => Err(Stranger::Nothing),
        (true, secret) => Ok(Secret(secret)),
    }
}

/// The names of that kind in a certificate.
pub fn names(certificate: &PeerCertificate, kind: NameKind) -> &[String] {
    match kind {
        NameKind::Uri => &certificate.uris,
        NameKind::Dns => &certificate.dns_names,
        NameKind::Email => &certificate.emails,
    }
}

/// Who shows this certificate. One name has to count, and no more: of two nobody could say which was meant.
///
/// # Errors
/// [`Stranger::UnknownName`].
pub fn of_certificate(certificate: &PeerCertificate, rule: &Certificates) -> Result<Caller, Stranger> {
    let names = names(certificate, rule.from);
    let known = |name: &String| match &rule.names {
        None => (name.chars().count() <= LONGEST_NAME && !name.is_empty()).then(|| Caller::of(name.as_str().into())),
        Some(known) => {
            let it = known.iter().find(|it| it.matches(name))?;
            let key = name.chars().take(LONGEST_NAME).collect::<String>();
            let (models, priority) = (it.models.clone(), it.priority);
            Some(Caller { key: Some(key.into()), priority, models, ..Caller::of(Arc::clone(&it.tenant)) })
        }
    };
    let mut callers = names.iter().filter_map(known);
    let caller = callers.next().ok_or(Stranger::UnknownName)?;
    if callers.any(|other| other.tenant != caller.tenant) { Err(Stranger::UnknownName) } else { Ok(caller) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AllowedModels, CertificateName};

    fn certificate(uris: &[&str], dns: &[&str]) -> PeerCertificate {
        let owned = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
        PeerCertificate { uris: owned(uris), dns_names: owned(dns), ..PeerCertificate::default() }
    }

    #[test]
    fn a_header_counts_before_a_certificate_and_both_before_nothing() {
        let certificate = certificate(&["spiffe://a"], &[]);
        let (mut headers, none) = (HeaderMap::new(), HeaderMap::new());
        headers.insert("x-api-key", HeaderValue::from_static("q-q-q"));
        let judged = |headers, certificate, reads| match credential(headers, certificate, reads) {
            Ok(Credential::Secret(secret)) => secret.reveal().to_owned(),
            other => format!("{other:?}").split('(').next().unwrap_or_default().to_owned(),
        };
        assert_eq!(judged(&headers, Some(&certificate), true), "q-q-q");
        assert_eq!(judged(&headers, Some(&certificate), false), "Ok", "where no keys are known a header is the pods'");
        assert_eq!(judged(&none, None, true), "Ok");
        assert!(matches!(credential(&headers, Some(&certificate), false), Ok(Credential::Certificate(_))));
        assert!(matches!(credential(&none, None, true), Ok(Credential::Nothing)));
        assert!(!format!("{:?}", credential(&headers, None, true)).contains("q-q"), "it is not shown");
        headers
            .insert("authorization", HeaderValue::from_bytes(b"Bearer \xff").unwrap_or(HeaderValue::from_static("")));
        assert!(matches!(credential(&headers, None, true), Err(Stranger::Unreadable)));
    }

    #[test]
    fn one_name_of_a_certificate_counts_and_no_more() {
        let shop = CertificateName {
            name: "spiffe://prod/shop/*".into(),
            tenant: "shop".into(),
            models: Some(AllowedModels::new(["m"])),
            priority: Some(1),
        };
        let bank =
            CertificateName { name: "spiffe://prod/bank".into(), tenant: "bank".into(), models: None, priority: None };
        let listed = Certificates { from: NameKind::Uri, names: Some(vec![shop, bank]) };
        let any = Certificates { from: NameKind::Dns, names: None };
        let who = |uris: &[&str], rule| {
            of_certificate(&certificate(uris, &["a.example"]), rule).map(|it| it.tenant.to_string())
        };
        assert_eq!(who(&["spiffe://prod/shop/web"], &listed), Ok("shop".into()));
        assert_eq!(who(&["spiffe://other", "spiffe://prod/bank"], &listed), Ok("bank".into()));
        assert_eq!(who(&["spiffe://prod/shop/a", "spiffe://prod/shop/b"], &listed), Ok("shop".into()));
        assert_eq!(who(&["spiffe://prod/shop/a", "spiffe://prod/bank"], &listed), Err(Stranger::UnknownName));
        assert_eq!(who(&["spiffe://prod/bank/x"], &listed), Err(Stranger::UnknownName));
        assert_eq!(who(&[], &listed), Err(Stranger::UnknownName));
        assert_eq!(who(&[], &any), Ok("a.example".into()));
        let caller = of_certificate(&certificate(&["spiffe://prod/shop/web"], &[]), &listed).map_err(|_| ());
        let caller = caller.unwrap_or_else(|()| Caller::anonymous());
        assert_eq!((caller.key.as_deref(), caller.priority), (Some("spiffe://prod/shop/web"), Some(1)));
        assert!(caller.may_ask_for("m") && !caller.may_ask_for("n"));
    }

    #[test]
    fn a_stranger_is_told_no_more_than_it_has_shown_to_know() {
        let vague = "this API key or token is not valid";
        for stranger in [
            Stranger::UnknownKey,
            Stranger::DisabledKey,
            Stranger::BadToken,
            Stranger::UnknownIssuer,
            Stranger::WrongAlgorithm,
            Stranger::UnknownSigner,
            Stranger::WrongSignature,
            Stranger::WrongAudience,
            Stranger::NoTenant,
            Stranger::NoExpiry,
            Stranger::NotYet,
        ] {
            assert_eq!(stranger.told(), vague, "{}", stranger.word());
        }
    }
}
