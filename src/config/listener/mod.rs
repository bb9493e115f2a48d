//! Where clients come in, and how: one address, as typed and as checked.

mod admin;
mod ext_proc;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use schemars::JsonSchema;
use serde::Deserialize;

pub use admin::Admin;
pub(super) use admin::AdminFile;
pub use ext_proc::{BodyMode, ExtProc};
pub(super) use ext_proc::{ExtProcFile, ProtocolFile};

use super::{Scheduler, file::SchedulerFile, tree::At, units::AddressText};

/// One address on which clients come in.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in logs and metrics.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its own scheduler, if it overrides the common one.
    pub scheduler: Option<Scheduler>,
    /// The models served here, by client name, each with the pool to use instead of the model's own; `None` = all
    /// models as they are.
    pub models: Option<BTreeMap<Arc<str>, Option<Arc<str>>>>,
    /// The one pool that serves everything here; `None` = every pool.
    pub pool: Option<Arc<str>>,
    /// If it is asked by Envoy for pods, and not by clients for answers: how.
    pub ext_proc: Option<ExtProc>,
    /// Whether who comes in may say by header which objective is theirs and which model they get; where Envoy asks, always.
    pub trust_headers: bool,
}

/// One address on which clients come in.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a listener, such as `{ name: openai, address: 0.0.0.0:8081 }`")]
pub(in crate::config) struct ListenerFile {
    /// Its name in logs and metrics; unique.
    pub(in crate::config) name: At<String>,
    /// IP address and port, such as 0.0.0.0:8081 or [::]:8081. Port 0 takes any free port.
    #[schemars(with = "String")]
    pub(in crate::config) address: At<AddressText>,
    /// Its own scheduler. Default: the common one.
    pub(in crate::config) scheduler: Option<SchedulerFile>,
    /// The models served here. Default: all of them.
    pub(in crate::config) models: Option<At<Vec<ListenerModelFile>>>,
    /// The one pool that serves everything here, by its own names for models. Default: every pool.
    pub(in crate::config) pool: Option<At<String>>,
    /// Who comes in: clients for answers, or Envoy for pods. Default: http.
    pub(in crate::config) protocol: Option<At<ProtocolFile>>,
    /// How Envoy is served, where `protocol` is ext-proc.
    pub(in crate::config) ext_proc: Option<At<ExtProcFile>>,
    /// Whether clients here may say by header which objective is theirs and which model they get. Default: false.
    pub(in crate::config) trust_headers: Option<At<bool>>,
}

/// A model that a listener serves.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a model, such as `{ modelName: llama2 }`")]
#[serde(rename_all = "camelCase")]
pub(in crate::config) struct ListenerModelFile {
    /// The name, as in `models`.
    pub(in crate::config) model_name: At<String>,
    /// Another pool than the model's own, to have old and new side by side.
    pub(in crate::config) pool_ref: Option<At<String>>,
}
