//! Where log lines go and how they look: JSON, one object a line, unless a person is watching.

use std::{
    ffi::OsStr,
    fmt::{self, Debug},
    io::{self, IsTerminal as _},
    time::UNIX_EPOCH,
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Registry,
    filter::ParseError,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer, layer},
    prelude::*,
    registry::LookupSpan,
    reload,
};

use super::line::ForMachines;
use crate::{
    clock,
    config::{Log, LogFormat, Place, Problem, wrong_levels},
};

/// The environment variable that overrides the configured level.
const FILTER_VARIABLE: &str = "TIDEGATE_LOG";

/// The target of request lines, one a request. Their message sums the fields up for a person; JSON has the fields alone.
pub const REQUEST: &str = "tidegate::request";

/// The target of problems with what the operator wrote. A person sees where with a caret; JSON has fields alone.
const PROBLEM: &str = "tidegate::problem";

/// Tells of a problem with what the operator wrote.
pub fn tell_problem(problem: &Problem) {
    let Place { line, column, .. } = problem.place;
    tracing::warn!(
        target: PROBLEM,
        severity = problem.severity.word(),
        file = &*problem.file,
        line = (line > 0).then_some(line),
        column = (line > 0).then_some(column),
        help = problem.remedy,
        picture = %problem,
        "{}",
        problem.message
    );
}

/// The field that sums the others up for a person, in lines of such a target.
pub(super) fn for_people(target: &str) -> Option<&'static str> {
    match target {
        REQUEST => Some("message"),
        PROBLEM => Some("picture"),
        _ => None,
    }
}

/// A library that logs each error which it also returns: whoever gets it says it, once and in our words.
const QUIET: &str = "kube_client=off";

/// The level of a process that logs, to be changed while it does.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// From now on logs what `log` says, unless the environment says otherwise.
    ///
    /// # Errors
    /// If the filter cannot be parsed.
    pub fn follow(&self, log: &Log) -> Result<(), WrongFilter> {
        let filter = filter(log)?;
        // Without a subscriber there is nothing to follow.
        self.0.reload(filter).ok();
        Ok(())
    }
}

/// Why nothing can be logged as told.
#[derive(Debug, thiserror::Error)]
pub enum WrongFilter {
    /// The environment's filter has a part that is no level.
    #[error("`{FILTER_VARIABLE}`: {0}; {1}")]
    NoLevel(String, String),
    /// A filter is none, although its levels are levels.
    #[error("`{0}` is no log filter")]
    Unreadable(&'static str, #[source] ParseError),
}

fn filter(log: &Log) -> Result<EnvFilter, WrongFilter> {
    let variable = std::env::var_os(FILTER_VARIABLE);
    chosen(variable.as_deref().map(OsStr::to_string_lossy).as_deref(), log)
}

/// What the environment says, checked as strictly as `log.level` was; an empty variable is one that is not set.
fn chosen(variable: Option<&str>, log: &Log) -> Result<EnvFilter, WrongFilter> {
    let Some(filter) = variable.filter(|it| !it.trim().is_empty()) else {
        let level = format!("{QUIET},{}", log.level);
        return EnvFilter::try_new(level).map_err(|error| WrongFilter::Unreadable("log.level", error));
    };
    match wrong_levels(filter).next() {
        Some((problem, remedy)) => Err(WrongFilter::NoLevel(problem, remedy)),
        None => EnvFilter::try_new(filter).map_err(|error| WrongFilter::Unreadable(FILTER_VARIABLE, error)),
    }
}

/// Starts logging to stderr. Call it once a process; a second call changes nothing.
///
/// # Errors
/// If the filter cannot be parsed.
pub fn start(log: &Log) -> Result<Level, WrongFilter> {
    let (filter, level) = reload::Layer::new(filter(log)?);
    let terminal = io::stderr().is_terminal();
    let for_people = match log.format {
        LogFormat::Pretty => true,
        LogFormat::Json => false,
        LogFormat::Auto => terminal,
    };
    let registry = tracing_subscriber::registry().with(filter);
    let started = if for_people {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
        registry.with(layer().with_writer(io::stderr).with_ansi(colour).event_format(ForPeople)).try_init()
    } else {
        registry.with(layer().with_writer(io::stderr).event_format(ForMachines)).try_init()
    };
    // A process that already logs (a test, the demo) keeps its own way of logging.
    started.ok();
    Ok(Level(level))
}

/// Time of day, level, message; the fields of anything that is not summed up.
struct ForPeople;

impl<S, N> FormatEvent<S, N> for ForPeople
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let (colour, plain) = match level {
            tracing::Level::ERROR => ("\x1b[31m", "\x1b[0m"),
            tracing::Level::WARN => ("\x1b[33m", "\x1b[0m"),
            _ => ("\x1b[2m", "\x1b[0m"),
        };
        let (colour, plain) = if writer.has_ansi_escapes() { (colour, plain) } else { ("", "") };
        write!(writer, "{colour}{} {level:>5}{plain} ", time_of_day())?;
        if let Some(field) = for_people(event.metadata().target()) {
            event.record(&mut Only(field, &mut writer));
        } else {
            context.format_fields(writer.by_ref(), event)?;
        }
        writeln!(writer)
    }
}

struct Only<'a, 'b>(&'static str, &'a mut Writer<'b>);

impl Visit for Only<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == self.0 {
            // Nobody can be told that telling failed.
            write!(self.1, "{value:?}").ok();
        }
    }
}

/// An error with all that led to it, each said once: the last of them is what can be mended.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !told.contains(&said) {
            told = format!("{told}: {said}");
        }
        next = cause.source();
    }
    told
}

/// `12:34:56.789`, UTC.
fn time_of_day() -> String {
    let since = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60, since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_in_the_environment_that_is_no_level_is_refused_and_not_taken_for_a_module() {
        let log = Log { level: "warn".to_owned(), format: LogFormat::Json };
        let told = |variable: &str| match chosen(Some(variable), &log) {
            Ok(filter) => filter.to_string(),
            Err(wrong) => wrong.to_string(),
        };
        let levels = "the levels are: off, error, warn, info, debug, trace";
        assert_eq!(told("verbose"), format!("`TIDEGATE_LOG`: `verbose` is not a log level; {levels}"));
        for wrong in ["warning", "tidegate=loud", "info,", "info,tidegate"] {
            let told = told(wrong);
            assert!(told.starts_with("`TIDEGATE_LOG`: `") && told.ends_with(levels), "{wrong}: {told}");
        }
        assert_eq!(told("debug"), "debug");
        let unsaid = chosen(None, &log).unwrap().to_string();
        assert_eq!(unsaid, "kube_client=off,warn", "what a library says twice is said once");
        assert_eq!((told("").as_str(), told(" ").as_str()), (unsaid.as_str(), unsaid.as_str()));
    }
}
