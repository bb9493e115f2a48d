//! A gateway as an operator would have it: YAML through the same door, sockets on loopback.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
    time::Duration,
};

use serde_json::Value;
use tidegate::{
    app::{self, Running, Stopped},
    config,
    fleet::Pod,
};

use super::{Call, eventually, within};

/// A running gateway.
pub(crate) struct Gateway {
    /// Its first listener.
    pub(crate) addr: SocketAddr,
    pub(crate) running: Running,
}

/// What its configuration will say.
pub(crate) struct Plan {
    endpoints: Vec<String>,
    listeners: Vec<String>,
    pool: String,
    other_pools: String,
    models: String,
    rest: String,
    decision_log: Option<PathBuf>,
}

impl Gateway {
    /// A gateway with one listener, over one pool `pods` of these endpoints, serving the model `m`.
    pub(crate) fn over(endpoints: impl IntoIterator<Item = String>) -> Plan {
        Plan {
            endpoints: endpoints.into_iter().collect(),
            listeners: vec!["{ name: main, address: 127.0.0.1:0 }".to_owned()],
            pool: String::new(),
            other_pools: String::new(),
            models: "{ modelName: m, poolRef: pods }".to_owned(),
            rest: String::new(),
            decision_log: None,
        }
    }

    /// A gateway of this configuration.
    pub(crate) async fn from(text: &str) -> Self {
        let (config, _) = config::load("test.yaml", text).unwrap_or_else(|report| panic!("{report:?}\n{text}"));
        let running = app::start(config).await.unwrap();
        Self { addr: running.listeners[0].1, running }
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.running.admin
    }

    pub(crate) fn pods(&self) -> Vec<std::sync::Arc<Pod>> {
        self.running.house.fleet.pools().flat_map(|pool| pool.pods().to_vec()).collect()
    }

    /// Waits until every pod was read once.
    pub(crate) async fn sees_all_pods(&self) {
        eventually("a reading of every pod", || self.pods().iter().all(|pod| pod.load().is_some())).await;
    }

    /// Waits until nothing is counted as open any more, anywhere.
    pub(crate) async fn quiet(&self) {
        let house = &self.running.house;
        eventually("all counters at zero", || {
            let idle = |pod: &std::sync::Arc<Pod>| {
                let ledger = &pod.ledger;
                ledger.in_flight() == 0
                    && ledger.unstarted() == 0
                    && ledger.prefill_tokens() == 0
                    && ledger.kv_tokens() == 0
            };
            house.requests_open.load(Relaxed) == 0 && house.bodies.held() == 0 && self.pods().iter().all(idle)
        })
        .await;
        let page = self.metrics().await;
        assert_eq!(sum(&page, "tidegate_requests_open"), 0.0, "{page}");
        assert_eq!(sum(&page, "tidegate_buffered_bodies_bytes"), 0.0, "{page}");
        assert_eq!(sum(&page, "tidegate_pod_in_flight_requests"), 0.0, "{page}");
    }

    /// The page for Prometheus.
    pub(crate) async fn metrics(&self) -> String {
        Call::get("/metrics").send(self.admin()).await.text().await
    }

    /// The sum of all samples of `name` whose labels contain every one of `labels`.
    pub(crate) async fn counted(&self, name: &str, labels: &[&str]) -> f64 {
        let page = self.metrics().await;
        let wanted = page.lines().filter(|line| labels.iter().all(|label| line.contains(label)));
        sum(&wanted.collect::<Vec<_>>().join("\n"), name)
    }

    /// The JSON that an admin page shows.
    pub(crate) async fn admin_json(&self, path: &str) -> Value {
        Call::get(path).send(self.admin()).await.json().await
    }

    /// Stops it as SIGTERM does. That this returns shows that no task was left behind.
    pub(crate) async fn stop(self, grace: Duration) -> Stopped {
        within("the gateway to stop", self.running.stop(Duration::ZERO, grace, std::future::pending())).await
    }
}

impl Plan {
    /// More fields for the first listener, as YAML.
    pub(crate) fn main(mut self, yaml: &str) -> Self {
        self.listeners[0] = format!("{{ name: main, address: 127.0.0.1:0, {yaml} }}");
        self
    }

    /// One more listener, as YAML.
    pub(crate) fn listener(mut self, yaml: &str) -> Self {
        self.listeners.push(yaml.to_owned());
        self
    }

    /// Other models than `m`, each as YAML.
    pub(crate) fn models(mut self, yaml: &[&str]) -> Self {
        self.models = yaml.join("\n  - ");
        self
    }

    /// More lines for the pool.
    pub(crate) fn pool(mut self, yaml: &str) -> Self {
        self.pool.push_str(&format!("    {yaml}\n"));
        self
    }

    /// Another pool, of one endpoint.
    pub(crate) fn other_pool(mut self, name: &str, endpoint: &str) -> Self {
        self.other_pools.push_str(&format!("  - name: {name}\n    engine: vllm\n    endpoints: [{endpoint}]\n"));
        self
    }

    /// More lines for the top level.
    pub(crate) fn yaml(mut self, yaml: &str) -> Self {
        self.rest.push_str(&format!("{yaml}\n"));
        self
    }

    /// Logs its decisions there.
    pub(crate) fn decision_log(mut self, path: &Path) -> Self {
        self.decision_log = Some(path.to_owned());
        self
    }

    /// Its configuration.
    pub(crate) fn text(&self) -> String {
        let Self { endpoints, listeners, pool, other_pools, models, rest, .. } = self;
        // Most tests want to hear at once that nobody is there.
        let waiting = if rest.contains("waiting:") { "" } else { "waiting: { timeout: 0s }\n" };
        format!(
            "listeners:\n  - {}\npools:\n  - name: pods\n    engine: vllm\n    endpoints:\n      - {}\n{pool}{other_pools}models:\n  - \
             {models}\nadmin: {{ address: 127.0.0.1:0 }}\n{waiting}{rest}",
            listeners.join("\n  - "),
            endpoints.join("\n      - "),
        )
    }

    pub(crate) async fn start(self) -> Gateway {
        let text = self.text();
        let (config, _) = config::load("test.yaml", &text).unwrap_or_else(|report| panic!("{report:?}\n{text}"));
        let running = app::start_logging(config, self.decision_log.as_deref()).await.unwrap();
        Gateway { addr: running.listeners[0].1, running }
    }
}

/// The sum of every sample of `name` on a page of metrics.
fn sum(page: &str, name: &str) -> f64 {
    let of_family =
        |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '));
    let values = page.lines().filter(of_family).filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<f64>().unwrap()).sum()
}
