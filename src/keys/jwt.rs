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
    /// It has no end.
    NoExpiry,
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
        if !head.typ.as_deref().is_none_or(is_access_token) {
            return Err(BadToken::Malformed);
        }
        if head.crit.is_some() {
            // Extensions that whoever reads it has to understand; there are none here.
            return Err(BadToken::Malformed);
        }
        // Not yet believed: it only says whose keys it has to be signed with.
        let said: Issued = jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(|_| BadToken::Malformed)?;
        let source = self.0.iter().find(|it| *it.issuer.name == said.iss).ok_or(BadToken::UnknownIssuer)?;
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
            Untimely::Endless => BadToken::NoExpiry,
        })?;
        let caller = caller(&token.claims, &issuer.claims).ok_or(BadToken::NoTenant)?;
        // Another issuer's, or a key of ours, may have the same name.
        let key = caller.key.map(|key| format!("{key}@{}", issuer.name).into());
        Ok(Caller { key, ..caller })
    }
}

/// What access tokens are called in their head (RFC 9068, 2.1, and what was usual before it). Issuers sign others with the
/// same keys: of logouts, of identities at a third place.
fn is_access_token(kind: &str) -> bool {
    ["jwt", "at+jwt", "application/at+jwt"].iter().any(|it| kind.eq_ignore_ascii_case(it))
}

