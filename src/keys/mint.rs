//! New keys, and what is kept of them.

use std::fmt;

use rand::RngExt as _;
use ring::digest::{SHA256, digest};

use crate::{clock, config::KeyHash};

/// What every key begins with, so that scanners of repositories and logs can tell one.
const PREFIX: &str = "tg";

/// Letters of an id: 40 bits, so that even the first two of a million are the same only now and then, and `new` looks.
const ID: usize = 8;

/// Letters of a secret: 260 bits. More than 256 bits are in no SHA-256, and nobody tries a part of them.
const SECRET: usize = 52;

/// The shortest text that may be a key, where somebody brings their own: 128 bits in hexadecimal digits.
pub const ENOUGH: usize = 32;

/// Letters and digits without those that are taken for others: `i`, `l`, `o` and `0`. That leaves 32.
const LETTERS: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz123456789";

/// A key that was just made. It is shown once and kept by nobody.
pub struct Minted {
    /// Its public name.
    pub id: String,
    /// The key.
    pub key: String,
}

impl fmt::Debug for Minted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minted").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A new key: `tg-`, its id, and its secret.
pub fn mint() -> Minted {
    let (id, secret) = (letters(ID), letters(SECRET));
    Minted { key: format!("{PREFIX}-{id}-{secret}"), id }
}

fn letters(count: usize) -> String {
    // The thread's generator is a cryptographic one, seeded by the system.
    let mut rng = clock::rng();
    let letter = |_| {
        let at = usize::from(rng.random::<u8>() % 32);
        LETTERS.get(at).copied().map_or('a', char::from)
    };
    (0..count).map(letter).collect()
}

/// What is kept of a key.
pub fn hash_of(key: &[u8]) -> KeyHash {
    let mut hash = [0; 32];
    for (byte, of) in hash.iter_mut().zip(digest(&SHA256, key).as_ref()) {
        *byte = *of;
    }
    KeyHash(hash)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_key_says_what_it_is_and_no_two_are_the_same() {
        let keys: Vec<_> = (0..100).map(|_| mint()).collect();
        for Minted { id, key } in &keys {
            assert!(key.starts_with(&format!("tg-{id}-")) && key.len() == 64, "{key}");
            assert!(key.bytes().all(|byte| byte == b'-' || LETTERS.contains(&byte)), "{key}");
        }
        assert_eq!(keys.iter().map(|it| &it.key).collect::<BTreeSet<_>>().len(), 100);
        let seen: BTreeSet<u8> = keys.iter().flat_map(|it| it.key.bytes()).collect();
        assert_eq!(seen.len(), 33, "every letter comes, and the hyphen");
        assert_eq!(format!("{:?}", keys[0]), format!("Minted {{ id: {:?}, .. }}", keys[0].id));
    }

    #[test]
    fn a_hash_is_the_sha_256_that_others_compute() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_of(b"abc").to_string(), known);
        assert_eq!(KeyHash::from_hex(known), Some(hash_of(b"abc")));
    }
}
