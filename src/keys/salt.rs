//! What keeps tenants' prompts apart in the pods' prefix caches: a salt for each tenant, that nobody can guess who does not
//! have the operator's secret. Whoever could, could measure by a first token's time what another tenant has asked.

use std::fmt::{self, Write as _};

use ring::hmac;

/// The shortest secret, in bytes: 128 bits in hexadecimal digits.
const SHORTEST: usize = 32;

/// The longest file it is read from.
pub(super) const MAX_SECRET_FILE: u64 = 4 << 10;

/// Makes salts.
pub struct Salt(hmac::Key);

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(..)")
    }
}

impl Salt {
    /// From what the secret's file says.
    pub(super) fn new(file: &[u8]) -> Result<Self, String> {
        let secret = file.trim_ascii();
        if secret.len() < SHORTEST {
            return Err(format!("a secret has at least {SHORTEST} characters, such as `openssl rand -hex 32` prints"));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    /// The salt of `tenant`'s requests that came with the salt `own`: each tenant's are apart from all others', and what a
    /// tenant keeps apart itself stays so.
    pub fn of(&self, tenant: &str, own: &str) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        // The length in front, so that no two pairs read the same.
        context.update(&(tenant.len() as u64).to_be_bytes());
        context.update(tenant.as_bytes());
        context.update(own.as_bytes());
        let mut text = String::with_capacity(64);
        for byte in context.sign().as_ref() {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").unwrap_or_default();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_tenant_and_every_salt_of_its_own_has_another_salt_and_always_the_same() {
        let salt = |secret: &str| Salt::new(secret.as_bytes()).unwrap();
        let (one, other) = (salt(&"a".repeat(32)), salt(&"b".repeat(32)));
        let pairs = [("a", ""), ("b", ""), ("a", "b"), ("ab", ""), ("", "ab"), ("", "")];
        let salts: BTreeSet<_> =
            pairs.iter().flat_map(|(tenant, own)| [&one, &other].map(|it| it.of(tenant, own))).collect();
        assert_eq!(salts.len(), 12);
        assert!(salts.iter().all(|it| it.len() == 64));
        assert_eq!(one.of("a", "b"), salt(&format!(" {}\n", "a".repeat(32))).of("a", "b"));
        assert!(Salt::new(b"short").is_err());
        assert_eq!(format!("{one:?}"), "Salt(..)");
    }
}
