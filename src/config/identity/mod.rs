//! Who may come, and by what they show who they are: as typed, and as checked.
//!
//! Three things can be shown: a key that the operator made, a token that an issuer signed, a client certificate's name.
//! What is in key files, JSON Web Key Sets and certificates is for those who read them; here is only where they are.

mod allowed;
mod check;
mod door;
mod key_file;
mod moment;
mod strange;

use std::{path::PathBuf, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

pub use allowed::AllowedModels;
pub(super) use check::identity;
pub use door::Credentials;
pub(super) use door::{credentials, unguarded};
pub use key_file::{KeyHash, KeyRecord, MAX_KEY_FILE, parse_keys};
pub use moment::{moment, shown_moment};
pub(super) use strange::strange;

use super::{tree::At, units::Span};

/// The longest name of a tenant, key or owner, in characters: a UUID has 36, an OIDC subject at most 255 but rarely more
/// than 64.
pub const LONGEST_NAME: usize = 128;

/// Who may come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The file of the operator's own keys.
    pub key_file: Option<PathBuf>,
    /// The Secrets of a cluster that hold them instead.
    pub key_secrets: Option<KeySecrets>,
    /// Whose tokens are believed.
    pub issuers: Vec<Arc<Issuer>>,
    /// Which names of client certificates are believed, and whose they are.
    pub certificates: Option<Certificates>,
    /// The file of the secret that prefix caches are kept apart by, tenant from tenant.
    pub cache_salt: Option<PathBuf>,
}

impl Identity {
    /// Whether there is anything by which somebody could be known.
    pub fn knows_anybody(&self) -> bool {
        self.reads_headers() || self.certificates.is_some()
    }

    /// Whether keys or tokens are read from headers, which are then nobody else's.
    pub fn reads_headers(&self) -> bool {
        self.key_file.is_some() || self.key_secrets.is_some() || !self.issuers.is_empty()
    }
}

/// Which Secrets of a cluster hold keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySecrets {
    /// Their namespace; `None`: the gateway's own.
    pub namespace: Option<String>,
    /// Their labels, as kubectl selects by them.
    pub labels: String,
}

/// Whoever signs tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What its tokens have as `iss`, letter by letter.
    pub name: Arc<str>,
    /// One of these has to be among a token's `aud`.
    pub audiences: Vec<String>,
    /// Where its keys are.
    pub keys: IssuerKeys,
    /// By what its tokens may be signed.
    pub algorithms: Vec<Algorithm>,
    /// How far its clock may be from ours.
    pub leeway: Duration,
    /// How often its keys are fetched again.
    pub refresh: Duration,
    /// Which claims mean what.
    pub claims: Claims,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IssuerKeys {
    /// A JSON Web Key Set at this URL.
    Url(String),
    /// One in this file.
    File(PathBuf),
    /// Where its `/.well-known/openid-configuration` says.
    Discovery,
}

/// How tokens may be signed. All have a public and a private key: with a shared one, who can verify can forge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "RFC 7518's own words")]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

/// Which claims of a token mean what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Whose limits and share count.
    pub tenant: String,
    /// Who it is, for the log.
    pub key: String,
    /// How much its requests matter.
    pub priority: Option<String>,
    /// Which models it may ask for.
    pub models: Option<String>,
}

/// Which certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// Which of their names counts.
    pub from: NameKind,
    /// Whose each name is; `None`: each name is a tenant.
    pub names: Option<Vec<CertificateName>>,
}

/// Kinds of alternative names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NameKind {
    /// A URI, such as a SPIFFE id.
    Uri,
    /// A DNS name.
    Dns,
    /// A mail address.
    Email,
}

/// One name, and who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateName {
    /// The name; `*` stands for anything.
    pub name: String,
    /// Its tenant.
    pub tenant: Arc<str>,
    /// Which models it may ask for.
    pub models: Option<AllowedModels>,
    /// How much its requests matter.
    pub priority: Option<i32>,
}

impl CertificateName {
    /// Whether a certificate's `name` is this one.
    pub fn matches(&self, name: &str) -> bool {
        allowed::matches(&self.name, name)
    }
}

