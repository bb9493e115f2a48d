//! A new configuration in a gateway that runs: read, checked, built completely, swapped once; or refused whole, with
//! the one before it still in force.
//!
//! A request keeps the policy it began with. What outlives policies (pods that stay, what is known of them, connections,
//! budgets) is told of the new one and not made again. What only a start can set is refused by name, never half done.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::ClientConfig;
use tokio::{io::AsyncReadExt as _, sync::Mutex};
use xxhash_rust::xxh3::xxh3_64;

use super::house::Instruments;
use crate::{
    admin::ConfigRecord,
    certificates::LOOK_EVERY,
    clock,
    config::{self, Config, Given, Pool, Problem, Report, resources},
    discovery::out_of_files,
    edge::{Phase, Stage},
    gateway::{CurrentPolicy, House, Policy, begin_counting},
    keys,
    scrape::Kits,
    telemetry::{
        CertificateMetrics, Name,
        labels::{ConfigLabels, OutcomeLabels},
        logs::{Level, tell_problem},
    },
    upstream::{Connector, PodTls, PoolTls},
};

/// How often the file is read: a few KiB from the page cache. A change counts once it was seen twice, so it takes half
/// a second to a second.
const READ_EVERY: Duration = Duration::from_millis(500);

/// The largest configuration read: 20,000 models of 200 bytes each.
const MAX_FILE: u64 = 4 << 20;

/// Changes that are logged one by one; the rest is counted.
const LOGGED_CHANGES: usize = 20;

/// Brings new configurations into force.
pub struct Reloader {
    pub(super) house: Arc<House>,
    pub(super) policy: CurrentPolicy,
    pub(super) instruments: Arc<Instruments>,
    pub(super) stage: Arc<Stage>,
    pub(super) record: Arc<ConfigRecord>,
    /// One reload at a time; and the text in force.
    pub(super) text: Mutex<String>,
    /// The mark of what the file held when it was last looked at for a reload; `None`: it could not be read.
    pub(super) handled: std::sync::Mutex<Option<u64>>,
    pub(super) file: PathBuf,
    pub(super) level: Option<Level>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").field("file", &self.file).finish_non_exhaustive()
    }
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// In force, with these changes.
    Applied(Vec<String>),
    /// Refused for these problems.
    Refused(Report),
    /// Not looked at: the gateway is stopping.
    Stopping,
}

/// Everything that a new configuration needs and that may fail.
struct Prepared {
    config: Arc<Config>,
    tls: PoolTls,
    kits: Kits,
    keys: Option<keys::Read>,
    changes: Vec<String>,
    warnings: Vec<Problem>,
}

impl Reloader {
    /// Reads the file and brings it into force, also if it is as it was: certificates may have changed.
    pub async fn reload(&self) -> Reloaded {
        let read = read(&self.file).await;
        if let Err(error) = &read
            && out_of_files(error)
        {
            return self.not_now(error);
        }
        self.take(read.map_err(|error| self.whole_file(&format!("the configuration cannot be read: {error}")))).await
    }

    /// Follows the file for ever. It is compared by content, because a `ConfigMap` changes by swapping a link and an
    /// editor by renaming, and neither is told reliably by file events; and it counts when it was the same twice,
    /// because a half-written file may well be sound.
    pub async fn watch(&self) {
        // Reading a pipe would take its content away, or wait for ever.
        if !tokio::fs::metadata(&self.file).await.is_ok_and(|it| it.is_file()) {
            return;
        }
        let mut last = None;
        let mut tick = tokio::time::interval(READ_EVERY);
        loop {
            tick.tick().await;
            let found = read(&self.file).await;
            if found.as_ref().is_err_and(out_of_files) {
                // It says nothing of the configuration.
                continue;
            }
            let mark = mark_of(&found);
            let settled = last == Some(mark);
            last = Some(mark);
            if settled && mark != *self.handled() {
                let found = found
                    .map_err(|error| self.whole_file(&format!("the configuration cannot be read any more: {error}")));
                self.take(found).await;
            }
        }
    }

    /// Follows inference resources until there are no more to come: pools and models that they bring or take away are
    /// in force at once. Pods are discovery's business.
    pub async fn watch_resources(&self) {
        let mut followed = self.instruments.resources.clone();
        while followed.changed().await {
            self.take_resources().await;
        }
    }

    /// The configuration in force, with what was heard last.
    async fn take_resources(&self) {
        let text = self.text.lock().await;
        if self.stage.phase() > Phase::Serving {
            return;
        }
        let name = self.file.display().to_string();
        let Ok((config, _)) = config::load_given(&name, text.as_bytes(), &self.given()) else { return };
        let was_whole = self.policy.load().config.whole;
        match self.furnish(config) {
            Ok(prepared) if prepared.changes.is_empty() && prepared.config.whole == was_whole => {}
            Ok(prepared) => {
                let changes = prepared.changes.clone();
                self.commit(prepared);
                tell_each(&changes, "inference resources changed");
                tracing::info!(changes = changes.len(), "inference resources taken over");
            }
            // Only a `ca_file` that is gone: the pools in force have read theirs.
            Err(error) => tracing::warn!(%error, "inference resources not taken over"),
        }
    }

