//! The scraper against small servers on real sockets.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use tokio::{net::TcpListener, sync::Semaphore};

use super::*;
use crate::{
    clock,
    config::{Bytes, Metrics, Origin, Saturation, Target},
    fleet::{Admission, Condition, Pod, Reservation, Send as Sizes},
};

/// A pod that answers as told.
struct FakePod {
    page: Mutex<String>,
    health: AtomicU16,
    pages: AtomicUsize,
    healths: AtomicUsize,
    /// While set, a page waits for a permit.
    held: AtomicBool,
    gate: Semaphore,
}

impl FakePod {
    fn new(page: &str) -> Arc<Self> {
        Arc::new(Self {
            page: Mutex::new(page.into()),
            health: AtomicU16::new(200),
            pages: AtomicUsize::new(0),
            healths: AtomicUsize::new(0),
            held: AtomicBool::new(false),
            gate: Semaphore::new(0),
        })
    }

    async fn listen(self: &Arc<Self>, address: &str, tasks: &Tasks) -> SocketAddr {
        let models = r#"{"object":"list","data":[{"id":"m"},{"id":"ad0","parent":"m"}]}"#;
        let app = Router::new()
            .route("/metrics", get(page))
            .route("/health", get(health))
            .route("/v1/models", get(move || async move { models }))
            .with_state(Arc::clone(self));
        let listener = TcpListener::bind(address).await.unwrap();
        let bound = listener.local_addr().unwrap();
        tasks.spawn_until_stop(async move { axum::serve(listener, app).await.unwrap() });
        bound
    }

    fn say(&self, page: &str) {
        *self.page.lock().unwrap() = page.into();
    }
}