/// Who may come, and how they show who they are.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ keys: { file: keys.yaml } }`")]
pub(super) struct IdentityFile {
    /// Keys that you make: `tidegate keys new`. Default: none.
    pub(super) keys: Option<At<KeysFile>>,
    /// Tokens (JWT) of issuers that you trust. Default: none.
    #[serde(default)]
    pub(super) jwt: Vec<IssuerFile>,
    /// Client certificates, where a listener asks for them. Default: they say nothing.
    pub(super) certificates: Option<At<CertificatesFile>>,
    /// Keeps tenants' prompts apart in the pods' prefix caches. Default: they are shared.
    pub(super) cache_salt: Option<CacheSaltFile>,
}

/// Where keys are kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ file: keys.yaml }`")]
pub(super) struct KeysFile {
    /// A list of keys' hashes and owners, read again when it changes. Either this or `secrets`.
    pub(super) file: Option<At<PathBuf>>,
    /// The same in Secrets of a Kubernetes cluster, watched. Only a start can set it.
    pub(super) secrets: Option<At<KeySecretsFile>>,
}

/// Which Secrets hold keys: each entry of each is a list as in a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ labels: tidegate-keys=yes }`")]
pub(super) struct KeySecretsFile {
    /// The labels that they have, as `kubectl get -l` selects by them.
    pub(super) labels: At<String>,
    /// Their namespace. Default: the gateway's own.
    pub(super) namespace: Option<String>,
}

/// Whoever signs tokens.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "an issuer, such as `{ issuer: \"https://login.example.com\", audiences: [tidegate] }`"
)]
pub(super) struct IssuerFile {
    /// What its tokens have as `iss`, letter by letter; unique.
    pub(super) issuer: At<String>,
    /// One of these has to be among a token's `aud`; at least one.
    pub(super) audiences: At<Vec<String>>,
    /// Its JSON Web Key Set. Default: where its `/.well-known/openid-configuration` says.
    pub(super) jwks_url: Option<At<String>>,
    /// The same in a file, read again when it changes.
    pub(super) jwks_file: Option<At<PathBuf>>,
    /// By what its tokens may be signed. Default: RS256, ES256 and `EdDSA`.
    pub(super) algorithms: Option<At<Vec<Algorithm>>>,
    /// How far its clock may be from ours. Default: 30s.
    pub(super) leeway: Option<At<Span>>,
    /// How often its keys are fetched again. Default: 10m.
    pub(super) refresh: Option<At<Span>>,
    /// Which claims mean what.
    pub(super) claims: Option<ClaimsFile>,
}

/// Which claims of a token mean what; `a.b` is the claim `b` within `a`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ tenant: org }`")]
pub(super) struct ClaimsFile {
    /// Whose limits and share count. A token without it is refused. Default: sub.
    pub(super) tenant: Option<String>,
    /// Who it is, for the log. Default: sub.
    pub(super) key: Option<String>,
    /// How much its requests matter, a whole number. Default: none.
    pub(super) priority: Option<String>,
    /// Which models it may ask for: a list, or words in one text. A token without it may ask for none. Default: all
    /// models for all tokens.
    pub(super) models: Option<String>,
}

/// Which client certificates are believed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ from: uri }`")]
pub(super) struct CertificatesFile {
    /// Which of a certificate's alternative names counts.
    pub(super) from: NameKind,
    /// Whose each name is; others are refused. Default: each name is a tenant of its own.
    pub(super) names: Option<At<Vec<CertificateNameFile>>>,
}

/// One name of a certificate.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a name, such as `{ name: \"spiffe://prod/shop\", tenant: shop }`")]
pub(super) struct CertificateNameFile {
    /// The name; `*` stands for anything in it.
    pub(super) name: At<String>,
    /// Its tenant.
    pub(super) tenant: At<String>,
    /// Which models it may ask for, `*` stands for anything. Default: all.
    pub(super) models: Option<At<Vec<String>>>,
    /// How much its requests matter: higher comes first, below 0 may be shed. Default: as the model says.
    pub(super) priority: Option<i32>,
}

/// By what prefix caches are kept apart.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ secret_file: /etc/tidegate/salt }`")]
pub(super) struct CacheSaltFile {
    /// A file with at least 32 characters that nobody else knows; the same at all replicas.
    pub(super) secret_file: At<PathBuf>,
}
