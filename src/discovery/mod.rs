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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::{Mutex, PoisonError},
        time::Duration,
    };

    use super::*;
    use crate::{
        clock,
        config::{Bytes, Engine, Metrics, Origin},
    };

    fn target(host: &str) -> Target {
        Target {
            origin: Origin { https: false, host: host.into(), port: 8000 },
            base_path: String::new(),
            token_file: None,
            metrics_url: None,
        }
    }

    /// One host a line.
    fn parse(_: &str, text: &str) -> Result<Vec<Target>, String> {
        if text.contains("broken") {
            return Err("broken".into());
        }
        Ok(text.lines().map(target).collect())
    }

    struct House {
        fleet: Arc<Fleet>,
        tasks: Tasks,
        heard: Arc<Mutex<Vec<(usize, usize)>>>,
    }

    fn start_with(endpoints: Vec<Endpoint>) -> House {
        let pool = Arc::new(Pool {
            name: "pool".into(),
            engine: Engine::Auto,
            endpoints,
            metrics: Metrics {
                path: "/metrics".into(),
                port: None,
                interval: Duration::from_millis(250),
                timeout: Duration::from_secs(1),
                max_page: Bytes(1 << 20),
            },
            forward_authorization: false,
            ca_file: None,
        });
        let fleet = Arc::new(Fleet::new(&[Arc::clone(&pool)], clock::now()));
        let (tasks, heard) = (Tasks::new(), Arc::<Mutex<Vec<(usize, usize)>>>::default());
        let ear = Arc::clone(&heard);
        let on_change: OnChange = Arc::new(move |_, changes| {
            let mut heard = ear.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push((changes.added.len(), changes.removed.len()));
        });
        start(&[pool], &fleet, &tasks, parse, &on_change);
        House { fleet, tasks, heard }
    }

    impl House {
        fn hosts(&self) -> Vec<String> {
            let pods = self.fleet.pool("pool").unwrap().pods();
            pods.iter().map(|pod| pod.target.origin.host.clone()).collect()
        }

        async fn until(&self, hosts: &[&str]) {
            let deadline = clock::now() + Duration::from_secs(20);
            while self.hosts() != hosts {
                assert!(clock::now() < deadline, "{:?} instead of {hosts:?}", self.hosts());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test]
    async fn fixed_pods_are_there_at_once_and_each_address_once() {
        let (mut other, same) = (target("a"), target("a"));
        other.token_file = Some("/token".into());
        let house = start_with([same, target("b"), other].map(Endpoint::Fixed).to_vec());
        assert_eq!(house.hosts(), ["a", "b"]);
        assert_eq!(*house.heard.lock().unwrap(), [(2, 0)]);
        assert!(house.tasks.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_followed_and_a_broken_or_missing_one_keeps_the_last_list() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pods.yaml");
        fs::write(&file, "a\nb").unwrap();
        let house = start_with(vec![Endpoint::File(file.clone()), Endpoint::Fixed(target("z"))]);
        house.until(&["a", "b", "z"]).await;
        fs::write(&file, "broken").unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "b\nc").unwrap();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(house.hosts(), ["a", "b", "z"]);
        fs::remove_file(&file).unwrap();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(house.hosts(), ["a", "b", "z"]);
        fs::rename(&other, &file).unwrap();
        house.until(&["b", "c", "z"]).await;
        assert_eq!(*house.heard.lock().unwrap(), [(1, 0), (2, 0), (1, 1)]);
        house.tasks.stop();
        house.tasks.wait().await;
    }

    #[tokio::test]
    async fn a_name_becomes_its_addresses_but_stays_a_name_under_https() {
        let mut safe = target("localhost");
        safe.origin.https = true;
        safe.origin.port = 8443;
        let house = start_with(vec![Endpoint::Dns(safe), Endpoint::Dns(target("127.0.0.1"))]);
        house.until(&["localhost", "127.0.0.1"]).await;
        house.tasks.stop();
        house.tasks.wait().await;
    }
}
