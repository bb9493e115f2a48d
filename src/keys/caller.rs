//! Who asks, as far as those need to know who decide what may come in and when.

use std::sync::Arc;

use crate::config::{AllowedModels, Quota};

/// Who asks. Made from a credential or from what a trusted gateway says, never from what a client calls itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Caller {
    /// Whose limits and whose share of a full fleet count; many callers may be of one tenant.
    pub tenant: Arc<str>,
    /// The public id of the key that was shown, if one was: short, and no secret.
    pub key: Option<Arc<str>>,
    /// How much its requests matter, if that is said of it: higher comes first, below 0 may be shed.
    pub priority: Option<i32>,
    /// Which models it may ask for; `None`: all.
    pub models: Option<AllowedModels>,
    /// What its key may use up, if that is said with the key; else what holds for each key.
    pub limits: Option<Arc<Quota>>,
}

impl Caller {
    /// The tenant of all who show nothing.
    pub const ANONYMOUS: &str = "anonymous";

    /// Somebody of `tenant` of whom nothing else is said.
    pub fn of(tenant: Arc<str>) -> Self {
        Self { tenant, key: None, priority: None, models: None, limits: None }
    }

    /// Somebody who showed nothing where nothing need be shown.
    pub fn anonymous() -> Self {
        Self::of(Self::ANONYMOUS.into())
    }

    /// Whether it may ask for `model`.
    pub fn may_ask_for(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.allows(model))
    }
}
