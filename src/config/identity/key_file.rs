//! A file of keys: a list of who has which, without the keys themselves.
//!
//! A key is 256 random bits, and what is kept of it is its SHA-256. No salt and no slow hash: those protect what people
//! make up and others could guess, and nobody tries 2^256 keys.

use std::{collections::BTreeMap, fmt, sync::Arc, time::SystemTime};

use serde::Deserialize;

use super::{AllowedModels, LONGEST_NAME, moment};
use crate::config::{
    Quota, Report,
    check::Sheet,
    quotas::{QuotaFile, quota},
    report::Source,
    shape,
    tree::{self, At, Kind},
};

/// The largest key file read: 10,000 keys of 400 bytes each, and as much again.
pub const MAX_KEY_FILE: u64 = 8 << 20;

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl KeyHash {
    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != hash.len() || !rest.is_empty() {
            return None;
        }
        let digit = |letter: u8| char::from(letter).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Self(hash))
    }
}

/// What is known of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyRecord {
    /// Its public name: short, and no secret.
    pub id: Arc<str>,
    /// Its hash.
    pub hash: KeyHash,
    /// Whose it is, for people.
    pub owner: Option<String>,
    /// Whose limits and share count.
    pub tenant: Arc<str>,
    /// Which models it may ask for; `None`: all.
    pub models: Option<AllowedModels>,
    /// How much its requests matter.
    pub priority: Option<i32>,
    /// What it may use up, instead of what holds for each key that says nothing.
    pub limits: Option<Arc<Quota>>,
    /// From when on it is good for nothing.
    pub expires: Option<SystemTime>,
    /// Whether it is good for nothing already.
    pub disabled: bool,
}

/// One entry as typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a key, such as `{ id: ab12, hash: ... }`")]
struct KeyFile {
    id: At<String>,
    hash: At<String>,
    owner: Option<String>,
    tenant: Option<At<String>>,
    models: Option<At<Vec<String>>>,
    priority: Option<i32>,
    limits: Option<QuotaFile>,
    expires: Option<At<String>>,
    disabled: Option<bool>,
}

/// Reads a list of keys.
///
/// `[]` says that there are none; an empty file is an error, because that is what a half-written one looks like.
///
/// # Errors
/// Every problem there is, with its line.
pub fn parse_keys(name: &str, text: &str) -> Result<Vec<KeyRecord>, Report> {
    // Without its lines: where a hash should be, somebody may have put the key, and problems go to logs.
    let source = Source::new(name, "");
    let root = tree::parse_large(text).map_err(|finding| Report { problems: source.problems(vec![finding]) })?;
    let mut sheet = Sheet::default();
    if matches!(root.kind, Kind::Null) {
        sheet.error(
            root.place,
            "the list of keys is empty",
            "make one with `tidegate keys new`, or write `[]` for none",
        );
    }
    let reading = shape::read::<Option<Vec<KeyFile>>>(&root);
    sheet.take(reading.findings);
    let entries = reading.value.flatten().unwrap_or_default();
    sheet.names("key", &entries.iter().map(|entry| &entry.id).collect::<Vec<_>>());
    let mut seen = BTreeMap::new();
    let mut records = Vec::with_capacity(entries.len());
    for entry in entries {
        let place = entry.hash.place;
        let Some(record) = record(entry, &mut sheet) else { continue };
        if let Some(line) = seen.insert(record.hash.0, place.line) {
            sheet.error(place, "two keys have the same hash", format!("keep one: the first is on line {line}"));
        }
        records.push(record);
    }
    match sheet.errors() {
        0 => Ok(records),
        _ => Err(Report { problems: source.problems(sheet.findings) }),
    }
}

