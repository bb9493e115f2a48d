//! The rules of the house, as tests: who may know whom, what pure rooms must not touch, how a file opens, how long and
//! how deep things may grow. Every failure names the file and the line that breaks the rule.
//!
//! Each rule is a function over sources, so that each has a test of its own on a bad snippet. It reads text, not
//! syntax trees: comments, strings and test code are blanked out first, and the rest is simple enough. The length of
//! functions and the number of their parameters are clippy's business (`clippy.toml`); here it is only checked that
//! clippy is told so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests fail by panicking"
)]

mod files;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use files::files_in;

/// The rooms, from the ground up. A room may know only rooms on floors below its own.
const FLOORS: &[&[&str]] = &[
    &["clock", "tasks", "config", "openai"],
    &["telemetry", "certificates"],
    &["fleet"],
    &["prefix"],
    &["discovery", "scrape", "kv_events", "keys", "routing", "scheduler"],
    &["admission", "upstream"],
    &["gateway"],
    &["edge"],
    &["admin"],
    &["app"],
    &["sim"],
    &["lab", "bench"],
    &["cli"],
    &["main", "lib"],
];

/// Rooms that may know no more than these, wherever they stand.
const ONLY_KNOW: &[(&str, &[&str])] = &[
    ("sim", &["openai", "clock", "tasks"]),
    (
        "lab",
        &[
            "sim",
            "openai",
            "clock",
            "tasks",
            "config",
            "telemetry",
            "fleet",
            "prefix",
            "routing",
            "scheduler",
            "admission",
        ],
    ),
];

/// Rooms that only these may know. Tests and benches may know everything.
const ONLY_KNOWN_BY: &[(&str, &[&str])] = &[("sim", &["cli", "lab"]), ("lab", &["cli"]), ("bench", &["cli"])];

/// What judges or parses: no I/O, no clock, no dice, no memory of its own.
const PURE: &[&str] = &["config", "openai", "fleet", "prefix", "routing", "scheduler", "admission"];

/// What a pure room must not say.
const IMPURE: &[&str] = &[
    "async ",
    "async{",
    ".await",
    "tokio::",
    "hyper::",
    "hyper_util::",
    "reqwest::",
    "Instant::now",
    "SystemTime::now",
    "rand::rng",
    "clock::now",
    "clock::rng",
    "clock::wall",
    "static ",
    "static mut",
    "thread_local!",
    "OnceLock",
    "LazyLock",
];