    /// Asked to reload while no file can be opened: that says nothing of the configuration, and is done at the next look.
    fn not_now(&self, error: &io::Error) -> Reloaded {
        *self.handled() = None;
        tracing::warn!(%error, "configuration not reloaded yet: it will be looked at again");
        Reloaded::Refused(self.whole_file(&format!("the configuration cannot be read now: {error}")))
    }

    async fn take(&self, found: Result<Vec<u8>, Report>) -> Reloaded {
        if self.stage.phase() > Phase::Serving {
            tracing::info!("configuration not reloaded: the gateway is stopping");
            return Reloaded::Stopping;
        }
        let mut text = self.text.lock().await;
        *self.handled() = mark_of(&found);
        let prepared = match found {
            Ok(bytes) => self.prepare(&text, &bytes).map(|prepared| (prepared, bytes)),
            Err(report) => Err(("invalid", report)),
        };
        match prepared {
            Ok((prepared, bytes)) => {
                let changes = self.bring(prepared, &bytes);
                *text = String::from_utf8_lossy(&bytes).into_owned();
                Reloaded::Applied(changes)
            }
            Err((outcome, report)) => {
                self.refuse(outcome, &report);
                Reloaded::Refused(report)
            }
        }
    }

    /// All that may fail, before anything is touched.
    fn prepare(&self, old: &str, bytes: &[u8]) -> Result<Prepared, (&'static str, Report)> {
        let invalid = |report| ("invalid", report);
        let name = self.file.display().to_string();
        let (config, warnings) = config::load_given(&name, bytes, &self.given()).map_err(invalid)?;
        let in_force = Arc::clone(&self.policy.load().config);
        let new = String::from_utf8_lossy(bytes);
        let changes = config::compare(&name, (&in_force, old), (&config, &new)).map_err(|it| ("needs_restart", it))?;
        let prepared = self.furnish(config).map_err(|error| invalid(self.whole_file(&format!("{error}"))))?;
        let changes = changes.iter().map(ToString::to_string).collect();
        Ok(Prepared { changes, warnings, ..prepared })
    }

    /// What a checked configuration needs besides: what inference resources add to it, and the means to reach its pods.
    fn furnish(&self, config: Config) -> io::Result<Prepared> {
        let in_force = Arc::clone(&self.policy.load().config);
        let mut config = self.instruments.resources.furnish(config);
        // A door knows its place in the list.
        let place = |name: &str| in_force.listeners.iter().position(|it| *it.name == *name);
        config.listeners.sort_by_key(|listener| place(&listener.name));
        let tls = pool_tls(&config, Some((&in_force, &self.instruments.connector.spoken())))?;
        let kits = self.instruments.scraper.equip(&config.pools, &|pool| tls_of(&tls, pool));
        let changes = resources::differences(&in_force, &config);
        let kits = kits.map_err(io::Error::other)?;
        let keys = self.house.keyring.read(&config.identity).map_err(|error| io::Error::other(error.whole()))?;
        Ok(Prepared { config: Arc::new(config), tls, kits, keys, changes, warnings: Vec::new() })
    }

    /// What the command line said at the start holds on.
    fn given(&self) -> Given {
        let policy = self.policy.load();
        let by_hand = policy.config.kubernetes.as_ref().filter(|it| it.by_hand);
        Given { manifests: by_hand.and_then(|it| it.manifests.clone()) }
    }

    /// Into force, and told.
    fn bring(&self, prepared: Prepared, bytes: &[u8]) -> Vec<String> {
        let (changes, warnings) = (prepared.changes.clone(), prepared.warnings.clone());
        let log = prepared.config.log.clone();
        self.commit(prepared);
        // Told at the level that was in force: a reload that asks for silence is heard of.
        self.tell(&changes, &warnings, bytes);
        if let Some(level) = &self.level
            && let Err(error) = level.follow(&log)
        {
            tracing::warn!(%error, "the log level stays");
        }
        changes
    }

