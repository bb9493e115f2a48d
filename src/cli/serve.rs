//! `tidegate serve`: the gateway itself.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{OK, load_config_text};
use crate::{app, config::Config, telemetry::logs};

/// Requests were cut off because the drain grace was over.
const CUT: u8 = 3;

/// What too low a limit on open files leads to.
const RUNS_OUT: &str = "open files may run out before limits.connections is reached";

const AFTER: &str = "Signals:
  SIGTERM  drain: not ready at once, still accepting for timeouts.drain_delay, then no new
           connections, then up to timeouts.drain_grace for open requests
  SIGINT   the same without the delay (Ctrl-C); a second signal of either kind cuts what is open
  SIGHUP   reload the configuration now (it is also followed, and so are endpoint lists and token files); if it has
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
    /// Write a line for each routed request to this file (hashes, never text); `tidegate lab run trace --trace FILE` plays
    /// it. A full file is kept as FILE.1, and so is one that is there at the start
    #[arg(long, value_name = "FILE")]
    decision_log: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some((config, text)) = load_config_text(&args.config)? else {
        return Ok(ExitCode::from(super::PROBLEMS));
    };
    let level = logs::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(args, config, &text, level))
}

async fn serve(args: &Args, config: Config, text: &str, level: logs::Level) -> anyhow::Result<ExitCode> {
    // Before anything listens, so that a signal is never lost.
    let mut signals = Signals::new()?;
    let raised = app::OpenFiles::raise(&config);
    let files = app::OpenFiles::now(&config);
    tracing::info!(
        config = %args.config.display(),
        hash = app::hash(text.as_bytes()),
        listeners = config.listeners.len(),
        pools = config.pools.len(),
        open_files = files.limit,
        concat!("tidegate ", env!("CARGO_PKG_VERSION"), " started")
    );
    if files.may_run_out() {
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
    let running = app::start_logging(config, args.decision_log.as_deref()).await?;
    let reloader = running.reloader(&args.config, text, Some(level));
    running.follow(&reloader);
    for (name, address) in &running.listeners {
        tracing::info!(listener = %name, %address, "listening");
    }
    tracing::info!(address = %running.admin, "admin listening");
    if let Some(address) = running.probes {
        tracing::info!(%address, "probes listening");
    }
    let stop = loop {
        match signals.next().await {
            SignalKindSeen::Hangup => _ = reloader.reload().await,
            stop => break stop,
        }
    };
    let timeouts = running.policy.load().config.timeouts;
    let delay = if stop == SignalKindSeen::Interrupt { Duration::ZERO } else { timeouts.drain_delay };
    let hurry = async move { while signals.next().await == SignalKindSeen::Hangup {} };
    let stopped = running.stop(delay, timeouts.drain_grace, hurry).await;
    Ok(ExitCode::from(if stopped.cut == 0 { OK } else { CUT }))
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