/// Words that only some rooms may say, and which.
const ONLY_SAID_IN: &[(&str, &[&str])] = &[
    ("Instant::now", &["clock", "app"]),
    ("SystemTime::now", &["clock", "app"]),
    ("rand::rng", &["clock", "app"]),
    ("tokio::spawn", &["tasks", "app"]),
    ("task::spawn", &["tasks", "app"]),
    ("thread::spawn", &["tasks", "app"]),
    ("serde_saphyr", &["config"]),
    ("println!", &["cli"]),
    ("print!", &["cli"]),
    ("dbg!", &[]),
    ("io::stdout", &["cli"]),
    ("process::exit", &[]),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["utils", "util", "common", "helpers", "helper", "misc", "types", "manager", "context", "handler", "base"];

/// Lines of a file, without its tests.
const MAX_LINES: usize = 400;

/// Files in one folder.
const MAX_FILES: usize = 12;

#[test]
fn rooms_know_only_the_floors_below() {
    assert_kept(who_knows_whom);
}

#[test]
fn pure_rooms_are_pure() {
    assert_kept(purity);
}

#[test]
fn some_words_are_said_in_one_place_only() {
    assert_kept(places_of_words);
}

#[test]
fn files_say_what_they_are_and_stay_short() {
    assert_kept(openings_and_lengths);
}

#[test]
fn folders_stay_small_flat_and_well_named() {
    assert_kept(folders_and_names);
}

#[test]
fn clippy_is_told_how_long_a_function_may_be() {
    let told = fs::read_to_string("clippy.toml").unwrap();
    for line in ["too-many-lines-threshold = 60", "too-many-arguments-threshold = 5"] {
        assert!(told.lines().any(|it| it == line), "clippy.toml: must say {line}");
    }
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    for line in ["too_many_lines = \"warn\"", "unwrap_used = \"deny\"", "unsafe_code = \"forbid\""] {
        assert!(manifest.lines().any(|it| it == line), "Cargo.toml: must say {line}");
    }
}

/// One file, as a rule sees it.
struct Source {
    /// From `src/` on.
    path: String,
    /// As it stands.
    text: String,
    /// Without comments, the insides of strings, and tests; every line still on its own number.
    code: String,
    /// Whether all of it is test code.
    is_test: bool,
}

type Rule = fn(&[Source]) -> Vec<String>;

fn assert_kept(rule: Rule) {
    let broken = rule(&house());
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// Every room is on a floor, and every `crate::x` leads to one below.
fn who_knows_whom(house: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in house {
        let room = source.room();
        let Some(floor) = floor_of(room) else {
            broken.push(format!("{}:1: no floor lists the room {room}", source.path));
            continue;
        };
        for (line, other) in rooms_named_in(&source.code) {
            let Some(theirs) = floor_of(&other).filter(|_| other != room) else { continue };
            let only = |list: &[(&str, &[&'static str])], key: &str| {
                list.iter().find(|(it, _)| *it == key).map(|(_, rooms)| rooms.to_vec())
            };
            let forbidden = theirs >= floor
                || only(ONLY_KNOW, room).is_some_and(|known| !known.contains(&other.as_str()))
                || only(ONLY_KNOWN_BY, &other).is_some_and(|by| !by.contains(&room));
            if forbidden {
                broken.push(format!("{}:{line}: {room} must not know {other}", source.path));
            }
        }
    }
    broken
}

fn purity(house: &[Source]) -> Vec<String> {
    let pure = house.iter().filter(|source| PURE.contains(&source.room()));
    let found = pure.flat_map(|source| {
        let says = |word: &'static str| {
            source
                .lines_saying(word)
                .into_iter()
                .map(move |line| format!("{}:{line}: a pure room must not say `{}`", source.path, word.trim()))
        };
        IMPURE.iter().flat_map(move |word| says(word)).collect::<Vec<_>>()
    });
    found.collect()
}

fn places_of_words(house: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in house {
        for (word, rooms) in ONLY_SAID_IN {
            if rooms.contains(&source.room()) {
                continue;
            }
            for line in source.lines_saying(word) {
                broken.push(format!("{}:{line}: only {rooms:?} may say `{word}`", source.path));
            }
        }
    }
    broken
}

fn openings_and_lengths(house: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in house {
        if !source.text.starts_with("//! ") {
            broken.push(format!("{}:1: must open with `//!`: what it is for", source.path));
        }
        let lines = source.code.lines().filter(|line| *line != CUT).count();
        if lines > MAX_LINES && !source.is_test {
            broken.push(format!("{}:{MAX_LINES}: {lines} lines without tests, at most {MAX_LINES}", source.path));
        }
    }
    broken
}

fn folders_and_names(house: &[Source]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for source in house {
        let parts: Vec<&str> = source.path.trim_end_matches(".rs").split('/').collect();
        let inside = parts.len() - 2; // without `src` and the file itself
        if inside > 2 {
            broken.push(format!("{}:1: folders are one deep inside a room", source.path));
        }
        for part in parts.iter().filter(|part| EMPTY_NAMES.contains(part)) {
            broken.push(format!("{}:1: `{part}` names nothing; no noun, no home", source.path));
        }
        if inside > 0 && !source.is_test {
            let folder = source.path.rsplit_once('/').unwrap().0;
            *folders.entry(folder).or_default() += 1;
        }
    }
    for (folder, files) in folders {
        // `cli` has one file a verb, as many as there are verbs.
        if files > MAX_FILES && folder != "src/cli" {
            broken.push(format!("{folder}:1: {files} files in one folder, at most {MAX_FILES}"));
        }
    }
    broken
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code: without_tests(&without_words(text)),
            is_test: path.ends_with("/tests.rs") || path.contains("/tests/"),
        }
    }

    fn room(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap();
        inside.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The numbers of the lines whose code says `word`, not as the end of a longer one.
    fn lines_saying(&self, word: &str) -> Vec<usize> {
        if self.is_test {
            return Vec::new();
        }
        let says = |line: &str| {
            line.match_indices(word)
                .any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric() || "_'".contains(before)))
        };
        let lines = self.code.lines().enumerate().filter(|(_, line)| says(line));
        lines.map(|(at, _)| at + 1).collect()
    }
}

