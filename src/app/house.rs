//! The house furnished: everything that outlives a policy, made once for a process.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
};

use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;

use super::{
    StartError,
    senses::{self, Ears},
};
use crate::{
    clock,
    config::{Config, Pool},
    fleet::{Fleet, Pace, Pod, PodId, PoolState},
    gateway::{BodyBudget, House, ResponseHomes},
    prefix,
    scrape::{self, Scraper},
    tasks::Tasks,
    telemetry::{DecisionLog, Metrics, Name, PodRow},
    upstream::{Connector, RetryBudget, Upstream, client_tls},
};

/// What is known, before anybody senses or sends.
struct Known {
    fleet: Arc<Fleet>,
    prefix: Arc<prefix::Index>,
    metrics: Arc<Metrics>,
    ready_once: Arc<AtomicBool>,
    decisions: Option<DecisionLog>,
}

impl Known {
    fn nothing(config: &Config) -> Self {
        let fleet = Arc::new(Fleet::new(&config.pools, clock::now()));
        let prefix = Arc::<prefix::Index>::default();
        let (pods, index) = (Arc::clone(&fleet), Arc::clone(&prefix));
        let metrics = Arc::new(Metrics::new(Arc::new(move || pod_rows(&pods, &index))));
        Self { fleet, prefix, metrics, ready_once: Arc::default(), decisions: None }
    }
}

type Tls = BTreeMap<Arc<str>, Arc<ClientConfig>>;

/// A house with its senses awake: pods are discovered and scraped for as long as `tasks` run, and decisions are logged
/// at `decision_log`.
pub(super) fn live_house(
    config: &Arc<Config>,
    decision_log: Option<&Path>,
    tasks: &Tasks,
) -> Result<Arc<House>, StartError> {
    let mut known = Known::nothing(config);
    if let Some(path) = decision_log {
        let log = DecisionLog::start(path, known.metrics.decisions_dropped.clone(), tasks);
        let failed = |source| StartError::DecisionLog { path: path.to_owned(), source };
        known.decisions = Some(log.map_err(failed)?);
    }
    let mut tls = Tls::new();
    for pool in &config.pools {
        tls.insert(Arc::clone(&pool.name), Arc::new(client_tls(pool.ca_file.as_deref())?));
    }
    let ears = Ears {
        metrics: Arc::clone(&known.metrics),
        prefix: Arc::clone(&known.prefix),
        fleet: Arc::clone(&known.fleet),
        ready_once: Arc::clone(&known.ready_once),
    };
    let ears: Arc<dyn scrape::Report> = Arc::new(ears);
    #[expect(clippy::indexing_slicing, reason = "filled from these very pools above")]
    let tls_of = |pool: &Pool| ClientConfig::clone(&tls[&pool.name]);
    let scraper = Scraper::start(&known.fleet, tasks, &tls_of, &ears).map_err(io::Error::other)?;
    let house =
        Arc::new(furnish(config, known, Connector::new(tls, tasks.clone()), Box::new(move |pod| scraper.doubt(pod))));
    let (pruned, limit) = (Arc::clone(&house), config.timeouts.pool_idle);
    tasks.spawn_until_stop(async move { pruned.upstream.prune_forever(limit).await });
    senses::discover(config, &house, tasks);
    Ok(house)
}

/// A house in which nothing moves: for judging from a saved state.
pub fn still_house(config: &Arc<Config>) -> House {
    furnish(config, Known::nothing(config), Connector::new(Tls::new(), Tasks::new()), Box::new(|_| {}))
}

fn furnish(config: &Config, known: Known, connector: Connector, doubt: Box<dyn Fn(&PodId) + Send + Sync>) -> House {
    let Known { fleet, prefix, metrics, ready_once, decisions } = known;
    House {
        fleet,
        prefix,
        upstream: Upstream::new(connector),
        decisions,
        homes: ResponseHomes::default(),
        bodies: Arc::new(BodyBudget::new(config.limits.buffered_bodies.0, metrics.buffered.clone())),
        retries: RetryBudget::new(&config.retry, clock::now()),
        requests_open: AtomicUsize::new(0),
        cut: CancellationToken::new(),
        ready_once,
        doubt,
        metrics,
    }
}

fn pod_rows(fleet: &Fleet, index: &prefix::Index) -> Vec<PodRow> {
    let now = clock::now();
    let row = |pod: &Arc<Pod>, pace: Pace| {
        let load = pod.load();
        let reading = load.as_ref().map(|load| &load.reading);
        PodRow {
            pool: Name::from(&pod.pool),
            pod: Name::from(pod.address().as_str()),
            condition: pod.condition(now).name(),
            running: reading.and_then(|reading| reading.running),
            waiting: reading.and_then(|reading| reading.waiting),
            kv_usage: reading.and_then(|reading| reading.kv_usage),
            age_seconds: load.as_ref().map(|load| load.age(now).as_secs_f64()),
            in_flight: pod.ledger.in_flight(),
            prefill_tokens: pod.ledger.prefill_tokens(),
            ms_per_token: pod.speed.pace(pace).ms_per_token,
            itl_ms: pod.speed.pace(pace).itl_ms(pod.ledger.in_flight() as f64),
            prefix_trust: index.trust(pod.slot),
        }
    };
    let of_pool = |pool: &Arc<PoolState>| {
        let pace = pool.pace();
        pool.pods().iter().map(|pod| row(pod, pace)).collect::<Vec<_>>()
    };
    fleet.pools().flat_map(of_pool).collect()
}
