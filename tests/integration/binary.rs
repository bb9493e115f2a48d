//! The binary as it is started from a shell: exit codes, what is printed, signals.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use crate::harness::{Call, Gateway, SimPod, chat, chat_stream, within};

fn tidegate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(args).env_remove("TIDEGATE_CONFIG").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = tidegate(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A configuration over `endpoint`, with everything on ports that the system chooses.
pub(crate) fn config(folder: &Path, endpoint: &str, rest: &str) -> String {
    let file = folder.join("tidegate.yaml");
    let text = format!(
        "listeners:\n  - {{ name: main, address: \"127.0.0.1:0\" }}\npools:\n  - name: pods\n    endpoints: [{endpoint}]\n\
         models:\n  - {{ modelName: m, poolRef: pods }}\nadmin: {{ address: \"127.0.0.1:0\" }}\nlog: {{ format: json }}\n{rest}"
    );
    fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// A process that does not outlive its test, however that ends.
struct Tied(Child);

impl Drop for Tied {
    fn drop(&mut self) {
        // It may well have ended.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// `tidegate serve`, running.
pub(crate) struct Served {
    child: Tied,
    /// The first address that it named; of all interfaces, this one.
    pub(crate) addr: SocketAddr,
    /// What it logged so far.
    said: Arc<Mutex<String>>,
    log: std::thread::JoinHandle<()>,
}

impl Served {
    pub(crate) fn start(config: &str) -> Self {
        Self::spawn(&mut tidegate(&["serve", "--config", config]))
    }

    /// Under this limit on open files, as the shell's `ulimit` takes it.
    fn limited(config: &str, limit: &str) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("ulimit {limit}; exec \"$0\" serve --config \"$1\"");
        Self::spawn(shell.args(["-c", &script, env!("CARGO_BIN_EXE_tidegate"), config]).stdin(Stdio::null()))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut read = String::new();
        let addr = loop {
            let from = read.len();
            assert_ne!(lines.read_line(&mut read).unwrap(), 0, "it ended: {read}");
            let line = read[from..].replace("0.0.0.0:", "127.0.0.1:");
            if let Some(at) = line.find("127.0.0.1:").filter(|_| line.contains("listening")) {
                let digits = line[at + "127.0.0.1:".len()..].chars().take_while(char::is_ascii_digit);
                let port: u16 = digits.collect::<String>().parse().unwrap();
                break SocketAddr::from(([127, 0, 0, 1], port));
            }
        };
        let said = Arc::new(Mutex::new(read));
        let page = Arc::clone(&said);
        let log = std::thread::spawn(move || {
            for line in lines.lines() {
                page.lock().unwrap().push_str(&(line.unwrap() + "\n"));
            }
        });
        Self { child: Tied(child), addr, said, log }
    }

    /// `tidegate epp` with these flags, reaching a cluster as `kubeconfig` says.
    #[cfg(feature = "kubernetes")]
    pub(crate) fn picker(flags: &[&str], kubeconfig: &Path) -> Self {
        let mut command = tidegate(&["epp"]);
        Self::spawn(command.args(flags).env("KUBECONFIG", kubeconfig).env_remove("NAMESPACE"))
    }

    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Its exit code and what it logged.
    pub(crate) async fn ended(mut self) -> (i32, String) {
        let said = Arc::clone(&self.said);
        let ended = tokio::task::spawn_blocking(move || {
            self.log.join().unwrap();
            self.child.0.wait().unwrap()
        });
        let status = within("the process to end", ended).await.unwrap();
        let log = said.lock().unwrap().clone();
        (status.code().expect("an exit code, not a death by signal"), log)
    }
}

#[test]
fn every_example_configuration_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut examples = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "yaml") {
            let (code, out, err) = run(&["check", path.to_str().unwrap()]);
            assert_eq!(code, 0, "{}: {out}{err}", path.display());
            examples += 1;
        }
    }
    assert!(examples >= 5, "minimal, split, two listeners, remote, everything");
}

