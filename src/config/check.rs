//! `File` to `Config`: the one door through which a configuration enters, and where all that is wrong with it is said.
//!
//! Every check goes on after a problem, and asks what it can of what is left. It looks at the text alone: whether a
//! token file exists or a pod answers is for those who open them.

use std::{collections::BTreeMap, io::ErrorKind, net::SocketAddr, path::Path, time::Duration};

use super::{
    Bytes, Config, Place, Problem, Report, Severity, check_models, check_pools, check_settings, defaults,
    file::{DoorFile, File, ListenerFile},
    report::{Finding, Source},
    shape,
    tree::{self, At, Kind, Node},
    units::Span,
};

/// The smallest file that works, for those who begin with none.
const SMALLEST: &str = "begin with `listeners: [ { name: openai, address: 0.0.0.0:8081 } ]` and \
    `pools: [ { name: vllm, endpoints: [ { url: \"http://10.0.0.1:8000\" } ] } ]`";

/// Reads a configuration: with its warnings if it can be used, or with every problem if not.
pub fn load(path_name: &str, text: &str) -> Result<(Config, Vec<Problem>), Report> {
    let source = Source::new(path_name, text);
    let mut sheet = Sheet::default();
    let config = read(text, &mut sheet);
    let errors = sheet.errors();
    let problems = source.problems(sheet.findings);
    match config {
        Some(config) if errors == 0 => Ok((config, problems)),
        _ => Err(Report { problems }),
    }
}

/// [`load`] for a file; its path is the name that the problems carry.
pub fn load_file(path: &Path) -> Result<(Config, Vec<Problem>), Report> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| {
        let (message, remedy) = match error.kind() {
            ErrorKind::NotFound => (
                "there is no such file".to_owned(),
                "check the path; it is taken from the directory you are in",
            ),
            ErrorKind::PermissionDenied => (
                "this file may not be read".to_owned(),
                "give your user the right to read it and to enter its directories",
            ),
            ErrorKind::IsADirectory => (
                "this is a directory".to_owned(),
                "name the files in it, such as `config/*.yaml`",
            ),
            _ => (
                format!("this file cannot be read: {error}"),
                "check the path and the disk",
            ),
        };
        Report::whole_file(&name, message, remedy)
    })?;
    load_bytes(&name, &bytes)
}

/// [`load`] for what a file holds before it is known to be text.
pub fn load_bytes(path_name: &str, bytes: &[u8]) -> Result<(Config, Vec<Problem>), Report> {
    match std::str::from_utf8(bytes) {
        Ok(text) => load(path_name, text),
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let good = String::from_utf8_lossy(good);
            let last = good.rsplit('\n').next().unwrap_or_default();
            let count = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
            let place = Place {
                line: count(good.matches('\n').count()),
                column: count(last.chars().count()),
                length: 1,
            };
            let finding = Finding::error(
                place,
                "this file is not UTF-8 text",
                "save it as UTF-8 (from UTF-16 or Latin-1: `iconv -t utf-8`)",
            );
            Err(Report {
                problems: Source::new(path_name, &good).problems(vec![finding]),
            })
        }
    }
}

/// The JSON schema of a configuration, for editors.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(File)
}

fn read(text: &str, sheet: &mut Sheet) -> Option<Config> {
    let root = match tree::parse(text) {
        Ok(root) => root,
        Err(finding) => {
            sheet.take(vec![finding]);
            return None;
        }
    };
    if matches!(root.kind, Kind::Null) {
        sheet.error(Place::default(), "the configuration is empty", SMALLEST);
        return None;
    }
    let reading = shape::read::<File>(&root);
    sheet.take(reading.findings);
    sheet.listeners_known = whole(&root, "listeners");
    sheet.pools_known = whole(&root, "pools");
    sheet.models_known = whole(&root, "models");
    Some(check(&reading.value?, sheet))
}

