//! `File` to `Config`: the one door through which a configuration enters, and where all that is wrong with it is said.
//!
//! Every check goes on after a problem, and asks what it can of what is left. It looks at the text alone: whether a
//! token file exists or a pod answers is for those who open them.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{
    Api, Bytes, Config, Limits, Log, Place, Problem, Report, Retry, Sessions, Severity, Timeouts, check_models,
    check_pools, defaults,
    file::{ApiFile, DoorFile, File, LimitsFile, ListenerFile, LogFile, RetryFile, SessionsFile, TimeoutsFile},
    nearest::suggestion,
    report::{Finding, Source},
    shape::{self, At},
    tree::{self, Kind, Node},
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
    sheet.pools_known = whole(&root, "pools");
    sheet.models_known = whole(&root, "models");
    Some(check(&reading.value?, sheet))
}

/// Whether nothing of a list was dropped, so that what it does not name does not exist.
fn whole(root: &Node, list: &str) -> bool {
    let Kind::Map(entries) = &root.kind else { return false };
    entries.iter().filter(|entry| entry.key == list).all(|entry| {
        let items: &[Node] = if let Kind::List(items) = &entry.value.kind {
            items
        } else {
            &[]
        };
        !entry.value.dropped.get() && items.iter().all(|item| !item.dropped.get())
    })
}

/// What was found so far, and what may be asked.
#[derive(Default)]
pub(super) struct Sheet {
    pub(super) findings: Vec<Finding>,
    /// Every pool that the file names was read, so that another name is unknown.
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

