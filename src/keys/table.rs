//! The operator's keys, found by what they hash to.
//!
//! A key is looked for by the first half of its hash, and the whole hash is compared in constant time. How long the search
//! takes depends on a hash that nobody can steer without the key, and on how many keys there are it does not depend at all.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use subtle::ConstantTimeEq as _;

use super::{Caller, mint::hash_of};
use crate::config::{KeyHash, KeyRecord};

/// Why a key is not good, as the log says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadKey {
    /// There is none that hashes so.
    Unknown,
    /// It was taken back.
    Disabled,
    /// Its time is over.
    Expired,
}

/// All keys of a moment.
#[derive(Debug, Default)]
pub struct Keys(HashMap<[u8; 16], Vec<Entry>>);

/// What became of keys, by their ids; `None` where nothing did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) added: Option<String>,
    pub(super) removed: Option<String>,
    pub(super) changed: Option<String>,
    pub(super) disabled: Option<String>,
}

#[derive(Debug, PartialEq)]
struct Entry {
    hash: KeyHash,
    caller: Arc<Caller>,
    expires: Option<SystemTime>,
    disabled: bool,
}

impl Keys {
    /// These.
    pub fn new(records: Vec<KeyRecord>) -> Self {
        let mut keys: HashMap<_, Vec<Entry>> = HashMap::with_capacity(records.len());
        for KeyRecord { id, hash, tenant, models, priority, limits, expires, disabled, .. } in records {
            let caller = Arc::new(Caller { tenant, key: Some(id), priority, models, limits });
            keys.entry(half(hash)).or_default().push(Entry { hash, caller, expires, disabled });
        }
        Self(keys)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who shows the key with this public id, whether it is good or not.
    pub fn named(&self, id: &str) -> Option<Arc<Caller>> {
        let mut all = self.0.values().flatten().map(|entry| &entry.caller);
        all.find(|caller| caller.key.as_deref() == Some(id)).cloned()
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// Why it is good for nothing.
    pub fn find(&self, key: &[u8], now: SystemTime) -> Result<Arc<Caller>, BadKey> {
        let entry = self.entry(key).ok_or(BadKey::Unknown)?;
        if entry.disabled {
            Err(BadKey::Disabled)
        } else if entry.expires.is_some_and(|expires| expires <= now) {
            Err(BadKey::Expired)
        } else {
            Ok(Arc::clone(&entry.caller))
        }
    }

    /// Whose key this is, whether it is good for something or not.
    pub(super) fn once_of(&self, key: &[u8]) -> Option<Arc<Caller>> {
        self.entry(key).map(|entry| Arc::clone(&entry.caller))
    }

    fn entry(&self, key: &[u8]) -> Option<&Entry> {
        let hash = hash_of(key);
        let near = self.0.get(&half(hash)).map(Vec::as_slice).unwrap_or_default();
        near.iter().find(|entry| entry.hash.0.ct_eq(&hash.0).into())
    }

    /// In what these differ from those before.
    pub(super) fn changes_since(&self, before: &Self) -> Changes {
        let (old, new) = (before.by_id(), self.by_id());
        let ids = |wanted: &dyn Fn(&str, &Entry) -> bool| {
            few(new.iter().filter(|(id, entry)| wanted(id, entry)).map(|(id, _)| *id))
        };
        let was = |id: &str| old.get(id).copied();
        let newly_disabled = |id: &str, it: &Entry| it.disabled && was(id).is_some_and(|old| !old.disabled);
        Changes {
            added: ids(&|id, _| was(id).is_none()),
            removed: few(old.keys().copied().filter(|id| !new.contains_key(id))),
            changed: ids(&|id, it| was(id).is_some_and(|old| old != it) && !newly_disabled(id, it)),
            disabled: ids(&newly_disabled),
        }
    }

    fn by_id(&self) -> BTreeMap<&str, &Entry> {
        self.0.values().flatten().map(|entry| (entry.caller.key.as_deref().unwrap_or_default(), entry)).collect()
    }
}

/// The first of these ids, and how many more there are.
fn few(ids: impl Iterator<Item = impl AsRef<str>>) -> Option<String> {
    /// As many as fit a line.
    const SHOWN: usize = 20;
    let mut ids = ids.peekable();
    ids.peek()?;
    let shown = ids.by_ref().take(SHOWN).map(|id| id.as_ref().to_owned()).collect::<Vec<_>>().join(",");
    Some(match ids.count() {
        0 => shown,
        more => format!("{shown} and {more} more"),
    })
}

fn half(KeyHash(hash): KeyHash) -> [u8; 16] {
    hash.first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn record(name: &str) -> KeyRecord {
        KeyRecord {
            id: format!("id-{name}").as_str().into(),
            hash: hash_of(name.as_bytes()),
            owner: None,
            tenant: "t".into(),
            models: None,
            priority: None,
            limits: None,
            expires: None,
            disabled: false,
        }
    }

    #[test]
    fn a_key_is_good_until_its_end_and_not_once_it_was_taken_back() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let keys = Keys::new(vec![
            record("good"),
            KeyRecord { expires: Some(end), ..record("short") },
            KeyRecord { disabled: true, expires: Some(end), ..record("gone") },
        ]);
        let find = |key: &str, now| keys.find(key.as_bytes(), now).map(|it| it.key.as_deref().map(str::to_owned));
        let before = end - Duration::from_nanos(1);
        assert_eq!(find("good", end), Ok(Some("id-good".into())));
        assert_eq!(find("short", before), Ok(Some("id-short".into())));
        assert_eq!(find("short", end), Err(BadKey::Expired));
        assert_eq!(find("gone", before), Err(BadKey::Disabled));
        for wrong in ["", "goo", "good ", "Good", "id-good"] {
            assert_eq!(find(wrong, before), Err(BadKey::Unknown), "{wrong}");
        }
    }

    #[test]
    fn what_became_of_keys_is_told_by_their_ids_and_never_more_than_twenty_of_them() {
        let off = |name: &str| KeyRecord { disabled: true, ..record(name) };
        let before = Keys::new(vec![record("a"), record("b"), record("c"), record("d"), off("e")]);
        let now = Keys::new(vec![
            record("a"),
            off("b"),
            KeyRecord { tenant: "u".into(), ..record("c") },
            off("e"),
            record("f"),
        ]);
        let id = |name: &str| Some(format!("id-{name}"));
        let changes = Changes { added: id("f"), removed: id("d"), changed: id("c"), disabled: id("b") };
        assert_eq!(now.changes_since(&before), changes);
        assert_eq!(now.changes_since(&now), Changes::default());
        let many = Keys::new((10..35).map(|number| record(&number.to_string())).collect());
        let added = many.changes_since(&Keys::default()).added.unwrap();
        assert!(added.starts_with("id-10,id-11,") && added.ends_with(",id-29 and 5 more"), "{added}");
    }

    #[test]
    fn whose_a_key_was_is_known_when_it_is_good_for_nothing_any_more() {
        let keys = Keys::new(vec![KeyRecord { disabled: true, ..record("gone") }]);
        assert_eq!(keys.once_of(b"gone").unwrap().key.as_deref(), Some("id-gone"));
        assert_eq!(keys.once_of(b"never"), None);
    }

    #[test]
    fn hashes_that_begin_alike_are_not_the_same() {
        let mut other = record("good");
        other.hash.0[31] ^= 1;
        let keys = Keys::new(vec![other, record("good")]);
        assert_eq!((keys.0.len(), keys.len()), (1, 2), "both are looked for at one place");
        assert_eq!(keys.find(b"good", SystemTime::UNIX_EPOCH).unwrap().key.as_deref(), Some("id-good"));
    }

    #[test]
    fn among_ten_thousand_keys_one_is_found_as_fast_as_among_ten() {
        let keys = |count: usize| Keys::new((0..count).map(|i| record(&format!("key-{i}"))).collect());
        let (few, many) = (keys(10), keys(10_000));
        // The fastest of several rounds: what else the machine does only makes rounds slower.
        let fastest = |keys: &Keys| {
            let round = |_| {
                #[expect(clippy::disallowed_methods, reason = "it is measured")]
                let began = Instant::now();
                for i in 0..1_000 {
                    assert!(keys.find(format!("key-{}", i % 10).as_bytes(), SystemTime::UNIX_EPOCH).is_ok());
                }
                began.elapsed()
            };
            (0..20).map(round).min().unwrap()
        };
        let (few, many) = (fastest(&few), fastest(&many));
        assert!(many < few * 3, "{many:?} against {few:?}");
    }
}