/// Whether all of a list was read, so that what it does not name does not exist.
fn whole(root: &Node, list: &str) -> bool {
    let Kind::Map(entries) = &root.kind else { return false };
    let items = entries
        .iter()
        .filter(|entry| entry.key == list)
        .flat_map(|entry| match &entry.value.kind {
            Kind::List(items) => items.as_slice(),
            _ => &[],
        });
    !root.lost(list) && items.into_iter().all(|item| !item.dropped.get())
}

/// What was found so far, and what may be asked.
#[derive(Default)]
pub(super) struct Sheet {
    pub(super) findings: Vec<Finding>,
    /// Every listener of the file was read, so that there are no others.
    pub(super) listeners_known: bool,
    /// The same for pools, so that another name is unknown.
    pub(super) pools_known: bool,
    /// The same for models.
    pub(super) models_known: bool,
}

impl Sheet {
    pub(super) fn error(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding::error(place, message, remedy));
    }

    pub(super) fn warning(&mut self, place: Place, message: impl Into<String>, remedy: impl Into<String>) {
        self.findings.push(Finding::warning(place, message, remedy));
    }

    pub(super) fn take(&mut self, findings: Vec<Finding>) {
        self.findings.extend(findings);
    }

    pub(super) fn errors(&self) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .count()
    }

    /// Names that are empty, unprintable or used twice.
    pub(super) fn names(&mut self, what: &str, names: &[&At<String>]) {
        let mut first: BTreeMap<&str, u32> = BTreeMap::new();
        for name in names {
            let text = name.value.as_str();
            if text.trim() != text || text.is_empty() || text.chars().any(char::is_control) {
                let remedy = "use at least one character, and no space at either end";
                self.error(name.place, format!("this is not a name for a {what}"), remedy);
            } else if let Some(line) = first.get(text) {
                let remedy = format!("give one of them another name: the first is on line {line}");
                self.error(name.place, format!("there are two {what}s called `{text}`"), remedy);
            } else {
                first.insert(text, name.place.line);
            }
        }
    }

    /// A number or size that has to be more than nothing.
    fn positive<T: PartialEq + Default + Copy>(&mut self, value: Option<&At<T>>, default: T, remedy: &str) -> T {
        if let Some(value) = value.filter(|value| value.value == T::default()) {
            self.error(value.place, "this cannot be zero", remedy);
        }
        value.map_or(default, |value| value.value)
    }

    pub(super) fn span(&mut self, value: Option<&At<Span>>, default: Duration) -> Duration {
        let value = value.map(|at| At {
            value: at.value.0,
            place: at.place,
        });
        self.positive(
            value.as_ref(),
            default,
            "a limit of zero would end everything at once; leave it out for the default",
        )
    }

    pub(super) fn bytes(&mut self, value: Option<&At<Bytes>>, default: Bytes) -> Bytes {
        let value = value.map(|at| At {
            value: at.value.0,
            place: at.place,
        });
        Bytes(self.positive(
            value.as_ref(),
            default.0,
            "a limit of zero would refuse everything; leave it out for the default",
        ))
    }

    pub(super) fn count(&mut self, value: Option<&At<u32>>, default: u32) -> u32 {
        self.positive(
            value,
            default,
            "a limit of zero would refuse everything; leave it out for the default",
        )
    }
}

fn check(file: &File, sheet: &mut Sheet) -> Config {
    let reported = file
        .api
        .as_ref()
        .and_then(|api| api.serve_reported_models)
        .unwrap_or(defaults::api().serve_reported_models);
    let pools = check_pools::pools(&file.pools, sheet);
    let models = check_models::models(file, reported, sheet);
    let listeners = check_models::listeners(file, sheet);
    check_models::unused(file, reported, sheet);
    let (admin, probes) = addresses(file, sheet);
    Config {
        listeners,
        pools,
        models,
        scheduler: file.scheduler.as_ref().map_or(defaults::SCHEDULER, |scheduler| {
            check_models::scheduler(scheduler, sheet)
        }),
        admin,
        probes,
        limits: check_settings::limits(file.limits.as_ref(), sheet),
        timeouts: check_settings::timeouts(file.timeouts.as_ref(), sheet),
        retry: check_settings::retry(file.retry.as_ref(), sheet),
        sessions: check_settings::sessions(file.sessions.as_ref(), sheet),
        api: check_settings::api(file.api.as_ref(), sheet),
        log: check_settings::log(file.log.as_ref(), sheet),
    }
}

