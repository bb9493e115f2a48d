//! A line of text whose parts have a meaning, and what a terminal makes of it.
//!
//! Colour is never the only carrier of a meaning: each coloured thing is a number too.

/// What a part of a line means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Names of things.
    Strong,
    /// Not to be read first.
    Faint,
    /// No pressure.
    Good,
    /// Some.
    Busy,
    /// Too much.
    Bad,
}

impl Tone {
    /// By how a value compares with where it becomes busy and where it becomes bad.
    pub(super) fn of(value: f64, busy: f64, bad: f64) -> Self {
        if value >= bad {
            Self::Bad
        } else if value >= busy {
            Self::Busy
        } else {
            Self::Good
        }
    }

    /// The "select graphic rendition" code.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "\x1b[1m",
            Self::Faint => "\x1b[2m",
            Self::Good => "\x1b[32m",
            Self::Busy => "\x1b[33m",
            Self::Bad => "\x1b[31m",
        }
    }
}

/// A line; every character is one column wide.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    parts: Vec<(Tone, String)>,
}

impl Line {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The line with one more part.
    #[must_use]
    pub(super) fn with(mut self, tone: Tone, text: impl Into<String>) -> Self {
        self.parts.push((tone, text.into()));
        self
    }

    /// The line with a plain part.
    #[must_use]
    pub(super) fn plain(self, text: impl Into<String>) -> Self {
        self.with(Tone::Plain, text)
    }

    /// The line filled with blanks up to `width`.
    #[must_use]
    pub(super) fn padded(self, width: usize) -> Self {
        let missing = width.saturating_sub(self.width());
        self.plain(" ".repeat(missing))
    }

    /// The line and another behind it.
    #[must_use]
    pub(super) fn joined(mut self, other: Self) -> Self {
        self.parts.extend(other.parts);
        self
    }

    pub(super) fn width(&self) -> usize {
        self.parts.iter().map(|(_, text)| text.chars().count()).sum()
    }

    /// As much of it as fits into `width`, with or without colour.
    pub(super) fn render(&self, width: usize, coloured: bool) -> String {
        let mut left = width;
        let mut out = String::new();
        for (tone, text) in &self.parts {
            let shown: String = text.chars().take(left).collect();
            left -= shown.chars().count();
            if coloured && *tone != Tone::Plain && !shown.is_empty() {
                out.extend([tone.code(), &shown, "\x1b[0m"]);
            } else {
                out.push_str(&shown);
            }
        }
        out
    }
}

/// A bar of `width` columns of which `share` is full, to an eighth of a column.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "eighths lie between 0 and eight times the width"
)]
pub(super) fn bar(share: f64, width: usize) -> (String, String) {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
    let part = EIGHTHS.get(eighths % 8).copied().unwrap_or_default();
    let full = "█".repeat(eighths / 8) + part;
    let rest = "·".repeat(width.saturating_sub(full.chars().count()));
    (full, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_where_the_terminal_ends_and_colours_are_closed() {
        let line = Line::new().plain("ab").with(Tone::Bad, "cdé").plain("f");
        assert_eq!(line.width(), 6);
        assert_eq!(line.render(80, false), "abcdéf");
        assert_eq!(line.render(3, false), "abc");
        assert_eq!(line.render(3, true), "ab\x1b[31mc\x1b[0m");
        assert_eq!(line.render(2, true), "ab");
    }

    #[test]
    fn bars_are_as_wide_as_asked_for() {
        assert_eq!(bar(0.0, 4), (String::new(), "····".to_owned()));
        assert_eq!(bar(0.5, 4), ("██".to_owned(), "··".to_owned()));
        assert_eq!(bar(0.28, 4), ("█▏".to_owned(), "··".to_owned()));
        assert_eq!(bar(7.0, 4), ("████".to_owned(), String::new()));
    }
}
