//! Label values that cannot grow without bound.
//!
//! A label value comes from an enum, from the configuration, or through [`Bounded`]; never raw from a request.

use std::{
    collections::HashSet,
    fmt::{self, Write as _},
    sync::{Arc, PoisonError, RwLock},
};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

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

/// Whose request it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Listener name.
    pub listener: Name,
    /// What was asked for, such as `chat_completions`.
    pub endpoint: &'static str,
    /// The client's name for the model; `unknown` if nobody serves it.
    pub model: Name,
    /// HTTP status of the answer; 499 if the client left before it.
    pub code: u16,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabels {
    /// Listener name.
    pub listener: Name,
}

/// A certificate that a listener shows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CertificateLabels {
    /// Listener name.
    pub listener: Name,
    /// The file that it is in, as the configuration names it.
    pub name: Name,
}

/// A listener and a model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModelLabels {
    /// Listener name.
    pub listener: Name,
    /// The client's name for the model.
    pub model: Name,
}

/// Tokens by kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TokenLabels {
    /// The client's name for the model.
    pub model: Name,
    /// `input`, `output` or `cached` (the part of the input found in a prefix cache).
    pub kind: &'static str,
}

/// A split's arm.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ArmLabels {
    /// The client's name for the model.
    pub model: Name,
    /// The served model's name.
    pub target: Name,
}

/// A listener and a reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// Listener name.
    pub listener: Name,
    /// Why, from a fixed set.
    pub reason: &'static str,
}

/// A pool and a reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolReasonLabels {
    /// Pool name.
    pub pool: Name,
    /// Why, from a fixed set.
    pub reason: &'static str,
}

/// A pool and how much requests matter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolBandLabels {
    /// Pool name.
    pub pool: Name,
    /// `critical`, `standard` or `sheddable`.
    pub band: &'static str,
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// `applied`, `invalid` or `needs_restart`.
    pub outcome: &'static str,
}

/// Which configuration is in force.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConfigLabels {
    /// The hash of its text.
    pub hash: Name,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PoolLabels {
    /// Pool name.
    pub pool: Name,
}

/// How a pod was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DecisionLabels {
    /// Pool name.
    pub pool: Name,
    /// The policy's name.
    pub policy: &'static str,
    /// What the choice stood on: `fresh`, `in_flight_only` or `round_robin`.
    pub sight: &'static str,
}

/// A pod's labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PodLabels {
    pub(super) pool: Name,
    pub(super) pod: Name,
}

/// A kind of Kubernetes objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct KindLabels {
    pub(super) kind: &'static str,
    pub(super) group: &'static str,
}

/// A pod's labels and its condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ConditionLabels {
    pub(super) pool: Name,
    pub(super) pod: Name,
    pub(super) condition: &'static str,
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
