//! What the code can say stands in the docs: every reason, every metric family, every field of a request's log line, every
//! key that only a start can set; and the docs name no family that there is not.
//!
//! It reads text, as the rules of the house do: whoever adds a word to the code is told here where people look for it. It does
//! not ask whether what is said of a word is true.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests fail by panicking"
)]

mod files;

use std::{collections::BTreeSet, fs, path::Path};

use files::files_in;

type Words = BTreeSet<String>;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A source file without its tests.
fn source(path: &str) -> String {
    let text = read(path);
    text.split("#[cfg(test)]").next().unwrap().to_owned()
}

/// From `start` to the bracket that closes the first `open` behind it.
fn piece<'a>(text: &'a str, start: &str, (open, close): (char, char)) -> &'a str {
    let from = text.find(start).unwrap_or_else(|| panic!("`{start}` is not there any more"));
    let mut depth = 0;
    for (at, letter) in text[from..].char_indices() {
        if letter == open {
            depth += 1;
        } else if letter == close {
            depth -= 1;
            if depth == 0 {
                return &text[from..=from + at];
            }
        }
    }
    panic!("`{start}` does not end")
}

fn function<'a>(text: &'a str, start: &str) -> &'a str {
    piece(text, start, ('{', '}'))
}

/// What stands in double quotes. None of the texts that are read here has a quote within.
fn literals(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split('"').skip(1).step_by(2))
        .collect()
}

/// What stands in backticks, each word of it by itself.
fn told(text: &str) -> Words {
    let fenced: String = text.split("```").step_by(2).collect();
    let quoted = fenced.split('`').skip(1).step_by(2).flat_map(|it| it.split([' ', ',', '{', '=']));
    quoted.map(ToOwned::to_owned).collect()
}

/// A part of a page, from its heading to the next of the same rank.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let from = page.find(&format!("\n{heading}")).unwrap_or_else(|| panic!("`{heading}` is no heading"));
    let rest = &page[from + 1 + heading.len()..];
    &rest[..rest.find("\n## ").unwrap_or(rest.len())]
}

fn all_stand(what: &[impl AsRef<str>], at_least: usize, words: &Words, place: &str) {
    assert!(what.len() >= at_least, "only {} were found in the code", what.len());
    let lost: Vec<&str> = what.iter().map(AsRef::as_ref).filter(|it| !words.contains(*it)).collect();
    assert_eq!(lost, [] as [&str; 0], "not in {place}");
}

#[test]
fn every_reason_why_somebody_is_not_let_in_stands_in_keys_md() {
    let code = source("src/admission/identity.rs");
    let words = literals(function(&code, "pub fn word(self)"));
    all_stand(&words, 17, &told(&read("docs/keys.md")), "docs/keys.md");
}

/// The words of `x-tidegate-refused`.
fn refusals() -> Vec<String> {
    let mut found = Vec::new();
    for path in ["src/gateway/telling/rejection.rs", "src/gateway/telling/limits.rs"] {
        let code = source(path);
        for (at, _) in code.match_indices(" told_as(").filter(|(at, _)| !code[..*at].ends_with("fn")) {
            // The last of its arguments; where that is no word, it is one of those below.
            let call = piece(&code[at..], "told_as(", ('(', ')')).trim_end_matches([')', ',', '\n', ' ']);
            found.extend(call.ends_with('"').then(|| literals(call).pop().unwrap().to_owned()));
        }
    }
    let busy = source("src/gateway/telling/busy.rs");
    found.extend(literals(function(&busy, "pub fn reason(self)")).into_iter().map(ToOwned::to_owned));
    found.push("panic".to_owned());
    found
}

#[test]
fn every_refusal_stands_in_http_md_and_no_other() {
    let page = read("docs/http.md");
    let table = section(&page, "## Refusals");
    let named: String = table.lines().filter_map(|line| line.split('|').nth(2)).collect();
    let (refusals, named) = (refusals(), told(&named));
    all_stand(&refusals, 40, &named, "the table of refusals in docs/http.md");
    let header = ["x-tidegate-refused"];
    let stale: Vec<_> = named.iter().filter(|it| !refusals.contains(it) && !header.contains(&it.as_str())).collect();
    assert_eq!(stale, [] as [&String; 0], "no refusals any more");
}

#[test]
fn every_way_in_which_an_attempt_fails_stands_in_http_md() {
    let code = source("src/upstream/failure.rs");
    let words = literals(function(&code, "pub fn name(self)"));
    let page = read("docs/http.md");
    all_stand(&words, 17, &told(section(&page, "## What is tried again")), "docs/http.md, What is tried again");
}

#[test]
fn every_reason_why_a_door_lets_somebody_go_stands_in_http_md() {
    let page = read("docs/http.md");
    let words = told(section(&page, "## What the front refuses"));
    let code: String =
        ["entering", "pulse", "rejected", "stall"].map(|it| source(&format!("src/edge/{it}.rs"))).concat();
    let named = |line: &&str| [": &str = \"", "Some(\"", ".count(\""].iter().any(|it| line.contains(it));
    // What has spaces is said to people.
    let found: Vec<&str> = code.lines().filter(named).flat_map(literals).filter(|it| !it.contains(' ')).collect();
    all_stand(&found, 11, &words, "docs/http.md, What the front refuses");
}

