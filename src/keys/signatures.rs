//! How tokens' signatures are verified: jsonwebtoken reads tokens, ring does the mathematics, as it does for TLS.
//!
//! Only public keys: a token that is signed with a shared secret finds nobody here who could verify it.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind,
    crypto::{CryptoProvider, JwtVerifier, KeyUtils},
    errors::{Error, ErrorKind},
    signature,
};
use ring::signature as math;

static RING: CryptoProvider = CryptoProvider {
    // We sign nothing.
    signer_factory: |_, _| Err(refused()),
    verifier_factory: |algorithm, key| Ok(Box::new(Verifier::new(*algorithm, key)?)),
    // Asked for thumbprints and private keys alone, which are never here.
    key_utils: KeyUtils::new_unimplemented(),
};

/// To be called before a token is verified; again does nothing.
pub(super) fn install() {
    RING.install_default().ok();
}

fn refused() -> Error {
    ErrorKind::InvalidAlgorithm.into()
}

/// One algorithm with one key.
struct Verifier {
    algorithm: Algorithm,
    means: Means,
    key: DecodingKey,
}

enum Means {
    Rsa(&'static math::RsaParameters),
    Other(&'static dyn math::VerificationAlgorithm),
}

impl Verifier {
    fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Self, Error> {
        // RSA keys below 2,048 bits are refused by ring.
        let means = match algorithm {
            Algorithm::RS256 => Means::Rsa(&math::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => Means::Rsa(&math::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => Means::Rsa(&math::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => Means::Rsa(&math::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => Means::Rsa(&math::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => Means::Rsa(&math::RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => Means::Other(&math::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => Means::Other(&math::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => Means::Other(&math::ED25519),
            _ => return Err(refused()),
        };
        if algorithm.family() != key.family() || key.family() == AlgorithmFamily::Hmac {
            return Err(refused());
        }
        Ok(Self { algorithm, means, key: key.clone() })
    }
}

impl signature::Verifier<Vec<u8>> for Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let verified = match (&self.means, self.key.kind()) {
            (Means::Rsa(means), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                math::RsaPublicKeyComponents { n, e }.verify(means, message, signature)
            }
            (Means::Other(means), DecodingKeyKind::SecretOrDer(key)) => {
                math::UnparsedPublicKey::new(*means, key).verify(message, signature)
            }
            _ => return Err(signature::Error::new()),
        };
        verified.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Verifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
