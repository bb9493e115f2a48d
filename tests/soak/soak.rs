//! Many streams for a long time through the real binary, while pods die, come back, come and go from the list and fail in
//! every way that a simulated pod knows, and clients leave, stall and ask anew. Every answer is checked word by word.
//!
//! A minute of it is a test like any other; `tests/soak/run --minutes 30` is for the night before a release.

use std::{
    collections::BTreeMap,
    fs,
    io::{IsTerminal as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tidegate::{
    sim::{Faults, Pod, PodConfig, RunningPod},
    tasks::Tasks,
};
use tokio::time::{sleep, sleep_until, timeout};

use crate::{
    alone,
    client::{Ask, Caller},
    harness::Call,
    process::{descriptors, memory_mib, slope},
};

/// Pods in the list when nothing is wrong.
const PODS: usize = 8;

/// Pods in trouble at once, at most: the rest must be able to carry on.
const TROUBLED: usize = 2;

/// How long one trouble lasts, at most.
const TROUBLE: Duration = Duration::from_secs(2);

/// How long requests may take to end when no new ones come: the longest deadline of the configuration, and some.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whose answers take longer is worth a look: an answer takes six seconds on a pod that is well.
const SLOW: Duration = Duration::from_secs(18);

/// What a soak is to be like.
#[derive(Clone, Debug)]
struct Plan {
    length: Duration,
    streams: usize,
    seed: u64,
    /// Whether the configuration is changed and SIGHUP sent while it runs.
    reloads: bool,
}

impl Plan {
    fn from_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<f64>().expect("a number"));
        Self {
            length: Duration::from_secs_f64(60.0 * number("TIDEGATE_SOAK_MINUTES").unwrap_or(1.0)),
            streams: number("TIDEGATE_SOAK_STREAMS").unwrap_or(500.0) as usize,
            seed: number("TIDEGATE_SOAK_SEED").unwrap_or_else(|| f64::from(rand::random::<u32>())) as u64,
            reloads: number("TIDEGATE_SOAK_RELOADS").is_some_and(|on| on > 0.0),
        }
    }
}

/// What became of all requests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    ends: Mutex<BTreeMap<String, u64>>,
    wrong: Mutex<Vec<String>>,
    pub(crate) open: AtomicUsize,
}

impl Tally {
    /// One ended like this.
    pub(crate) fn ended(&self, how: &str) {
        *self.ends.lock().unwrap().entry(how.to_owned()).or_default() += 1;
    }

    /// One ended as none may.
    pub(crate) fn wrong(&self, what: String) {
        self.ended("WRONG");
        let mut wrong = self.wrong.lock().unwrap();
        if wrong.len() < 20 {
            wrong.push(what);
        }
    }

    fn total(&self) -> u64 {
        self.ends.lock().unwrap().values().sum()
    }

    fn count(&self, how: &str) -> u64 {
        self.ends.lock().unwrap().get(how).copied().unwrap_or(0)
    }
}