#[test]
fn every_field_of_a_request_line_and_its_words_stand_in_operating_md() {
    let code = source("src/gateway/telling/receipt.rs");
    let line = &code[code.find("target: REQUEST,").unwrap()..];
    let line = &line[..line.find("\"{}\",").unwrap()];
    let field = |line: &str| line.trim().split([' ', ',']).next().unwrap_or_default().to_owned();
    let fields: Vec<String> = line.lines().skip(1).map(field).filter(|it| !it.is_empty()).collect();
    let page = read("docs/operating.md");
    let logs = told(section(&page, "## Logs"));
    all_stand(&fields, 36, &logs, "the fields of a request in docs/operating.md");
    let steps = source("src/gateway/telling/facts.rs");
    all_stand(&literals(&steps), 6, &logs, "docs/operating.md, Logs");
    let cuts = source("src/gateway/telling/cuts.rs");
    let listed = literals(piece(&cuts, "CUTS: [&str; 12] = [", ('[', ']')));
    let named = cuts.lines().filter(|line| line.contains("const ") && line.contains(": &str = ")).flat_map(literals);
    let cuts: Vec<&str> = listed.into_iter().chain(named).collect();
    all_stand(&cuts, 6, &logs, "docs/operating.md, Logs");
}

#[test]
fn every_key_that_only_a_start_can_set_stands_in_operating_md() {
    let code = source("src/config/change.rs");
    let fixed = literals(function(&code, "fn fixed("));
    let (of_listeners, others): (Vec<&str>, Vec<&str>) =
        fixed.into_iter().filter(|it| *it != "limits").partition(|it| it.starts_with("listeners"));
    let page = read("docs/operating.md");
    let from = page.find("Only a start can set:").unwrap();
    let words = told(&page[from..from + page[from..].find("\n\n").unwrap()]);
    all_stand(&others, 12, &words, "what only a start can set");
    // `listeners[{}].tls`: the listener's `tls`. Its name and what Envoy's have are told in words and by field.
    let keys: Vec<&str> = of_listeners.iter().filter_map(|it| it.split_once("].")).map(|(_, key)| key).collect();
    let keys: Vec<&str> = keys.into_iter().filter(|it| *it != "ext_proc").collect();
    all_stand(&keys, 3, &words, "what only a start can set");
    let door = function(&code, "fn same_door(");
    let fields: Vec<&str> =
        door.lines().filter(|line| line.contains("how.")).filter_map(|it| it.trim().split(':').next()).collect();
    all_stand(&fields, 4, &words, "what only a start can set");
}

/// Every family's name, as it is registered: without prefix, unit and `_total`.
fn families() -> Words {
    let mut found = Words::new();
    for file in files_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/telemetry"), "rs") {
        let text = fs::read_to_string(file).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for call in ["register(", "register_with_unit(", "encode_descriptor(", "gauge("] {
            let behind = text.match_indices(call).map(|(at, _)| text[at + call.len()..].trim_start());
            let name = |rest: &str| rest.strip_prefix('"').and_then(|it| it.split('"').next()).map(ToOwned::to_owned);
            found.extend(behind.filter_map(name));
        }
    }
    found
}

/// A name in the docs as it may be registered: what the encoder adds is taken off, one by one.
fn bare(name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    for ending in ["_total", "_seconds", "_bytes", "_info"] {
        let shorter: Vec<String> =
            names.iter().filter_map(|it| it.strip_suffix(ending)).map(ToOwned::to_owned).collect();
        names.extend(shorter);
    }
    names
}

#[test]
fn every_metric_family_stands_in_operating_md_and_no_page_names_another() {
    let families = families();
    let page = read("docs/operating.md");
    // `tidegate_a`, and `_b` for the next of the same row.
    let named = told(section(&page, "## Metrics")).into_iter();
    let named: Words =
        named.filter_map(|it| Some(it.strip_prefix("tidegate").unwrap_or(&it).strip_prefix('_')?.to_owned())).collect();
    let known: Words = named.iter().flat_map(|it| bare(it)).collect();
    all_stand(&families.iter().collect::<Vec<_>>(), 62, &known, "the table of metrics in docs/operating.md");
    for path in
        ["docs/operating.md", "docs/http.md", "docs/keys.md", "docs/limits.md", "docs/edge.md", "docs/overload.md"]
    {
        let other: Vec<String> = told(&read(path))
            .into_iter()
            .filter_map(|it| it.strip_prefix("tidegate_").map(ToOwned::to_owned))
            .filter(|it| !it.ends_with('*') && !bare(it).iter().any(|it| families.contains(it)))
            .collect();
        assert_eq!(other, [] as [&str; 0], "{path} names what there is not");
    }
    let other: Vec<&String> = named.iter().filter(|it| !bare(it).iter().any(|it| families.contains(it))).collect();
    assert_eq!(other, [] as [&String; 0], "docs/operating.md has rows of what there is not");
}

#[test]
fn what_is_missing_is_found() {
    let words = told("`a`, `b{c}`\n```\n`d`\n```\n");
    assert!(words.contains("a") && words.contains("b") && !words.contains("d"), "{words:?}");
    assert!(std::panic::catch_unwind(|| all_stand(&["e"], 1, &words, "here")).is_err());
    assert!(std::panic::catch_unwind(|| all_stand(&["a"], 2, &words, "here")).is_err());
    assert_eq!(section("\n## A\nx\n## B\ny", "## A").trim(), "x");
    assert_eq!(literals(function("fn a() { \"b\" } \"c\"", "fn a")), ["b"]);
}
