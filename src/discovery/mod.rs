//! Which pods exist: fixed addresses, files that list them, names that resolve to them.
//!
//! Every source keeps its own last good list; a pool's pods are the union, in the order of the configuration. A source
//! that fails keeps what it last said: pods are taken away because somebody says so, never because nobody answers.

mod dns;
mod file;
mod sources;

use std::sync::Arc;

use crate::{
    config::{Endpoint, Pool, Target},
    fleet::{Changes, Fleet},
    tasks::Tasks,
};
use sources::Sources;

/// Reads a list of endpoints: the file's name, its text -> targets, or the problems in words.
pub type ParseEndpoints = fn(&str, &str) -> Result<Vec<Target>, String>;

/// Told after a pool's pods changed.
pub type OnChange = Arc<dyn Fn(&str, &Changes) + Send + Sync>;

/// Keeps the fleet's pods as `pools` say, for as long as `tasks` run. Fixed addresses are there when this returns.
pub fn start(pools: &[Arc<Pool>], fleet: &Arc<Fleet>, tasks: &Tasks, parse: ParseEndpoints, on_change: &OnChange) {
    for pool in pools {
        let sources = Sources::new(pool, fleet, on_change);
        sources.publish_fixed();
        for (place, endpoint) in pool.endpoints.iter().enumerate() {
            let slot = sources.slot(place);
            match endpoint {
                Endpoint::Fixed(_) => {}
                Endpoint::File(path) => drop(tasks.spawn_until_stop(file::watch(path.clone(), parse, slot))),
                Endpoint::Dns(target) => drop(tasks.spawn_until_stop(dns::watch(target.clone(), slot))),
            }
        }
    }
}
