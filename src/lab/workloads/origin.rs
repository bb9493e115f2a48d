//! Where a trace's text comes from: the file that was given, else the whole trace where it usually lies, else the
//! beginning of it that is built in. Which one it was is told, because the numbers differ.

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use super::{Rate, Unmade};

/// What a prompt and its answer may have together: ten times the longest context that any model is sold with, so that
/// more is a slip, such as bytes or microseconds in the wrong column.
const MOST_TOKENS: u64 = 10_000_000;

/// A trace that everybody can have.
#[derive(Debug)]
pub(super) struct Known {
    /// Where the whole of it is looked for.
    usual: &'static str,
    /// What is built in.
    beginning: &'static str,
    /// What that is called.
    name: &'static str,
}

/// Mooncake's conversations.
pub(super) const MOONCAKE: Known = Known {
    usual: "../shared/traces/mooncake/conversation_trace.jsonl",
    beginning: include_str!("../../../tests/fixtures/traces/mooncake_conversation.jsonl"),
    name: "the first 1,500 requests of Mooncake's conversation trace (built in)",
};

/// Azure's conversations.
pub(super) const AZURE: Known = Known {
    usual: "../shared/traces/azure2023/AzureLLMInferenceTrace_conv.csv",
    beginning: include_str!("../../../tests/fixtures/traces/azure_conversation.csv"),
    name: "the first 2,000 requests of Azure's conversation trace of 2023 (built in)",
};

/// A trace's text and what it is called, which is its path if it has one.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) path: PathBuf,
    pub(super) text: Cow<'static, str>,
}

/// How much a trace has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) requests: usize,
    /// From its beginning to where it would begin again.
    pub(super) length_ms: f64,
}

impl Extent {
    /// How many a second it makes of this rate.
    pub(super) fn per_second(self, rate: Rate) -> f64 {
        match rate {
            Rate::PerSecond(rate) => rate,
            Rate::Times(times) => times * self.requests as f64 / (self.length_ms / 1e3),
        }
    }

    /// What is played of it in so long, in words.
    pub(super) fn told(self, rate: Rate, length_ms: f64) -> String {
        let Self { requests, length_ms: recorded_ms } = self;
        let played_ms = length_ms * self.per_second(rate) / self.per_second(Rate::Times(1.0));
        let share = played_ms / recorded_ms;
        let plural = if requests == 1 { "" } else { "s" };
        let whole = format!("{requests} request{plural} over {:.0} s", recorded_ms / 1e3);
        // To the digit that is shown it is the whole.
        if (share - 1.0).abs() < 0.05 {
            whole
        } else if share > 1.0 {
            format!("{whole}, repeated {share:.1} times")
        } else {
            format!("{whole}, only its first {:.1} minutes", played_ms / 60_000.0)
        }
    }
}

/// The line of a trace that makes no sense; `nth` counts from 0.
pub(super) fn wrong(path: &Path, nth: usize, why: String) -> Unmade {
    Unmade::Line { path: path.to_owned(), line: nth + 1, why }
}

/// Whether a request can have come then and been so long.
pub(super) fn possible(at_ms: f64, prompt: u32, answer: u32) -> Result<(), String> {
    if !at_ms.is_finite() || at_ms < 0.0 {
        return Err(format!("{at_ms} is no time; times are numbers from 0 on"));
    }
    let tokens = u64::from(prompt) + u64::from(answer);
    if tokens > MOST_TOKENS {
        return Err(format!("{tokens} tokens of prompt and answer; more than {MOST_TOKENS} are taken for a slip"));
    }
    Ok(())
}

impl Known {
    /// The trace at `given`, else this one.
    pub(super) fn or_given(&self, given: Option<&Path>) -> Result<Text, Unmade> {
        if let Some(path) = given {
            return read(path);
        }
        match fs::read_to_string(self.usual) {
            Ok(text) => Ok(Text { path: self.usual.into(), text: text.into() }),
            Err(_) => Ok(self.built_in()),
        }
    }

    /// Its beginning.
    pub(super) fn built_in(&self) -> Text {
        Text { path: self.name.into(), text: self.beginning.into() }
    }
}

/// The trace at `path`.
pub(super) fn read(path: &Path) -> Result<Text, Unmade> {
    let text = fs::read(path).and_then(|bytes| {
        let alien = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not text; unpack it first if it is packed");
        String::from_utf8(bytes).map_err(alien)
    });
    let text = text.map_err(|cause| Unmade::Trace { path: path.to_owned(), cause })?;
    // Some editors and spreadsheets begin a text with a byte order mark.
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    if text.trim().is_empty() {
        return Err(Unmade::Blank(path.to_owned()));
    }
    Ok(Text { path: path.to_owned(), text: text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_taken_and_what_is_not_there_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "a").unwrap();
        assert_eq!(MOONCAKE.or_given(Some(file.path())).unwrap().text, "a");
        fs::write(file.path(), "\u{feff}b").unwrap();
        assert_eq!(MOONCAKE.or_given(Some(file.path())).unwrap().text, "b", "without the byte order mark");
        fs::write(file.path(), "\u{feff}\n").unwrap();
        assert!(MOONCAKE.or_given(Some(file.path())).unwrap_err().to_string().ends_with(" is empty"));
        fs::write(file.path(), [0xff, 0xfe]).unwrap();
        let error = MOONCAKE.or_given(Some(file.path())).unwrap_err().to_string();
        assert!(error.contains("unpack it first"), "{error}");
        let error = MOONCAKE.or_given(Some(Path::new("no-such-file"))).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the trace no-such-file: "), "{error}");
    }

    #[test]
    fn what_is_played_of_a_trace_is_told_in_words() {
        // Two a second for a minute.
        let extent = Extent { requests: 120, length_ms: 60_000.0 };
        let told = |rate| extent.told(rate, 120_000.0);
        assert_eq!(told(Rate::Times(0.5)), "120 requests over 60 s");
        assert_eq!(told(Rate::Times(2.0)), "120 requests over 60 s, repeated 4.0 times");
        assert_eq!(told(Rate::PerSecond(0.5)), "120 requests over 60 s, only its first 0.5 minutes");
    }

    #[test]
    fn no_time_and_too_many_tokens_are_told() {
        assert_eq!(possible(0.0, 9_999_999, 1), Ok(()));
        for (at_ms, prompt) in [(-1.0, 1), (f64::NAN, 1), (f64::INFINITY, 1), (0.0, 10_000_000), (0.0, u32::MAX)] {
            assert!(possible(at_ms, prompt, 1).is_err(), "{at_ms} {prompt}");
        }
    }
}
