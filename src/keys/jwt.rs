//! Whose a token is: signed by an issuer that the operator trusts, with an algorithm that he pinned, for this gateway, and
//! of now.
//!
//! It is told by its `iss` which issuer's keys to try, and by nothing in it how: an algorithm that the operator did not
//! name is refused before any key is looked at.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{Validation, errors::ErrorKind};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Caller,
    claims::{Untimely, caller, check_times},
    issuers::Source,
    jwks::{jwt_algorithm, our_algorithm},
    signatures,
};

/// The longest token that is looked at, in bytes: as much as browsers keep in two cookies, and far below what a head may
/// have.
const LONGEST: usize = 8 << 10;

/// Why a token is not good, as the log says it.
#[derive(Clone, Debug)]
pub enum BadToken {
    /// It is none, or says what nobody here understands.
    Malformed,
    /// It is of an issuer that is not trusted.
    UnknownIssuer,
    /// It is signed in a way that its issuer does not sign in.
    Algorithm,
    /// It is signed with a key that its issuer has not published, or not when it was asked last.
    UnknownKey(Arc<Source>),
    /// The signature is not its issuer's.
    Signature,
    /// It is for somebody else.
    Audience,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYet,
    /// It does not say whose it is.
    NoTenant,
}

/// The issuers whose tokens are believed.
#[derive(Debug, Default)]
pub struct Issuers(Vec<Arc<Source>>);

#[derive(Deserialize)]
struct Issued {
    iss: String,
}

impl Issuers {
    /// These.
    pub(super) fn new(sources: Vec<Arc<Source>>) -> Self {
        signatures::install();
        Self(sources)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub(super) fn sources(&self) -> &[Arc<Source>] {
        &self.0
    }

    /// Who it is that shows `token` at `now`.
    ///
    /// # Errors
    /// Why it is good for nothing.
    pub fn judge(&self, token: &str, now: SystemTime) -> Result<Caller, BadToken> {
        if token.len() > LONGEST {
            return Err(BadToken::Malformed);
        }
        let head = jsonwebtoken::decode_header(token).map_err(|_| BadToken::Malformed)?;
        if head.crit.is_some() {
            // Extensions that whoever reads it has to understand; there are none here.
            return Err(BadToken::Malformed);
        }
        // Not yet believed: it only says whose keys it has to be signed with.
        let issued: Issued = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| BadToken::Malformed)?;
        let source = self.0.iter().find(|it| *it.issuer.name == issued.iss).ok_or(BadToken::UnknownIssuer)?;
        let issuer = &source.issuer;
        let pinned = |it: &_| issuer.algorithms.contains(it);
        let algorithm = our_algorithm(head.alg).filter(pinned).ok_or(BadToken::Algorithm)?;
        let keys = source.keys();
        let key = keys.find(head.kid.as_deref(), algorithm).ok_or_else(|| BadToken::UnknownKey(Arc::clone(source)))?;
        let mut validation = Validation::new(jwt_algorithm(algorithm));
        // Time is ours to judge, by a clock that is handed in.
        validation.validate_exp = false;
        validation.set_required_spec_claims(&["iss", "aud"]);
        validation.set_issuer(&[&*issuer.name]);
        validation.set_audience(&issuer.audiences);
        let token = jsonwebtoken::decode::<Value>(token, key, &validation).map_err(|error| match error.kind() {
            ErrorKind::InvalidAudience => BadToken::Audience,
            ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => BadToken::Audience,
            ErrorKind::InvalidSignature => BadToken::Signature,
            _ => BadToken::Malformed,
        })?;
        check_times(&token.claims, now, issuer.leeway).map_err(|untimely| match untimely {
            Untimely::Expired => BadToken::Expired,
            Untimely::NotYet => BadToken::NotYet,
            Untimely::Endless => BadToken::Malformed,
        })?;
        caller(&token.claims, &issuer.claims).ok_or(BadToken::NoTenant)
    }
}

/// Whether a text is written as tokens are: three parts with dots between them.
pub(super) fn looks_like_token(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// How long a token of an unknown key waits for its issuer's keys to be fetched: clients' own patience is longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
