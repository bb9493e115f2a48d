//! An issuer's public keys, from a JSON Web Key Set.
//!
//! What cannot verify a signature here (keys for encryption, shared secrets, curves that ring does not know) is passed
//! over: issuers publish such keys for others.

use jsonwebtoken::{
    AlgorithmFamily, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::Deserialize;

use crate::config::Algorithm;

/// Keys of one issuer: two while they rotate, a dozen where each region has its own, and room to spare.
const MOST_KEYS: usize = 100;

/// The keys of one issuer.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySet(Vec<PublicKey>);

#[derive(Clone, Debug)]
struct PublicKey {
    id: Option<String>,
    /// The one algorithm that it is for, if its issuer or its curve says so.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// The keys of a set that can verify.
    pub(super) fn read(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|error| format!("no JSON Web Key Set: {error}"))?;
        if set.keys.len() > MOST_KEYS {
            return Err(format!("more than {MOST_KEYS} keys"));
        }
        let keys: Vec<_> = set.keys.into_iter().filter_map(public_key).collect();
        if keys.is_empty() { Err("no key in it that could verify a signature".to_owned()) } else { Ok(Self(keys)) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Their names, by which it shows that they were changed.
    pub(super) fn names(&self) -> Vec<Option<&str>> {
        let mut names: Vec<_> = self.0.iter().map(|key| key.id.as_deref()).collect();
        names.sort_unstable();
        names
    }

    /// The key called `id` for signatures by `algorithm`; without an id, the only one for such.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let fits = |key: &&PublicKey| {
            key.key.family() == jwt_algorithm(algorithm).family() && key.algorithm.is_none_or(|it| it == algorithm)
        };
        let mut fitting = self.0.iter().filter(fits);
        if id.is_some() {
            return fitting.find(|key| key.id.as_deref() == id).map(|key| &key.key);
        }
        let only = fitting.next()?;
        fitting.next().is_none().then_some(&only.key)
    }
}

fn public_key(json: serde_json::Value) -> Option<PublicKey> {
    let algorithm = json.get("alg").and_then(|it| it.as_str()).map(ToOwned::to_owned);
    let algorithm = match algorithm {
        None => None,
        Some(name) => Some(name.parse().ok().and_then(our_algorithm)?),
    };
    let key: Jwk = serde_json::from_value(json).ok()?;
    let signs = key.common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
    let decoding = DecodingKey::from_jwk(&key).ok().filter(|it| signs && it.family() != AlgorithmFamily::Hmac)?;
    let by_curve = match &key.algorithm {
        AlgorithmParameters::EllipticCurve(it) if it.curve == EllipticCurve::P256 => Some(Algorithm::ES256),
        AlgorithmParameters::EllipticCurve(it) if it.curve == EllipticCurve::P384 => Some(Algorithm::ES384),
        _ => None,
    };
    Some(PublicKey { id: key.common.key_id, algorithm: algorithm.or(by_curve), key: decoding })
}

/// The algorithm that a token names, if it is one of ours.
pub(super) fn our_algorithm(named: jsonwebtoken::Algorithm) -> Option<Algorithm> {
    use jsonwebtoken::Algorithm as Named;
    Some(match named {
        Named::RS256 => Algorithm::RS256,
        Named::RS384 => Algorithm::RS384,
        Named::RS512 => Algorithm::RS512,
        Named::PS256 => Algorithm::PS256,
        Named::PS384 => Algorithm::PS384,
        Named::PS512 => Algorithm::PS512,
        Named::ES256 => Algorithm::ES256,
        Named::ES384 => Algorithm::ES384,
        Named::EdDSA => Algorithm::EdDSA,
        _ => return None,
    })
}

/// And back.
pub(super) fn jwt_algorithm(ours: Algorithm) -> jsonwebtoken::Algorithm {
    use jsonwebtoken::Algorithm as Named;
    match ours {
        Algorithm::RS256 => Named::RS256,
        Algorithm::RS384 => Named::RS384,
        Algorithm::RS512 => Named::RS512,
        Algorithm::PS256 => Named::PS256,
        Algorithm::PS384 => Named::PS384,
        Algorithm::PS512 => Named::PS512,
        Algorithm::ES256 => Named::ES256,
        Algorithm::ES384 => Named::ES384,
        Algorithm::EdDSA => Named::EdDSA,
    }
}
