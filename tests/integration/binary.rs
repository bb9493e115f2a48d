//! The binary as it is started from a shell: exit codes, what is printed, signals.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use crate::harness::{Call, SimPod, chat, chat_stream, within};

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

/// `tidegate serve`, running.
pub(crate) struct Served {
    child: Child,
    pub(crate) addr: SocketAddr,
    log: std::thread::JoinHandle<String>,
}

impl Served {
    pub(crate) fn start(config: &str) -> Self {
        let mut child =
            tidegate(&["serve", "--config", config]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut read = String::new();
        let addr = loop {
            let from = read.len();
            assert_ne!(lines.read_line(&mut read).unwrap(), 0, "it ended: {read}");
            if let Some(at) = read[from..].find("127.0.0.1:") {
                let addr = &read[from + at..];
                let end = addr.find('"').unwrap();
                break addr[..end].parse().unwrap();
            }
        };
        let log = std::thread::spawn(move || {
            lines.read_to_string(&mut read).unwrap();
            read
        });
        Self { child, addr, log }
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Its exit code and what it logged.
    pub(crate) async fn ended(mut self) -> (i32, String) {
        let ended = tokio::task::spawn_blocking(move || (self.child.wait().unwrap(), self.log.join().unwrap()));
        let (status, log) = within("the process to end", ended).await.unwrap();
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