/// Whether a text is written as tokens are: three parts with dots between them.
pub(super) fn looks_like_token(text: &str) -> bool {
    text.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// How long a token of an unknown key waits for its issuer's keys to be fetched: clients' own patience is longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
    };
    use serde_json::json;

    use super::*;
    use crate::config::{self, Algorithm, Claims, IssuerKeys};

    /// Base64 as tokens have it (RFC 4648, 5, without padding).
    fn base64(bytes: impl AsRef<[u8]>) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let letters = |chunk: &[u8]| {
            let bits = chunk.iter().chain(&[0, 0]).take(3).fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
            let all = [18, 12, 6, 0].map(|shift| char::from(LETTERS[bits >> shift & 63]));
            all.into_iter().take(chunk.len() + 1).collect::<String>()
        };
        bytes.as_ref().chunks(3).map(letters).collect()
    }

    fn token(head: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
        let signed = format!("{}.{}", base64(head.to_string()), base64(claims.to_string()));
        format!("{signed}.{}", base64(sign(signed.as_bytes())))
    }

    struct Keys {
        p256: EcdsaKeyPair,
        ed: Ed25519KeyPair,
        random: SystemRandom,
        folder: tempfile::TempDir,
    }

    impl Keys {
        fn new() -> Self {
            let random = SystemRandom::new();
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
            let ed = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
            Self { p256, ed, random, folder: tempfile::tempdir().unwrap() }
        }

        fn es256(&self, claims: &Value) -> String {
            let head = json!({"alg": "ES256", "kid": "p", "typ": "JWT"});
            token(&head, claims, |it| self.p256.sign(&self.random, it).unwrap().as_ref().to_vec())
        }

        fn eddsa(&self, claims: &Value) -> String {
            token(&json!({"alg": "EdDSA"}), claims, |it| self.ed.sign(it).as_ref().to_vec())
        }

        fn set(&self) -> Value {
            let point = self.p256.public_key().as_ref();
            json!({"keys": [
                {"kty": "EC", "crv": "P-256", "kid": "p", "x": base64(&point[1..33]), "y": base64(&point[33..])},
                {"kty": "OKP", "crv": "Ed25519", "kid": "e", "alg": "EdDSA", "x": base64(self.ed.public_key())},
                {"kty": "RSA", "kid": "r", "use": "sig", "n": RFC_N, "e": "AQAB"},
                {"kty": "RSA", "kid": "x", "use": "enc", "n": RFC_N, "e": "AQAB"},
                {"kty": "oct", "kid": "o", "k": base64("shared")},
                {"kty": "EC", "crv": "secp256k1", "kid": "k", "alg": "ES256K", "x": "AA", "y": "AA"},
                {"kty": "new", "kid": "n"},
            ]})
        }

        fn issuers(&self, algorithms: &[Algorithm]) -> Issuers {
            let file = self.folder.path().join("jwks.json");
            std::fs::write(&file, self.set().to_string()).unwrap();
            let issuer = |name: &str| {
                let claims = Claims { tenant: "org".into(), key: "sub".into(), priority: None, models: None };
                Arc::new(config::Issuer {
                    name: name.into(),
                    audiences: vec!["tidegate".into(), "other".into()],
                    keys: IssuerKeys::File(file.clone()),
                    algorithms: algorithms.to_vec(),
                    leeway: Duration::ZERO,
                    refresh: Duration::from_secs(600),
                    claims,
                })
            };
            Issuers::new(vec![
                Source::open(&issuer("https://login"), None).unwrap(),
                Source::open(&issuer("joe"), None).unwrap(),
            ])
        }
    }

    /// The key and the token of RFC 7515, A.2, which names no audience.
    const RFC_N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    const RFC_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";

    const ALL: [Algorithm; 3] = [Algorithm::ES256, Algorithm::EdDSA, Algorithm::RS256];

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)
    }

    fn claims() -> Value {
        json!({"iss": "https://login", "aud": "tidegate", "exp": 1_000_100, "sub": "u1", "org": "shop"})
    }

    /// In a word.
    fn judged(issuers: &Issuers, token: &str) -> String {
        match issuers.judge(token, now()) {
            Ok(caller) => format!("{}/{}", caller.tenant, caller.key.unwrap()),
            Err(bad) => format!("{bad:?}").split('(').next().unwrap().to_owned(),
        }
    }

    #[test]
    fn a_token_says_whose_it_is_if_all_of_it_is_as_it_must_be() {
        let keys = Keys::new();
        let issuers = keys.issuers(&ALL);
        assert_eq!(judged(&issuers, &keys.es256(&claims())), "shop/u1@https://login");
        assert_eq!(
            judged(&issuers, &keys.eddsa(&claims())),
            "shop/u1@https://login",
            "without a key's id, the only one that fits"
        );
        let with = |key: &str, value: Value| {
            let mut claims = claims();
            claims[key] = value;
            judged(&issuers, &keys.es256(&claims))
        };
        assert_eq!(with("aud", json!(["else", "other"])), "shop/u1@https://login");
        for (key, value, said) in [
            ("aud", json!("else"), "Audience"),
            ("aud", json!([]), "Audience"),
            ("aud", json!(null), "Audience"),
            ("iss", json!("https://login/"), "UnknownIssuer"),
            ("iss", json!(["https://login"]), "Malformed"),
            ("iss", json!(null), "Malformed"),
            ("exp", json!(1_000_000), "Expired"),
            ("exp", json!("1000100"), "NoExpiry"),
            ("exp", json!(null), "NoExpiry"),
            ("nbf", json!(1_000_001), "NotYet"),
            ("org", json!(7), "NoTenant"),
            ("org", json!(""), "NoTenant"),
        ] {
            assert_eq!(with(key, value.clone()), said, "{key}: {value}");
        }
    }

    #[test]
    fn what_an_issuer_signs_for_other_ends_is_no_access_token() {
        let keys = Keys::new();
        let issuers = keys.issuers(&ALL);
        for (kind, said) in
            [("at+JWT", "shop/u1@https://login"), ("logout+jwt", "Malformed"), ("dpop+jwt", "Malformed")]
        {
            let head = json!({"alg": "EdDSA", "typ": kind});
            let token = token(&head, &claims(), |it| keys.ed.sign(it).as_ref().to_vec());
            assert_eq!(judged(&issuers, &token), said, "{kind}");
        }
    }

    #[test]
    fn an_rsa_signature_of_the_rfcs_is_verified() {
        let issuers = Keys::new().issuers(&ALL);
        // It has no audience, which is looked at only once the signature is found good.
        assert_eq!(judged(&issuers, RFC_TOKEN), "Audience");
        assert_eq!(judged(&issuers, &RFC_TOKEN.replace("cC4hiUPo", "cC4hiUPp")), "Signature");
    }

    #[test]
    fn nothing_in_a_token_chooses_how_it_is_verified() {
        let keys = Keys::new();
        let issuers = keys.issuers(&ALL);
        let signed = |head: Value, secret: &[u8]| {
            let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
            token(&head, &claims(), |it| ring::hmac::sign(&secret, it).as_ref().to_vec())
        };
        // A public key taken for a shared secret, as text and as bytes, and a shared secret of the set.
        for secret in [keys.set().to_string().as_bytes(), keys.p256.public_key().as_ref(), b"shared", b""] {
            for kid in ["p", "r", "o"] {
                assert_eq!(judged(&issuers, &signed(json!({"alg": "HS256", "kid": kid}), secret)), "Algorithm");
            }
        }
        for alg in ["none", "None", "NONE", "", "HS1"] {
            let unsigned = token(&json!({"alg": alg}), &claims(), |_| Vec::new());
            assert_eq!(judged(&issuers, &unsigned), "Malformed", "{alg}");
        }
        let good = keys.es256(&claims());
        let (signed_part, _) = good.rsplit_once('.').unwrap();
        assert_eq!(judged(&issuers, &format!("{signed_part}.")), "Signature");
        let by_p256 =
            |head: &Value| token(head, &claims(), |it| keys.p256.sign(&keys.random, it).unwrap().as_ref().to_vec());
        for (head, said) in [
            (json!({"alg": "EdDSA", "kid": "p"}), "UnknownKey"),
            (json!({"alg": "ES256", "kid": "e"}), "UnknownKey"),
            (json!({"alg": "ES256", "kid": "k"}), "UnknownKey"),
            (json!({"alg": "RS256", "kid": "x"}), "UnknownKey"),
            (json!({"alg": "RS256", "kid": "r"}), "Signature"),
            (json!({"alg": "ES384", "kid": "p"}), "Algorithm"),
            (json!({"alg": "ES256", "kid": "p", "crit": ["exp"]}), "Malformed"),
            (
                json!({"alg": "ES256", "kid": "p", "jku": "https://evil", "jwk": {"kty": "oct", "k": "AA"}}),
                "shop/u1@https://login",
            ),
        ] {
            assert_eq!(judged(&issuers, &by_p256(&head)), said, "{head}");
        }
        let only_eddsa = keys.issuers(&[Algorithm::EdDSA]);
        assert_eq!(judged(&only_eddsa, &good), "Algorithm", "what is not pinned is not looked at");
        for text in ["", ".", "..", "a.b.c", "e30.e30.e30", &format!("{good}.x"), &"a.".repeat(9_000)] {
            assert_eq!(judged(&issuers, text), "Malformed", "{text:.20}");
        }
    }

    #[test]
    fn a_tokens_claims_cannot_be_changed_behind_its_signature() {
        let keys = Keys::new();
        let good = keys.es256(&claims());
        let mut other = claims();
        other["org"] = json!("bank");
        let parts: Vec<&str> = good.split('.').collect();
        let forged = format!("{}.{}.{}", parts[0], base64(other.to_string()), parts[2]);
        assert_eq!(judged(&keys.issuers(&ALL), &forged), "Signature");
        // Another issuer's own key does not sign for this one.
        let strangers = Keys::new();
        assert_eq!(judged(&keys.issuers(&ALL), &strangers.es256(&claims())), "Signature");
    }
}