#[test]
fn a_bad_configuration_is_told_with_every_problem_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.yaml");
    let text = "listeners:\n  - { name: main, address: nowhere }\npools:\n  - name: pods\n    endpoint: []\nmodels:\n  - { modelName: m, \
                poolRef: podz }\n";
    fs::write(&file, text).unwrap();
    let path = file.to_str().unwrap();
    let (code, out, err) = run(&["check", path]);
    let all = out + &err;
    assert_eq!(code, 1, "{all}");
    for place in [":2:", ":5:"] {
        assert!(all.contains(&format!("{path}{place}")), "{place} in {all}");
    }
    let (code, _, err) = run(&["serve", "--config", path]);
    assert_eq!(code, 1);
    assert!(err.contains(&format!("{path}:2:")), "{err}");
}

#[test]
fn a_wrong_command_line_and_a_missing_file_have_their_codes() {
    assert_eq!(run(&["no-such-verb"]).0, 2);
    assert_eq!(run(&["serve", "--no-such-flag"]).0, 2);
    let (code, _, err) = run(&["serve", "--config", "/no/such/file.yaml"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("/no/such/file.yaml"), "{err}");
    let (code, out, _) = run(&["--version"]);
    assert_eq!((code, out.trim()), (0, concat!("tidegate ", env!("CARGO_PKG_VERSION"))));
    let (code, out, _) = run(&["check", "--schema"]);
    assert_eq!(code, 0);
    assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok());
    assert!(run(&["completions", "bash"]).1.contains("tidegate"));
}

#[test]
fn a_busy_port_is_told_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path(), "{ url: \"http://127.0.0.1:1\" }", "");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1)).unwrap();
    let (code, _, err) = run(&["serve", "--config", &path]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&port.to_string()) && err.contains("ss -ltnp") && err.contains("main"), "{err}");
    let (code, _, err) = run(&["sim", "--pods", "1", "--port", &port.to_string()]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains(&format!("port {port} is busy")) && err.contains("--port"), "{err}");
}

#[test]
fn a_level_in_the_environment_that_is_none_is_told_and_nothing_is_served_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path(), "{ url: \"http://127.0.0.1:1\" }", "");
    let Output { status, stderr, .. } =
        tidegate(&["serve", "--config", &path]).env("TIDEGATE_LOG", "verbose").output().unwrap();
    assert_eq!(status.code(), Some(1));
    let told = "tidegate: `TIDEGATE_LOG`: `verbose` is not a log level; the levels are: off, error, warn, info, debug, \
                trace\n";
    assert_eq!(String::from_utf8(stderr).unwrap(), told);
}

#[tokio::test]
async fn the_log_tells_what_started_that_it_is_ready_and_what_went_wrong_with_a_pool() {
    let pods = [SimPod::start().await, SimPod::start().await];
    pods[0].faults().change(|faults| faults.warm_up = true);
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("pods.yaml");
    fs::write(&list, "[]").unwrap();
    let endpoint = format!("{{ file: {} }}", list.display());
    let rest = "waiting: { timeout: 2s }\nprobes: { address: \"127.0.0.1:0\" }\n";
    let path = config(folder.path(), &endpoint, rest);
    let served = Served::start(&path);
    assert_eq!(chat("nobody", 1).send(served.addr).await.status(), 503);
    let waits = chat("waits", 1).begin(served.addr);
    let token = folder.path().join("no-token");
    let new = format!("- url: {}\n- {{ url: {}, token_file: {} }}\n", pods[0].url(), pods[1].url(), token.display());
    let written = list.with_extension("new");
    fs::write(&written, new).unwrap();
    fs::rename(written, &list).unwrap();
    pods[0].faults().heal();
    assert_eq!(waits.await.unwrap().status(), 200);
    let says = |what: &str| served.said().contains(what);
    crate::harness::eventually("the missing token is told", || says("pod cannot be read")).await;
    fs::write(&token, "secret").unwrap();
    crate::harness::eventually("and that it is there now", || says("pod can be read again")).await;
    served.signal("INT");
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = &lines[0];
    assert_eq!(first["message"], concat!("tidegate ", env!("CARGO_PKG_VERSION"), " started"));
    assert_eq!((&first["config"], &first["listeners"], &first["pools"]), (&path.into(), &1.into(), &1.into()));
    let count = |message: &str| lines.iter().filter(|line| line["message"] == message).count();
    assert_eq!((count("ready"), count("probes listening"), count("pod can be read again")), (1, 1, 1), "{log}");
    assert_eq!(count("pool has no usable pod; requests wait"), 1, "{log}");
    assert_eq!(log.matches("pool is served again after ").count(), 1, "{log}");
    assert_eq!(
        count(&format!("pod cannot be read: token file {} cannot be read, or holds no token", token.display())),
        1
    );
    let expired = lines.iter().find(|line| line["status"] == 503).unwrap();
    assert!(expired["waited_ms"].as_f64().is_some_and(|ms| ms >= 2_000.0), "{expired}");
}

