//! Where log lines go and how they look: JSON, one object a line, unless a person is watching.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::{Log, LogFormat};

/// The environment variable that overrides the configured level.
const FILTER_VARIABLE: &str = "TIDEGATE_LOG";

/// Starts logging to stderr. Call it once a process; a second call changes nothing.
///
/// # Errors
/// If the filter cannot be parsed.
pub fn start(log: &Log) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(filter) => EnvFilter::try_new(filter)?,
        Err(_) => EnvFilter::try_new(&log.level)?,
    };
    let pretty = match log.format {
        LogFormat::Pretty => true,
        LogFormat::Json => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = if pretty {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_target(false).compact()).try_init()
    } else {
        registry.with(fmt::layer().with_writer(std::io::stderr).json().flatten_event(true)).try_init()
    };
    // A process that already logs (a test, the demo) keeps its own way of logging.
    started.ok();
    Ok(())
}
