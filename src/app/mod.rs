//! All rooms put together: a checked configuration becomes a running gateway, and a running gateway stops in order.

mod build;
mod house;
mod senses;
mod stop;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use tokio::net::TcpListener;

pub use build::{start, start_logging};
pub use house::still_house;
pub use stop::Stopped;

use crate::{
    edge::Stage,
    gateway::{CurrentPolicy, House},
    tasks::Tasks,
};

/// A gateway that runs.
#[derive(Debug)]
pub struct Running {
    /// Each listener's name and bound address, in the configuration's order.
    pub listeners: Vec<(Arc<str>, SocketAddr)>,
    /// Where the operator looks.
    pub admin: SocketAddr,
    /// Where kubelet and Prometheus look, if apart.
    pub probes: Option<SocketAddr>,
    /// All that outlives a policy.
    pub house: Arc<House>,
    /// The policy in force.
    pub policy: CurrentPolicy,
    stage: Arc<Stage>,
    clients: Tasks,
    office: Tasks,
    background: Tasks,
}

/// Why a gateway could not start. The system's own words are the error's source, and not said here as well.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} for {what}{}", remedy(.source))]
    Bind {
        /// What was to listen there.
        what: String,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The decision log cannot be written.
    #[error("cannot write the decision log {path}; check the path after --decision-log, and who may write there")]
    DecisionLog {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The certificates for https pods.
    #[error("cannot prepare TLS towards the pods")]
    Tls(#[from] io::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => " (stop the process that has that port, `ss -ltnp` names it, or choose another)",
        io::ErrorKind::PermissionDenied => " (ports below 1024 need the capability CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => " (this machine has no such address; 0.0.0.0 stands for all it has)",
        _ => "",
    }
}

async fn bind(what: String, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Bind { what, address, source })
}
