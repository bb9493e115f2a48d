//! The doors at which Envoy asks: the picker's own, with TLS unless the operator says otherwise, and the one for health.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use http::Request;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

use super::{
    StartError,
    handed::{Bound, Handed},
};
use crate::{
    config::{ExtProc, KeyPair, Listener},
    edge::{self, Door, Phase, Rules, Stage, Tls},
    gateway::{CurrentPolicy, House, IsServing, Picker, Serving, serve_health},
    tasks::Tasks,
    telemetry::Name,
};

/// Conversations on one connection: Envoy brings all of a worker's requests on one, and each lives as long as its
/// request. What they hold is bounded by the budget of bodies.
const CONVERSATIONS: u32 = 10_000;

/// Kubelets and gateways that ask for health.
const HEALTH_CONNECTIONS: usize = 256;

/// What these doors need to be opened, made and bound before anything runs.
pub(super) struct Prepared {
    tls: Option<Tls>,
    health: Option<Bound>,
}

impl Prepared {
    /// Where health is told, if apart.
    pub(super) fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref().and_then(|health| health.socket.local_addr().ok())
    }
}

/// Whose doors they are.
pub(super) struct Hosts<'a> {
    pub(super) house: &'a Arc<House>,
    pub(super) policy: &'a CurrentPolicy,
    pub(super) stage: &'a Arc<Stage>,
    pub(super) clients: &'a Tasks,
    pub(super) background: &'a Tasks,
}

/// The certificate, and the socket for health.
pub(super) fn prepare(
    listener: &Listener,
    how: &ExtProc,
    handed: &mut Handed,
    reuse_port: bool,
) -> Result<Prepared, StartError> {
    let files = how.cert_path.as_deref().map(KeyPair::in_folder);
    let tls = how.secure.then(|| Tls::of_picker(files.as_ref(), how.client_certificates.as_ref()));
    let failed = |source| StartError::Certificate { listener: Arc::clone(&listener.name), source };
    let tls = tls.transpose().map_err(failed)?;
    let health = match how.health {
        Some(address) => Some(handed.bind(format!("health of listener '{}'", listener.name), address, reuse_port)?),
        None => None,
    };
    Ok(Prepared { tls, health })
}

/// Opens them for the configuration's listener number `at`; `door` is as for any listener.
pub(super) fn open(hosts: &Hosts<'_>, at: usize, mut door: Door, prepared: Prepared) {
    let Hosts { house, policy, stage, clients, background } = *hosts;
    let (ready_once, watched) = (Arc::clone(&house.ready_once), Arc::clone(stage));
    let is_serving: IsServing = Arc::new(move || match watched.phase() {
        Phase::Serving if ready_once.load(Relaxed) => Serving::Now,
        Phase::Serving => Serving::NotYet,
        _ => Serving::NoMore,
    });
    door.limits.may_give_up = true;
    door.limits.http2_streams = door.limits.http2_streams.max(CONVERSATIONS);
    if let Some(tls) = &prepared.tls {
        let told = house.metrics.certificates.clone();
        background.spawn_until_stop(tls.clone().follow_forever(Name::from(&door.name), told));
    }
    if let Some(Bound { socket, shared }) = prepared.health {
        let room = Arc::new(Semaphore::new(HEALTH_CONNECTIONS));
        let (name, limits) = (Arc::clone(&door.name), door.limits);
        let rejected = door.rejected.clone();
        let (open, rules) = (Gauge::default(), Rules::default());
        let health = Door { name, socket, limits, room, open, shared, rejected, tls: None, rules };
        let is_serving = Arc::clone(&is_serving);
        let serve = move |_, request: Request<Incoming>| {
            let is_serving = Arc::clone(&is_serving);
            async move { Ok::<_, std::convert::Infallible>(serve_health(request, is_serving).await) }
        };
        // Whoever asks hears to the end that it is not ready any more.
        clients.spawn(edge::run(health, serve, stage.watch(), clients.clone()));
    }
    door.tls = prepared.tls;
    door.rejected = door.rejected.of_gateways();
    let picker = Picker::new(Arc::clone(house), Arc::clone(policy), at, background.clone(), is_serving);
    // Boxed: each conversation's task is moved some ten times until it runs, and this is 12 KiB of it.
    let serve = move |peer, request: Request<Incoming>| Box::pin(picker.clone().serve(peer, request));
    clients.spawn(edge::run(door, serve, stage.watch(), clients.clone()));
}
