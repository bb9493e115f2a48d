//! Problems as an operator reads them: file, line and column first (editors and CI make that a link), the line itself
//! with a caret under the word, and what to do about it.
//!
//! A remedy names the word that was probably meant only if it is near: a wrong suggestion costs the reader more than
//! none. Text from the file is shown without its control characters: a report goes to terminals and logs.

use std::{collections::BTreeSet, fmt, sync::Arc};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can be used, and probably should not.
    Warning,
}

impl Severity {
    /// As reports and logs have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// A stretch of one line: line and column count from 1, the length counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Line, from 1; 0 = the file as a whole.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// How many characters the caret covers.
    pub length: u32,
}

/// One thing that is wrong or doubtful, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Error or warning.
    pub severity: Severity,
    /// The file's name as the operator gave it.
    pub file: Arc<str>,
    /// Where; line 0 = the file as a whole.
    pub place: Place,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// The line it is about, if there is one.
    line: Option<Arc<str>>,
}

/// Every problem of one file, in the order of its lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The problems, warnings among them.
    pub problems: Vec<Problem>,
}

impl Report {
    /// A report of one error about a file as a whole, such as one that cannot be read.
    pub fn whole_file(file: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let finding = Finding::error(Place::default(), message, remedy);
        Self { problems: Source::new(file, "").problems(vec![finding]) }
    }

    /// How many of the problems are errors.
    pub fn errors(&self) -> usize {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, problem) in self.problems.iter().enumerate() {
            if number > 0 {
                writeln!(out)?;
            }
            write!(out, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.render(out, &Paint::PLAIN)
    }
}

impl Problem {
    /// The problem as text, coloured for a terminal if asked.
    pub fn rendered(&self, colour: bool) -> String {
        let mut text = String::new();
        let paint = if colour { &Paint::COLOUR } else { &Paint::PLAIN };
        // Writing to a String cannot fail.
        self.render(&mut text, paint).unwrap_or_default();
        text
    }

    fn render(&self, out: &mut impl fmt::Write, paint: &Paint) -> fmt::Result {
        let Paint { bold, hint, reset, .. } = paint;
        let word = self.severity.word();
        let loud = match self.severity {
            Severity::Error => paint.error,
            Severity::Warning => paint.warning,
        };
        let Place { line, column, length } = self.place;
        write!(out, "{bold}{}", printable(&self.file))?;
        if line > 0 {
            write!(out, ":{line}:{column}")?;
        }
        writeln!(out, ": {reset}{loud}{word}{reset}{bold}: {}{reset}", printable(&self.message))?;
        let margin = " ".repeat(line.to_string().len());
        if let Some(text) = &self.line {
            let (shown, before, carets) = excerpt(text, column, length);
            writeln!(out, "{hint}{margin} |{reset}")?;
            writeln!(out, "{hint}{line} |{reset} {shown}")?;
            writeln!(out, "{hint}{margin} |{reset} {}{loud}{}{reset}", " ".repeat(before), "^".repeat(carets))?;
        }
        writeln!(out, "{hint}{margin} ={reset} {bold}help:{reset} {}", printable(&self.remedy))
    }
}

/// Terminal colours, or nothing in their place.
struct Paint {
    bold: &'static str,
    error: &'static str,
    warning: &'static str,
    hint: &'static str,
    reset: &'static str,
}

impl Paint {
    const PLAIN: Self = Self { bold: "", error: "", warning: "", hint: "", reset: "" };
    /// The colours that rustc uses, from the basic sixteen that every terminal has.
    const COLOUR: Self =
        Self { bold: "\x1b[1m", error: "\x1b[1;31m", warning: "\x1b[1;33m", hint: "\x1b[1;34m", reset: "\x1b[0m" };
}

/// How wide an excerpt may be: a terminal's 80 columns and half as much again.
const WIDEST: usize = 120;

/// How much is kept before the caret when a line is cut.
const LEAD: usize = 40;

/// Longest sentence that is shown whole, in characters: several lines of a terminal, and longer than every one of ours
/// that quotes no more than a name.
const SENTENCE: usize = 1000;

/// A sentence without its middle, if a word of the file that it quotes makes it endless.
fn cut(sentence: String) -> String {
    let letters = sentence.chars().count();
    if letters <= SENTENCE {
        return sentence;
    }
    let head = sentence.chars().take(SENTENCE / 2);
    let tail = sentence.chars().skip(letters - SENTENCE / 2);
    head.chain([' ', '.', '.', '.', ' ']).chain(tail).collect()
}

/// The part of a line that shows the place, the spaces before the caret, and the number of carets.
fn excerpt(text: &str, column: u32, length: u32) -> (String, usize, usize) {
    let letters: Vec<char> = printable(text).chars().collect();
    let at = (column as usize).saturating_sub(1).min(letters.len());
    let start = if letters.len() <= WIDEST { 0 } else { at.saturating_sub(LEAD) };
    let shown: String = letters.iter().skip(start).take(WIDEST).collect();
    let before = at - start;
    let room = shown.chars().count().saturating_sub(before).max(1);
    (shown.trim_end().to_owned(), before, (length as usize).clamp(1, room))
}

/// The text with every control character replaced, one for one so that columns stay true.
fn printable(text: &str) -> String {
    let invisible = |letter: char| {
        letter.is_control()
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .map(|letter| match letter {
            '\t' => ' ',
            letter if invisible(letter) => '\u{fffd}',
            letter => letter,
        })
        .collect()
}

/// A problem before it is joined with its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) place: Place,
    pub(super) message: String,
    pub(super) remedy: String,
}

impl Finding {
    pub(super) fn error(place: Place, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Error, place, message: message.into(), remedy: remedy.into() }
    }