/// The real binary, serving.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
    config: PathBuf,
    log: PathBuf,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Only where a test failed before it was stopped.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Gateway {
    /// Over the pods of `pods.yaml` in `folder`.
    pub(crate) async fn start(folder: &Path) -> Self {
        let [addr, admin] = free_ports();
        let (config, log) = (folder.join("tidegate.yaml"), folder.join("log"));
        fs::write(&config, configuration(folder, addr, admin, 0)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["serve", "--config", config.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let gateway = Self { child, addr, admin, config, log };
        while tokio::net::TcpStream::connect(admin).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        gateway
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// What it holds, MiB.
    pub(crate) fn memory(&self) -> f64 {
        memory_mib(self.child.id())
    }

    pub(crate) async fn page(&self) -> String {
        Call::get("/metrics").send(self.admin).await.text().await
    }

    /// The sum of a family.
    async fn counted(&self, name: &str) -> f64 {
        let page = self.page().await;
        let lines = page.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

fn free_ports() -> [SocketAddr; 2] {
    // Held together, so that they differ; whoever takes one before the gateway does fails the test loudly.
    let held = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}

/// The `nth` configuration: each differs from the one before in what may be reloaded.
fn configuration(folder: &Path, addr: SocketAddr, admin: SocketAddr, nth: usize) -> String {
    let policy = ["least-cost", "least-request", "power-of-two"][nth % 3];
    let (attempts, list) = (2 + nth % 2, folder.join("pods.yaml").display().to_string());
    format!(
        "listeners:\n  - {{ name: main, address: \"{addr}\" }}\npools:\n  - name: pods\n    engine: vllm\n    endpoints:\n      \
         - {{ file: \"{list}\" }}\nmodels:\n  - {{ modelName: m, poolRef: pods }}\nadmin: {{ address: \"{admin}\" }}\n\
         log: {{ format: json, level: error }}\nscheduler: {{ policy: {policy} }}\nretry: {{ attempts: {attempts} }}\n\
         timeouts: {{ connect: 1s, first_byte: 15s, first_token: 25s, idle: 15s, drain_delay: 0s, drain_grace: 20s }}\n"
    )
}

/// A place for a pod: its address stays, the pod comes and goes.
struct Place {
    addr: SocketAddr,
    pod: Option<RunningPod>,
    listed: bool,
    /// Until when it is in trouble.
    trouble: Option<Instant>,
}

/// The pods and the list that the gateway reads.
struct Pods {
    places: Vec<Place>,
    tasks: Tasks,
    list: PathBuf,
    mishaps: BTreeMap<&'static str, u64>,
}

impl Pods {
    async fn start(folder: &Path) -> Self {
        let tasks = Tasks::new();
        let mut places = Vec::new();
        for _ in 0..PODS {
            let pod = pod((Ipv4Addr::LOCALHOST, 0).into(), &tasks).await;
            places.push(Place { addr: pod.addr(), pod: Some(pod), listed: true, trouble: None });
        }
        let pods = Self { places, tasks, list: folder.join("pods.yaml"), mishaps: BTreeMap::new() };
        pods.write_list();
        pods
    }

    fn write_list(&self) {
        let listed = self.places.iter().filter(|place| place.listed);
        let lines: String = listed.map(|place| format!("- {{ url: \"http://{}\" }}\n", place.addr)).collect();
        let new = self.list.with_extension("new");
        fs::write(&new, lines).unwrap();
        fs::rename(&new, &self.list).unwrap();
    }

    /// Ends the troubles whose time is over, and starts a new one if there is room for it.
    async fn stir(&mut self, rng: &mut StdRng) {
        self.mend(|until| until <= Instant::now()).await;
        let troubled = self.places.iter().filter(|place| place.trouble.is_some()).count();
        let well: Vec<usize> = (0..PODS).filter(|&at| self.places[at].trouble.is_none()).collect();
        if troubled >= TROUBLED {
            return;
        }
        let at = well[rng.random_range(0..well.len())];
        let what = self.trouble(at, rng).await;
        *self.mishaps.entry(what).or_default() += 1;
        self.places[at].trouble = Some(Instant::now() + TROUBLE.mul_f64(rng.random_range(0.2..1.0)));
    }

    async fn trouble(&mut self, at: usize, rng: &mut StdRng) -> &'static str {
        let place = &mut self.places[at];
        match rng.random_range(0..14) {
            0 | 1 => {
                if let Some(pod) = place.pod.take() {
                    pod.stop().await;
                }
                return "killed";
            }
            2 | 3 => {
                place.listed = false;
                self.write_list();
                return "taken from the list";
            }
            _ => {}
        }
        let (name, faults) = fault(rng);
        if let Some(pod) = &place.pod {
            pod.faults().set(faults);
        }
        name
    }

    /// Makes every place well again whose trouble ends.
    async fn mend(&mut self, over: impl Fn(Instant) -> bool) {
        let mut relist = false;
        for place in &mut self.places {
            if !place.trouble.is_some_and(&over) {
                continue;
            }
            place.trouble = None;
            match &place.pod {
                Some(pod) => pod.faults().heal(),
                None => place.pod = Some(pod(place.addr, &self.tasks).await),
            }
            relist |= !std::mem::replace(&mut place.listed, true);
        }
        if relist {
            self.write_list();
        }
    }

    /// Each pod by itself, and what the gateway holds of all.
    async fn tell(&self, gateway: &Gateway) -> String {
        let states = self.places.iter().map(|place| match &place.pod {
            None => format!("{} is not there", place.addr),
            Some(pod) => {
                let state = pod.state();
                let (live, unanswered, tokens) = (state.live, state.unanswered, state.generation_tokens);
                format!("{} {live} live, {unanswered} unanswered, {tokens} tokens so far", place.addr)
            }
        });
        let own = gateway.page().await;
        let own = own.lines().filter(|line| line.starts_with("tidegate_pod_") && !line.contains("_total"));
        states.chain(own.map(str::to_owned)).collect::<Vec<_>>().join("\n")
    }

    fn live(&self) -> usize {
        let pods = self.places.iter().filter_map(|place| place.pod.as_ref());
        pods.map(RunningPod::state).map(|state| state.live + state.unanswered).sum()
    }
}

/// A pod that says some thirty words a second to each of its clients, so that a debug build and two busy cores can
/// carry five hundred of them; its cache is small, so that what is remembered of it soon stops growing.
async fn pod(addr: SocketAddr, tasks: &Tasks) -> RunningPod {
    let mut config = PodConfig::new("m").time_scale(8.0).checksum();
    config.engine.num_gpu_blocks = 4_000;
    loop {
        match Pod::start(config.clone(), addr, tasks).await {
            Ok(pod) => return pod,
            // The one before may hold the port for a moment.
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}

fn fault(rng: &mut StdRng) -> (&'static str, Faults) {
    let well = Faults::default();
    match rng.random_range(0..10) {
        0 => ("answers 500", Faults { error_rate: 0.5, ..well }),
        1 => ("is full (503)", Faults { status: Some(503), ..well }),
        2 => ("is full (429)", Faults { status: Some(429), ..well }),
        3 => ("hangs", Faults { hang_before_headers: true, ..well }),
        4 => ("cuts streams", Faults { cut_mid_stream: Some(3), ..well }),
        5 => ("ends streams with an error", Faults { error_event: Some(3), ..well }),
        6 => ("gives up", Faults { finish_abort: Some(3), ..well }),
        7 => ("is slow", Faults { slow: 5.0, ..well }),
        8 => ("refuses connections", Faults { refuse_connections: true, ..well }),
        _ => ("its engine is dead", Faults { engine_dead: true, ..well }),
    }
}

/// What the process held at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    second: f64,
    mib: f64,
    files: usize,
    tasks: f64,
}

async fn sample(gateway: &Gateway, began: Instant) -> Sample {
    let tasks = gateway.counted("tidegate_tasks").await;
    let process = gateway.child.id();
    Sample { second: began.elapsed().as_secs_f64(), mib: gateway.memory(), files: descriptors(process), tasks }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_streams_and_every_mishap_leave_no_wrong_answer_and_nothing_behind() {
    let _alone = alone().await;
    let plan = Plan::from_environment();
    let folder = tempfile::tempdir().unwrap();
    let mut pods = Pods::start(folder.path()).await;
    let gateway = Gateway::start(folder.path()).await;
    while Call::get("/readyz").send(gateway.admin).await.status() != 200 {
        sleep(Duration::from_millis(50)).await;
    }
    let (tally, stop) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
    let mut callers = Vec::new();
    for nth in 0..plan.streams {
        let rng = StdRng::seed_from_u64(plan.seed.wrapping_add(nth as u64));
        let caller = Caller::new(gateway.addr, nth, Arc::clone(&tally));
        callers.push(tokio::spawn(call_until(Arc::clone(&stop), caller, rng)));
    }
    let samples = stir_and_watch(&plan, &gateway, &mut pods, &tally).await;
    stop.store(true, Relaxed);
    pods.mend(|_| true).await;
    let mut ends = pin!(async {
        for caller in callers {
            timeout(PATIENCE * 2, caller).await.expect("a caller that does not come to its end").unwrap();
        }
    });
    if timeout(SLOW, &mut ends).await.is_err() {
        eprintln!("{SLOW:?} after the last request some have no end yet:\n{}", pods.tell(&gateway).await);
        ends.await;
    }
    let rest = quiet(&gateway, &pods, samples[0], Instant::now()).await;
    report(&plan, &tally, &pods, &samples, rest);
    assert_sound(&plan, &tally, &samples);
    gateway.signal("TERM");
    assert_drained(gateway).await;
    pods.tasks.stop();
}

async fn call_until(stop: Arc<AtomicBool>, mut caller: Caller, mut rng: StdRng) {
    // Not all at once: real clients do not either.
    sleep(Duration::from_millis(rng.random_range(0..3_000))).await;
    while !stop.load(Relaxed) {
        let ask = Ask::draw(&mut rng);
        caller.call(ask, &mut rng).await;
    }
}

/// Stirs the pods until the time is over, and writes down what the gateway holds meanwhile.
async fn stir_and_watch(plan: &Plan, gateway: &Gateway, pods: &mut Pods, tally: &Tally) -> Vec<Sample> {
    let mut rng = StdRng::seed_from_u64(plan.seed);
    let (began, on_screen) = (Instant::now(), std::io::stderr().is_terminal());
    let mut samples = vec![sample(gateway, began).await];
    let mut reloads = 0;
    for beat in 1_u32.. {
        let due = began + Duration::from_millis(500) * beat;
        if due > began + plan.length {
            break;
        }
        sleep_until(due.into()).await;
        // Every two seconds: a stream takes six, and some must come through.
        if beat % 4 == 1 {
            pods.stir(&mut rng).await;
        }
        if plan.reloads && beat.is_multiple_of(10) {
            reloads += 1;
            let new = configuration(pods.list.parent().unwrap(), gateway.addr, gateway.admin, reloads);
            fs::write(&gateway.config, new).unwrap();
            gateway.signal("HUP");
        }
        if beat.is_multiple_of(2) {
            samples.push(sample(gateway, began).await);
            progress(on_screen, beat, tally, samples[samples.len() - 1]);
        }
    }
    samples
}

fn progress(on_screen: bool, beat: u32, tally: &Tally, now: Sample) {
    // A line a second where it is overwritten, one every half minute where it stays.
    if !on_screen && !beat.is_multiple_of(60) {
        return;
    }
    let line = format!(
        "{:6.0} s  {:>8} requests  {:>4} open  {:>3} wrong  {:6.1} MiB  {:>5} files  {:>5} tasks",
        now.second,
        tally.total(),
        tally.open.load(Relaxed),
        tally.count("WRONG"),
        now.mib,
        now.files,
        now.tasks
    );
    let mut err = std::io::stderr();
    _ = if on_screen { write!(err, "\r{line} ") } else { writeln!(err, "{line}") };
}

/// Waits until nothing is held any more; what never goes back to nothing is a leak.
async fn quiet(gateway: &Gateway, pods: &Pods, first: Sample, began: Instant) -> Sample {
    let gauges = [
        "tidegate_requests_open",
        "tidegate_buffered_bodies_bytes",
        "tidegate_pod_in_flight_requests",
        "tidegate_pod_prefill_tokens",
        "tidegate_connections",
    ];
    loop {
        let mut held = Vec::new();
        for gauge in gauges {
            let value = gateway.counted(gauge).await;
            if value != 0.0 {
                held.push(format!("{gauge} {value}"));
            }
        }
        let now = sample(gateway, began).await;
        // A few tasks and files of the scrapes and of this very question come and go.
        if now.tasks > first.tasks + 30.0 {
            held.push(format!("{} tasks, {} before", now.tasks, first.tasks));
        }
        if now.files > first.files + 30 {
            held.push(format!("{} files, {} before", now.files, first.files));
        }
        if pods.live() > 0 {
            held.push(format!("{} requests at pods", pods.live()));
        }
        if held.is_empty() {
            return now;
        }
        assert!(began.elapsed() < PATIENCE, "still held after {PATIENCE:?}: {held:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// MiB that the second half of the samples gained, by a line through them.
fn gained(samples: &[Sample]) -> f64 {
    let half = &samples[samples.len() / 2..];
    let points: Vec<(f64, f64)> = half.iter().map(|it| (it.second, it.mib)).collect();
    let length = half.last().map_or(0.0, |it| it.second) - half.first().map_or(0.0, |it| it.second);
    slope(&points) * length
}

fn report(plan: &Plan, tally: &Tally, pods: &Pods, samples: &[Sample], rest: Sample) {
    println!("\n{} streams for {:.0} s, seed {}", plan.streams, plan.length.as_secs_f64(), plan.seed);
    println!("| how requests ended | |\n|---|---|");
    for (how, count) in &*tally.ends.lock().unwrap() {
        println!("| {how} | {count} |");
    }
    println!("| what befell pods | |\n|---|---|");
    for (what, count) in &pods.mishaps {
        println!("| {what} | {count} |");
    }
    let most = |of: fn(&Sample) -> f64| samples.iter().map(of).fold(0.0, f64::max);
    println!("| the gateway | first | most | at rest |\n|---|---|---|---|");
    println!("| MiB | {:.1} | {:.1} | {:.1} |", samples[0].mib, most(|it| it.mib), rest.mib);
    println!("| files | {} | {} | {} |", samples[0].files, most(|it| it.files as f64), rest.files);
    println!("| tasks | {} | {} | {} |", samples[0].tasks, most(|it| it.tasks), rest.tasks);
    println!(
        "MiB gained over the second half, by a line through {} samples: {:.1}",
        samples.len() / 2,
        gained(samples)
    );
}

fn assert_sound(plan: &Plan, tally: &Tally, samples: &[Sample]) {
    let wrong = tally.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "seed {}: wrong answers:\n{}", plan.seed, wrong.join("\n"));
    let complete = tally.count("complete");
    assert!(complete * 5 > tally.total(), "too few requests went well to show anything");
    let most = samples.iter().map(|it| it.mib).fold(0.0, f64::max);
    // Within a minute everything that is kept for reuse is still being made; after ten nothing new may be.
    let share = if plan.length < Duration::from_secs(600) { 0.4 } else { 0.05 };
    let allowed = most * share;
    assert!(gained(samples) < allowed, "{:.1} MiB gained in the second half, {allowed:.1} allowed", gained(samples));
    let files = samples.iter().map(|it| it.files).max().unwrap_or(0);
    // A client's connection and a pod's each, idle ones to every pod (256 are kept at most), and the gateway's own.
    assert!(files < plan.streams * 2 + PODS * 256 + 100, "{files} files");
}

async fn assert_drained(mut gateway: Gateway) {
    let ended = async {
        loop {
            if let Some(status) = gateway.child.try_wait().unwrap() {
                return status;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let status = timeout(PATIENCE, ended).await.expect("the gateway to end");
    let log = fs::read_to_string(&gateway.log).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}
