//! Who claims which model name: an `InferenceModel`, or one match of an `InferenceModelRewrite`.

use std::{fmt, sync::Arc};

use super::{
    Kind, ObjectName,
    objects::{ModelBody, Object, PoolRef, Rule},
};
use crate::config::Criticality;

/// Somebody's claim to a model name.
pub(super) struct Claim<'a> {
    pub(super) kind: Kind,
    pub(super) name: &'a ObjectName,
    pub(super) object: &'a Object,
    /// Where the name stands.
    pub(super) field: String,
    /// `None`: every other model of the pool.
    pub(super) model: Option<&'a str>,
    pub(super) pool: &'a PoolRef,
    pub(super) targets: Vec<(&'a str, Option<u32>)>,
    /// Where the targets stand.
    pub(super) targets_field: String,
    pub(super) criticality: Criticality,
    /// Whether answers carry the client's name for the model.
    pub(super) hides: bool,
}

impl Claim<'_> {
    /// What it does not say and should.
    pub(super) fn lacks(&self) -> Option<(&'static str, &'static str)> {
        match self.model {
            Some("") => Some(("it names no model", "write the name that clients ask for")),
            None if self.targets.is_empty() => Some(("it names no target", "write what the models become")),
            _ => None,
        }
    }
}

/// What only one can have.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claimed {
    /// A pool's name for a model, the pool first.
    NameInPool(Arc<str>, Arc<str>),
    /// A name that clients ask for where they do not say which pool.
    Name(Arc<str>),
    /// All other names that lead to a pool.
    Rest(Arc<str>),
}

impl Claimed {
    /// What somebody claims who names `model` of `pool`; all others if it names none.
    pub(super) fn all(model: Option<&str>, pool: &Arc<str>) -> impl Iterator<Item = Self> + use<> {
        let name = model.map(Arc::<str>::from);
        let of_name = name.map(|name| [Self::NameInPool(Arc::clone(pool), Arc::clone(&name)), Self::Name(name)]);
        let rest = of_name.is_none().then(|| Self::Rest(Arc::clone(pool)));
        of_name.into_iter().flatten().chain(rest)
    }
}

impl fmt::Display for Claimed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) | Self::NameInPool(_, name) => write!(out, "the model name `{name}` is"),
            Self::Rest(pool) => write!(out, "all other names of pool `{pool}` are"),
        }
    }
}

impl<'a> Claim<'a> {
    pub(super) fn of_model(of: (Kind, &'a ObjectName), object: &'a Object, model: &'a ModelBody) -> Self {
        Self {
            kind: of.0,
            name: of.1,
            object,
            field: "spec.modelName".to_owned(),
            model: Some(&model.model_name),
            pool: &model.pool,
            targets: model.targets.iter().map(|(name, weight)| (name.as_str(), *weight)).collect(),
            targets_field: "spec.targetModels".to_owned(),
            criticality: model.criticality,
            hides: false,
        }
    }

    pub(super) fn of_rule(
        of: (Kind, &'a ObjectName),
        object: &'a Object,
        (pool, rule, number): (&'a PoolRef, &'a Rule, usize),
        (model, field): (Option<&'a str>, String),
    ) -> Self {
        let targets = rule.targets.as_deref().unwrap_or_default();
        Self {
            kind: of.0,
            name: of.1,
            object,
            field,
            model,
            pool,
            targets: targets.iter().map(|target| (target.model.as_str(), target.weight)).collect(),
            targets_field: format!("spec.rules[{number}].targets"),
            criticality: Criticality::default(),
            hides: true,
        }
    }
}
