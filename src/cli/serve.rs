//! `tidegate serve`: the gateway itself.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{OK, load_config_text};
use crate::{
    app,
    config::{Config, Credentials, Given, Identity, Listener, ProxyProtocol},
    telemetry::logs,
};

/// Requests were cut off because the drain grace was over.
const CUT: u8 = 3;

/// What too low a limit on open files leads to.
const RUNS_OUT: &str = "open files may run out before limits.connections is reached";

const AFTER: &str = "Signals:
  SIGTERM  drain: not ready at once, still accepting for timeouts.drain_delay, then no new
           connections, then up to timeouts.drain_grace for open requests
  SIGINT   the same without the delay (Ctrl-C); a second signal of either kind cuts what is open
  SIGHUP   reload the configuration now (it is also followed, and so are endpoint lists, manifests and token files); if it has
           problems, or changes what only a restart can, it is refused and the one before stays in force

Exit codes:
  0  stopped, and every request got its whole answer
  1  the configuration has problems, or an address could not be bound, or a log not be written
  3  stopped, but requests had to be cut off; the log says how many";

/// Run the gateway.
///
/// Scrapes the pods, listens for OpenAI-style requests, and sends each to the pod where it costs the least.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER)]
pub(super) struct Args {
    /// The configuration, YAML; `tidegate check` tells what is wrong with one
    #[arg(short, long, value_name = "FILE", env = "TIDEGATE_CONFIG")]
    config: PathBuf,
    /// Read InferencePool, InferenceModel and their kin from this directory of manifests (or this file), and follow it,
    /// instead of asking a cluster
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// Write a line for each routed request to this file (hashes, never text); `tidegate lab run trace --trace FILE` plays
    /// it. A full file is kept as FILE.1, and so is one that is there at the start
    #[arg(long, value_name = "FILE")]
    decision_log: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some((config, text)) = load_config_text(&args.config, &Given { manifests: args.manifests.clone() })? else {
        return Ok(ExitCode::from(super::PROBLEMS));
    };
    run_config(config, Source::File(&args.config, &text), args.decision_log.as_deref())
}

/// Where a configuration's text comes from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A file, which is followed.
    File(&'a Path, &'a str),
    /// Flags that mean this text.
    Flags(&'a str),
}

impl<'a> Source<'a> {
    fn name_and_text(self) -> (&'a Path, &'a str) {
        match self {
            Self::File(path, text) => (path, text),
            Self::Flags(text) => (Path::new("flags"), text),
        }
    }
}

/// Runs the gateway of `config`. Inference resources are followed, and so is its file, if it has one.
pub(super) fn run_config(config: Config, source: Source<'_>, decision_log: Option<&Path>) -> anyhow::Result<ExitCode> {
    let level = logs::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config, source, decision_log, level))
}

async fn serve(
    config: Config,
    source: Source<'_>,
    decision_log: Option<&Path>,
    level: logs::Level,
) -> anyhow::Result<ExitCode> {
    // Before anything listens, so that a signal is never lost.
    let mut signals = Signals::new()?;
    greet(&config, source);
    let running = app::start_logging(config, decision_log).await?;
    let (name, text) = source.name_and_text();
    let reloader = running.reloader(name, text, Some(level));
    let followed = matches!(source, Source::File(..));
    if followed {
        running.follow(&reloader);
    } else {
        running.follow_resources(&reloader);
    }
    tell_addresses(&running);
    let stop = loop {
        match signals.next().await {
            SignalKindSeen::Hangup if followed => {
                reloader.reload().await;
            }
            SignalKindSeen::Hangup => {}
            stop => break stop,
        }
    };
    let timeouts = running.policy.load().config.timeouts;
    let delay = if stop == SignalKindSeen::Interrupt { Duration::ZERO } else { timeouts.drain_delay };
    let hurry = async move { while signals.next().await == SignalKindSeen::Hangup {} };
    let stopped = running.stop(delay, timeouts.drain_grace, hurry).await;
    Ok(ExitCode::from(if stopped.cut == 0 { OK } else { CUT }))
}

/// The first line of the log, and whether there will be files enough.
fn greet(config: &Config, source: Source<'_>) {
    let raised = app::OpenFiles::raise(config);
    let files = app::OpenFiles::now(config);
    let (name, text) = source.name_and_text();
    tracing::info!(
        config = %name.display(),
        hash = app::hash(text.as_bytes()),
        listeners = config.listeners.len(),
        pools = config.pools.len(),
        open_files = files.limit,
        concat!("tidegate ", env!("CARGO_PKG_VERSION"), " started")
    );
    if files.may_run_out() {
        tell_files(config, files, raised);
    }
}

fn tell_files(config: &Config, files: app::OpenFiles, raised: std::io::Result<app::OpenFiles>) {
    let (limit, needed, remedy) = (files.limit, files.needed, files.remedy());
    match raised {
        // Nobody has said that so many will come.
        Ok(_) if config.limits.has_usual_connections() => tracing::info!(limit, needed, "{RUNS_OUT}: {remedy}"),
        raised => {
            let error = raised.err().map(tracing::field::display);
            tracing::warn!(limit, needed, error, "{RUNS_OUT}: {remedy}");
        }
    }
}

