//! Config -> Policy and House, sockets bound, senses started, doors opened; in that order, so that a bad address is
//! told before anything runs.

use std::{net::SocketAddr, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use axum::Router;
use http::Request;
use hyper::body::Incoming;
use tokio::{net::TcpListener, sync::Semaphore};
use tower::ServiceExt as _;

use super::{Running, StartError, bind, house::live_house};
use crate::{
    admin::{self, Office},
    config::Config,
    edge::{self, Door, Rejected, Stage},
    gateway::{CurrentPolicy, Desk, House, Policy},
    tasks::Tasks,
};

/// Starts a gateway for `config`.
///
/// # Errors
/// If an address cannot be bound or a certificate cannot be read.
pub async fn start(config: Config) -> Result<Running, StartError> {
    start_logging(config, None).await
}

/// The same, with its decisions logged at `decision_log`.
///
/// # Errors
/// As [`start`], and if the log cannot be written.
pub async fn start_logging(config: Config, decision_log: Option<&Path>) -> Result<Running, StartError> {
    let config = Arc::new(config);
    let mut sockets = Vec::with_capacity(config.listeners.len());
    for listener in &config.listeners {
        sockets.push(bind(format!("listener '{}'", listener.name), listener.address).await?);
    }
    let admin = bind("admin".to_owned(), config.admin).await?;
    let probes = match config.probes {
        Some(address) => Some(bind("probes".to_owned(), address).await?),
        None => None,
    };

    let background = Tasks::new();
    let house = live_house(&config, decision_log, &background)?;
    let policy: CurrentPolicy = Arc::new(ArcSwap::from_pointee(Policy::new(Arc::clone(&config))));
    let stage = Arc::new(Stage::default());
    let (clients, office_tasks) = (Tasks::new(), Tasks::new());

    let room = Arc::new(Semaphore::new(config.limits.connections));
    let mut listeners = Vec::with_capacity(sockets.len());
    for (at, (socket, listener)) in sockets.into_iter().zip(&config.listeners).enumerate() {
        listeners.push((Arc::clone(&listener.name), local(&socket, listener.address)));
        let desk = Desk::new(Arc::clone(&house), Arc::clone(&policy), at);
        let door = door(&config, Arc::clone(&listener.name), socket, &room, &house);
        let serve = move |request| desk.clone().serve(request);
        clients.spawn(edge::run(door, serve, stage.watch(), clients.clone()));
    }

    let office = Office::new(Arc::clone(&house), Arc::clone(&policy), Arc::clone(&stage));
    let admin_address = local(&admin, config.admin);
    open_office(&config, admin, admin::everything(office.clone()), &house, &office_tasks);
    let probes_address = probes.map(|socket| {
        let address = local(&socket, config.admin);
        open_office(&config, socket, admin::probes(office), &house, &office_tasks);
        address
    });
    Ok(Running {
        listeners,
        admin: admin_address,
        probes: probes_address,
        house,
        policy,
        stage,
        clients,
        office: office_tasks,
        background,
    })
}

fn door(config: &Config, name: Arc<str>, socket: TcpListener, room: &Arc<Semaphore>, house: &House) -> Door {
    let limits = edge::Limits {
        header_read: config.timeouts.header_read,
        client_idle: config.timeouts.client_idle,
        write_stall: config.timeouts.write_stall,
        header_fields: config.limits.header_fields,
        header_bytes: usize::try_from(config.limits.header_bytes.0).unwrap_or(usize::MAX),
        http2_streams: config.limits.http2_streams,
    };
    let rejected = Rejected::new(&name, &house.metrics.edge_rejected);
    Door { name, socket, limits, room: Arc::clone(room), open: house.metrics.connections.clone(), rejected }
}

/// The operator's doors have their own small room, so that clients cannot fill it, and close last.
fn open_office(config: &Config, socket: TcpListener, router: Router, house: &House, tasks: &Tasks) {
    /// A person, a kubelet and a few Prometheus servers.
    const OFFICE_CONNECTIONS: usize = 256;
    let room = Arc::new(Semaphore::new(OFFICE_CONNECTIONS));
    let door = Door {
        open: prometheus_client::metrics::gauge::Gauge::default(),
        ..door(config, "admin".into(), socket, &room, house)
    };
    let serve = move |request: Request<Incoming>| router.clone().oneshot(request);
    let never = Stage::default();
    let watch = never.watch();
    let spawner = tasks.clone();
    tasks.spawn_until_stop(async move {
        let _never = never;
        edge::run(door, serve, watch, spawner).await;
    });
}

fn local(socket: &TcpListener, configured: SocketAddr) -> SocketAddr {
    socket.local_addr().unwrap_or(configured)
}