    fn count(&mut self, value: Option<&At<u32>>, default: u32) -> u32 {
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
        limits: limits(file.limits.as_ref(), sheet),
        timeouts: timeouts(file.timeouts.as_ref(), sheet),
        retry: retry(file.retry.as_ref(), sheet),
        sessions: sessions(file.sessions.as_ref(), sheet),
        api: api(file.api.as_ref(), sheet),
        log: log(file.log.as_ref(), sheet),
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

fn limits(file: Option<&LimitsFile>, sheet: &mut Sheet) -> Limits {
    let empty = LimitsFile::default();
    let given = file.unwrap_or(&empty);
    let default = defaults::LIMITS;
    let limits = Limits {
        body: sheet.bytes(given.body.as_ref(), default.body),
        buffered_bodies: sheet.bytes(given.buffered_bodies.as_ref(), default.buffered_bodies),
        connections: given
            .connections
            .as_ref()
            .map_or(default.connections, |at| sheet.count(Some(at), 1) as usize),
        header_fields: given
            .header_fields
            .as_ref()
            .map_or(default.header_fields, |at| sheet.count(Some(at), 1) as usize),
        header_bytes: sheet.bytes(given.header_bytes.as_ref(), default.header_bytes),
        http2_streams: sheet.count(given.http2_streams.as_ref(), default.http2_streams),
    };
    let blamed = given.body.as_ref().or(given.buffered_bodies.as_ref());
    if let Some(blamed) = blamed.filter(|_| limits.body > limits.buffered_bodies) {
        let message = format!(
            "`body` ({}) is more than `buffered_bodies` ({})",
            limits.body, limits.buffered_bodies
        );
        sheet.error(
            blamed.place,
            message,
            "the largest body alone has to fit: raise `buffered_bodies` or lower `body`",
        );
    }
    limits
}

fn timeouts(file: Option<&TimeoutsFile>, sheet: &mut Sheet) -> Timeouts {
    let empty = TimeoutsFile::default();
    let given = file.unwrap_or(&empty);
    let default = defaults::TIMEOUTS;
    let plain = |value: Option<&At<Span>>, default: Duration| value.map_or(default, |at| at.value.0);
    let timeouts = Timeouts {
        header_read: sheet.span(given.header_read.as_ref(), default.header_read),
        body_read: sheet.span(given.body_read.as_ref(), default.body_read),
        connect: sheet.span(given.connect.as_ref(), default.connect),
        first_byte: sheet.span(given.first_byte.as_ref(), default.first_byte),
        idle: sheet.span(given.idle.as_ref(), default.idle),
        total: given.total.as_ref().map(|total| sheet.span(Some(total), total.value.0)),
        // These three may be zero: keep nothing, wait for nothing.
        pool_idle: plain(given.pool_idle.as_ref(), default.pool_idle),
        drain_delay: plain(given.drain_delay.as_ref(), default.drain_delay),
        drain_grace: plain(given.drain_grace.as_ref(), default.drain_grace),
    };
    if let Some(at) = given
        .pool_idle
        .as_ref()
        .filter(|at| at.value.0 >= Duration::from_secs(5))
    {
        let message =
            "uvicorn, under most engines, closes idle connections after 5s, and requests would be lost to that race";
        sheet.warning(
            at.place,
            message,
            "stay below 5s, unless every pod was started with a longer keep-alive timeout",
        );
    }
    timeouts
}

fn retry(file: Option<&RetryFile>, sheet: &mut Sheet) -> Retry {
    let empty = RetryFile::default();
    let given = file.unwrap_or(&empty);
    let default = defaults::RETRY;
    if let Some(at) = given.attempts.as_ref().filter(|at| at.value > defaults::MOST_ATTEMPTS) {
        sheet.error(
            at.place,
            format!("{} further attempts are too many", at.value),
            format!("write at most {}", defaults::MOST_ATTEMPTS),
        );
    }
    Retry {
        attempts: given.attempts.as_ref().map_or(default.attempts, |at| at.value),
        budget: given.budget.unwrap_or(default.budget),
        budget_floor: given.budget_floor.unwrap_or(default.budget_floor),
    }
}

fn sessions(file: Option<&SessionsFile>, sheet: &mut Sheet) -> Sessions {
    let Some(SessionsFile { header }) = file else {
        return defaults::sessions();
    };
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if header.value.is_empty() || !header.value.bytes().all(token) {
        sheet.error(
            header.place,
            format!("`{}` is not a header's name", header.value),
            "write one such as `x-session-id`",
        );
    }
    Sessions {
        header: header.value.to_ascii_lowercase(),
    }
}

fn api(file: Option<&ApiFile>, sheet: &mut Sheet) -> Api {
    let default = defaults::api();
    let Some(given) = file else { return default };
    let paths = given.extra_paths.as_deref().unwrap_or_default();
    for path in paths {
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
        if !path.value.starts_with('/') || !path.value.bytes().all(plain) {
            sheet.error(
                path.place,
                format!("`{}` is not a path", path.value),
                "write it as in a request, from `/` on and without a query: `/v1/moderations`",
            );
        }
    }
    Api {
        extra_paths: paths.iter().map(|path| path.value.clone()).collect(),
        serve_reported_models: given.serve_reported_models.unwrap_or(default.serve_reported_models),
        inject_usage: given.inject_usage.unwrap_or(default.inject_usage),
        decision_headers: given.decision_headers.unwrap_or(default.decision_headers),
    }
}

/// The levels of a log filter.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn log(file: Option<&LogFile>, sheet: &mut Sheet) -> Log {
    let default = defaults::log();
    let Some(given) = file else { return default };
    if let Some(level) = &given.level {
        for part in level.value.split(',').map(str::trim) {
            // A bare word that is no level would be taken for a module whose every line is wanted.
            let word = part.rsplit_once('=').map_or(part, |(_, word)| word);
            if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(word)) {
                sheet.error(
                    level.place,
                    format!("`{word}` is not a log level"),
                    suggestion(word, &LEVELS, "the levels are"),
                );
            }
        }
    }
    Log {
        level: given.level.as_ref().map_or(default.level, |level| level.value.clone()),
        format: given.format.unwrap_or(default.format),
    }
}
