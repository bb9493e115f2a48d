//! Where log lines go and how they look: JSON, one object a line, unless a person is watching.

use std::{
    ffi::OsStr,
    fmt::{self, Debug, Write as _},
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
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        layer,
        time::{FormatTime as _, SystemTime},
    },
    prelude::*,
    registry::LookupSpan,
    reload,
};

use crate::{
    clock,
    config::{Log, LogFormat, wrong_levels},
};

/// The environment variable that overrides the configured level.
const FILTER_VARIABLE: &str = "TIDEGATE_LOG";

/// The target of request lines, one a request. Their message sums the fields up for a person; JSON has the fields alone.
pub const REQUEST: &str = "tidegate::request";

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
        return EnvFilter::try_new(&log.level).map_err(|error| WrongFilter::Unreadable("log.level", error));
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

/// Time of day, level, message; the fields of anything but a request line.
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
        if event.metadata().target() == REQUEST {
            event.record(&mut MessageOnly(&mut writer));
        } else {
            context.format_fields(writer.by_ref(), event)?;
        }
        writeln!(writer)
    }
}

struct MessageOnly<'a, 'b>(&'a mut Writer<'b>);

impl Visit for MessageOnly<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Nobody can be told that telling failed.
            write!(self.0, "{value:?}").ok();
        }
    }
}

/// A JSON object a line, with the event's fields between time and target. Written straight into the line: the
/// subscriber's own format puts each fragment through a serializer, which was a fifth of what a small request costs.
struct ForMachines;

/// A request's line has some 700 bytes.
const LINE: usize = 1_024;

impl<S, N> FormatEvent<S, N> for ForMachines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut line = String::with_capacity(LINE);
        line.push_str("{\"timestamp\":\"");
        SystemTime.format_time(&mut Writer::new(&mut line))?;
        line.push_str("\",\"level\":\"");
        line.push_str(metadata.level().as_str());
        line.push('"');
        let mut fields = Fields { line, request: metadata.target() == REQUEST };
        event.record(&mut fields);
        let mut line = fields.line;
        line.push_str(",\"target\":\"");
        line.push_str(metadata.target());
        line.push_str("\"}\n");
        writer.write_str(&line)
    }
}

/// Writes fields as JSON's. Their names are Rust's, so that they need no escapes.
struct Fields {
    line: String,
    /// Of a request's line, whose message says nothing that the fields do not.
    request: bool,
}

impl Fields {
    fn name(&mut self, field: &Field) {
        self.line.push_str(",\"");
        self.line.push_str(field.name());
        self.line.push_str("\":");
    }

    /// A whole number. Most are short, and the formatter asks for much before it writes a digit.
    fn digits(&mut self, number: u64) {
        let mut digits = [0; 20];
        let (mut rest, mut from) = (number, digits.len());
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            (rest, from) = (rest / 10, from - 1);
            if rest == 0 {
                break;
            }
        }
        self.line.push_str(digits.get(from..).and_then(|digits| str::from_utf8(digits).ok()).unwrap_or_default());
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.line.push('"');
        escape(&mut self.line, value);
        self.line.push('"');
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        self.digits(value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        if value < 0 {
            self.line.push('-');
        }
        self.digits(value.unsigned_abs());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.name(field);
        self.line.push_str(if value { "true" } else { "false" });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field);
        if let Some((whole, thousandths)) = in_thousandths(value) {
            self.digits(u64::from(whole));
            // With a digit more, so that zeros behind the point count.
            let from = self.line.len();
            self.digits(u64::from(thousandths) + 1_000);
            let shown = self.line.trim_end_matches('0').len().max(from + 2);
            self.line.truncate(shown);
            self.line.replace_range(from..=from, ".");
        } else if value.is_finite() {
            // Nobody can be told that telling failed; to a String it does not.
            write!(self.line, "{value:?}").ok();
        } else {
            // JSON has no word for what is no number.
            self.line.push_str("null");
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.request && field.name() == "message" {
            return;
        }
        self.name(field);
        self.line.push('"');
        write!(Escaped(&mut self.line), "{value:?}").ok();
        self.line.push('"');
    }
}

/// The whole part and the thousandths of a number that has no more than those, as all times of request lines: written
/// digit by digit, because to find the shortest of all forms of any number takes a thousand instructions.
fn in_thousandths(value: f64) -> Option<(u32, u32)> {
    let thousandths = (value * 1e3).round();
    if !(0.0..f64::from(u32::MAX)).contains(&thousandths) || (thousandths / 1e3).to_bits() != value.to_bits() {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within its bounds, as just seen")]
    let thousandths = thousandths as u32;
    Some((thousandths / 1_000, thousandths % 1_000))
}

/// The inside of a JSON string.
struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        escape(self.0, text);
        Ok(())
    }
}

fn escape(line: &mut String, text: &str) {
    let special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    if !text.bytes().any(special) {
        return line.push_str(text);
    }
    for one in text.chars() {
        match one {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            one if one < ' ' => line.push_str(&format!("\\u{:04x}", u32::from(one))),
            one => line.push(one),
        }
    }
}

/// `12:34:56.789`, UTC.
fn time_of_day() -> String {
    let since = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3_600, seconds / 60 % 60, seconds % 60, since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, PoisonError};

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

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
        assert_eq!((told("").as_str(), told(" ").as_str(), told("debug").as_str()), ("warn", "warn", "debug"));
        assert_eq!(chosen(None, &log).unwrap().to_string(), "warn");
    }

    #[test]
    fn a_line_for_machines_is_json_whatever_the_fields_hold() {
        let page = Page::default();
        let shown = page.clone();
        let layer = layer().with_writer(move || shown.clone()).event_format(ForMachines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let text = "a \"quote\", a \\, a\nline, \u{1} and ä";
            let (gone, none) = (f64::NAN, None::<u64>);
            tracing::info!(text, shown = %text, whole = 1.0, tenth = 12.5, fine = 0.045, small = 1e-7, gone, none, n = 7_u64, i = -7, yes = true, "said {text}");
        });
        let page = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        assert_eq!(page.lines().count(), 1);
        let mut line: Value = serde_json::from_str(&page).unwrap();
        let text = "a \"quote\", a \\, a\nline, \u{1} and ä";
        let timestamp = line.as_object_mut().unwrap().remove("timestamp").unwrap();
        assert!(timestamp.as_str().unwrap().ends_with('Z'));
        let target = "tidegate::telemetry::logs::tests";
        let expected = json!({
            "level": "INFO", "message": format!("said {text}"), "text": text, "shown": text, "whole": 1.0, "tenth": 12.5, "fine": 0.045, "small": 1e-7,
            "gone": null, "n": 7, "i": -7, "yes": true, "target": target
        });
        assert_eq!(line, expected);
    }
}
