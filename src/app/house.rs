//! The house furnished: everything that outlives a policy, made once for a process.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
};

use tokio_util::sync::CancellationToken;

use super::{
    StartError, counts,
    reload::{follow_pod_tls, pool_tls, tls_of},
    senses::{self, Ears},
};
use crate::{
    admission::{Counts, Limit},
    clock,
    config::{Config, Money, resources::Kind},
    discovery::{Discovery, OnChange, Resources},
    fleet::{Fleet, Pace, Pod, PodId, PoolState, Saturation},
    gateway::{BodyBudget, House, ResponseHomes, Waiting, begin_counting, moment},
    keys::{Keyring, Shared, SharedMetrics},
    openai::Lexicon,
    prefix,
    scrape::{self, Scraper},
    tasks::Tasks,
    telemetry::{DecisionLog, KindRow, Metrics, Name, PodRow, PoolRow, QuotaRow, Rows},
    upstream::{Connector, PodTls, PoolTls, RetryBudget, Upstream},
};

/// What is known, before anybody senses or sends.
struct Known {
    fleet: Arc<Fleet>,
    prefix: Arc<prefix::Index>,
    counts: Arc<Counts>,
    shared: Option<Shared>,
    metrics: Arc<Metrics>,
    waiting: Arc<Waiting>,
    keyring: Arc<Keyring>,
    ready_once: Arc<AtomicBool>,
    decisions: Option<DecisionLog>,
}

/// What the house is kept up with: whoever reloads tells these of new pools.
pub(super) struct Instruments {
    pub(super) connector: Connector,
    pub(super) scraper: Arc<Scraper>,
    pub(super) discovery: Discovery,
    /// What pools and models there are besides those of the file.
    pub(super) resources: Resources,
    /// Told of the pods of a pool that is taken away.
    pub(super) on_change: OnChange,
}

impl std::fmt::Debug for Instruments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instruments").finish_non_exhaustive()
    }
}

impl Known {
    fn nothing(config: &Config, resources: &Resources, counts: Counts, tasks: &Tasks) -> Self {
        let fleet = Arc::new(Fleet::new(&config.pools, clock::now()));
        let prefix = Arc::<prefix::Index>::default();
        let (pods, index) = (Arc::clone(&fleet), Arc::clone(&prefix));
        let (resources, counts) = (resources.clone(), Arc::new(counts));
        let counted = Arc::clone(&counts);
        let metrics = Arc::new(Metrics::new(Arc::new(move || Rows {
            kinds: kinds(&resources),
            quotas: quotas(&counted),
            ..rows(&pods, &index)
        })));
        for pool in &config.pools {
            begin_counting(&metrics, &pool.name);
        }
        let waiting = Arc::new(Waiting::new(&metrics));
        let keyring = Arc::new(Keyring::new(
            Box::new(|| Ok(rustls::ClientConfig::clone(&PodTls::common()?.config))),
            &metrics,
            tasks,
        ));
        Self {
            fleet,
            prefix,
            counts,
            shared: None,
            metrics,
            waiting,
            keyring,
            ready_once: Arc::default(),
            decisions: None,
        }
    }
}

/// A house with its senses awake: pods are discovered and scraped for as long as `tasks` run, and decisions are logged
/// at `decision_log`.
pub(super) fn live_house(
    config: &Arc<Config>,
    decision_log: Option<&Path>,
    resources: Resources,
    tasks: &Tasks,
) -> Result<(Arc<House>, Instruments), StartError> {
    let mut known = Known::nothing(config, &resources, counts::load(config.quotas.state_file.as_deref()), tasks);
    if let Some(read) = known.keyring.read(&config.identity)? {
        known.keyring.follow(read);
    }
    if let Some(path) = decision_log {
        let log = DecisionLog::start(path, known.metrics.decisions_dropped.clone(), tasks);
        let failed = |source| StartError::DecisionLog { path: path.to_owned(), source };
        known.decisions = Some(log.map_err(failed)?);
    }
    known.shared = shared_counts(config, &known.metrics, tasks)?;
    let tls = pool_tls(config, None)?;
    let ears = Ears {
        metrics: Arc::clone(&known.metrics),
        prefix: Arc::clone(&known.prefix),
        fleet: Arc::clone(&known.fleet),
        waiting: Arc::clone(&known.waiting),
        ready_once: Arc::clone(&known.ready_once),
    };
    let ears: Arc<dyn scrape::Report> = Arc::new(ears);
    let scraper = Scraper::start(&known.fleet, tasks, &|pool| tls_of(&tls, pool), &ears).map_err(io::Error::other)?;
    let (scraper, connector) = (Arc::new(scraper), Connector::new(tls));
    tasks.spawn_until_stop(follow_pod_tls(connector.clone(), known.metrics.certificates.clone()));
    let asked = Arc::clone(&scraper);
    let house = Arc::new(furnish(config, known, connector.clone(), Box::new(move |pod| asked.doubt(pod))));
    let on_change = senses::on_change(&house);
    let discovery = senses::discovery(&house, tasks, &on_change).over(&resources);
    discovery.follow(&config.pools);
    Ok((house, Instruments { connector, scraper, discovery, resources, on_change }))
}

