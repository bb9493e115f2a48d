//! Which pods exist: fixed addresses, files that list them, names that resolve to them, resources of a cluster.
//!
//! Every source keeps its own last good list; a pool's pods are the union, in the order of the configuration. A source
//! that fails keeps what it last said: pods are taken away because somebody says so, never because nobody answers.

mod dns;
mod file;
#[cfg(feature = "kubernetes")]
mod hub;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod resources;
#[cfg(feature = "kubernetes")]
mod secrets;
mod sources;
#[cfg(feature = "kubernetes")]
mod status;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    config::{Endpoint, Pool, Target},
    fleet::{Changes, Fleet},
    tasks::Tasks,
};
pub use file::out_of_files;
pub use resources::{Resources, read_manifests};
#[cfg(feature = "kubernetes")]
pub use secrets::{Secrets, follow_secrets};
use sources::Sources;

/// Reads a list of endpoints: the file's name, its text -> targets, or the problems in words.
pub type ParseEndpoints = fn(&str, &str) -> Result<Vec<Target>, String>;

/// Told after a pool's pods changed.
pub type OnChange = Arc<dyn Fn(&str, &Changes) + Send + Sync>;

/// Keeps the fleet's pods as its pools say, for as long as its tasks run.
pub struct Discovery {
    fleet: Arc<Fleet>,
    tasks: Tasks,
    parse: ParseEndpoints,
    on_change: OnChange,
    resources: Resources,
    pools: Mutex<BTreeMap<Arc<str>, Arc<Sources>>>,
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").finish_non_exhaustive()
    }
}

impl Discovery {
    /// Follows no pool yet.
    pub fn new(fleet: &Arc<Fleet>, tasks: &Tasks, parse: ParseEndpoints, on_change: OnChange) -> Self {
        let (fleet, tasks, resources) = (Arc::clone(fleet), tasks.clone(), Resources::none());
        Self { fleet, tasks, parse, on_change, resources, pools: Mutex::default() }
    }

    /// The same, with pools that stand for what `resources` say.
    #[must_use]
    pub fn over(self, resources: &Resources) -> Self {
        Self { resources: resources.clone(), ..self }
    }

    /// From now on follows these pools, which the fleet has, and no others. Fixed addresses are there when this returns;
    /// a source that stays keeps what it said.
    pub fn follow(&self, pools: &[Arc<Pool>]) {
        let mut followed = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        followed.retain(|name, sources| {
            let stays = pools.iter().any(|pool| pool.name == *name);
            if !stays {
                sources.close();
            }
            stays
        });
        for pool in pools {
            let sources = followed.entry(Arc::clone(&pool.name)).or_insert_with(|| {
                Sources::new(Arc::clone(&pool.name), Arc::clone(&self.fleet), Arc::clone(&self.on_change))
            });
            for (slot, endpoint) in sources.follow(&pool.endpoints) {
                let gone = slot.gone();
                let watch = self.watch(endpoint, slot);
                self.tasks.spawn_until_stop(async move {
                    tokio::select! {
                        () = gone.cancelled() => {}
                        () = watch => {}
                    }
                });
            }
        }
    }

    /// Follows one endpoint for ever.
    fn watch(&self, endpoint: Endpoint, slot: sources::Slot) -> impl Future<Output = ()> + Send + use<> {
        let (parse, resources) = (self.parse, self.resources.clone());
        async move {
            match endpoint {
                Endpoint::Fixed(_) => {}
                Endpoint::File(path) => file::watch(path, parse, slot).await,
                Endpoint::Dns(target) => dns::watch(target, slot).await,
                Endpoint::Cluster { members, token_file } => {
                    resources::watch(resources, members, token_file, slot).await;
                }
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
        config::{Bytes, Engine, Metrics, Origin, Saturation},
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
        discovery: Discovery,
        pool: Arc<Pool>,
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
            client_certificate: None,
            server_name: None,
            saturation: Saturation { wait: Duration::from_secs(1), batch: None },
            priority_scheduling: false,
        });
        let fleet = Arc::new(Fleet::new(&[Arc::clone(&pool)], clock::now()));
        let (tasks, heard) = (Tasks::new(), Arc::<Mutex<Vec<(usize, usize)>>>::default());
        let ear = Arc::clone(&heard);
        let on_change: OnChange = Arc::new(move |_, changes| {
            let mut heard = ear.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push((changes.added.len(), changes.removed.len()));
        });
        let discovery = Discovery::new(&fleet, &tasks, parse, on_change);
        discovery.follow(&[Arc::clone(&pool)]);
        House { fleet, tasks, heard, discovery, pool }
    }

    impl House {
        fn hosts(&self) -> Vec<String> {
            let pods = self.fleet.pool("pool").unwrap().pods();
            pods.iter().map(|pod| pod.target.origin.host.clone()).collect()
        }

        fn follow(&self, endpoints: Vec<Endpoint>) {
            self.discovery.follow(&[Arc::new(Pool { endpoints, ..Pool::clone(&self.pool) })]);
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

    #[tokio::test(start_paused = true)]
    async fn sources_that_stay_keep_what_they_said_and_those_that_go_say_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
        fs::write(&one, "a").unwrap();
        fs::write(&two, "b").unwrap();
        let house = start_with(vec![Endpoint::File(one.clone()), Endpoint::File(two.clone())]);
        house.until(&["a", "b"]).await;
        let kept = Arc::clone(&house.fleet.pool("pool").unwrap().pods()[1]);
        house.follow(vec![Endpoint::Fixed(target("z")), Endpoint::File(two.clone())]);
        assert_eq!(house.hosts(), ["z", "b"], "at once, and nobody had to be asked again");
        assert!(Arc::ptr_eq(&kept, &house.fleet.pool("pool").unwrap().pods()[1]));
        fs::write(&one, "ghost").unwrap();
        fs::write(&two, "c").unwrap();
        house.until(&["z", "c"]).await;
        assert_eq!(house.tasks.len(), 1, "one file is followed");
        house.discovery.follow(&[]);
        fs::write(&two, "ghost").unwrap();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!((house.hosts(), house.tasks.len()), (vec!["z".to_owned(), "c".to_owned()], 0));
    }

    #[tokio::test]
    async fn a_name_whose_token_changes_keeps_its_addresses_until_it_is_resolved_again() {
        let house = start_with(vec![Endpoint::Dns(target("127.0.0.1"))]);
        house.until(&["127.0.0.1"]).await;
        let mut other = target("127.0.0.1");
        other.token_file = Some("/token".into());
        house.follow(vec![Endpoint::Dns(other.clone())]);
        assert_eq!(house.fleet.pool("pool").unwrap().pods()[0].target, other);
    }
}
