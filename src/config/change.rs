//! What is different between two configurations: for people, key by key as they wrote it, and which of it only a restart
//! can bring.
//!
//! The difference is told from the text, so that every key is covered, also the one that is added tomorrow. What needs
//! a restart is told from the checked values, so that writing `1m` as `60s` needs none.

use std::{collections::BTreeSet, fmt};

use super::{
    Config, ExtProc, Limits, Place, Report, defaults,
    report::{Finding, Source},
    tree::{self, Entry, Kind, Node},
};

/// The fields that name an entry of a list, the first that is there counts.
const NAMES: [&str; 5] = ["name", "modelName", "url", "dns", "file"];

/// How much of a value is shown: a URL or a short list fits.
const SHOWN: usize = 80;

/// One key that is there, gone or different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Such as `models[llama2].targetModels[llama2-v2].weight`.
    pub key: String,
    /// What it was; `None` if it was not there.
    pub was: Option<String>,
    /// What it is; `None` if it is no longer there.
    pub is: Option<String>,
    /// Where it stands, or where its section does.
    place: Place,
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.was, &self.is) {
            (Some(was), Some(is)) => write!(out, "{}: {was} -> {is}", self.key),
            (None, Some(is)) => write!(out, "{}: added {is}", self.key),
            (Some(was), None) => write!(out, "{}: removed {was}", self.key),
            (None, None) => write!(out, "{}", self.key),
        }
    }
}

/// What `new` changes of `old`, each a configuration and its text; `file` names the new one.
///
/// # Errors
/// A report of every key that cannot change while the gateway runs.
pub fn compare(file: &str, old: (&Config, &str), new: (&Config, &str)) -> Result<Vec<Change>, Report> {
    let mut changes = Vec::new();
    if let (Ok(before), Ok(after)) = (tree::parse(old.1), tree::parse(new.1)) {
        differ(Some(&before), Some(&after), "", after.place, &mut changes);
    }
    let fixed = fixed(old.0, new.0);
    if fixed.is_empty() {
        return Ok(changes);
    }
    let findings = fixed.into_iter().map(|key| {
        // What changed is the key itself, something in it, or the section that it stands in.
        let change = changes.iter().find(|it| it.key.starts_with(&key) || key.starts_with(&it.key));
        let shown = match change {
            Some(Change { key: exactly, was: Some(was), is: Some(is), .. }) if *exactly == key => {
                format!(" ({was} -> {is})")
            }
            _ => String::new(),
        };
        let message = format!("`{key}` cannot change while the gateway runs{shown}");
        let remedy = "restart for it, or undo it; until then nothing of this file is taken over";
        Finding::error(change.map_or(Place::default(), |change| change.place), message, remedy)
    });
    Err(Report { problems: Source::new(file, new.1).problems(findings.collect()) })
}

/// Whether what is made when a listener starts that Envoy asks is the same in both.
fn same_door(old: Option<&ExtProc>, new: Option<&ExtProc>) -> bool {
    let door = |how: &ExtProc| ExtProc {
        secure: how.secure,
        cert_path: how.cert_path.clone(),
        client_certificates: how.client_certificates.clone(),
        health: how.health,
        ..defaults::EXT_PROC
    };
    old.map(door) == new.map(door)
}

/// The keys that only a start can set and that differ: what is bound, and what each connection was given when it began.
fn fixed(old: &Config, new: &Config) -> Vec<String> {
    let mut keys = Vec::new();
    for listener in &old.listeners {
        match new.listeners.iter().find(|it| it.name == listener.name) {
            None => keys.push(format!("listeners[{}]", listener.name)),
            Some(it) if it.address != listener.address => keys.push(format!("listeners[{}].address", listener.name)),
            Some(it) if !same_door(it.ext_proc.as_ref(), listener.ext_proc.as_ref()) => {
                keys.push(format!("listeners[{}].ext_proc", listener.name));
            }
            Some(it) if it.tls != listener.tls => keys.push(format!("listeners[{}].tls", listener.name)),
            Some(it) if it.network.proxy_protocol != listener.network.proxy_protocol => {
                keys.push(format!("listeners[{}].proxy_protocol", listener.name));
            }
            Some(_) => {}
        }
    }
    let known = |name: &str| old.listeners.iter().any(|it| *it.name == *name);
    let unknown = new.listeners.iter().filter(|it| !known(&it.name));
    keys.extend(unknown.map(|it| format!("listeners[{}]", it.name)));
    let (was, is) = (old.limits, new.limits);
    let mut differs = |key: &str, differs: bool| {
        if differs {
            keys.push(key.to_owned());
        }
    };
    differs("admin", old.admin != new.admin);
    differs("probes", old.probes != new.probes);
    differs("kubernetes", old.kubernetes != new.kubernetes);
    differs("identity.keys.secrets", old.identity.key_secrets != new.identity.key_secrets);
    differs("reuse_port", old.reuse_port != new.reuse_port);
    differs("limits.connections", was.connections != is.connections);
    differs("limits.header_fields", was.header_fields != is.header_fields);
    differs("limits.header_bytes", was.header_bytes != is.header_bytes);
    differs("limits.http2_streams", was.http2_streams != is.http2_streams);
    differs("quotas.state_file", old.quotas.state_file != new.quotas.state_file);
    differs("quotas.redis", old.quotas.redis != new.quotas.redis);
    differs("timeouts.header_read", old.timeouts.header_read != new.timeouts.header_read);
    differs("log.format", old.log.format != new.log.format);
    // A limit that nobody thought of here is rather refused than forgotten.
    let live = Limits { body: is.body, buffered_bodies: is.buffered_bodies, ..was };
    if live != is && !keys.iter().any(|key| key.starts_with("limits")) {
        keys.push("limits".to_owned());
    }
    keys
}