    pub(super) fn warning(place: Place, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(place, message, remedy) }
    }
}

/// A file's name and text, to show findings with.
pub(super) struct Source<'a> {
    name: Arc<str>,
    lines: Vec<&'a str>,
}

impl<'a> Source<'a> {
    pub(super) fn new(name: &str, text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self { name: name.into(), lines: text.lines().collect() }
    }

    /// The findings in the order of their lines, each with its line.
    pub(super) fn problems(&self, mut findings: Vec<Finding>) -> Vec<Problem> {
        findings.sort_by_key(|finding| finding.place);
        findings.dedup();
        findings.into_iter().map(|finding| self.problem(finding)).collect()
    }

    fn problem(&self, finding: Finding) -> Problem {
        let Finding { severity, place, message, remedy } = finding;
        let place = self.inside(place);
        let line = (place.line as usize).checked_sub(1).and_then(|index| self.lines.get(index));
        Problem {
            severity,
            file: Arc::clone(&self.name),
            place,
            message: cut(message),
            remedy: cut(remedy),
            line: line.map(|line| Arc::from(*line)),
        }
    }

    /// The place, or the end of the text where a parser speaks of a line after the last.
    fn inside(&self, place: Place) -> Place {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let end = count(self.lines.len());
        match self.lines.last() {
            Some(last) if place.line > end => {
                Place { line: end, column: count(last.chars().count()).saturating_add(1), length: 1 }
            }
            _ => place,
        }
    }
}

/// Words longer than this are not compared: the distance is quadratic, and no name of ours is near it.
const LONGEST: usize = 256;

/// The allowed word nearest to `word`, if one is near enough to be a slip of the keyboard.
pub fn nearest<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let typed = plain(word);
    // A third of the letters may be wrong, as rustc allows, but not all: `y` is no slip of `x`. A difference in case or
    // in `_` and `-` costs nothing.
    let limit = (typed.len() / 3).max(1).min(typed.len().saturating_sub(1));
    allowed
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (distance(&typed, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean X?` and the whole list, or the list alone.
pub(super) fn suggestion(word: &str, allowed: &[&str], what: &str) -> String {
    let list = listed(allowed);
    match nearest(word, allowed.iter().copied()) {
        Some(near) if allowed.len() == 1 => format!("did you mean `{near}`?"),
        Some(near) => format!("did you mean `{near}`? {what}: {list}"),
        None => format!("{what}: {list}"),
    }
}

/// How many names a list shows before it is cut: more would hide the rest of the report.
const SHOWN: usize = 20;

/// Names in a row, each once, cut after [`SHOWN`].
fn listed(names: &[&str]) -> String {
    let mut seen = BTreeSet::new();
    let names: Vec<&str> = names.iter().copied().filter(|name| !name.is_empty() && seen.insert(*name)).collect();
    let list = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}

fn plain(word: &str) -> Vec<char> {
    word.chars().filter(|letter| !matches!(letter, '_' | '-')).flat_map(char::to_lowercase).collect()
}

/// Edit distance in which two neighbours that changed places count once, as fingers make that slip so often.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (row, letter) in left.iter().enumerate() {
        let mut cells = vec![row + 1];
        let mut written = row + 1;
        for (column, other) in right.iter().enumerate() {
            let at = |cells: &[usize], index: usize| cells.get(index).copied().unwrap_or(usize::MAX - 1);
            let same = usize::from(letter != other);
            written = (at(&last, column) + same).min(at(&last, column + 1) + 1).min(written + 1);
            let swapped = column.checked_sub(1).zip(row.checked_sub(1));
            if let Some((left_of, _)) = swapped
                .filter(|(left_of, above)| right.get(*left_of) == Some(letter) && left.get(*above) == Some(other))
            {
                written = written.min(at(&before_last, left_of) + 1);
            }
            cells.push(written);
        }
        before_last = std::mem::replace(&mut last, cells);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_insertions_deletions_and_replacements() {
        let chars = |word: &str| word.chars().collect::<Vec<_>>();
        for (left, right, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 1),
            ("inof", "info", 1),
            ("abcd", "badc", 2),
        ] {
            assert_eq!(distance(&chars(left), &chars(right)), expected, "{left} {right}");
        }
    }

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let words = ["round-robin", "random", "least-cost"];
        assert_eq!(nearest("round_robbin", words), Some("round-robin"));
        assert_eq!(nearest("LeastCost", words), Some("least-cost"));
        assert_eq!(nearest("fastest", words), None);
        assert_eq!(nearest("y", ["x"]), None);
        assert_eq!(suggestion("y", &["x"], "the pools are"), "the pools are: x");
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..25).map(|number| format!("n{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(listed(&names).ends_with("n19 and 5 more"));
    }
}
