//! Who came, and whether it is known by what they are judged: families of their own, so that tenants do not multiply those
//! that have models and statuses.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Name, labels::Bounded};
use crate::openai::Usage;

/// A tenant and a status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TenantLabels {
    tenant: Name,
    code: u16,
}

/// A tenant's tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TenantTokenLabels {
    tenant: Name,
    kind: &'static str,
}

/// Where it is read who may come.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SourceLabels {
    source: Name,
}

/// The families.
#[derive(Debug, Default)]
pub struct IdentityMetrics {
    /// Bounds tenants that tokens and gateways name.
    names: Bounded,
    requests: Family<TenantLabels, Counter>,
    tokens: Family<TenantTokenLabels, Counter>,
    sources: Family<SourceLabels, Gauge>,
    /// Keys in force.
    pub keys: Gauge,
}

impl IdentityMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("tenant_requests", "Requests by tenant and status", self.requests.clone());
        r.register("tenant_tokens", "Tokens by tenant and kind, as the pods report them", self.tokens.clone());
        let usable = "1 if a file or issuer was read well the last time; at 0 its last word stays";
        r.register("identity_source_usable", usable, self.sources.clone());
        r.register("api_keys", "Keys in force, those that have ended or are disabled too", self.keys.clone());
    }

    /// A request of `tenant` came to its end and took so much.
    pub fn ended(&self, tenant: &std::sync::Arc<str>, code: u16, usage: Option<Usage>) {
        let tenant = self.names.name(tenant);
        self.requests.get_or_create(&TenantLabels { tenant: tenant.clone(), code }).inc();
        let usage = usage.unwrap_or_default();
        let (input, output, cached) = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens);
        for (kind, tokens) in [("input", input), ("output", output), ("cached", cached)] {
            if let Some(tokens) = tokens {
                let labels = TenantTokenLabels { tenant: tenant.clone(), kind };
                self.tokens.get_or_create(&labels).inc_by(u64::from(tokens));
            }
        }
    }

    /// A file or issuer was read, well or not.
    pub fn source(&self, name: &str, well: bool) {
        self.sources.get_or_create(&SourceLabels { source: Name::from(name) }).set(i64::from(well));
    }
}