#[tokio::test]
async fn a_low_soft_limit_on_open_files_is_raised_and_a_low_hard_one_is_told() {
    let pod = SimPod::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path(), &pod.endpoint(), "limits: { connections: 100 }\n");
    // 2 files a connection and 1,024 besides.
    for (limit, may, warned) in [("-Sn 300; ulimit -Hn 2000", 2_000, false), ("-n 300", 300, true)] {
        let served = Served::limited(&path, limit);
        served.signal("INT");
        let (code, log) = served.ended().await;
        assert_eq!(code, 0, "{log}");
        let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["open_files"], may, "{log}");
        let warning = lines.iter().find(|line| line["level"] == "WARN").map(|it| (&it["limit"], &it["needed"]));
        assert_eq!(warning, warned.then_some((&may.into(), &1_224.into())), "{log}");
    }
}

#[tokio::test]
async fn a_socket_that_the_service_manager_keeps_refuses_nobody_while_the_gateway_is_replaced() {
    let pod = SimPod::start().await;
    let folder = tempfile::tempdir().unwrap();
    let kept = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = kept.local_addr().unwrap();
    let path = config(folder.path(), &pod.endpoint(), "timeouts: { drain_delay: 0s }\nreuse_port: true\n");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("127.0.0.1:0", &address.to_string(), 1)).unwrap();
    for _ in 0..2 {
        // Nobody accepts yet.
        let waits = chat("hi", 1).begin(address);
        // As systemd does it: the sockets from the third descriptor on, meant for this process alone.
        let mut shell = Command::new("sh");
        let script = "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve --config \"$1\"";
        shell.args(["-c", script, env!("CARGO_BIN_EXE_tidegate"), &path]);
        let served = Served::spawn(shell.stdin(OwnedFd::from(kept.try_clone().unwrap())));
        assert_eq!((served.addr, waits.await.unwrap().status()), (address, 200));
        served.signal("TERM");
        let (code, log) = served.ended().await;
        assert!(code == 0 && !log.contains("passed to us"), "{log}");
    }
}

#[tokio::test]
async fn explaining_at_a_listener_that_is_not_there_is_told_as_that() {
    let pod = SimPod::start().await;
    let gateway = Gateway::over([pod.endpoint()]).start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path(), &pod.endpoint(), "");
    let body = folder.path().join("body.json");
    fs::write(&body, r#"{"model":"m","messages":[]}"#).unwrap();
    let admin = gateway.admin().to_string();
    let told = tokio::task::spawn_blocking(move || {
        let body = body.to_str().unwrap();
        run(&["explain", "--config", &path, "--request", body, "--admin", &admin, "--listener", "nope"])
    });
    let (code, _, err) = within("the explanation", told).await.unwrap();
    assert_eq!((code, err.as_str()), (1, "tidegate: no listener is named `nope`; there are: main\n"));
}

#[tokio::test]
async fn sigterm_drains_and_the_exit_code_says_that_nothing_was_cut() {
    let pod = SimPod::start().await;
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&config(folder.path(), &pod.endpoint(), "timeouts: { drain_delay: 100ms }\n"));
    assert_eq!(chat("hi", 1).send(served.addr).await.status(), 200);
    pod.faults().change(|faults| faults.slow = 5.0);
    let mut open = chat_stream("hi", 100).send(served.addr).await;
    open.piece().await.unwrap().unwrap();
    served.signal("TERM");
    assert!(open.text().await.ends_with("data: [DONE]\n\n"));
    let (code, log) = served.ended().await;
    assert_eq!(code, 0, "{log}");
    let requests: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .filter(|line: &serde_json::Value| line["target"] == "tidegate::request")
        .collect();
    assert_eq!(requests.len(), 2, "one line a request: {log}");
    assert!(!log.contains("\"hi\""), "never a prompt");
}

