//! Where clients come in, and how: one address, as typed and as checked.

mod admin;
mod cors;
mod ext_proc;
mod network;
mod tls;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use schemars::JsonSchema;
use serde::Deserialize;

pub use admin::Admin;
pub(super) use admin::AdminFile;
pub use cors::Cors;
pub(super) use cors::CorsFile;
pub use ext_proc::{BodyMode, ExtProc};
pub(super) use ext_proc::{ExtProcFile, ProtocolFile};
pub(super) use network::network;
pub use network::{AddressHeader, Network, Networks, ProxyProtocol};
pub use tls::{ClientCertificates, KeyPair, ListenerTls, TlsVersion};
pub(super) use tls::{ClientCertificatesFile, KeyPairFile, ListenerTlsFile};

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
    /// How it speaks TLS, if clients come in and it does.
    pub tls: Option<ListenerTls>,
    /// Who may come in by address.
    pub network: Arc<Network>,
    /// Which web pages may call; `None` = none.
    pub cors: Option<Arc<Cors>>,
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
    /// How it speaks TLS. Default: it does not; where Envoy asks, `ext_proc` says it.
    pub(in crate::config) tls: Option<At<ListenerTlsFile>>,
    /// Whether connections begin with the PROXY protocol, by which balancers say whose they are. Default: off.
    pub(in crate::config) proxy_protocol: Option<At<ProxyProtocol>>,
    /// The networks of proxies and balancers that are believed about where a client comes from. Default: none.
    pub(in crate::config) trusted_proxies: Option<At<Vec<At<String>>>>,
    /// The header by which they say it. Default: x-forwarded-for.
    pub(in crate::config) client_address_header: Option<At<AddressHeader>>,
    /// The networks from which clients may come. Default: all.
    pub(in crate::config) allow: Option<At<Vec<At<String>>>>,
    /// The networks from which none may; wins over `allow`. Default: none.
    pub(in crate::config) deny: Option<At<Vec<At<String>>>>,
    /// Which web pages may call from a browser. Default: none.
    pub(in crate::config) cors: Option<CorsFile>,
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
