//! One listener's table of models: what clients may ask for there, and what it means.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rand::Rng;

use super::split::{Split, StickyKey, key_of};
use crate::config::{Config, Criticality, Listener, Model, Sticky};

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The name that the client used.
    pub client_model: Arc<str>,
    /// The pool that serves it.
    pub pool: Arc<str>,
    /// What it is called there.
    pub served_model: Arc<str>,
    /// Which arm of the model's split this is.
    pub arm: usize,
    /// Whether the answer carries the client's name instead of the served one.
    pub rewrite_response_model: bool,
    /// How much it matters when not all can be served.
    pub criticality: Criticality,
}

/// Nobody here serves that model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model `{asked}` does not exist here")]
pub struct UnknownModel {
    /// What was asked for.
    pub asked: String,
    /// The configured names, in the configuration's order; what pods report besides is the caller's to add.
    pub served: Vec<String>,
}

/// What one listener serves.
#[derive(Clone, Debug)]
pub struct Table {
    entries: HashMap<Arc<str>, Entry>,
    names: Vec<Arc<str>>,
    reported: Reported,
}

#[derive(Clone, Debug)]
struct Entry {
    name: Arc<str>,
    pool: Arc<str>,
    split: Split,
    sticky: Sticky,
    rewrite_response_model: bool,
    criticality: Criticality,
}

/// Which names that only pods report may be asked for.
#[derive(Clone, Debug)]
enum Reported {
    All,
    None,
}

impl Table {
    /// All models as the configuration has them, for a listener that says nothing of its own.
    pub fn new(config: &Config) -> Self {
        Self::build(config, None)
    }

    /// The table of `listener`: only the models that it names, if it names any, each on the pool that it says.
    pub fn for_listener(config: &Config, listener: &Listener) -> Self {
        Self::build(config, listener.models.as_ref())
    }

    fn build(config: &Config, only: Option<&BTreeMap<Arc<str>, Option<Arc<str>>>>) -> Self {
        let mut table = Self {
            entries: HashMap::new(),
            names: Vec::new(),
            // A listener that names its models serves those and no others.
            reported: if config.api.serve_reported_models && only.is_none() { Reported::All } else { Reported::None },
        };
        for model in &config.models {
            let repointed = match only.map(|only| only.get(&model.name)) {
                Some(None) => continue,
                Some(Some(pool)) => pool.clone(),
                None => None,
            };
            table.names.push(Arc::clone(&model.name));
            table.entries.insert(Arc::clone(&model.name), Entry::new(model, repointed));
        }
        table
    }

    /// The route of a request for `model`. `reported` says which pool has pods that report a name which the
    /// configuration does not know.
    pub fn find(
        &self,
        model: &str,
        key: StickyKey<'_>,
        reported: impl Fn(&str) -> Option<Arc<str>>,
        rng: &mut impl Rng,
    ) -> Result<Route, UnknownModel> {
        let configured = self.entries.get(model).and_then(|entry| entry.route(key, rng));
        configured.or_else(|| self.reported(model, reported)).ok_or_else(|| UnknownModel {
            asked: model.to_owned(),
            served: self.names.iter().map(ToString::to_string).collect(),
        })
    }

    /// The names that clients may ask for by configuration, in its order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }

    /// Whether a name that only pods report may be asked for here.
    pub fn serves_reported(&self) -> bool {
        matches!(self.reported, Reported::All)
    }

    /// The pools that this table can lead to by configuration; one may come several times.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter().filter_map(|name| self.entries.get(name)).map(|entry| &entry.pool)
    }

    fn reported(&self, model: &str, reported: impl Fn(&str) -> Option<Arc<str>>) -> Option<Route> {
        if !self.serves_reported() {
            return None;
        }
        let pool = reported(model)?;
        let name: Arc<str> = model.into();
        Some(Route {
            client_model: Arc::clone(&name),
            pool,
            served_model: name,
            arm: 0,
            rewrite_response_model: false,
            criticality: Criticality::default(),
        })
    }
}

impl Entry {
    fn new(model: &Model, repointed: Option<Arc<str>>) -> Self {
        Self {
            name: Arc::clone(&model.name),
            pool: repointed.unwrap_or_else(|| Arc::clone(&model.pool)),
            split: Split::new(&model.targets),
            sticky: model.sticky,
            rewrite_response_model: model.rewrite_response_model,
            criticality: model.criticality,
        }
    }

    fn route(&self, key: StickyKey<'_>, rng: &mut impl Rng) -> Option<Route> {
        let session = || key.session.map(|session| key_of(session.as_bytes()));
        let key = match self.sticky {
            Sticky::Session => session(),
            Sticky::Conversation => (key.opening)().or_else(session),
            Sticky::None => None,
        };
        let (arm, served_model) = self.split.arm(&self.name, key, rng)?;
        Some(Route {
            client_model: Arc::clone(&self.name),
            pool: Arc::clone(&self.pool),
            served_model,
            arm,
            rewrite_response_model: self.rewrite_response_model,
            criticality: self.criticality,
        })
    }
}
