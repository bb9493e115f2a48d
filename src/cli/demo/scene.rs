//! What the demo shows: two equal sets of simulated pods, one gateway in front of both, and the traffic.

use std::{
    fmt::Write as _,
    io,
    net::{Ipv4Addr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::Args;
use crate::{
    app::{self, Running, StartError},
    bench::{Kind, Shape},
    clock,
    config::{self, Config},
    fleet::{Condition, Pod as GatewayPod},
    sim::{EngineConfig, Pod, PodConfig, profiles, step::StepModel},
    tasks::Tasks,
};

/// The name that clients ask for.
pub(super) const MODEL: &str = "llama-3.1-8b";

/// The GPU that each pod imitates: the slowest of the profiles, whose queues are long while our own CPU, which plays
/// all parts, has little to do.
const PROFILE: &str = "l40s-8b";

/// How fast each pod of a set is. Fleets grow unequal: another card, a noisy neighbour, a throttled one.
pub(super) const SPEEDS: [f64; 4] = [1.0, 1.0, 1.0, 0.5];

/// How long the gateway may take to have heard of every pod: its first round of readings takes a few milliseconds.
const FIRST_READING: Duration = Duration::from_secs(3);

/// How long the last picture may wait for pods to let go of what was given up: some rounds of readings, and little enough
/// to be over in 40 seconds.
pub(super) const QUIET: Duration = Duration::from_millis(400);

/// Both listeners, their pools' names too.
pub(super) const SIDES: [&str; 2] = ["classic", "openai"];

/// Pods and gateway, running.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) gateway: Running,
    pods: Tasks,
}

impl Scene {
    /// Starts the pods, then the gateway, and waits until it has read them all.
    pub(super) async fn start(args: &Args) -> anyhow::Result<Self> {
        look_for_busy_ports(args)?;
        let pods = Tasks::new();
        let mut sets = Vec::new();
        for _ in SIDES {
            sets.push(start_set(&pods).await.context("cannot start the simulated pods")?);
        }
        let gateway = app::start(configuration(args, &sets)?).await.map_err(|error| match &error {
            StartError::Bind { address, source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                explain(&[address.port()], args)
            }
            _ => error.into(),
        })?;
        let scene = Self { gateway, pods };
        scene.first_reading().await;
        Ok(scene)
    }

    /// Closes everything; what is still open is cut after `grace`.
    pub(super) async fn stop(self, grace: Duration) {
        let gateway = self.gateway.stop(Duration::ZERO, grace, std::future::pending());
        // The pods go as soon as nothing is open any more: the gateway keeps idle connections to them until then.
        let pods = async {
            tokio::time::sleep(grace).await;
            self.pods.stop();
            self.pods.wait().await;
        };
        tokio::join!(gateway, pods);
    }

    async fn first_reading(&self) {
        self.until(FIRST_READING, |pod, now| pod.condition(now) != Condition::Unknown && pod.load().is_some()).await;
    }

    /// Waits until no pod is said to compute: what was given up has gone everywhere, and the last picture fits the
    /// figures.
    pub(super) async fn quiet(&self) {
        let idle = |pod: &GatewayPod, _| pod.load().is_none_or(|load| load.reading.running == Some(0));
        self.until(QUIET, idle).await;
    }

    async fn until(&self, most: Duration, each: impl Fn(&GatewayPod, Instant) -> bool) {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        let fleet = &self.gateway.house.fleet;
        let until = clock::now() + most;
        while clock::now() < until {
            let now = clock::now();
            if fleet.pools().flat_map(|pool| pool.pods().to_vec()).all(|pod| each(&pod, now)) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

async fn start_set(tasks: &Tasks) -> io::Result<Vec<String>> {
    let [default, ..] = &profiles::PROFILES;
    let profile = profiles::find(PROFILE).unwrap_or(default);
    let mut urls = Vec::new();
    for speed in SPEEDS {
        let config = PodConfig { engine: EngineConfig::new(StepModel::new(profile, speed)), ..PodConfig::new(MODEL) };
        let pod = Pod::start(config, (Ipv4Addr::LOCALHOST, 0).into(), tasks).await?;
        urls.push(pod.url());
    }
    Ok(urls)
}

/// What an operator would have written: the demo has nothing that a configuration file has not.
fn configuration(args: &Args, sets: &[Vec<String>]) -> anyhow::Result<Config> {
    let [classic, openai, admin] = args.ports();
    let mut text = format!(
        "listeners:
  - name: classic
    address: 127.0.0.1:{classic}
    scheduler: {{ policy: round-robin }}
    models: [{{ modelName: {MODEL}, poolRef: classic }}]
  - name: openai
    address: 127.0.0.1:{openai}
    scheduler: {{ policy: least-cost }}
models:
  - {{ modelName: {MODEL}, poolRef: openai }}
admin: {{ address: 127.0.0.1:{admin} }}
pools:
"
    );
    for (name, urls) in SIDES.iter().zip(sets) {
        write!(text, "  - name: {name}\n    engine: vllm\n    endpoints:\n")?;
        for url in urls {
            writeln!(text, "      - {{ url: \"{url}\" }}")?;
        }
    }
    let loaded = config::load("the demo's configuration", &text);
    let (config, _) = loaded.map_err(|report| {
        let lines: Vec<String> = report.problems.iter().map(|problem| problem.rendered(false)).collect();
        anyhow::anyhow!("{}", lines.join("\n"))
    })?;
    Ok(config)
}

/// Says of all ports at once that they are busy, not of one at each attempt. They are free again when this returns, so
/// the gateway may still find one taken.
fn look_for_busy_ports(args: &Args) -> anyhow::Result<()> {
    let mut busy = args.ports().to_vec();
    busy.retain(|&port| {
        let tried = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        tried.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    });
    if busy.is_empty() { Ok(()) } else { Err(explain(&busy, args)) }
}

/// Which ports are busy, who it may be and what to do.
fn explain(busy: &[u16], args: &Args) -> anyhow::Error {
    let [classic, openai, _] = args.ports();
    let (mut who, mut flags, mut filters) = (Vec::new(), String::new(), Vec::new());
    for &port in busy {
        let (flag, likely) = match port {
            _ if port == classic => ("--port-classic", "another demo, a gateway or a web server"),
            _ if port == openai => ("--port-openai", "another demo or a gateway"),
            _ => ("--port-admin", "another gateway or a Prometheus"),
        };
        who.push(format!("port {port} is busy: another process listens there, likely {likely}"));
        flags += &format!(" {flag} PORT");
        filters.push(format!("sport = :{port}"));
    }
    anyhow::anyhow!(
        "{}\n  \
         Who it is:        ss -ltnp '{}'\n  \
         Other ports:      tidegate demo{flags}\n  \
         Three in a row:   tidegate demo --port 18080\n  \
         Any free ones:    tidegate demo --port 0",
        who.join("\n  "),
        filters.join(" or ")
    )
}

/// The traffic: a chat service with a few assistants; lengths in tokens.
pub(super) fn shape(length: Duration) -> Shape {
    let kind = |cards, question, turns| Kind {
        cards,
        question,
        follow_up: 40..=160,
        answer: 16..=40,
        turns,
        pause: 3.0..=6.0,
    };
    Shape {
        length,
        per_second: RATE,
        period: Duration::from_secs(3),
        burst: Duration::from_millis(400),
        burst_share: 0.5,
        instructions: vec![1_200, 800, 400],
        kinds: vec![kind(6, 60..=400, 1..=3), kind(4, 800..=1_800, 1..=2), kind(2, 4_000..=7_000, 1..=2)],
    }
}

/// Conversations that begin in a second. Measured: round robin's set then has to prefill about 26,000 tokens a second
/// that it has not cached. That is 59 % of the 43,700 that a set of this profile could do if it decoded nothing (12,500
/// for each pod at full speed), but a quarter of it goes to the pod that has a seventh of the speed. Above 14 it often
/// cannot answer all within the show; at 10 both sides have little to wait for.
const RATE: f64 = 13.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::tests::args;

    #[test]
    fn its_configuration_is_one_that_an_operator_could_have_written() {
        let urls = |from: u16| (from..from + 4).map(|port| format!("http://127.0.0.1:{port}")).collect();
        let config = configuration(&args(&[]), &[urls(9001), urls(9005)]).unwrap();
        let listeners: Vec<_> = config.listeners.iter().map(|it| (&*it.name, it.address.port())).collect();
        assert_eq!(listeners, [("classic", 8080), ("openai", 8081)]);
        assert_eq!(config.admin.address.port(), 9090);
        assert!(config.pools.iter().all(|pool| pool.endpoints.len() == 4));
    }

    #[test]
    fn all_busy_ports_are_named_at_once_with_what_to_do() {
        let sockets = [0; 3].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
        let ports = sockets.each_ref().map(|socket| socket.local_addr().unwrap().port().to_string());
        let [classic, openai, admin] = &ports;
        let args = args(&["--port-classic", classic, "--port-openai", openai, "--port-admin", admin]);
        let text = look_for_busy_ports(&args).unwrap_err().to_string();
        for (port, flag) in ports.iter().zip(["--port-classic", "--port-openai", "--port-admin"]) {
            assert!(text.contains(&format!("port {port} is busy")), "{text}");
            assert!(text.contains(flag) && text.contains("--port 0"), "{text}");
            assert!(text.contains(&format!("sport = :{port}")), "{text}");
        }
    }

    #[test]
    fn free_ports_are_no_reason_to_complain() {
        assert!(look_for_busy_ports(&args(&["--port", "0"])).is_ok());
    }
}