#[tokio::test]
async fn a_second_signal_cuts_and_the_exit_code_says_so() {
    let pod = SimPod::slow().await;
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(&config(folder.path(), &pod.endpoint(), ""));
    let open = chat_stream("hi", 100_000).send(served.addr).await;
    served.signal("INT");
    // The first signal closes the door at once; the second must not come before it was taken.
    let to = served.addr;
    within("the door to close", async { while tokio::net::TcpStream::connect(to).await.is_ok() {} }).await;
    served.signal("INT");
    let (code, log) = served.ended().await;
    assert_eq!(code, 3, "{log}");
    let text = open.text().await;
    assert!(text.contains("the gateway stopped") && text.contains("stream_cut"), "{text}");
}

#[tokio::test]
async fn sim_prints_a_configuration_that_serve_takes() {
    let mut sim = tidegate(&["sim", "--pods", "1", "--port", "0", "--adapters", "a"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(sim.stdout.take().unwrap()).lines();
    let mut printed = Vec::new();
    for line in lines.by_ref() {
        let line = line.unwrap();
        let last = line.starts_with("Ctrl-C");
        printed.push(line);
        if last {
            break;
        }
    }
    let from = printed.iter().position(|line| line == "listeners:").unwrap();
    let to = printed[from..].iter().position(String::is_empty).unwrap() + from;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("printed.yaml");
    let text = printed[from..to].join("\n").replace("127.0.0.1:8081", "\"127.0.0.1:0\"");
    fs::write(&file, text + "\nadmin: { address: \"127.0.0.1:0\" }\nlog: { format: json }\n").unwrap();
    let served = Served::start(file.to_str().unwrap());
    let reply =
        Call::post("/v1/completions", r#"{"model":"llama2","prompt":"hi","max_tokens":1}"#).send(served.addr).await;
    assert_eq!(reply.status(), 200);
    served.signal("INT");
    assert_eq!(served.ended().await.0, 0);
    sim.kill().unwrap();
    sim.wait().unwrap();
}

#[test]
fn a_picker_without_a_cluster_or_with_a_slip_says_what_to_do_instead() {
    let nowhere = |args: &[&str]| {
        let mut command = tidegate(args);
        let Output { status, stderr, .. } =
            command.env("KUBECONFIG", "/no/such/config").env_remove("KUBERNETES_SERVICE_HOST").output().unwrap();
        (status.code().unwrap(), String::from_utf8(stderr).unwrap())
    };
    let ports = ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0"];
    // As an image is swapped in a chart: no verb.
    let (code, err) = nowhere(&[&["--pool-name", "p"], &ports[..]].concat());
    assert_eq!(code, 1, "{err}");
    if cfg!(feature = "kubernetes") {
        assert!(err.contains("no cluster: --pool-name needs one"), "{err}");
    }
    assert!(!err.contains("manifests"), "{err}");
    let (code, err) = nowhere(&["epp", "--pool-nam", "x"]);
    assert_eq!(code, 1, "{err}");
    let slip = err.find("did you mean --pool-name?").expect("the slip is told");
    assert!(slip < err.find("which pods?").expect("the error too"), "first the likely reason: {err}");
    let (code, err) = nowhere(&["epp", "--endpoints", "foo"]);
    assert_eq!((code, err.contains("url:")), (1, false), "no YAML that nobody wrote: {err}");
    let folder = tempfile::tempdir().unwrap();
    let own = config(folder.path(), "{ url: \"http://127.0.0.1:1\" }", "");
    let (code, err) = nowhere(&["epp", "--config-file", &own]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("no listener with `protocol: ext-proc`"), "{err}");
}

#[test]
fn a_port_that_is_taken_is_told_with_the_flag_that_gives_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let rest = ["--grpc-port=0", "--grpc-health-port=0", "--metrics-port=0", "--admin-port", &port];
    let (code, _, err) = run(&[&["epp", "--endpoints", "127.0.0.1:1"], &rest[..]].concat());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("tidegate: --admin-port"), "{err}");
    assert!(err.contains(&format!("127.0.0.1:{port}")), "{err}");
}