/// Where it listens, and what is spoken there.
fn tell_addresses(running: &app::Running) {
    let policy = running.policy.load();
    for ((name, address), listener) in running.listeners.iter().zip(&policy.config.listeners) {
        let Spoken { protocol, tls, client_certificates, proxy_protocol, identity } =
            spoken(listener, &policy.config.identity);
        tracing::info!(listener = %name, %address, protocol, tls, client_certificates, proxy_protocol, identity, "listening");
    }
    for (name, address) in &running.health {
        tracing::info!(listener = %name, %address, "health listening (gRPC)");
    }
    tell_other_addresses(running);
}

/// What is spoken at a listener, and who is asked for what, in the configuration's words.
#[derive(Debug, PartialEq, Eq)]
struct Spoken {
    protocol: &'static str,
    tls: bool,
    client_certificates: &'static str,
    proxy_protocol: &'static str,
    /// By what clients are known; none where Envoy asks.
    identity: Option<String>,
}

fn spoken(listener: &Listener, known: &Identity) -> Spoken {
    let envoy = listener.ext_proc.as_ref();
    let asked = match envoy {
        Some(how) => how.client_certificates.as_ref(),
        None => listener.tls.as_ref().and_then(|tls| tls.client_certificates.as_ref()),
    };
    let ways = [
        ("keys", known.key_file.is_some()),
        ("jwt", !known.issuers.is_empty()),
        ("certificates", known.certificates.is_some() && asked.is_some()),
    ];
    let ways = ways.into_iter().filter(|_| listener.credentials != Credentials::Ignored);
    let ways = ways.chain([("anonymous", listener.credentials != Credentials::Required)]);
    let ways: Vec<_> = ways.filter(|(_, is_one)| *is_one).map(|(way, _)| way).collect();
    Spoken {
        protocol: if envoy.is_some() { "ext-proc" } else { "http" },
        tls: envoy.map_or(listener.tls.is_some(), |how| how.secure),
        client_certificates: match asked {
            None => "off",
            Some(asked) if asked.required => "required",
            Some(_) => "optional",
        },
        proxy_protocol: match listener.network.proxy_protocol {
            ProxyProtocol::Off => "off",
            ProxyProtocol::Required => "required",
            ProxyProtocol::FromTrusted => "from-trusted",
        },
        identity: envoy.is_none().then(|| ways.join(",")),
    }
}

fn tell_other_addresses(running: &app::Running) {
    tracing::info!(address = %running.admin, "admin listening");
    if let Some(address) = running.probes {
        tracing::info!(%address, "probes listening");
    }
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignalKindSeen {
    Terminate,
    Interrupt,
    Hangup,
}

impl Signals {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> SignalKindSeen {
        tokio::select! {
            _ = self.terminate.recv() => SignalKindSeen::Terminate,
            _ = self.interrupt.recv() => SignalKindSeen::Interrupt,
            _ = self.hangup.recv() => SignalKindSeen::Hangup,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    fn told(listener: &str, rest: &str) -> Spoken {
        let text = format!(
            "listeners: [{{ name: a, address: 127.0.0.1:1, {listener} }}]\n\
             pools: [{{ name: p, endpoints: [{{ url: \"http://10.0.0.1:8000\" }}] }}]\n{rest}\n"
        );
        let (config, _) = load("t", &text).unwrap_or_else(|report| panic!("{report}"));
        spoken(&config.listeners[0], &config.identity)
    }

    #[test]
    fn a_listener_with_tls_is_told_as_one_and_so_is_who_is_asked_for_what() {
        let plain = told("", "");
        assert_eq!((plain.tls, plain.client_certificates, plain.proxy_protocol), (false, "off", "off"));
        assert_eq!((plain.protocol, plain.identity.as_deref()), ("http", Some("anonymous")));
        let tls = |clients: &str| format!("tls: {{ certificates: [{{ folder: /t }}]{clients} }}");
        let asked = ", client_certificates: { ca_file: /ca, required: false }";
        let all = "identity: { keys: { file: k }, jwt: [{ issuer: \"https://a\", audiences: [t] }], certificates: { from: uri } }";
        let open = told(&format!("{}, allow_anonymous: true", tls(asked)), all);
        assert_eq!((open.tls, open.client_certificates), (true, "optional"));
        assert_eq!(open.identity.as_deref(), Some("keys,jwt,certificates,anonymous"));
        let without = told(&tls(""), all);
        assert_eq!(without.identity.as_deref(), Some("keys,jwt"), "no certificate is asked for");
        let strict = told(
            "tls: { certificates: [{ folder: /t }], client_certificates: { ca_file: /ca } }, \
             proxy_protocol: required, trusted_proxies: [10.0.0.0/8]",
            "identity: { certificates: { from: uri } }",
        );
        assert_eq!((strict.client_certificates, strict.proxy_protocol), ("required", "required"));
        assert_eq!(strict.identity.as_deref(), Some("certificates"));
        let envoy = told("protocol: ext-proc", all);
        assert_eq!((envoy.protocol, envoy.tls, envoy.identity), ("ext-proc", true, None));
    }
}