fn record(entry: KeyFile, sheet: &mut Sheet) -> Option<KeyRecord> {
    let hash = KeyHash::from_hex(&entry.hash.value);
    if hash.is_none() {
        let remedy = "write its SHA-256 as 64 hexadecimal digits: `tidegate keys hash`";
        sheet.error(entry.hash.place, "this is not a key's hash", remedy);
    }
    name(&entry.id, "key", sheet);
    let tenant = entry.tenant.as_ref().unwrap_or(&entry.id);
    name(tenant, "tenant", sheet);
    let expires = entry.expires.as_ref().and_then(|at| {
        let found = moment(&at.value);
        if found.is_none() {
            let remedy = "write a day such as `2027-01-31`, or a moment such as `2027-01-31T12:00:00Z`";
            sheet.error(at.place, format!("`{}` is not a moment", at.value), remedy);
        }
        found
    });
    Some(KeyRecord {
        id: entry.id.value.as_str().into(),
        hash: hash?,
        owner: entry.owner,
        tenant: tenant.value.as_str().into(),
        models: entry.models.map(|at| AllowedModels::new(at.value)),
        priority: entry.priority,
        limits: entry.limits.map(|limits| Arc::new(quota(&limits, sheet))),
        expires,
        disabled: entry.disabled.unwrap_or(false),
    })
}

/// A name that goes to logs and counts in limits.
pub(super) fn name(at: &At<String>, what: &str, sheet: &mut Sheet) {
    let text = at.value.as_str();
    if !is_name(text) {
        let remedy = format!("use 1 to {LONGEST_NAME} characters that can be printed");
        sheet.error(at.place, format!("this is not a name for a {what}"), remedy);
    }
}

/// Whether a text can be a tenant's, key's or owner's name.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= LONGEST_NAME && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn problems(text: &str) -> String {
        parse_keys("keys.yaml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_key_has_its_own_tenant_and_all_models_unless_more_is_said() {
        let other = HASH.replace('b', "c");
        let text = format!(
            "- {{ id: a, hash: {HASH} }}\n- id: b\n  hash: {other}\n  owner: Bea\n  tenant: shop\n  models: [llama-*]\n  \
             priority: -1\n  expires: 2027-01-31\n  disabled: true\n"
        );
        let keys = parse_keys("keys.yaml", &text).unwrap();
        let [a, b] = &keys[..] else { panic!("{keys:?}") };
        assert_eq!((&*a.id, &*a.tenant, &a.models, a.expires, a.disabled), ("a", "a", &None, None, false));
        assert_eq!(a.hash.to_string(), HASH);
        assert_eq!((&*b.tenant, b.owner.as_deref(), b.priority, b.disabled), ("shop", Some("Bea"), Some(-1), true));
        assert!(b.models.as_ref().unwrap().allows("llama-7b") && b.expires == moment("2027-01-31"));
        assert!(!format!("{keys:?}").contains("ba78"), "not even the hash is in a log: {keys:?}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_never_repeats_what_may_be_a_key() {
        for (text, told) in [
            ("", "the list of keys is empty"),
            ("- { id: a, hash: tg-secret }", "1:18: error: this is not a key's hash"),
            (&format!("- {{ id: a, hash: {HASH}, expires: soon }}"), "`soon` is not a moment"),
            (
                &format!("- {{ id: a, hash: {HASH} }}\n- {{ id: b, hash: {HASH} }}"),
                "2:18: error: two keys have the same hash",
            ),
            (
                &format!("- {{ id: a, hash: {HASH} }}\n- {{ id: a, hash: {} }}", HASH.replace('b', "c")),
                "two keys called `a`",
            ),
            (&format!("- {{ id: a, hash: {HASH}, expire: 2027-01-01 }}"), "`expire` is not a field here"),
            (&format!("- {{ id: {}, hash: {HASH} }}", "a".repeat(129)), "not a name for a key"),
        ] {
            let said = problems(text);
            assert!(said.contains(told), "{told} not in {said}");
            assert!(!said.contains("tg-secret"), "{said}");
        }
        assert_eq!(parse_keys("k", "[]").unwrap(), []);
    }

    #[test]
    fn ten_thousand_keys_fit() {
        let line = |i| {
            let known = format!("id: k{i}, hash: a{i:063x}, owner: o, tenant: t");
            format!("- {{ {known}, models: [m], priority: 1, expires: 2027-01-01, disabled: false }}")
        };
        let text = (0..10_000).map(line).collect::<Vec<_>>().join("\n");
        assert_eq!(parse_keys("keys.yaml", &text).unwrap().len(), 10_000);
        assert!((text.len() as u64) < MAX_KEY_FILE);
    }
}