/// All of `src`.
fn house() -> Vec<Source> {
    let paths = files_in(Path::new("src"), "rs");
    let read = |path: &PathBuf| Source::new(path.to_str().unwrap(), &fs::read_to_string(path).unwrap());
    paths.iter().map(read).collect()
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// The first path segment after every `crate::`, also inside `crate::{…}`, with its line.
fn rooms_named_in(code: &str) -> Vec<(usize, String)> {
    let mut rooms = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let start = at + prefix.len();
        let starts = match code[start..].strip_prefix('{') {
            Some(list) => starts_in_list(list).into_iter().map(|it| start + 1 + it).collect(),
            None => vec![start],
        };
        for start in starts {
            let head = code[start..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            rooms.push((code[..start].matches('\n').count() + 1, head));
        }
    }
    rooms
}

/// Where the items of a `use` list begin, up to its closing brace.
fn starts_in_list(list: &str) -> Vec<usize> {
    let (mut depth, mut expecting, mut starts) = (0, true, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => expecting = true,
            _ if depth == 0 && expecting && !c.is_whitespace() => {
                starts.push(at);
                expecting = false;
            }
            _ => (),
        }
    }
    starts
}

/// `text` with comments, strings and characters blanked out, line by line as long as before.
fn without_words(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = word_at(rest, code.chars().next_back());
        match length {
            0 => code.push(first),
            _ => code.extend(rest[..length].chars().filter(|c| *c == '\n')),
        }
        rest = &rest[length.max(first.len_utf8())..];
    }
    code
}

/// The length of the comment, string or character that `rest` begins with; 0 if it begins with code.
fn word_at(rest: &str, before: Option<char>) -> usize {
    let all = rest.len();
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(all);
    }
    if rest.starts_with("/*") {
        return rest.find("*/").map_or(all, |at| at + 2);
    }
    if rest.starts_with('r') && !before.is_some_and(|c| c.is_alphanumeric() && c != 'b' || c == '_') {
        let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
        if rest[1 + hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let from = hashes + 2;
            return rest[from..].find(&end).map_or(all, |at| from + at + end.len());
        }
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    let mut letters = rest.chars();
    let quote = (letters.next(), letters.next(), letters.next());
    match quote {
        (Some('\''), Some('\\'), _) => quoted(rest, '\''),
        (Some('\''), Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

/// The length of what stands between two `quote`s, with both; a backslash hides the next character.
fn quoted(rest: &str, quote: char) -> usize {
    let mut hidden = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if hidden => hidden = false,
            '\\' => hidden = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => (),
        }
    }
    rest.len()
}

/// Stands where a line of test code stood, so that the others keep their numbers.
const CUT: &str = "\u{7f}";

/// `code` without the items under `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut kept = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push(line);
            continue;
        }
        kept.push(CUT);
        let mut depth = 0_usize;
        for line in lines.by_ref() {
            kept.push(CUT);
            depth += line.matches(['{', '(']).count();
            depth -= line.matches(['}', ')']).count();
            if depth == 0 && line.trim_end().ends_with(['}', ';']) {
                break;
            }
        }
    }
    kept.join("\n")
}

/// The rules themselves: each must find what is wrong in a snippet, and say where.
mod rules {
    use super::*;

