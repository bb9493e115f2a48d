//! Label values that cannot grow without bound.
//!
//! A label value comes from an enum, from the configuration, or through [`Bounded`]; never raw from a request.

use std::{
    collections::HashSet,
    fmt::{self, Write as _},
    sync::{Arc, PoisonError, RwLock},
};

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// Distinct reported model names that become label values; the rest is `other`. A fleet with more adapters than this
/// is watched per pool (the reference picker caps at 1,000 as well).
const MAX_NAMES: usize = 1_000;

/// A shared label value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(pub Arc<str>);

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<&Arc<str>> for Name {
    fn from(text: &Arc<str>) -> Self {
        Self(Arc::clone(text))
    }
}

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        encoder.write_str(&self.0)
    }
}

/// Lets the first [`MAX_NAMES`] distinct names through and calls the others `other`.
#[derive(Debug)]
pub struct Bounded {
    seen: RwLock<HashSet<Arc<str>>>,
    other: Name,
}

impl Default for Bounded {
    fn default() -> Self {
        Self { seen: RwLock::default(), other: Name::from("other") }
    }
}

impl Bounded {
    /// `name` as a label value.
    pub fn name(&self, name: &Arc<str>) -> Name {
        if self.seen.read().unwrap_or_else(PoisonError::into_inner).contains(name) {
            return Name::from(name);
        }
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_NAMES {
            return self.other.clone();
        }
        seen.insert(Arc::clone(name));
        Name::from(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_random_models_make_at_most_a_thousand_and_one_label_values() {
        let bounded = Bounded::default();
        let names: HashSet<Name> = (0..100_000).map(|i| bounded.name(&format!("m{i}").into())).collect();
        assert_eq!(names.len(), MAX_NAMES + 1);
        assert_eq!(bounded.name(&"m3".into()), Name::from("m3"));
    }
}
