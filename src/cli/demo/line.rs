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

    /// The line on rows of at most `width` columns, those after the first indented by two.
    pub(super) fn wrapped(&self, width: usize) -> Vec<Self> {
        const INDENT: usize = 2;
        let parts = self.parts.iter();
        let mut rest: Vec<(Tone, char)> = parts.flat_map(|(tone, text)| text.chars().map(|it| (*tone, it))).collect();
        let mut rows = Vec::new();
        let mut indent = 0;
        while let Some(end) = row_end(&rest, width.saturating_sub(indent)) {
            let after = rest.split_off(end);
            rows.push(Self::of(&rest, indent));
            // Without the blank where it was broken.
            rest = after.into_iter().skip(1).collect();
            indent = INDENT;
        }
        rows.push(Self::of(&rest, indent));
        rows
    }

    fn of(characters: &[(Tone, char)], indent: usize) -> Self {
        let runs = characters.chunk_by(|(left, _), (right, _)| left == right);
        let line = Self::new().padded(indent);
        runs.fold(line, |line, run| {
            let tone = run.first().map_or(Tone::Plain, |(tone, _)| *tone);
            line.with(tone, run.iter().map(|(_, it)| it).collect::<String>())
        })
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

/// The blank at which a row of at most `width` ends: after a clause if that leaves the row half full, else after a word,
/// but never between a number and what it counts. `None`: all fits, or there is no such blank.
fn row_end(line: &[(Tone, char)], width: usize) -> Option<usize> {
    if line.len() <= width {
        return None;
    }
    let (mut word, mut clause) = (None, None);
    for (at, three) in (1..=width).zip(line.windows(3)) {
        let [(_, before), (_, ' '), (_, after)] = three else { continue };
        if !before.is_ascii_digit() {
            word = Some(at);
        }
        if (",;:".contains(*before) || *after == '(') && at * 2 >= width {
            clause = Some(at);
        }
    }
    clause.or(word)
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
    fn a_long_line_is_wrapped_after_clauses_or_words_and_never_within_a_number() {
        let line =
            Line::new().plain("p90 0.41 s against 1.92 s: ").with(Tone::Good, "4.7x sooner").plain(" (p50 0.20 s)");
        let rows = |width| line.wrapped(width).iter().map(|row| row.render(1_000, false)).collect::<Vec<_>>();
        assert_eq!(rows(80), ["p90 0.41 s against 1.92 s: 4.7x sooner (p50 0.20 s)"]);
        assert_eq!(rows(40), ["p90 0.41 s against 1.92 s: 4.7x sooner", "  (p50 0.20 s)"]);
        assert_eq!(rows(36), ["p90 0.41 s against 1.92 s:", "  4.7x sooner (p50 0.20 s)"]);
        // "1.92" would fit and "s" would not.
        assert_eq!(rows(23), ["p90 0.41 s against", "  1.92 s: 4.7x sooner", "  (p50 0.20 s)"]);
        assert_eq!(line.wrapped(36)[1].render(80, true), "  \x1b[32m4.7x sooner\x1b[0m (p50 0.20 s)");
    }

    #[test]
    fn bars_are_as_wide_as_asked_for() {
        assert_eq!(bar(0.0, 4), (String::new(), "····".to_owned()));
        assert_eq!(bar(0.5, 4), ("██".to_owned(), "··".to_owned()));
        assert_eq!(bar(0.28, 4), ("█▏".to_owned(), "··".to_owned()));
        assert_eq!(bar(7.0, 4), ("████".to_owned(), String::new()));
    }
}
