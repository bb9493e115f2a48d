//! What it costs to watch 100 pods: the CPU time of this process, while another process serves the recorded pages.
//! Targets: idle pods below 2 % of one core, busy ones at 250 ms below 15 %.
//!
//! `cargo bench --bench scrape_cost`; no criterion, because the question is not how long something takes.

#![expect(clippy::print_stdout, reason = "a bench talks to a terminal")]
#![expect(clippy::expect_used, reason = "a bench that cannot begin may end")]

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tidegate::{
    clock,
    config::{Bytes, Engine, Metrics, Origin, Pool, Saturation, Target},
    fleet::{Fleet, Pod},
    scrape::{PageRead, Report, Scraper},
    tasks::Tasks,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::Builder,
};

const PODS: usize = 100;
/// Until idle pods have backed off and connections are open.
const SETTLE: Duration = Duration::from_secs(8);
/// Long enough that the kernel's 10 ms ticks do not matter.
const MEASURE: Duration = Duration::from_secs(20);
/// `/proc/self/stat` counts in these (`getconf CLK_TCK` on Linux).
const TICKS_A_SECOND: f64 = 100.0;

fn main() {
    if let Some(page) = env::args().skip_while(|arg| arg != "--serve").nth(1) {
        Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(serve(&page));
        return;
    }
    measure("idle", "vllm-0.32.0-metrics-after", 2.0);
    measure("busy", "vllm-0.32.0-metrics-load0", 15.0);
}

fn measure(what: &str, page: &str, target: f64) {
    let (mut server, ports) = start_server(page);
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (cpu, pages) = runtime.block_on(watch(&ports));
    server.kill().expect("the server ends");
    server.wait().expect("the server ended");
    let seconds = MEASURE.as_secs_f64();
    println!(
        "{PODS} {what} pods: {:.2} % of one core (target < {target} %), {:.0} pages/s, {:.0} us a page",
        cpu / seconds * 100.0,
        pages as f64 / seconds,
        cpu / pages as f64 * 1e6
    );
}

#[derive(Default)]
struct Count(AtomicU64);

impl Report for Count {
    fn page_read(&self, _: &Pod, _: PageRead) {
        self.0.fetch_add(1, Relaxed);
    }
}

async fn watch(ports: &[u16]) -> (f64, u64) {
    let pool = Arc::new(Pool {
        name: "pool".into(),
        engine: Engine::Auto,
        endpoints: Vec::new(),
        metrics: Metrics {
            path: "/metrics".into(),
            port: None,
            interval: Duration::from_millis(250),
            timeout: Duration::from_secs(1),
            max_page: Bytes(4 << 20),
        },
        forward_authorization: false,
        ca_file: None,
        client_certificate: None,
        server_name: None,
        saturation: Saturation { wait: Duration::from_secs(1), batch: None },
        priority_scheduling: false,
    });
    let fleet = Arc::new(Fleet::new(&[pool], clock::now()));
    let target = |port: &u16| Target {
        origin: Origin { https: false, host: "127.0.0.1".into(), port: *port },
        base_path: String::new(),
        token_file: None,
        metrics_url: None,
    };
    fleet.set("pool", &ports.iter().map(target).collect::<Vec<_>>(), clock::now());
    let (tasks, count) = (Tasks::new(), Arc::new(Count::default()));
    let report: Arc<dyn Report> = Arc::clone(&count) as _;
    let _scraper = Scraper::start(&fleet, &tasks, &|_| no_tls().into(), &report).expect("a client");
    tokio::time::sleep(SETTLE).await;
    let (cpu, pages) = (cpu_seconds(), count.0.load(Relaxed));
    tokio::time::sleep(MEASURE).await;
    let spent = (cpu_seconds() - cpu, count.0.load(Relaxed) - pages);
    tasks.stop();
    tasks.wait().await;
    spent
}

fn no_tls() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields = stat.rsplit_once(") ").expect("a name in parentheses").1;
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|it| it.parse::<f64>().expect("a number")).sum::<f64>() / TICKS_A_SECOND
}

fn start_server(page: &str) -> (Child, Vec<u16>) {
    let mut child = Command::new(env::current_exe().expect("this program"))
        .args(["--serve", page])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a server");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("its output");
    BufReader::new(stdout).read_line(&mut line).expect("its ports");
    let ports = line.split_whitespace().map(|port| port.parse().expect("a port"));
    (child, ports.collect())
}

struct Answers {
    page: Vec<u8>,
    models: Vec<u8>,
}

fn answer(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Serves the page on as many ports as there are pods, as plainly as it goes.
async fn serve(page: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/metrics/{page}.txt"));
    let body = fs::read(file).expect("a recorded page");
    let answer = Arc::new(Answers {
        page: answer(&body),
        models: answer(br#"{"object":"list","data":[{"id":"tiny","object":"model"}]}"#),
    });
    let tasks = Tasks::new();
    let mut ports = Vec::new();
    for _ in 0..PODS {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        ports.push(listener.local_addr().expect("bound").port().to_string());
        let (answer, inner) = (Arc::clone(&answer), tasks.clone());
        tasks.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                inner.spawn(answer_all(socket, Arc::clone(&answer)));
            }
        });
    }
    println!("{}", ports.join(" "));
    std::io::stdout().flush().expect("somebody listens");
    tasks.wait().await;
}

async fn answer_all(mut socket: TcpStream, answers: Arc<Answers>) {
    let mut request = [0; 2048];
    while let Ok(length @ 1..) = socket.read(&mut request).await {
        let asks_models = request.get(..length).is_some_and(|it| it.starts_with(b"GET /v1/models"));
        let answer = if asks_models { &answers.models } else { &answers.page };
        if socket.write_all(answer).await.is_err() {
            return;
        }
    }
}
