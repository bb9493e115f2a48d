//! How busy each pod is: its page of metrics, its list of models, and its own word on its health when in doubt.
//!
//! `rounds` says who is due, `visit` goes there, `exposition` and `engines` understand the page. What was read is
//! stored in the fleet; what could not be read is left alone, so that its age tells. No number is ever invented.

mod engines;
mod exposition;
mod fetch;
mod health_watch;
mod models;
mod report;
mod rhythm;
mod rounds;
mod token;
mod unread;
mod visit;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;

pub use report::{Failure, NoReport, PageRead, Report};
pub use token::Token;

use crate::{
    config::{Engine, Pool},
    fleet::{Fleet, PodId, PoolState, Reading},
    tasks::Tasks,
};

/// Reads every pod of a fleet, for as long as its tasks run.
#[derive(Debug)]
pub struct Scraper {
    /// Pods that the desk wants asked; no more than there are pods.
    doubted: Arc<Doubted>,
    seats: Arc<Seats>,
}

/// Each pool's client, by the pool's name: made before anything is changed, because making one may fail.
#[derive(Clone, Debug, Default)]
pub struct Kits(BTreeMap<Arc<str>, Kit>);

/// One pool's client, and what it was made of.
#[derive(Clone, Debug)]
struct Kit {
    tls: Arc<rustls::ClientConfig>,
    timeout: Duration,
    fetcher: Arc<fetch::Fetcher>,
}

/// The pools under watch, each with its client.
type Seats = ArcSwap<Vec<Seat>>;

/// One pool under watch.
#[derive(Clone, Debug)]
struct Seat {
    state: Arc<PoolState>,
    kit: Kit,
}

type Doubted = Mutex<HashSet<PodId>>;

impl Scraper {
    /// Begins to read the pods of `fleet` and follows what discovery adds and removes. `tls` gives each pool's TLS
    /// set-up (with the pool's `ca_file`).
    pub fn start(
        fleet: &Arc<Fleet>,
        tasks: &Tasks,
        tls: &dyn Fn(&Pool) -> Arc<rustls::ClientConfig>,
        report: &Arc<dyn Report>,
    ) -> Result<Self, reqwest::Error> {
        let scraper = Self { doubted: Arc::default(), seats: Arc::default() };
        let pools: Vec<_> = fleet.pools().map(|pool| pool.config()).collect();
        let kits = scraper.equip(&pools, tls)?;
        scraper.follow(fleet, &kits);
        let rounds = rounds::Rounds::new(&scraper.seats, report, &scraper.doubted);
        tasks.spawn_until_stop(rounds.drive(tasks.clone()));
        Ok(scraper)
    }

    /// A client for each of `pools`; the one that is in use where nothing about it changes.
    pub fn equip(
        &self,
        pools: &[Arc<Pool>],
        tls: &dyn Fn(&Pool) -> Arc<rustls::ClientConfig>,
    ) -> Result<Kits, reqwest::Error> {
        let seats = self.seats.load();
        let mut kits = BTreeMap::new();
        for pool in pools {
            let (tls, timeout) = (tls(pool), pool.metrics.timeout);
            let same = |kit: &&Kit| Arc::ptr_eq(&kit.tls, &tls) && kit.timeout == timeout;
            let used = seats.iter().filter(|seat| *seat.state.name() == pool.name).map(|seat| &seat.kit);
            let kit = if let Some(kit) = used.into_iter().find(same) {
                kit.clone()
            } else {
                let fetcher = Arc::new(fetch::Fetcher::new(rustls::ClientConfig::clone(&tls), timeout)?);
                Kit { tls, timeout, fetcher }
            };
            kits.insert(Arc::clone(&pool.name), kit);
        }
        Ok(Kits(kits))
    }

    /// Watches the pools of `fleet`, each through its client of `kits`, and no others any more.
    pub fn follow(&self, fleet: &Fleet, kits: &Kits) {
        let seat = |state: Arc<PoolState>| kits.0.get(state.name()).cloned().map(|kit| Seat { state, kit });
        self.seats.store(Arc::new(fleet.pools().filter_map(seat).collect()));
    }

    /// A request failed by this pod's fault: ask it how it is, soon, but not more often than is polite.
    pub fn doubt(&self, pod: &PodId) {
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        if !doubted.contains(pod) {
            doubted.insert(pod.clone());
        }
    }
}

/// Reads one page of metrics; `None` if it holds nothing that `engine` would say.
pub fn read_page(engine: &Engine, page: &[u8]) -> Option<Reading> {
    engines::read(engine, page)
}

#[cfg(test)]
mod tests;