/// An address to listen on; a wrong one goes on the sheet.
pub(super) fn address(text: &At<String>, sheet: &mut Sheet) -> Option<SocketAddr> {
    let parsed = text.value.parse().ok();
    if parsed.is_none() {
        let remedy = match text.value.rsplit_once(':') {
            Some(("" | "*", port)) => {
                format!("write `0.0.0.0:{port}` for all addresses, or `127.0.0.1:{port}` for this machine alone")
            }
            Some(("localhost", port)) => format!("write `127.0.0.1:{port}`"),
            None if text.value.parse::<u16>().is_ok() => format!(
                "write `0.0.0.0:{}` for all addresses, or `127.0.0.1:{}` for this machine alone",
                text.value, text.value
            ),
            _ => "write an IP address and a port, such as `0.0.0.0:8081` or `[::]:8081`".to_owned(),
        };
        sheet.error(
            text.place,
            format!("`{}` is not an address to listen on", text.value),
            remedy,
        );
    }
    parsed
}

/// The operator's addresses, and whether any two listeners want the same.
fn addresses(file: &File, sheet: &mut Sheet) -> (SocketAddr, Option<SocketAddr>) {
    let door = |door: Option<&DoorFile>, sheet: &mut Sheet| {
        let door = door?;
        address(&door.address, sheet).map(|address| (door.address.place, address))
    };
    let admin = door(file.admin.as_ref(), sheet);
    let probes = door(file.probes.as_ref(), sheet);
    if let Some((place, address)) = admin.filter(|(_, address)| !address.ip().is_loopback()) {
        let remedy = format!(
            "listen on `127.0.0.1:{}` and give kubelet and Prometheus `probes: {{ address: 0.0.0.0:9091 }}`",
            address.port()
        );
        sheet.warning(
            place,
            "the admin listener can change things, asks for no key, and is open to other machines",
            remedy,
        );
    }
    let admin_address = admin.map_or(defaults::ADMIN, |(_, address)| address);
    let mut taken: Vec<(String, SocketAddr)> = Vec::new();
    let mut claim = |who: String, place: Place, address: SocketAddr, sheet: &mut Sheet| {
        if let Some((other, _)) = taken.iter().find(|(_, earlier)| collide(*earlier, address)) {
            sheet.error(
                place,
                format!("{who} and {other} want the same address"),
                "give one of them another port",
            );
        }
        taken.push((who, address));
    };
    // The default is claimed first: no line of the file can be blamed for it.
    if file.admin.is_none() {
        claim(
            "the admin listener (by default)".to_owned(),
            Place::default(),
            admin_address,
            sheet,
        );
    }
    let quiet = &mut Sheet::default();
    for ListenerFile {
        name, address: text, ..
    } in &file.listeners.value
    {
        if let Some(address) = address(text, quiet) {
            claim(format!("listener `{}`", name.value), text.place, address, sheet);
        }
    }
    for (who, door) in [("the admin listener", admin), ("the probes listener", probes)] {
        if let Some((place, address)) = door {
            claim(who.to_owned(), place, address, sheet);
        }
    }
    (admin_address, probes.map(|(_, address)| address))
}

/// Whether one process cannot listen on both; port 0 is another port each time.
fn collide(left: SocketAddr, right: SocketAddr) -> bool {
    let covers = |all: SocketAddr, other: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || other.is_ipv4());
    left.port() != 0
        && left.port() == right.port()
        && (left.ip() == right.ip() || covers(left, right) || covers(right, left))
}
