//! A log line for machines: a JSON object with the event's fields between time and target.
//!
//! Written straight into the line, digit by digit where that is simple: the subscriber's own format puts each fragment
//! through a serializer and each number through a formatter, which was a fifth of what a small request costs.

use std::{
    fmt::{self, Debug, Write as _},
    time::{Duration, UNIX_EPOCH},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    registry::LookupSpan,
};

use super::logs::for_people;
use crate::clock;

/// Writes such lines.
pub(super) struct ForMachines;

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
        timestamp(&mut line, clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default());
        line.push_str("\",\"level\":\"");
        line.push_str(metadata.level().as_str());
        line.push('"');
        let mut fields = Fields { line, without: for_people(metadata.target()) };
        event.record(&mut fields);
        let mut line = fields.line;
        line.push_str(",\"target\":\"");
        line.push_str(metadata.target());
        line.push_str("\"}\n");
        writer.write_str(&line)
    }
}

/// `2026-11-21T12:34:56.789012Z`, so long after 1970.
fn timestamp(line: &mut String, since: Duration) {
    let (year, month, day) = date(since.as_secs() / 86_400);
    let (seconds, micros) = (since.as_secs() % 86_400, u64::from(since.subsec_micros()));
    let pairs = [
        (0, year / 100),
        (2, year),
        (5, month),
        (8, day),
        (11, seconds / 3_600),
        (14, seconds / 60 % 60),
        (17, seconds % 60),
        (20, micros / 10_000),
        (22, micros / 100),
        (24, micros),
    ];
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    for (at, number) in pairs {
        if let Some(pair) = text.get_mut(at..at + 2) {
            pair.copy_from_slice(&[digit(number / 10), digit(number)]);
        }
    }
    line.push_str(str::from_utf8(&text).unwrap_or_default());
}

/// Year, month and day, so many days after 1970. Counted in years that begin in March, so that a leap day is the last
/// of its year, from the March of year 0, since when 719,468 days had passed; 400 years have 146,097.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    // Of the era's days, all leap days before this one are taken out: one in 4 years, none in 100, one in 400.
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    // From March on, five months have 153 days, again and again.
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day)
}

/// The last digit of `number`.
fn digit(number: u64) -> u8 {
    b'0' + u8::try_from(number % 10).unwrap_or_default()
}

/// Writes fields as JSON's. Their names are Rust's, so that they need no escapes.
struct Fields {
    line: String,
    /// Says nothing that the others do not.
    without: Option<&'static str>,
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
        for place in digits.iter_mut().rev() {
            *place = digit(rest);
            (rest, from) = (rest / 10, from - 1);
            if rest == 0 {
                break;
            }
        }
        self.line.push_str(digits.get(from..).and_then(|digits| str::from_utf8(digits).ok()).unwrap_or_default());
    }

    /// So many thousandths, without the zeros behind but with one digit.
    fn thousandths(&mut self, thousandths: u32) {
        self.line.push('.');
        let mut rest = thousandths;
        loop {
            self.line.push(char::from(digit(u64::from(rest / 100))));
            rest = rest % 100 * 10;
            if rest == 0 {
                return;
            }
        }
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
            self.thousandths(thousandths);
        } else if value.is_finite() {
            // Nobody can be told that telling failed; to a String it does not.
            write!(self.line, "{value:?}").ok();
        } else {
            // JSON has no word for what is no number.
            self.line.push_str("null");
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.without == Some(field.name()) {
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
    // All are looked at, without a way out: many at a time, and hardly ever is there one.
    if !text.bytes().fold(false, |any, byte| any | special(byte)) {
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

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex, PoisonError},
    };

    use serde_json::{Value, json};
    use tracing_subscriber::{fmt::layer, prelude::*};

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
        let target = "tidegate::telemetry::line::tests";
        let expected = json!({
            "level": "INFO", "message": format!("said {text}"), "text": text, "shown": text, "whole": 1.0, "tenth": 12.5, "fine": 0.045, "small": 1e-7,
            "gone": null, "n": 7, "i": -7, "yes": true, "target": target
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_problem_of_the_configuration_is_fields_for_machines_and_no_picture() {
        let page = Page::default();
        let shown = page.clone();
        let layer = layer().with_writer(move || shown.clone()).event_format(ForMachines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let report = crate::config::load("t.yaml", "# a slip\nlistenerz: []\n").unwrap_err();
            let placed = report.problems.iter().find(|problem| problem.place.line > 0).unwrap();
            super::super::logs::tell_problem(placed);
            super::super::logs::tell_problem(
                &crate::config::Report::whole_file("gone.yaml", "gone", "look").problems[0],
            );
        });
        let page = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<Value> = page.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let fields = |line: &Value| ["severity", "file", "line", "column"].map(|name| line[name].clone());
        assert_eq!(fields(&lines[0]), [json!("error"), json!("t.yaml"), json!(2), json!(1)]);
        assert_eq!(fields(&lines[1]), [json!("error"), json!("gone.yaml"), json!(null), json!(null)]);
        assert_eq!((&lines[1]["message"], &lines[1]["help"]), (&json!("gone"), &json!("look")));
        assert!(!page.contains("^^") && !page.contains("error:") && lines[0].get("picture").is_none(), "{page}");
    }

    #[test]
    fn times_have_six_digits_behind_the_point_and_leap_days_are_where_they_belong() {
        // Of each, `date -u -d @SECONDS` says the same.
        for (seconds, micros, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, 999_999, "2000-02-28T23:59:59.999999Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000001Z"),
            (1_709_251_199, 0, "2024-02-29T23:59:59.000000Z"),
            (1_767_225_599, 120_000, "2025-12-31T23:59:59.120000Z"),
            (1_767_225_600, 0, "2026-01-01T00:00:00.000000Z"),
            (1_795_263_753, 45, "2026-11-21T12:22:33.000045Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000Z"),
        ] {
            let mut line = String::new();
            timestamp(&mut line, Duration::new(seconds, micros * 1_000));
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn thousandths_are_written_as_the_formatter_would() {
        for thousandths in 0..3_000 {
            let value = f64::from(thousandths) / 1e3;
            let mut fields = Fields { line: String::new(), without: None };
            let (whole, rest) = in_thousandths(value).unwrap();
            fields.digits(u64::from(whole));
            fields.thousandths(rest);
            assert_eq!(fields.line, format!("{value:?}"));
        }
    }
}