/// The counts that several gateways share, if this one does.
fn shared_counts(config: &Config, metrics: &Metrics, tasks: &Tasks) -> Result<Option<Shared>, StartError> {
    let Some(settings) = &config.quotas.redis else { return Ok(None) };
    let rows = &metrics.quotas;
    rows.share();
    let (up, lost, unasked) = (rows.shared_up.clone(), rows.shared_lost.clone(), rows.shared_unasked.clone());
    Ok(Some(Shared::start(settings, SharedMetrics { up, lost, unasked }, tasks)?))
}

/// A house in which nothing moves: for judging from a saved state.
pub fn still_house(config: &Arc<Config>) -> House {
    furnish(
        config,
        Known::nothing(config, &Resources::none(), Counts::default(), &Tasks::new()),
        Connector::new(PoolTls::new()),
        Box::new(|_| {}),
    )
}

fn furnish(config: &Config, known: Known, connector: Connector, doubt: Box<dyn Fn(&PodId) + Send + Sync>) -> House {
    let Known { fleet, prefix, counts, shared, metrics, waiting, keyring, ready_once, decisions } = known;
    House {
        fleet,
        prefix,
        upstream: Upstream::new(connector),
        lexicon: Lexicon::default(),
        decisions,
        counts,
        shared,
        homes: ResponseHomes::default(),
        bodies: Arc::new(BodyBudget::new(config.limits.buffered_bodies.0, metrics.buffered.clone())),
        retries: RetryBudget::new(&config.retry, clock::now()),
        waiting,
        keyring,
        requests_open: AtomicUsize::new(0),
        cut: CancellationToken::new(),
        ready_once,
        doubt,
        metrics,
    }
}

fn kinds(resources: &Resources) -> Vec<KindRow> {
    let row = |(kind, objects, heard): (Kind, usize, Option<bool>)| KindRow {
        kind: kind.word(),
        group: kind.group(),
        objects,
        heard,
    };
    resources.kinds().into_iter().map(row).collect()
}

/// What is used of the limits that the configuration names: as few as it has lines.
fn quotas(counts: &Counts) -> Vec<QuotaRow> {
    let mut rows = Vec::new();
    counts.each(&moment(), |scope, named, _, used| {
        let row = |(limit, used, size): &(Limit, f64, u64)| {
            let scale = if limit.is_budget() { Money(1).amount() } else { 1.0 };
            let (used, size) = (used * scale, *size as f64 * scale);
            QuotaRow { scope: scope.kind(), name: scope.name().into(), limit: limit.name(), used, size }
        };
        if named {
            rows.extend(used.iter().map(row));
        }
    });
    rows
}

fn rows(fleet: &Fleet, index: &prefix::Index) -> Rows {
    let now = clock::now();
    let pool = |pool: Arc<PoolState>| PoolRow {
        saturation: Saturation::of(&pool, &pool.pods(), "", now).map(|full| full.level),
        pool: Name::from(pool.name()),
    };
    let row = |pod: &Arc<Pod>, pace: Pace| {
        let load = pod.load();
        let reading = load.as_ref().map(|load| &load.reading);
        PodRow {
            pool: Name::from(&pod.pool),
            pod: Name::from(pod.address()),
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
    let of_pool = |pool: Arc<PoolState>| {
        let pace = pool.pace();
        pool.pods().iter().map(|pod| row(pod, pace)).collect::<Vec<_>>()
    };
    Rows {
        kinds: Vec::new(),
        quotas: Vec::new(),
        pools: fleet.pools().map(pool).collect(),
        pods: fleet.pools().flat_map(of_pool).collect(),
    }
}
