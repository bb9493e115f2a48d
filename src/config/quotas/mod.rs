//! What somebody may use up, and what it costs: as typed, and as checked.
//!
//! `limits:` elsewhere bounds what the gateway itself holds; here it is what callers get. The old word stays where it was.

mod check;
mod prices;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use check::{quota, quotas};
pub(super) use prices::PriceFile;
pub use prices::{GpuPrice, Money, Price, TokenPrice};

use super::{tree::At, units::Span};

/// What somebody may use up; `None` = as much as they like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests begun in a minute.
    pub requests_per_minute: Option<u64>,
    /// Tokens in a minute, of prompts and answers together.
    pub tokens_per_minute: Option<u64>,
    /// Tokens of prompts in a minute.
    pub input_tokens_per_minute: Option<u64>,
    /// Tokens of answers in a minute.
    pub output_tokens_per_minute: Option<u64>,
    /// Requests open at once.
    pub concurrent_requests: Option<u64>,
    /// What may be spent in a day, from midnight to midnight UTC.
    pub budget_per_day: Option<Money>,
    /// What may be spent in a month, UTC.
    pub budget_per_month: Option<Money>,
    /// Whether anybody is refused; else it is only counted and told who would be.
    pub enforce: bool,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            tokens_per_minute: None,
            input_tokens_per_minute: None,
            output_tokens_per_minute: None,
            concurrent_requests: None,
            budget_per_day: None,
            budget_per_month: None,
            enforce: true,
        }
    }
}

impl Quota {
    /// Whether it depends on how many tokens a request took.
    pub fn counts_tokens(&self) -> bool {
        self.tokens_per_minute.is_some()
            || self.input_tokens_per_minute.is_some()
            || self.output_tokens_per_minute.is_some()
            || self.counts_money()
    }

    /// Whether it depends on what a request cost.
    pub fn counts_money(&self) -> bool {
        self.budget_per_day.is_some() || self.budget_per_month.is_some()
    }
}

/// Who may use up how much, what it costs, and where the counts are kept.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Quotas {
    /// Everybody together.
    pub all: Option<Arc<Quota>>,
    /// Each tenant that `tenants` does not name.
    pub each_tenant: Option<Arc<Quota>>,
    /// Tenants by name.
    pub tenants: BTreeMap<Arc<str>, Arc<Quota>>,
    /// Each key that says nothing of its own.
    pub each_key: Option<Arc<Quota>>,
    /// Models by the name that clients use.
    pub models: BTreeMap<Arc<str>, Arc<Quota>>,
    /// What models cost, by the name that clients use.
    pub prices: BTreeMap<Arc<str>, Price>,
    /// Where counts outlive the process.
    pub state_file: Option<PathBuf>,
    /// Where several gateways count together.
    pub redis: Option<Redis>,
}

/// Where several gateways count together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// Such as `redis://10.0.0.5:6379/0`.
    pub url: String,
    /// A file whose trimmed content is the password; read again at each connection.
    pub password_file: Option<PathBuf>,
    /// What happens while it does not answer.
    pub outage: Outage,
    /// How long one question may take.
    pub timeout: Duration,
    /// What all its keys begin with.
    pub prefix: String,
}

/// What happens to requests while shared counts cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outage {
    /// Each gateway counts for itself, the whole limit each.
    #[default]
    Local,
    /// Nobody is refused for a limit.
    Allow,
    /// Everybody who has a limit is refused.
    Refuse,
}

impl Outage {
    /// The word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Allow => "allow",
            Self::Refuse => "refuse",
        }
    }
}

/// What somebody may use up. What is left out is not limited.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ requests_per_minute: 60 }`")]
pub(super) struct QuotaFile {
    /// Requests begun in a minute.
    pub(super) requests_per_minute: Option<At<u64>>,
    /// Tokens in a minute, of prompts and answers together.
    pub(super) tokens_per_minute: Option<At<u64>>,
    /// Tokens of prompts in a minute.
    pub(super) input_tokens_per_minute: Option<At<u64>>,
    /// Tokens of answers in a minute.
    pub(super) output_tokens_per_minute: Option<At<u64>>,
    /// Requests open at once.
    pub(super) concurrent_requests: Option<At<u64>>,
    /// What may be spent in a day, from midnight to midnight UTC, in the currency of `prices`.
    pub(super) budget_per_day: Option<At<f64>>,
    /// What may be spent in a calendar month, UTC, in the currency of `prices`.
    pub(super) budget_per_month: Option<At<f64>>,
    /// Whether anybody is refused; false: it is counted and told who would be. Default: true.
    pub(super) enforce: Option<bool>,
}

/// Who may use up how much, and what it costs.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ each_tenant: { requests_per_minute: 60 } }`")]
pub(super) struct QuotasFile {
    /// Everybody together. Default: no limit.
    pub(super) all: Option<QuotaFile>,
    /// Each tenant that `tenants` does not name. Default: no limit.
    pub(super) each_tenant: Option<QuotaFile>,
    /// Tenants with limits of their own. Default: none.
    #[serde(default)]
    pub(super) tenants: Vec<TenantFile>,
    /// Each key that has no `limits` of its own. Default: no limit.
    pub(super) each_key: Option<QuotaFile>,
    /// Limits of a model, over all who use it. Default: none.
    #[serde(default)]
    pub(super) models: Vec<ModelQuotaFile>,
    /// What models cost. Default: nothing, so that budgets are never used up.
    #[serde(default)]
    pub(super) prices: Vec<PriceFile>,
    /// A file in which counts outlive the process. Default: they begin anew.
    pub(super) state_file: Option<At<PathBuf>>,
    /// Where several gateways count together. Default: each counts for itself.
    pub(super) redis: Option<RedisFile>,
}

/// A tenant's limits.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a tenant, such as `{ name: team-a, limits: { requests_per_minute: 60 } }`")]
pub(super) struct TenantFile {
    /// Its name, as keys and tokens say it; `anonymous` for all who show nothing.
    pub(super) name: At<String>,
    /// What it may use up.
    pub(super) limits: QuotaFile,
}

/// A model's limits.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a model, such as `{ modelName: llama2, limits: { tokens_per_minute: 100000 } }`"
)]
#[serde(rename_all = "camelCase")]
pub(super) struct ModelQuotaFile {
    /// Its name, as clients say it.
    pub(super) model_name: At<String>,
    /// What all its requests together may use up.
    pub(super) limits: QuotaFile,
}

/// Where several gateways count together.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ url: \"redis://10.0.0.5:6379\" }`")]
pub(super) struct RedisFile {
    /// Such as `redis://10.0.0.5:6379/0`, without a password.
    pub(super) url: At<String>,
    /// A file whose trimmed content is the password. Default: none.
    pub(super) password_file: Option<PathBuf>,
    /// What happens while it does not answer: each gateway counts for itself, nobody is refused, or everybody who has a
    /// limit is. Default: local.
    pub(super) outage: Option<Outage>,
    /// How long one question may take. Default: 100ms.
    pub(super) timeout: Option<At<Span>>,
    /// What all its keys begin with, so that several fleets can share it. Default: tidegate.
    pub(super) prefix: Option<At<String>>,
}
