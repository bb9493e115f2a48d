//! In which scopes a request counts, by who asks and for what.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Scope;
use crate::{
    admission::Caller,
    config::{Quota, Quotas},
};

/// The scopes of one request, in the order of [`Scope`].
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub(super) scopes: SmallVec<[Counted; 4]>,
}

/// A scope and its limits.
#[derive(Clone, Debug)]
pub struct Counted {
    /// Which.
    pub scope: Scope,
    /// Its limits.
    pub quota: Arc<Quota>,
    /// Whether the configuration names it, so that it is one of few.
    pub named: bool,
}

impl Plan {
    /// What counts for `caller`, who asks for `model` by the name that clients use, or for none.
    pub fn of(quotas: &Quotas, caller: &Caller, model: Option<&Arc<str>>) -> Self {
        let mut scopes = SmallVec::new();
        let mut add = |scope: &dyn Fn() -> Scope, quota: Option<&Arc<Quota>>, named| {
            if let Some(quota) = quota {
                scopes.push(Counted { scope: scope(), quota: Arc::clone(quota), named });
            }
        };
        add(&|| Scope::All, quotas.all.as_ref(), true);
        if let Some(model) = model {
            add(&|| Scope::Model(Arc::clone(model)), quotas.models.get(model), true);
        }
        let own = quotas.tenants.get(&caller.tenant);
        add(&|| Scope::Tenant(Arc::clone(&caller.tenant)), own.or(quotas.each_tenant.as_ref()), own.is_some());
        if let Some(key) = &caller.key {
            let quota = caller.limits.as_ref().or(quotas.each_key.as_ref());
            add(&|| Scope::Key(Arc::clone(key)), quota, false);
        }
        Self { scopes }
    }

    /// Whether nothing counts.
    pub fn is_empty(&self) -> bool {
        self.scopes.is_empty()
    }

    /// Whether it matters how many tokens the request takes.
    pub fn counts_tokens(&self) -> bool {
        self.scopes.iter().any(|it| it.quota.counts_tokens())
    }

    /// The scopes.
    pub fn scopes(&self) -> &[Counted] {
        &self.scopes
    }
}