    fn broken(rule: Rule, path: &str, text: &str) -> Vec<String> {
        let messages = rule(&[Source::new(path, text)]);
        messages.into_iter().map(|it| it.split(": ").take(2).collect::<Vec<_>>().join(": ")).collect()
    }

    #[test]
    fn a_room_that_looks_up_is_found() {
        let text = "//! x\nuse std::io;\nuse crate::{clock,\n    gateway::{self, House}, fleet::cli};\nfn f() { crate::cli::main() }\n";
        assert_eq!(
            broken(who_knows_whom, "src/scrape/mod.rs", text),
            ["src/scrape/mod.rs:4: scrape must not know gateway", "src/scrape/mod.rs:5: scrape must not know cli"]
        );
    }

    #[test]
    fn rooms_on_one_floor_do_not_know_each_other() {
        assert_eq!(
            broken(who_knows_whom, "src/routing/mod.rs", "//! x\nuse crate::scheduler::pick;\n"),
            ["src/routing/mod.rs:2: routing must not know scheduler"]
        );
    }

    #[test]
    fn a_room_that_no_floor_lists_is_found() {
        assert_eq!(
            broken(who_knows_whom, "src/plugins/mod.rs", "//! x\n"),
            ["src/plugins/mod.rs:1: no floor lists the room plugins"]
        );
    }

    #[test]
    fn the_annex_keeps_to_itself() {
        for (path, named, who) in [
            ("src/sim/engine.rs", "fleet", "sim must not know fleet"),
            ("src/sim/engine.rs", "config", "sim must not know config"),
            ("src/app/mod.rs", "sim", "app must not know sim"),
            ("src/bench/mod.rs", "sim", "bench must not know sim"),
            ("src/lab/mod.rs", "gateway", "lab must not know gateway"),
        ] {
            let text = format!("//! x\nuse crate::{named}::X;\n");
            assert_eq!(broken(who_knows_whom, path, &text), [format!("{path}:2: {who}")]);
        }
        for (path, named) in
            [("src/sim/http/mod.rs", "openai"), ("src/cli/sim.rs", "sim"), ("src/cli/demo.rs", "bench")]
        {
            let text = format!("//! x\nuse crate::{named}::X;\n");
            assert!(broken(who_knows_whom, path, &text).is_empty());
        }
    }

    #[test]
    fn impurity_is_found_but_not_in_tests_comments_or_strings() {
        let text = "//! async tokio::\n\npub async fn f() {\n    let s = \"tokio::spawn\"; // Instant::now\n    \
                    let c = '\"'; let t = Instant::now();\n}\nstatic X: u8 = 1;\nfn g(s: &'static str) -> X<'static > {}\n\
                    #[cfg(test)]\nmod tests {\n    fn f() { Instant::now(); }\n}\nfn h() { clock::now() }\n";
        assert_eq!(
            broken(purity, "src/fleet/pod.rs", text),
            ["3", "5", "13", "7"].map(|line| format!(
                "src/fleet/pod.rs:{line}: a pure room must not say `{}`",
                match line {
                    "3" => "async",
                    "5" => "Instant::now",
                    "13" => "clock::now",
                    _ => "static",
                }
            ))
        );
        assert!(broken(purity, "src/gateway/mod.rs", text).is_empty());
    }

    #[test]
    fn words_out_of_place_are_found() {
        let text = "//! x\nfn f() {\n    let now = tokio::time::Instant::now();\n    tokio::spawn(work);\n    \
                    let rng = rand::rng();\n    eprintln!();\n    println!();\n    let y = r#\"serde_saphyr\"#;\n}\n";
        let found = broken(places_of_words, "src/gateway/mod.rs", text);
        let lines: Vec<_> = found.iter().map(|it| it.split(':').nth(1).unwrap()).collect();
        assert_eq!(lines, ["3", "5", "4", "7"], "{found:?}");
        assert!(broken(places_of_words, "src/app/build.rs", "//! x\nfn f() { tokio::spawn(x); }\n").is_empty());
        assert_eq!(broken(places_of_words, "src/app/build.rs", "//! x\nuse serde_saphyr::A;\n").len(), 1);
    }

