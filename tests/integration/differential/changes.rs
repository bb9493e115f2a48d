//! The intended changes, read from the document that operators read.

use super::wire::{Field, Message};

/// What happens to a field on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It does not come through.
    Dropped,
    /// It belongs to each side for itself, and says nothing about the other.
    Anew,
    /// It is this afterwards, whatever it was.
    Becomes(String),
    /// The request's id.
    RequestId,
    /// It is added if it is missing.
    Added,
    /// It may be left out, and is right if it is there.
    MayDrop,
}

/// A row of a table: names in lower case, `*` at the end for any end.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) change: Change,
}

/// The table under `## {heading}` in docs/http.md.
pub(super) fn table(heading: &str) -> Vec<Row> {
    let docs = include_str!("../../../docs/http.md");
    let (_, section) = docs.split_once(&format!("## {heading}\n")).expect("a section of that name");
    let section = section.split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.flat_map(rows).collect()
}

fn rows(line: &str) -> Vec<Row> {
    let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
    let [names, what] = cells[..] else { panic!("not two cells: {line}") };
    let names: Vec<String> = names.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    if names.is_empty() {
        assert!(what.starts_with("passes unchanged"), "a row without names: {line}");
        return Vec::new();
    }
    let quoted = |text: &str| text.split('`').nth(1).map(str::to_owned);
    let change = match what {
        _ if what.starts_with("dropped where") => Change::MayDrop,
        _ if what.starts_with("dropped") => Change::Dropped,
        _ if what.starts_with("set anew") => Change::Anew,
        _ if what.starts_with("becomes") => Change::Becomes(quoted(what).expect("what it becomes")),
        _ if what.starts_with("set if") => Change::Added,
        _ if what.starts_with("set to the request's") || what.starts_with("the client's if") => Change::RequestId,
        _ => panic!("a row that this test does not understand: {line}"),
    };
    names.into_iter().map(|name| Row { name, change: change.clone() }).collect()
}

fn change_of<'a>(rows: &'a [Row], name: &str) -> Option<&'a Change> {
    let fits = |row: &&Row| match row.name.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => row.name == name,
    };
    rows.iter().find(fits).map(|row| &row.change)
}

/// What must come out on the other side if `sent` goes in: fields in the order of their names, equal names in theirs.
/// Fields that each side has for itself are left out.
pub(super) fn expected(sent: &Message, rows: &[Row], request_id: &[u8]) -> Vec<Field> {
    let named = named_by_connection(sent);
    let mut fields = Vec::new();
    for (name, value) in &sent.fields {
        let name = String::from_utf8(name.to_ascii_lowercase()).unwrap();
        if named.contains(&name) {
            continue;
        }
        match change_of(rows, &name) {
            None | Some(Change::Added) => fields.push((name.into_bytes(), value.clone())),
            Some(_) => {}
        }
    }
    for row in rows {
        match &row.change {
            Change::Becomes(value) => fields.push((row.name.clone().into_bytes(), value.clone().into_bytes())),
            Change::RequestId => fields.push((row.name.clone().into_bytes(), request_id.to_vec())),
            _ => {}
        }
    }
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

/// What did come out, without what each side has for itself.
pub(super) fn arrived(got: &Message, rows: &[Row], sent: &Message) -> Vec<Field> {
    let mut fields = got.fields.clone();
    fields.retain(|(name, _)| {
        let name = std::str::from_utf8(name).unwrap();
        match change_of(rows, name) {
            Some(Change::Anew | Change::MayDrop) => false,
            Some(Change::Added) => !sent.values(name).is_empty(),
            // A connection of ours may have framing and a lifetime of its own.
            Some(Change::Dropped) => name != "transfer-encoding" && name != "connection",
            _ => true,
        }
    });
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

fn named_by_connection(message: &Message) -> Vec<String> {
    let lists = message.values("connection").into_iter().map(|list| String::from_utf8_lossy(list).into_owned());
    lists.flat_map(|list| list.split(',').map(|name| name.trim().to_ascii_lowercase()).collect::<Vec<_>>()).collect()
}