fn differ(old: Option<&Node>, new: Option<&Node>, key: &str, section: Place, changes: &mut Vec<Change>) {
    let place = new.map_or(section, |node| node.place);
    match (old.map(|node| &node.kind), new.map(|node| &node.kind)) {
        (Some(Kind::Map(was)), Some(Kind::Map(is))) => {
            let keys: BTreeSet<&str> = was.iter().chain(is).map(|entry| entry.key.as_str()).collect();
            for name in keys {
                let inner = if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
                differ(value_of(was, name), value_of(is, name), &inner, place, changes);
            }
        }
        (Some(Kind::List(was)), Some(Kind::List(is))) if all_named(was) && all_named(is) => {
            let names: BTreeSet<&str> = was.iter().chain(is).filter_map(name_of).collect();
            for name in names {
                let was = was.iter().find(|node| name_of(node) == Some(name));
                let is = is.iter().find(|node| name_of(node) == Some(name));
                differ(was, is, &format!("{key}[{name}]"), place, changes);
            }
        }
        (was, is) => {
            let (was, is) = (was.map(text), is.map(text));
            if was != is {
                let shown = |text: Option<String>| text.map(|text| shortened(&text));
                changes.push(Change { key: key.to_owned(), was: shown(was), is: shown(is), place });
            }
        }
    }
}

fn value_of<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Node> {
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
}

fn name_of(node: &Node) -> Option<&str> {
    let Kind::Map(entries) = &node.kind else { return None };
    let named = NAMES.iter().find_map(|name| entries.iter().find(|entry| entry.key == *name));
    match named.map(|entry| &entry.value.kind) {
        Some(Kind::Text(text)) => Some(text),
        _ => None,
    }
}

fn all_named(list: &[Node]) -> bool {
    let names: BTreeSet<_> = list.iter().filter_map(name_of).collect();
    names.len() == list.len()
}

/// A value on one line.
fn text(kind: &Kind) -> String {
    let list = |nodes: &[Node]| nodes.iter().map(|node| text(&node.kind)).collect::<Vec<_>>().join(", ");
    match kind {
        Kind::Null => "nothing".to_owned(),
        Kind::Bool(value) => value.to_string(),
        Kind::Whole(value) => value.to_string(),
        Kind::Float(value) => value.to_string(),
        Kind::Text(value) => value.clone(),
        Kind::List(nodes) => format!("[{}]", list(nodes)),
        Kind::Map(entries) => {
            let entry = |entry: &Entry| format!("{}: {}", entry.key, text(&entry.value.kind));
            format!("{{ {} }}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= SHOWN {
        return text.to_owned();
    }
    text.chars().take(SHOWN).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    const OLD: &str = "listeners: [{ name: a, address: 127.0.0.1:8081 }]
pools:
  - name: vllm
    endpoints: [{ url: \"http://10.0.0.1:8000\" }]
models:
  - modelName: m
    poolRef: vllm
    targetModels: [{ name: one, weight: 90 }, { name: two, weight: 10 }]
timeouts: { header_read: 10s }
";

    fn compared(old: &str, new: &str) -> Result<Vec<String>, String> {
        let [before, after] = [old, new].map(|text| load("t.yaml", text).unwrap().0);
        let changes = compare("t.yaml", (&before, old), (&after, new));
        changes.map(|all| all.iter().map(ToString::to_string).collect()).map_err(|report| report.to_string())
    }

    #[test]
    fn every_key_that_changed_is_told_and_no_other() {
        assert_eq!(compared(OLD, OLD).unwrap(), [] as [&str; 0]);
        let new = OLD
            .replace("weight: 90", "weight: 50")
            .replace("weight: 10", "weight: 50")
            .replace("[{ url: \"http://10.0.0.1:8000\" }]", "[{ url: \"http://10.0.0.2:8000\", token_file: /t }]")
            + "retry: { attempts: 1 }\n";
        assert_eq!(
            compared(OLD, &new).unwrap(),
            [
                "models[m].targetModels[one].weight: 90 -> 50",
                "models[m].targetModels[two].weight: 10 -> 50",
                "pools[vllm].endpoints[http://10.0.0.1:8000]: removed { url: http://10.0.0.1:8000 }",
                "pools[vllm].endpoints[http://10.0.0.2:8000]: added { url: http://10.0.0.2:8000, token_file: /t }",
                "retry: added { attempts: 1 }",
            ]
        );
    }

    #[test]
    fn what_needs_a_restart_is_named_in_its_place() {
        let new = OLD.replace("8081", "8082") + "limits: { connections: 10, body: 1MiB }\n";
        let told = compared(OLD, &new).unwrap_err();
        assert!(told.contains("t.yaml:1:33: error: `listeners[a].address` cannot change while the gateway runs (127.0.0.1:8081 -> 127.0.0.1:8082)"), "{told}");
        assert!(told.contains("`limits.connections`") && told.contains("restart"), "{told}");
        assert!(told.contains("t.yaml:10:9: error"), "{told}");
        assert_eq!(told.matches("error:").count(), 2, "{told}");
        let removed = OLD.replace("name: a,", "name: b,");
        let told = compared(OLD, &removed).unwrap_err();
        assert!(told.contains("`listeners[a]`") && told.contains("`listeners[b]`"), "{told}");
    }

    #[test]
    fn the_same_said_otherwise_needs_no_restart() {
        assert_eq!(compared(OLD, &OLD.replace("10s", "10000ms")).unwrap(), ["timeouts.header_read: 10s -> 10000ms"]);
        assert_eq!(
            compared(OLD, &(OLD.to_owned() + "limits: { connections: 65536 }\n")).unwrap(),
            ["limits: added { connections: 65536 }"]
        );
    }
}
