//! The operator's listener: as typed, and as checked.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::{tree::At, units::AddressText};

/// The operator's listener, and who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Where it listens.
    pub address: SocketAddr,
    /// A file whose trimmed content must be shown as `Authorization: Bearer`; `None` = whoever reaches it may look.
    pub token_file: Option<PathBuf>,
    /// Names, besides IP addresses and `localhost`, by which it may be called; lower case, without a port.
    pub hosts: Vec<String>,
}

/// The operator's listener.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "an address, such as `{ address: 127.0.0.1:9090 }`")]
pub(in crate::config) struct AdminFile {
    /// IP address and port. Default: 127.0.0.1:9090.
    #[schemars(with = "Option<String>")]
    pub(in crate::config) address: Option<At<AddressText>>,
    /// A file with the bearer token that everything but `/healthz` and `/readyz` asks for; read again when it changes.
    /// Needed where other machines can reach the address. Default: none.
    pub(in crate::config) token_file: Option<At<PathBuf>>,
    /// Names by which browsers and others may call it, besides IP addresses and `localhost`. Default: none.
    pub(in crate::config) hosts: Option<Vec<At<String>>>,
}
