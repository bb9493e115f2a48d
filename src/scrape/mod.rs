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
mod visit;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

pub use report::{Failure, NoReport, PageRead, Report};
pub use token::Token;

use crate::{
    config::{Engine, Pool},
    fleet::{Fleet, PodId, Reading},
    tasks::Tasks,
};

/// Reads every pod of a fleet, for as long as its tasks run.
#[derive(Debug)]
pub struct Scraper {
    /// Pods that the desk wants asked; no more than there are pods.
    doubted: Arc<Doubted>,
}

type Doubted = Mutex<HashSet<PodId>>;

impl Scraper {
    /// Begins to read the pods of `fleet` and follows what discovery adds and removes. `tls` makes each pool's TLS
    /// set-up (with the pool's `ca_file`).
    pub fn start(
        fleet: &Arc<Fleet>,
        tasks: &Tasks,
        tls: &dyn Fn(&Pool) -> rustls::ClientConfig,
        report: &Arc<dyn Report>,
    ) -> Result<Self, reqwest::Error> {
        let doubted = Arc::<Doubted>::default();
        let rounds = rounds::Rounds::new(fleet, tls, report, &doubted)?;
        tasks.spawn_until_stop(rounds.drive(tasks.clone()));
        Ok(Self { doubted })
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