async fn page(State(pod): State<Arc<FakePod>>) -> impl IntoResponse {
    pod.pages.fetch_add(1, SeqCst);
    if pod.held.load(SeqCst) {
        pod.gate.acquire().await.unwrap().forget();
    }
    let page = pod.page.lock().unwrap().clone();
    let status = if page.is_empty() { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    (status, page)
}

async fn health(State(pod): State<Arc<FakePod>>) -> impl IntoResponse {
    pod.healths.fetch_add(1, SeqCst);
    StatusCode::from_u16(pod.health.load(SeqCst)).unwrap()
}

#[derive(Default)]
struct Heard {
    failures: Mutex<Vec<Failure>>,
    turned: Mutex<Vec<Condition>>,
    read: AtomicUsize,
}

impl Report for Heard {
    fn page_read(&self, _: &Pod, seen: PageRead) {
        assert!(seen.bytes > 0);
        self.read.fetch_add(1, SeqCst);
    }
    fn page_failed(&self, _: &Pod, failure: Failure, _: Duration) {
        self.failures.lock().unwrap().push(failure);
    }
    fn turned(&self, _: &Pod, condition: Condition) {
        self.turned.lock().unwrap().push(condition);
    }
}

/// A fleet of one pod under watch.
struct Watched {
    fleet: Arc<Fleet>,
    pod: Arc<Pod>,
    scraper: Scraper,
    heard: Arc<Heard>,
    tasks: Tasks,
}

impl Watched {
    fn begin(address: SocketAddr) -> Self {
        let pool = Arc::new(Pool {
            name: "pool".into(),
            engine: Engine::Auto,
            endpoints: Vec::new(),
            metrics: Metrics {
                path: "/metrics".into(),
                port: None,
                interval: Duration::from_millis(50),
                timeout: Duration::from_millis(500),
                max_page: Bytes(1_000),
            },
            forward_authorization: false,
            ca_file: None,
            client_certificate: None,
            server_name: None,
            saturation: Saturation { wait: Duration::from_secs(1), batch: None },
            priority_scheduling: false,
        });
        let fleet = Arc::new(Fleet::new(&[pool], clock::now()));
        let target = Target {
            origin: Origin { https: false, host: address.ip().to_string(), port: address.port() },
            base_path: String::new(),
            token_file: None,
            metrics_url: None,
        };
        fleet.set("pool", &[target], clock::now());
        let pod = Arc::clone(&fleet.pool("pool").unwrap().pods()[0]);
        let (tasks, heard) = (Tasks::new(), Arc::new(Heard::default()));
        let report: Arc<dyn Report> = Arc::clone(&heard) as _;
        let scraper = Scraper::start(&fleet, &tasks, &|_| no_tls().into(), &report).unwrap();
        Self { fleet, pod, scraper, heard, tasks }
    }

    async fn becomes(&self, condition: Condition) {
        let what = condition.name();
        until(what, || self.pod.condition(clock::now()) == condition).await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

fn no_tls() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = clock::now() + Duration::from_secs(20);
    while !done() {
        assert!(clock::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const BUSY: &str = "vllm:num_requests_running 2\nvllm:num_requests_waiting 1\nvllm:generation_tokens_total 7\n";

async fn busy_pod() -> (Arc<FakePod>, Watched, Tasks) {
    let (fake, servers) = (FakePod::new(BUSY), Tasks::new());
    let watched = Watched::begin(fake.listen("127.0.0.1:0", &servers).await);
    (fake, watched, servers)
}

#[tokio::test]
async fn a_pod_is_read_again_and_again_and_its_models_are_known() {
    let (_fake, watched, servers) = busy_pod().await;
    watched.becomes(Condition::Ready).await;
    until("models", || watched.pod.models().is_some()).await;
    assert_eq!((watched.pod.serves("ad0"), watched.pod.serves("x")), (Some(true), Some(false)));
    assert_eq!(watched.pod.streams(), Some(3));
    let first = watched.pod.load().unwrap().began;
    until("a younger page", || watched.pod.load().unwrap().began > first).await;
    assert_eq!(*watched.heard.turned.lock().unwrap(), [Condition::Ready]);
    servers.stop();
}

#[tokio::test]
async fn what_is_sent_while_a_page_is_under_way_counts_as_sent_since() {
    let (fake, servers) = (FakePod::new(BUSY), Tasks::new());
    fake.held.store(true, SeqCst);
    let watched = Watched::begin(fake.listen("127.0.0.1:0", &servers).await);
    until("a request for the page", || fake.pages.load(SeqCst) == 1).await;
    let late = Reservation::new(Arc::clone(&watched.pod), Sizes::default());
    fake.gate.add_permits(1);
    until("a reading", || watched.pod.load().is_some()).await;
    let load = watched.pod.load().unwrap();
    assert_eq!((load.sent_mark, load.ended_mark), (0, 0));
    assert_eq!(watched.pod.streams(), Some(4));
    drop(late);
    servers.stop();
}

#[tokio::test]
async fn a_pod_has_one_page_under_way_at_most() {
    let (fake, servers) = (FakePod::new(BUSY), Tasks::new());
    fake.held.store(true, SeqCst);
    let watched = Watched::begin(fake.listen("127.0.0.1:0", &servers).await);
    until("a time-out", || !watched.heard.failures.lock().unwrap().is_empty()).await;
    // The interval is a tenth of the time-out. Pages first: one may be asked for between the two looks.
    let (pages, over) = (fake.pages.load(SeqCst), watched.heard.failures.lock().unwrap().len());
    assert!(pages <= over + 1, "{pages} asked for, {over} over");
    assert_eq!(watched.heard.failures.lock().unwrap()[0], Failure::Timeout);
    assert_eq!(watched.pod.condition(clock::now()), Condition::Unknown);
    servers.stop();
}

#[tokio::test]
async fn a_page_that_cannot_be_used_leaves_the_last_reading_alone() {
    let (fake, watched, servers) = busy_pod().await;
    until("a reading", || watched.pod.load().is_some()).await;
    let big = "x".repeat(1_001);
    for (page, failure) in
        [("", Failure::Http(500)), ("go_goroutines 7\n", Failure::Alien), (big.as_str(), Failure::TooLarge)]
    {
        fake.say(page);
        until(failure.name(), || watched.heard.failures.lock().unwrap().contains(&failure)).await;
        let kept = watched.pod.load().unwrap();
        assert_eq!(kept.reading.running, Some(2), "{page}");
        assert_eq!(watched.pod.condition(clock::now()), Condition::Ready);
    }
    servers.stop();
}

#[tokio::test]
async fn a_pod_that_goes_away_is_out_and_warms_up_when_it_is_back() {
    let (fake, watched, servers) = busy_pod().await;
    watched.becomes(Condition::Ready).await;
    let address = watched.pod.address();
    servers.stop();
    servers.wait().await;
    watched.becomes(Condition::Ejected).await;
    let servers = Tasks::new();
    fake.listen(address, &servers).await;
    watched.becomes(Condition::Warming).await;
    servers.stop();
}

#[tokio::test]
async fn a_sleeping_engine_is_not_used_until_it_wakes() {
    let (fake, watched, servers) = busy_pod().await;
    watched.becomes(Condition::Ready).await;
    fake.say("vllm:engine_sleep_state{sleep_state=\"awake\"} 0.0\n");
    watched.becomes(Condition::Asleep).await;
    fake.say(BUSY);
    watched.becomes(Condition::Warming).await;
    servers.stop();
}

#[tokio::test]
async fn a_doubted_pod_is_asked_and_believed() {
    let (fake, watched, servers) = busy_pod().await;
    watched.becomes(Condition::Ready).await;
    watched.scraper.doubt(&watched.pod.id);
    until("a question", || fake.healths.load(SeqCst) == 1).await;
    assert_eq!(watched.pod.condition(clock::now()), Condition::Ready);
    fake.health.store(503, SeqCst);
    watched.scraper.doubt(&watched.pod.id);
    watched.becomes(Condition::Ejected).await;
    assert_eq!(watched.pod.admits(clock::now()), Admission::No(Condition::Ejected));
    fake.health.store(200, SeqCst);
    until("a probe", || watched.pod.admits(clock::now()) == Admission::Probe).await;
    servers.stop();
}

#[tokio::test]
async fn a_dead_engine_behind_living_metrics_is_found_out_without_a_failed_request() {
    let (fake, watched, servers) = busy_pod().await;
    watched.becomes(Condition::Ready).await;
    fake.health.store(503, SeqCst);
    let stuck = Reservation::new(Arc::clone(&watched.pod), Sizes::default());
    watched.becomes(Condition::Ejected).await;
    drop(stuck);
    servers.stop();
}

#[tokio::test]
async fn a_pod_without_health_is_not_judged_by_it() {
    let (fake, watched, servers) = busy_pod().await;
    watched.becomes(Condition::Ready).await;
    fake.health.store(404, SeqCst);
    watched.scraper.doubt(&watched.pod.id);
    until("a question", || fake.healths.load(SeqCst) == 1).await;
    let read = watched.heard.read.load(SeqCst);
    until("further pages", || watched.heard.read.load(SeqCst) > read + 2).await;
    assert_eq!(watched.pod.condition(clock::now()), Condition::Ready);
    servers.stop();
}

#[tokio::test]
async fn a_pod_that_discovery_took_away_is_left_in_peace() {
    let (fake, watched, servers) = busy_pod().await;
    watched.becomes(Condition::Ready).await;
    let (twin, other) = (FakePod::new(BUSY), Tasks::new());
    let address = twin.listen("127.0.0.1:0", &other).await;
    let mut target = watched.pod.target.clone();
    target.origin.port = address.port();
    watched.fleet.set("pool", &[target], clock::now());
    until("the other's pages", || twin.pages.load(SeqCst) > 1).await;
    let pages = fake.pages.load(SeqCst);
    until("more of the other's", || twin.pages.load(SeqCst) > 5).await;
    assert!(fake.pages.load(SeqCst) <= pages + 1, "one may have been under way");
    servers.stop();
    other.stop();
}
