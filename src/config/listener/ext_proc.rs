//! How a listener serves Envoy that asks for pods: as typed, and as checked.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ClientCertificates, ClientCertificatesFile};
use crate::config::{file::DoorFile, tree::At, units::Span};

/// How Envoy is served that asks for pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtProc {
    /// Whether it speaks TLS.
    pub secure: bool,
    /// The folder of `tls.crt` and `tls.key`; `None` = a certificate of its own making.
    pub cert_path: Option<PathBuf>,
    /// How requests' bodies come from a filter that does not say it.
    pub request_body: BodyMode,
    /// How answers' bodies do.
    pub response_body: BodyMode,
    /// Whether answers are read along; if not, the conversation ends with the choice.
    pub observe_responses: bool,
    /// Further pods named behind the chosen one.
    pub fallbacks: usize,
    /// Whether paths that are no inference get a pod as well.
    pub other_paths: bool,
    /// Whose certificates gateways show, if they are asked for one.
    pub client_certificates: Option<ClientCertificates>,
    /// For how long Envoy's filter waits for a word of ours, if that is told.
    pub message_timeout: Option<Duration>,
    /// Where health is told without TLS, besides the listener itself.
    pub health: Option<SocketAddr>,
}

/// How bodies come from Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BodyMode {
    /// `FULL_DUPLEX_STREAMED`.
    #[default]
    Streamed,
    /// `BUFFERED`.
    Buffered,
}

/// Who comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(in crate::config) enum ProtocolFile {
    /// Clients, over HTTP.
    Http,
    /// Envoy, whose `ext_proc` filter asks which pod to take: a picker for the Gateway API Inference Extension.
    ExtProc,
}

/// How Envoy is served.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map, such as `{ secure: false }`")]
pub(in crate::config) struct ExtProcFile {
    /// Whether it speaks TLS. Default: true.
    pub(in crate::config) secure: Option<bool>,
    /// The folder of `tls.crt` and `tls.key`, read again when they change. Default: a certificate of its own making.
    pub(in crate::config) cert_path: Option<At<PathBuf>>,
    /// How requests' bodies come from a filter that does not say it (Envoy says it). Default: streamed.
    pub(in crate::config) request_body: Option<BodyMode>,
    /// How answers' bodies come from such a filter. Default: streamed.
    pub(in crate::config) response_body: Option<BodyMode>,
    /// Whether answers are read along, for usage, times and the prefix index. Default: true.
    pub(in crate::config) observe_responses: Option<bool>,
    /// Further pods named behind the chosen one, for gateways that retry along the list. Default: 0.
    pub(in crate::config) fallbacks: Option<At<u32>>,
    /// Whether paths that are no inference get a pod as well: the route has let them through. Default: true.
    pub(in crate::config) other_paths: Option<bool>,
    /// Whether gateways are asked for a certificate. Default: they are not.
    pub(in crate::config) client_certificates: Option<ClientCertificatesFile>,
    /// The filter's `message_timeout`: a request waits for no more than nine tenths of it. Default: not told.
    pub(in crate::config) message_timeout: Option<At<Span>>,
    /// Where `grpc.health.v1` is told without TLS, for kubelet. Default: at the listener itself only.
    pub(in crate::config) health: Option<DoorFile>,
}
