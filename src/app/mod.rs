//! All rooms put together: a checked configuration becomes a running gateway, and a running gateway stops in order.

mod build;
mod counts;
mod files;
mod handed;
mod house;
mod picker;
mod reload;
mod secrets;
mod senses;
mod stop;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use xxhash_rust::xxh3::xxh3_64;

pub use build::{start, start_logging};
pub use files::OpenFiles;
pub use house::still_house;
pub use reload::{Reloaded, Reloader, hash};
pub use stop::Stopped;

use crate::{
    admin::{BadTokenFile, ConfigRecord},
    clock, config,
    edge::Stage,
    gateway::{CurrentPolicy, House},
    keys::KeyringError,
    tasks::Tasks,
    telemetry::logs::Level,
};
use house::Instruments;

/// A gateway that runs.
#[derive(Debug)]
pub struct Running {
    /// Each listener's name and bound address, in the configuration's order.
    pub listeners: Vec<(Arc<str>, SocketAddr)>,
    /// Where pickers tell of their health, by the same names.
    pub health: Vec<(Arc<str>, SocketAddr)>,
    /// Where the operator looks.
    pub admin: SocketAddr,
    /// Where kubelet and Prometheus look, if apart.
    pub probes: Option<SocketAddr>,
    /// All that outlives a policy.
    pub house: Arc<House>,
    /// The policy in force.
    pub policy: CurrentPolicy,
    stage: Arc<Stage>,
    office_stage: Arc<Stage>,
    instruments: Arc<Instruments>,
    record: Arc<ConfigRecord>,
    clients: Tasks,
    office: Tasks,
    background: Tasks,
}

impl Running {
    /// Whoever brings new configurations from `file` into force, the first of which had this `text`; the log follows
    /// through `level`. It reloads when asked to; [`Running::follow`] asks it whenever the file changes.
    pub fn reloader(&self, file: &Path, text: &str, level: Option<Level>) -> Arc<Reloader> {
        let hash = reload::hash(text.as_bytes());
        self.record.began(Some(file), hash.clone(), clock::wall());
        let reloader = Reloader {
            house: Arc::clone(&self.house),
            policy: Arc::clone(&self.policy),
            instruments: Arc::clone(&self.instruments),
            stage: Arc::clone(&self.stage),
            record: Arc::clone(&self.record),
            handled: std::sync::Mutex::new(Some(xxh3_64(text.as_bytes()))),
            text: tokio::sync::Mutex::new(text.to_owned()),
            file: file.into(),
            level,
        };
        reloader.show(1, &hash);
        Arc::new(reloader)
    }

    /// Reloads whenever the file or the inference resources change, until the gateway stops.
    pub fn follow(&self, reloader: &Arc<Reloader>) {
        self.follow_resources(reloader);
        let reloader = Arc::clone(reloader);
        self.background.spawn_until_stop(async move { reloader.watch().await });
    }

    /// The same for inference resources alone, where there is no file.
    pub fn follow_resources(&self, reloader: &Arc<Reloader>) {
        let reloader = Arc::clone(reloader);
        self.background.spawn_until_stop(async move { reloader.watch_resources().await });
    }
}

/// Why a gateway could not start. The system's own words are the error's source, and not said here as well.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("cannot listen on {address} for {what}{}", remedy(.source, *.address, *.passed))]
    Bind {
        /// What was to listen there.
        what: String,
        /// Where.
        address: SocketAddr,
        /// A socket of that port that was passed to us, for another address.
        passed: Option<SocketAddr>,
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
    /// What a listener is to show.
    #[error("listener '{listener}' cannot speak TLS; check the files that its certificates are read from")]
    Certificate {
        /// Which.
        listener: Arc<str>,
        /// Why not.
        source: io::Error,
    },
    /// The manifests have problems.
    #[error("the manifests cannot be used:\n{0}")]
    Resources(config::Report),
    /// There is no cluster whose resources could be followed.
    #[error("the resources of a cluster cannot be followed:\n{0}")]
    Cluster(config::Report),
    /// The cluster does not say who may come.
    #[error("the keys of a cluster cannot be followed:\n{0}")]
    Secrets(config::Report),
    /// What the operator's listener asks for.
    #[error("the admin listener's token is of no use")]
    AdminToken(#[from] BadTokenFile),
    /// What it is read from who may come.
    #[error("it cannot be told who may come in")]
    Identity(#[from] KeyringError),
    /// The certificates for https pods.
    #[error("cannot prepare TLS towards the pods")]
    Tls(#[from] io::Error),
}

fn remedy(error: &io::Error, address: SocketAddr, passed: Option<SocketAddr>) -> String {
    let told = match (error.kind(), passed) {
        (io::ErrorKind::AddrInUse, Some(passed)) => {
            return format!(
                " (a socket for {passed} was passed to us: write that address in the configuration, or \
                 `ListenStream={address}` in the .socket unit)"
            );
        }
        (io::ErrorKind::AddrInUse, None) => {
            " (stop the process that has that port, `ss -ltnp` names it, or choose another)"
        }
        (io::ErrorKind::PermissionDenied, _) => " (ports below 1024 need the capability CAP_NET_BIND_SERVICE)",
        (io::ErrorKind::AddrNotAvailable, _) => " (this machine has no such address; 0.0.0.0 stands for all it has)",
        _ => "",
    };
    told.to_owned()
}