    #[test]
    fn a_file_without_an_opening_or_without_an_end_is_found() {
        let long = format!("//! x\n{}", "fn f() {}\n".repeat(400));
        let tested =
            format!("//! x\n{}#[cfg(test)]\nmod tests {{\n{}}}\n", "fn f() {}\n".repeat(399), "// x\n".repeat(99));
        let path = "src/edge/mod.rs";
        assert_eq!(broken(openings_and_lengths, path, "use x;\n"), [format!("{path}:1: must open with `//!`")]);
        assert_eq!(broken(openings_and_lengths, path, &long).len(), 1);
        assert!(broken(openings_and_lengths, path, &tested).is_empty());
    }

    #[test]
    fn deep_crowded_and_empty_names_are_found() {
        let one = |path: &str| broken(folders_and_names, path, "//! x\n").len();
        assert_eq!(one("src/gateway/proxy/inner/deep.rs"), 1);
        assert_eq!(one("src/gateway/utils.rs"), 1);
        assert_eq!(one("src/gateway/helpers/mod.rs"), 1);
        assert_eq!(one("src/gateway/proxy/relay.rs"), 0);
        let crowd = |files: usize| (0..files).map(|n| Source::new(&format!("src/fleet/f{n}.rs"), "//! x\n"));
        assert_eq!(folders_and_names(&crowd(12).collect::<Vec<_>>()).len(), 0);
        assert_eq!(folders_and_names(&crowd(13).collect::<Vec<_>>()).len(), 1);
    }

    #[test]
    fn rooms_are_found_in_nested_lists() {
        let code = "use crate::{config::{scheduler, A}, fleet::cli::B,\n gateway};\nlet x = crate::cli::run();";
        let found = rooms_named_in(code);
        let expected = [(1, "config"), (1, "fleet"), (2, "gateway"), (3, "cli")];
        assert_eq!(found, expected.map(|(line, room)| (line, room.to_owned())));
    }
}

/// The tests that a table of `SECURITY.md` names, with the line of each.
fn named_tests(text: &str) -> Vec<(usize, String)> {
    let rows = text.lines().enumerate().skip_while(|(_, line)| *line != "| what holds | shown by |").skip(2);
    let rows = rows.take_while(|(_, line)| line.starts_with('|'));
    rows.flat_map(|(at, line)| {
        let tests = line.trim_end_matches([' ', '|']).rsplit_once('|').map_or("", |(_, tests)| tests);
        let names: Vec<_> = tests.split('`').skip(1).step_by(2).map(|it| (at + 1, it.to_owned())).collect();
        if names.is_empty() { vec![(at + 1, String::new())] } else { names }
    })
    .collect()
}

#[test]
fn every_line_of_the_threat_model_has_a_test() {
    let paths = ["src", "tests"].into_iter().flat_map(|folder| files_in(Path::new(folder), "rs"));
    let sources: Vec<String> = paths.map(|path| fs::read_to_string(path).unwrap()).collect();
    let tests = named_tests(&fs::read_to_string("SECURITY.md").unwrap());
    assert!(tests.len() > 40, "the table is found: {}", tests.len());
    let is_there = |name: &str| {
        let written = format!("fn {name}(");
        !name.is_empty() && sources.iter().any(|source| source.contains(&written))
    };
    let missing: Vec<_> = tests.into_iter().filter(|(_, name)| !is_there(name)).collect();
    assert_eq!(missing, [] as [(usize, String); 0], "lines of SECURITY.md that no test shows");
    let bad = "| what holds | shown by |\n|---|---|\n| a `b` | `c`, `d` |\n| e | nothing |\n\n| f | `g` |";
    assert_eq!(named_tests(bad), [(3, "c".to_owned()), (3, "d".to_owned()), (4, String::new())]);
}
