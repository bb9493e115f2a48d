//! `tidegate serve`: the gateway itself.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{OK, load_config};
use crate::{app, telemetry::logs};

/// Requests were cut off because the drain grace was over.
const CUT: u8 = 3;

const AFTER: &str = "Signals:
  SIGTERM  drain: not ready at once, still accepting for timeouts.drain_delay, then no new
           connections, then up to timeouts.drain_grace for open requests
  SIGINT   the same without the delay (Ctrl-C); a second signal of either kind cuts what is open
  SIGHUP   nothing: the configuration is read at the start (endpoint lists and token files are followed)

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
    let Some(config) = load_config(&args.config)? else {
        return Ok(ExitCode::from(super::PROBLEMS));
    };
    logs::start(&config.log).context("log.level is no filter")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config, args.decision_log.as_deref()))
}

async fn serve(config: crate::config::Config, decision_log: Option<&Path>) -> anyhow::Result<ExitCode> {
    // Before anything listens, so that a signal is never lost.
    let mut signals = Signals::new()?;
    let (delay, grace) = (config.timeouts.drain_delay, config.timeouts.drain_grace);
    let running = app::start_logging(config, decision_log).await?;
    for (name, address) in &running.listeners {
        tracing::info!(listener = %name, %address, "listening");
    }
    tracing::info!(address = %running.admin, "admin listening");
    let delay = match signals.next().await {
        SignalKindSeen::Interrupt => Duration::ZERO,
        SignalKindSeen::Terminate => delay,
    };
    let stopped = running.stop(delay, grace, async move { _ = signals.next().await }).await;
    Ok(ExitCode::from(if stopped.cut == 0 { OK } else { CUT }))
}

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

pub(super) enum SignalKindSeen {
    Terminate,
    Interrupt,
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
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return SignalKindSeen::Terminate,
                _ = self.interrupt.recv() => return SignalKindSeen::Interrupt,
                _ = self.hangup.recv() => tracing::warn!("SIGHUP changes nothing: restart to apply a new configuration"),
            }
        }
    }
}