    /// Nothing here can fail. Requests see the new policy from the one store on; those that began before keep theirs,
    /// and with it the pools that are taken off the list.
    fn commit(&self, prepared: Prepared) {
        let Prepared { config, tls, kits, keys, .. } = prepared;
        let (house, with) = (&self.house, &self.instruments);
        let kept: BTreeSet<_> = config.pools.iter().map(|pool| Arc::clone(&pool.name)).collect();
        house.fleet.follow(&config.pools, clock::now());
        for pool in &kept {
            begin_counting(&house.metrics, pool);
        }
        with.connector.speak(tls);
        with.discovery.follow(&config.pools);
        for gone in house.fleet.pools().filter(|pool| !kept.contains(pool.name())) {
            let left = house.fleet.remove(gone.name());
            (with.on_change)(gone.name(), &left);
        }
        with.scraper.follow(&house.fleet, &kits);
        house.bodies.set_limit(config.limits.buffered_bodies.0);
        if let Some(keys) = keys {
            // Before the policy that asks for them.
            house.keyring.follow(keys);
        }
        self.policy.store(Arc::new(Policy::new(Arc::clone(&config), &house.fleet)));
    }

    fn tell(&self, changes: &[String], warnings: &[Problem], bytes: &[u8]) {
        warnings.iter().for_each(tell_problem);
        tell_each(changes, "configuration changed");
        let hash = hash(bytes);
        let problems = warnings.iter().map(ToString::to_string).collect();
        let generation = self.record.applied(hash.clone(), changes.to_vec(), problems, clock::wall());
        tracing::info!(changes = changes.len(), generation, hash, "configuration reloaded");
        self.count("applied");
        self.show(generation, &hash);
    }

    /// Which configuration is in force, in the metrics.
    pub(super) fn show(&self, generation: u64, hash: &str) {
        let metrics = &self.house.metrics;
        metrics.last_reload_successful.set(1);
        metrics.config_generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        metrics.config_hash.clear();
        metrics.config_hash.get_or_create(&ConfigLabels { hash: hash.into() }).set(1);
    }

    fn refuse(&self, outcome: &'static str, report: &Report) {
        report.problems.iter().for_each(tell_problem);
        tracing::warn!(problems = report.errors(), "configuration not reloaded: the one before it stays in force");
        self.record.refused(outcome, report.problems.iter().map(ToString::to_string).collect(), clock::wall());
        self.count(outcome);
        self.house.metrics.last_reload_successful.set(0);
    }

    fn count(&self, outcome: &'static str) {
        self.house.metrics.reloads.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    fn handled(&self) -> MutexGuard<'_, Option<u64>> {
        self.handled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn whole_file(&self, message: &str) -> Report {
        let remedy =
            "the configuration before it stays in force; put that right and save the file again, or send SIGHUP";
        Report::whole_file(&self.file.display().to_string(), message, remedy)
    }
}

fn tell_each(changes: &[String], what: &str) {
    for change in changes.iter().take(LOGGED_CHANGES) {
        tracing::info!(change, "{what}");
    }
}

fn mark_of<E>(found: &Result<Vec<u8>, E>) -> Option<u64> {
    found.as_ref().ok().map(|bytes| xxh3_64(bytes))
}

/// The text's hash, as it is shown.
pub fn hash(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tokio::fs::File::open(path).await?.take(MAX_FILE + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 4 MiB"));
    }
    Ok(bytes)
}

/// How to speak TLS to the pods of every pool. Where `before` says what was spoken, a pool without files of its own keeps
/// that; files are read again.
pub(super) fn pool_tls(config: &Config, before: Option<(&Config, &PoolTls)>) -> io::Result<PoolTls> {
    let known = before.and_then(|(old, spoken)| {
        let pool = old.pools.iter().find(|pool| PodTls::is_common(pool))?;
        spoken.get(&pool.name).cloned()
    });
    let mut common: Option<PodTls> = known;
    let mut tls = PoolTls::new();
    for pool in &config.pools {
        let spoken = match &common {
            Some(common) if PodTls::is_common(pool) => common.clone(),
            None if PodTls::is_common(pool) => common.insert(PodTls::common()?).clone(),
            _ => PodTls::of_pool(pool)?,
        };
        tls.insert(Arc::clone(&pool.name), spoken);
    }
    Ok(tls)
}

/// Follows the files by which pods are judged and what they are shown, for ever.
pub(super) async fn follow_pod_tls(connector: Connector, metrics: CertificateMetrics) {
    // No listener shows these.
    let pods = Name::from("");
    loop {
        for spoken in connector.spoken().values() {
            if let Some((file, not_after)) = spoken.ends() {
                metrics.ends(&pods, &file, not_after);
            }
            for (file, looked) in spoken.look() {
                match looked {
                    Ok(()) => tracing::info!(file, "what is shown to pods, or believed of them, is read anew"),
                    Err(error) => {
                        tracing::warn!(%error, "a certificate's files cannot be used; the one before stays");
                        metrics.failed(&pods, &file);
                    }
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The set-up of one of the pools that `tls` was made for.
pub(super) fn tls_of(tls: &PoolTls, pool: &Pool) -> Arc<ClientConfig> {
    Arc::clone(&tls[&pool.name].config)
}
