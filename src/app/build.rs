//! Config -> Policy and House, sockets bound, senses started, doors opened; in that order, so that a bad address is
//! told before anything runs.

use std::{net::SocketAddr, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use axum::Router;
use http::Request;
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{net::TcpListener, sync::Semaphore};
use tower::ServiceExt as _;

use super::{
    Running, StartError, counts,
    handed::{Bound, Handed},
    house::live_house,
    picker::{self, Hosts},
    secrets,
};
use crate::{
    admin::{self, ConfigRecord, Guard, Office},
    config::Config,
    discovery::Resources,
    edge::{self, Door, Rejected, Rules, Stage, Tls},
    gateway::{CurrentPolicy, Desk, House, Policy},
    tasks::Tasks,
    telemetry::{Metrics, Name},
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
    let guard = Guard::new(&config.admin)?;
    let Opened { sockets, admin, probes } = bind_all(&config)?;
    let background = Tasks::new();
    let from_files = config.kubernetes.as_ref().is_some_and(|it| it.manifests.is_some());
    let resources = Resources::start(config.kubernetes.as_ref(), &background).await;
    let resources = resources.map_err(if from_files { StartError::Resources } else { StartError::Cluster })?;
    let config = Arc::new(resources.furnish(config));
    let (house, instruments) = live_house(&config, decision_log, resources, &background)?;
    secrets::follow(&config, &house.keyring, &background).await?;
    let first = Policy::new(Arc::clone(&config), &house.fleet);
    let policy: CurrentPolicy = Arc::new(ArcSwap::from_pointee(first));
    keep_house(&house, &policy, &background);
    let stage = Arc::new(Stage::default());
    let (clients, office_tasks) = (Tasks::new(), Tasks::new());

    let room = Arc::new(Semaphore::new(config.limits.connections));
    let (mut listeners, mut health) = (Vec::with_capacity(sockets.len()), Vec::new());
    let hosts = Hosts { house: &house, policy: &policy, stage: &stage, clients: &clients, background: &background };
    for (at, ((socket, tls, prepared), listener)) in sockets.into_iter().zip(&config.listeners).enumerate() {
        listeners.push((Arc::clone(&listener.name), local(&socket.socket, listener.address)));
        let guests = (Arc::clone(&room), house.metrics.connections.clone());
        let mut door = door(&config, Arc::clone(&listener.name), socket, guests, &house.metrics);
        door.rules = rules(&policy, at);
        if let Some(prepared) = prepared {
            health.extend(prepared.health_address().map(|address| (Arc::clone(&listener.name), address)));
            picker::open(&hosts, at, door, prepared);
        } else {
            door.tls = tls;
            open(&hosts, at, door);
        }
    }

    let record = Arc::new(ConfigRecord::default());
    let (resources, own) = (instruments.resources.clone(), (Arc::clone(&stage), Arc::clone(&record)));
    let office = Office::new(Arc::clone(&house), Arc::clone(&policy), own.0, own.1, resources);
    let admin_address = local(&admin.socket, config.admin.address);
    let office_stage = Arc::new(Stage::default());
    let all = admin::everything(office.clone(), guard);
    open_office(&config, admin, all, (&office_stage, &office_tasks), &house.metrics);
    let probes_address = probes.map(|socket| {
        let address = local(&socket.socket, config.probes.unwrap_or(config.admin.address));
        open_office(&config, socket, admin::probes(office), (&office_stage, &office_tasks), &house.metrics);
        address
    });
    Ok(Running {
        listeners,
        health,
        admin: admin_address,
        probes: probes_address,
        house,
        policy,
        stage,
        office_stage,
        instruments: Arc::new(instruments),
        record,
        clients,
        office: office_tasks,
        background,
    })
}

/// Opens the door to clients that the configuration's listener number `at` is.
fn open(hosts: &Hosts<'_>, at: usize, door: Door) {
    let Hosts { house, policy, stage, clients, background } = *hosts;
    let desk = Desk::new(Arc::clone(house), Arc::clone(policy), at);
    if let Some(tls) = door.tls.clone() {
        let told = house.metrics.certificates.clone();
        background.spawn_until_stop(tls.follow_forever(Name::from(&door.name), told));
    }
    let told = Arc::clone(stage);
    // Boxed, because a connection would else keep the room of a whole story while it relays, and while it is idle.
    let serve = move |peer, request: Request<Incoming>| {
        let (desk, told, version) = (desk.clone(), Arc::clone(&told), request.version());
        Box::pin(async move { desk.serve(peer, request).await.map(|answer| told.take_leave(version, answer)) })
    };
    clients.spawn(edge::run(door, serve, stage.watch(), clients.clone()));
}

/// Every address of a configuration.
struct Opened {
    /// The listeners', in the configuration's order, each with its TLS, or with what a picker needs besides.
    sockets: Vec<(Bound, Option<Tls>, Option<picker::Prepared>)>,
    admin: Bound,
    probes: Option<Bound>,
}

fn bind_all(config: &Config) -> Result<Opened, StartError> {
    let mut handed = Handed::take();
    let operators = std::iter::once(config.admin.address).chain(config.probes);
    let health = config.listeners.iter().filter_map(|listener| listener.ext_proc.as_ref()?.health);
    let wanted: Vec<_> =
        config.listeners.iter().map(|listener| listener.address).chain(health).chain(operators).collect();
    handed.tell_of_unwanted(&wanted);
    let mut sockets = Vec::with_capacity(config.listeners.len());
    for listener in &config.listeners {
        let socket = handed.bind(format!("listener '{}'", listener.name), listener.address, config.reuse_port)?;
        let picker = listener.ext_proc.as_ref();
        let picker = picker.map(|how| picker::prepare(listener, how, &mut handed, config.reuse_port)).transpose()?;
        let tls = listener.tls.as_ref().map(Tls::of_listener).transpose();
        let tls = tls.map_err(|source| StartError::Certificate { listener: Arc::clone(&listener.name), source })?;
        sockets.push((socket, tls, picker));
    }
    let admin = handed.bind("admin".to_owned(), config.admin.address, config.reuse_port)?;
    let probes = match config.probes {
        Some(address) => Some(handed.bind("probes".to_owned(), address, config.reuse_port)?),
        None => None,
    };
    drop(handed);
    Ok(Opened { sockets, admin, probes })
}

/// Closes what was idle too long, as the policy in force has it, and writes down what is counted.
fn keep_house(house: &Arc<House>, policy: &CurrentPolicy, tasks: &Tasks) {
    counts::keep(house, policy.load().config.quotas.state_file.clone(), tasks);
    let (house, policy) = (Arc::clone(house), Arc::clone(policy));
    tasks.spawn_until_stop(async move {
        house.upstream.prune_forever(|| policy.load().config.timeouts.pool_idle).await;
    });
}

fn door(
    config: &Config,
    name: Arc<str>,
    Bound { socket, shared }: Bound,
    (room, open): (Arc<Semaphore>, Gauge),
    metrics: &Metrics,
) -> Door {
    let rejected = Rejected::new(&name, &metrics.edge_rejected);
    let limits = edge::Limits {
        header_read: config.timeouts.header_read,
        client_idle: config.timeouts.client_idle,
        write_stall: config.timeouts.write_stall,
        header_fields: config.limits.header_fields,
        header_bytes: usize::try_from(config.limits.header_bytes.0).unwrap_or(usize::MAX),
        http2_streams: config.limits.http2_streams,
        may_give_up: false,
    };
    Door { name, socket, limits, room, open, shared, rejected, tls: None, rules: Rules::default() }
}

/// The rules on addresses of listener number `at`, as the policy in force has them.
fn rules(policy: &CurrentPolicy, at: usize) -> Rules {
    let policy = Arc::clone(policy);
    Rules::of(move || policy.load().listeners.get(at).map(|it| Arc::clone(&it.network)).unwrap_or_default())
}

/// The operator's doors have their own small room, so that clients cannot fill it, and close last.
fn open_office(config: &Config, socket: Bound, router: Router, (stage, tasks): (&Stage, &Tasks), metrics: &Metrics) {
    /// A person, a kubelet and a few Prometheus servers.
    const OFFICE_CONNECTIONS: usize = 256;
    let room = Arc::new(Semaphore::new(OFFICE_CONNECTIONS));
    let door = door(config, "admin".into(), socket, (room, Gauge::default()), metrics);
    let serve = move |_, request: Request<Incoming>| router.clone().oneshot(request);
    // With the last of the stage everything at this door ends.
    let (watch, spawner) = (stage.watch(), tasks.clone());
    tasks.spawn_until_stop(edge::run(door, serve, watch, spawner));
}

fn local(socket: &TcpListener, configured: SocketAddr) -> SocketAddr {
    socket.local_addr().unwrap_or(configured)
}
