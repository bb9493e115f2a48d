//! `File` to `Config`: the one door through which a configuration enters, and where all that is wrong with it is said.
//!
//! Every check goes on after a problem, and asks what it can of what is left. It looks at the text alone: whether a
//! token file exists or a pod answers is for those who open them.

mod doors;
mod models;
mod pickers;
mod pools;
mod settings;

pub use settings::wrong_levels;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Admin, Bytes, Config, Place, Problem, Report, Severity, defaults,
    file::File,
    identity,
    listener::{AdminFile, ListenerFile},
    quotas,
    report::{Finding, Source},
    resources, shape,
    tree::{self, At, Kind, Node},
    units::{AddressText, Span},
};

/// The smallest file that works, for those who begin with none.
const SMALLEST: &str = "begin with `listeners: [ { name: openai, address: 0.0.0.0:8081 } ]` and \
    `pools: [ { name: vllm, endpoints: [ { url: \"http://10.0.0.1:8000\" } ] } ]`";

/// What the command line says besides the file.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `kubernetes.manifests`, whatever the file says.
    pub manifests: Option<PathBuf>,
}

/// Reads a configuration: with its warnings if it can be used, or with every problem if not.
pub fn load(path_name: &str, text: &str) -> Result<(Config, Vec<Problem>), Report> {
    load_text(path_name, text, &Given::default())
}

fn load_text(path_name: &str, text: &str, given: &Given) -> Result<(Config, Vec<Problem>), Report> {
    let source = Source::new(path_name, text);
    let mut sheet = Sheet { given: given.clone(), ..Sheet::default() };
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
    load_bytes(&path.display().to_string(), &read_file(path)?)
}

/// What a file holds, or what to do so that it can be read.
pub fn read_file(path: &Path) -> Result<Vec<u8>, Report> {
    let name = path.display().to_string();
    std::fs::read(path).map_err(|error| {
        let (message, remedy) = match error.kind() {
            ErrorKind::NotFound => {
                ("there is no such file".to_owned(), "check the path; it is taken from the directory you are in")
            }
            ErrorKind::PermissionDenied => (
                "this file may not be read".to_owned(),
                "give your user the right to read it and to enter its directories",
            ),
            ErrorKind::IsADirectory => {
                ("this is a directory".to_owned(), "name the files in it, such as `config/*.yaml`")
            }
            _ => (format!("this file cannot be read: {error}"), "check the path and the disk"),
        };
        Report::whole_file(&name, message, remedy)
    })
}

/// [`load`] for what a file holds before it is known to be text.
pub fn load_bytes(path_name: &str, bytes: &[u8]) -> Result<(Config, Vec<Problem>), Report> {
    load_given(path_name, bytes, &Given::default())
}

/// [`load_bytes`], with what the command line says besides.
pub fn load_given(path_name: &str, bytes: &[u8], given: &Given) -> Result<(Config, Vec<Problem>), Report> {
    match std::str::from_utf8(bytes) {
        Ok(text) => load_text(path_name, text, given),
        Err(error) => {
            let shown = String::from_utf8_lossy(bytes);
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let good = String::from_utf8_lossy(good);
            let last = good.rsplit('\n').next().unwrap_or_default();
            let count = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
            let place =
                Place { line: count(good.matches('\n').count()), column: count(last.chars().count()), length: 1 };
            let finding = Finding::error(
                place,
                "this file is not UTF-8 text",
                "save it as UTF-8 (from UTF-16 or Latin-1: `iconv -t utf-8`)",
            );
            Err(Report { problems: Source::new(path_name, &shown).problems(vec![finding]) })
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
    sheet.identity_known = intact(&root, "identity");
    let file = reading.value?;
    sheet.resources = file.kubernetes.is_some() || sheet.given.manifests.is_some();
    sheet.models_known &= !sheet.resources;
    Some(check(&file, sheet))
}

/// Whether all of a list was read, so that what it does not name does not exist.
fn whole(root: &Node, list: &str) -> bool {
    let Kind::Map(entries) = &root.kind else { return false };
    let items = entries.iter().filter(|entry| entry.field() == list).flat_map(|entry| match &entry.value.kind {
        Kind::List(items) => items.as_slice(),
        _ => &[],
    });
    !root.lost(list) && items.into_iter().all(|item| !item.dropped.get())
}

/// Whether a section is as it was typed, or not there.
fn intact(root: &Node, section: &str) -> bool {
    fn holds(node: &Node) -> bool {
        !node.dropped.get()
            && match &node.kind {
                Kind::List(items) => items.iter().all(holds),
                Kind::Map(entries) => entries.iter().all(|entry| entry.meant.get().is_none() && holds(&entry.value)),
                _ => true,
            }
    }
    let Kind::Map(entries) = &root.kind else { return false };
    !root.lost(section) && entries.iter().filter(|entry| entry.field() == section).all(|entry| holds(&entry.value))
}

/// What was found so far, and what may be asked.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own")]
pub(super) struct Sheet {
    pub(super) findings: Vec<Finding>,
    /// Every listener of the file was read, so that there are no others.
    pub(super) listeners_known: bool,
    /// The same for pools, so that another name is unknown.
    pub(super) pools_known: bool,
    /// The same for models.
    pub(super) models_known: bool,
    /// All of `identity` was read, so that nobody else is known by it.
    pub(super) identity_known: bool,
    /// Inference resources may bring further pools, called NAMESPACE/NAME, and models.
    pub(super) resources: bool,
    /// What the command line says besides.
    pub(super) given: Given,
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
        self.findings.iter().filter(|finding| finding.severity == Severity::Error).count()
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
        let value = value.map(|at| At { value: at.value.0, place: at.place });
        self.positive(
            value.as_ref(),
            default,
            "a limit of zero would end everything at once; leave it out for the default",
        )
    }

    pub(super) fn bytes(&mut self, value: Option<&At<Bytes>>, default: Bytes) -> Bytes {
        let value = value.map(|at| At { value: at.value.0, place: at.place });
        Bytes(self.positive(
            value.as_ref(),
            default.0,
            "a limit of zero would refuse everything; leave it out for the default",
        ))
    }

    pub(super) fn count(&mut self, value: Option<&At<u32>>, default: u32) -> u32 {
        self.positive(value, default, "a limit of zero would refuse everything; leave it out for the default")
    }
}

fn check(file: &File, sheet: &mut Sheet) -> Config {
    let reported =
        file.api.as_ref().and_then(|api| api.serve_reported_models).unwrap_or(defaults::api().serve_reported_models);
    let saturation = settings::saturation(file.saturation.as_ref(), defaults::SATURATION, sheet);
    let pools = pools::pools(&file.pools, saturation, sheet);
    let models = models::models(file, reported, sheet);
    let known = identity::identity(file.identity.as_ref(), sheet);
    let listeners = models::listeners(file, &known, sheet);
    models::unused(file, reported, sheet);
    pools::loops(file, sheet);
    identity::unguarded(file, &listeners, &known, sheet);
    identity::strange(file, &listeners, &known, sheet);
    pickers::unnameable(file, &listeners, &models, sheet);
    let (admin, probes) = addresses(file, sheet);
    let manifests = sheet.given.manifests.clone();
    let kubernetes = resources::kubernetes(file.kubernetes.as_ref(), manifests, sheet);
    let timeouts = settings::timeouts(file.timeouts.as_ref(), sheet);
    // Reported models may have any name.
    let names = || models.iter().map(|model| &*model.name).collect::<Vec<_>>();
    let served = (sheet.models_known && !reported).then(names);
    let quotas = quotas::quotas(file.quotas.as_ref(), served.as_deref(), sheet);
    Config {
        listeners,
        reuse_port: file.reuse_port.unwrap_or(false),
        pools,
        models,
        pool_models: Vec::new(),
        other_models: Vec::new(),
        objectives: Vec::new(),
        whole: true,
        kubernetes,
        scheduler: file.scheduler.as_ref().map_or(defaults::SCHEDULER, |scheduler| models::scheduler(scheduler, sheet)),
        admin,
        probes,
        limits: settings::limits(file.limits.as_ref(), sheet),
        timeouts,
        retry: settings::retry(file.retry.as_ref(), sheet),
        waiting: settings::waiting(file.waiting.as_ref(), sheet),
        saturation,
        identity: known,
        quotas,
        sessions: settings::sessions(file.sessions.as_ref(), sheet),
        api: settings::api(file.api.as_ref(), &timeouts, sheet),
        log: settings::log(file.log.as_ref(), sheet),
    }
}

/// An address to listen on; a wrong one goes on the sheet.
pub(super) fn address(at: &At<AddressText>, sheet: &mut Sheet) -> Option<SocketAddr> {
    let text = at.value.0.as_str();
    let parsed = text.parse().ok();
    if parsed.is_none() {
        let remedy = match text.rsplit_once(':') {
            Some(("" | "*", port)) => {
                format!("write `0.0.0.0:{port}` for all addresses, or `127.0.0.1:{port}` for this machine alone")
            }
            Some(("localhost", port)) => format!("write `127.0.0.1:{port}`"),
            None if text.parse::<u16>().is_ok() => {
                format!("write `0.0.0.0:{text}` for all addresses, or `127.0.0.1:{text}` for this machine alone")
            }
            _ => "write an IP address and a port, such as `0.0.0.0:8081` or `[::]:8081`".to_owned(),
        };
        sheet.error(at.place, format!("`{text}` is not an address to listen on"), remedy);
    }
    parsed
}

/// The operator's listeners, and whether any two listeners want the same address.
fn addresses(file: &File, sheet: &mut Sheet) -> (Admin, Option<SocketAddr>) {
    let (asked, admin) = admin(file.admin.as_ref(), sheet);
    let probes = file.probes.as_ref();
    let probes = probes.and_then(|door| Some((door.address.place, address(&door.address, sheet)?)));
    let mut taken: Vec<(String, SocketAddr)> = Vec::new();
    let mut claim = |who: String, place: Place, address: SocketAddr, sheet: &mut Sheet| {
        if let Some((other, _)) = taken.iter().find(|(_, earlier)| collide(*earlier, address)) {
            sheet.error(place, format!("{who} and {other} want the same address"), "give one of them another port");
        }
        taken.push((who, address));
    };
    // The default is claimed first: no line of the file can be blamed for it.
    if asked.is_none() {
        claim("the admin listener (by default)".to_owned(), Place::default(), admin.address, sheet);
    }
    let quiet = &mut Sheet::default();
    for ListenerFile { name, address: text, ext_proc, .. } in &file.listeners.value {
        if let Some(address) = address(text, quiet) {
            claim(format!("listener `{}`", name.value), text.place, address, sheet);
        }
        let health = ext_proc.as_ref().and_then(|how| how.value.health.as_ref());
        if let Some((text, address)) = health.and_then(|door| Some((&door.address, address(&door.address, quiet)?))) {
            claim(format!("the health of listener `{}`", name.value), text.place, address, sheet);
        }
    }
    for (who, door) in [("the admin listener", asked), ("the probes listener", probes)] {
        if let Some((place, address)) = door {
            claim(who.to_owned(), place, address, sheet);
        }
    }
    (admin, probes.map(|(_, address)| address))
}

/// The operator's listener, and the address that was asked for, with its place.
fn admin(file: Option<&AdminFile>, sheet: &mut Sheet) -> (Option<(Place, SocketAddr)>, Admin) {
    let asked = file.and_then(|it| it.address.as_ref()).and_then(|at| Some((at.place, address(at, sheet)?)));
    let token_file = file.and_then(|it| it.token_file.as_ref()).map(|at| at.value.clone());
    if let Some((place, address)) = asked.filter(|(_, it)| !it.ip().is_loopback() && token_file.is_none()) {
        let remedy = format!(
            "add `token_file`, or listen on `127.0.0.1:{}` and give kubelet and Prometheus \
             `probes: {{ address: 0.0.0.0:9091 }}`",
            address.port()
        );
        sheet.error(place, "the admin listener tells everything, and asks other machines for no token", remedy);
    }
    let hosts = file.and_then(|it| it.hosts.as_deref()).unwrap_or_default();
    for host in hosts.iter().filter(|at| at.value.is_empty() || at.value.contains([':', '/', '@', ' ', '*'])) {
        sheet.error(
            host.place,
            format!("`{}` is not a name", host.value),
            "write a host name alone, such as `tidegate.example.net`: no scheme, no port, no wildcard",
        );
    }
    let hosts = hosts.iter().map(|at| at.value.to_ascii_lowercase()).collect();
    (asked, Admin { address: asked.map_or(defaults::ADMIN, |(_, address)| address), token_file, hosts })
}

/// Whether one process cannot listen on both; port 0 is another port each time.
fn collide(left: SocketAddr, right: SocketAddr) -> bool {
    left.port() != 0
        && left.port() == right.port()
        && (left.ip() == right.ip() || covers(left, right) || covers(right, left))
}

/// Whether who listens at `all` is met at `other` too.
fn covers(all: SocketAddr, other: SocketAddr) -> bool {
    all.ip().is_unspecified() && (all.is_ipv6() || other.is_ipv4())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{Criticality, Endpoint, Engine, Scheduler, Sticky};

    const MINIMAL: &str = include_str!("../../../config/minimal.yaml");
    const EVERYTHING: &str = include_str!("../../../config/everything.yaml");
    const EXAMPLES: [(&str, &str); 5] = [
        ("minimal", MINIMAL),
        ("weighted-split", include_str!("../../../config/weighted-split.yaml")),
        ("two-listeners", include_str!("../../../config/two-listeners.yaml")),
        ("remote-https", include_str!("../../../config/remote-https.yaml")),
        ("everything", EVERYTHING),
    ];

    /// A file with nothing wrong, to which a test adds what is.
    const GOOD: &str = "listeners: [{ name: a, address: 127.0.0.1:8081 }]
pools: [{ name: vllm, endpoints: [{ url: \"http://10.0.0.1:8000\" }] }]
";

    fn report(text: &str) -> String {
        load("t.yaml", text).unwrap_err().to_string()
    }

    /// Place, message and remedy of everything there is to say about a file, in one line each.
    fn told(text: &str) -> Vec<String> {
        let problems = match load("t.yaml", text) {
            Ok((_, warnings)) => warnings,
            Err(report) => report.problems,
        };
        let line = |problem: &Problem| {
            let Place { line, column, .. } = problem.place;
            let severity = if problem.severity == Severity::Error { "" } else { "warning: " };
            format!("{line}:{column} {severity}{} -> {}", problem.message, problem.remedy)
        };
        problems.iter().map(line).collect()
    }

    #[test]
    fn every_example_loads_without_a_word() {
        for (name, text) in EXAMPLES {
            match load(name, text) {
                Ok((_, warnings)) => assert_eq!(warnings, [], "{name}"),
                Err(report) => panic!("{name}:\n{report}"),
            }
        }
    }

    #[test]
    fn the_minimal_example_has_fifteen_lines_at_most() {
        assert!(MINIMAL.lines().count() <= 15);
    }

    #[test]
    fn an_endpoint_that_is_a_listener_of_the_same_gateway_would_send_requests_round() {
        let said = |listener: &str, url: &str| {
            told(&format!(
                "listeners: [{{ name: openai, address: \"{listener}\", allow_anonymous: true }}]\npools: [{{ name: vllm, endpoints: [{url}] }}]\n"
            ))
        };
        let looped = "2:42 this endpoint is listener `openai` of this gateway: requests would go round for ever -> \
                      name where the pod listens; if it is on this machine, give one of them another port";
        for (listener, host) in [
            ("127.0.0.1:8081", "127.0.0.1"),
            ("127.0.0.1:8081", "localhost"),
            ("127.0.0.1:8081", "0.0.0.0"),
            ("0.0.0.0:8081", "LOCALHOST"),
            ("0.0.0.0:8081", "127.0.0.2"),
            ("[::]:8081", "127.0.0.1"),
            ("[::]:8081", "[::1]"),
            ("[::1]:8081", "localhost"),
            ("[::1]:8081", "[::]"),
            ("10.0.0.5:8081", "10.0.0.5"),
        ] {
            assert_eq!(said(listener, &format!("{{ url: \"http://{host}:8081\" }}")), [looped], "{listener} {host}");
        }
        assert_eq!(said("0.0.0.0:8081", "{ dns: \"http://localhost:8081\" }"), [looped]);
        for (listener, url) in [
            ("127.0.0.1:8081", "http://127.0.0.1:8082"),
            ("127.0.0.1:8081", "http://127.0.0.2:8081"),
            ("127.0.0.1:8081", "http://[::1]:8081"),
            ("0.0.0.0:8081", "http://[::1]:8081"),
            ("0.0.0.0:8081", "http://10.0.0.5:8081"),
            ("0.0.0.0:8081", "http://vllm:8081"),
            ("127.0.0.1:0", "http://127.0.0.1:1"),
        ] {
            assert_eq!(said(listener, &format!("{{ url: \"{url}\" }}")), [""; 0], "{listener} {url}");
        }
    }

    #[test]
    fn windows_line_ends_and_a_byte_order_mark_are_no_problem() {
        let text = format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"));
        assert!(load("t.yaml", &text).is_ok());
    }

    #[test]
    fn the_example_of_everything_names_every_field_of_the_schema() {
        fn fields(schema: &serde_json::Value, found: &mut Vec<String>) {
            if let Some(map) = schema.as_object() {
                for (key, value) in map {
                    if let ("properties", Some(properties)) = (key.as_str(), value.as_object()) {
                        found.extend(properties.keys().cloned());
                    }
                    fields(value, found);
                }
            }
        }
        let mut found = Vec::new();
        fields(schema().as_value(), &mut found);
        assert!(found.len() > 50, "{found:?}");
        for field in found {
            let named =
                EVERYTHING.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == field);
            assert!(named && EVERYTHING.contains(&format!("{field}:")), "config/everything.yaml lacks `{field}`");
        }
    }

    #[test]
    fn the_stored_schema_is_the_one_that_the_types_give() {
        let stored = include_str!("../../../config/schema.json");
        let now = serde_json::to_string_pretty(&schema()).unwrap();
        assert!(
            stored.trim_end() == now,
            "config/schema.json is out of date: run `cargo run -- check --schema > config/schema.json`"
        );
    }

    #[test]
    fn defaults_fill_what_the_minimal_example_leaves_out() {
        let (config, _) = load("t.yaml", MINIMAL).unwrap();
        assert_eq!(config.admin.address.to_string(), "127.0.0.1:9090");
        assert_eq!(config.probes, None);
        assert_eq!(config.scheduler, Scheduler::LeastCost);
        assert_eq!(config.limits.body, Bytes(32 * 1024 * 1024));
        assert_eq!(config.timeouts.first_byte, Duration::from_secs(600));
        assert_eq!(config.timeouts.pool_idle, Duration::from_secs(4));
        assert_eq!(config.timeouts.total, None);
        assert_eq!((config.retry.attempts, config.retry.budget.0, config.retry.budget_floor), (2, 0.2, 3));
        assert_eq!(config.sessions.header, "x-session-id");
        let [pool] = &config.pools[..] else { panic!("{:?}", config.pools) };
        assert_eq!((&pool.engine, pool.endpoints.len()), (&Engine::Auto, 2));
        assert_eq!((pool.metrics.path.as_str(), pool.metrics.interval), ("/metrics", Duration::from_millis(250)));
        let [model] = &config.models[..] else { panic!("{:?}", config.models) };
        assert_eq!((model.criticality, model.sticky), (Criticality::Standard, Sticky::Session));
        assert_eq!(
            model.targets.iter().map(|target| (&*target.name, target.weight)).collect::<Vec<_>>(),
            [("llama2", 1)]
        );
    }

    #[test]
    fn what_is_given_arrives() {
        let (config, _) = load("t.yaml", EVERYTHING).unwrap();
        let [openai, classic, homemade, picker] = &config.listeners[..] else { panic!("{:?}", config.listeners) };
        assert_eq!((openai.ext_proc.as_ref(), picker.ext_proc.is_some()), (None, true));
        assert_eq!((openai.pool.as_deref(), homemade.pool.as_deref()), (None, Some("homemade")));
        assert_eq!((openai.scheduler.as_ref(), openai.models.as_ref()), (None, None));
        assert_eq!(classic.scheduler, Some(Scheduler::RoundRobin));
        assert_eq!(classic.models.as_ref().unwrap()["llama2"].as_deref(), Some("triton"));
        let [vllm, triton, homemade, in_cluster] = &config.pools[..] else { panic!("{:?}", config.pools) };
        let [Endpoint::Fixed(plain), Endpoint::Fixed(remote), Endpoint::Dns(named)] = &vllm.endpoints[..] else {
            panic!("{:?}", vllm.endpoints)
        };
        let token = |path: &str| Some(std::path::PathBuf::from(path));
        assert_eq!(
            (plain.origin.authority().as_str(), &plain.token_file),
            ("10.0.0.1:8000", &token("/run/secrets/pods"))
        );
        assert_eq!((remote.base_path.as_str(), &remote.token_file), ("/llama", &token("/run/secrets/app")));
        assert_eq!(remote.metrics_url.as_deref(), Some("https://app.example.net/llama-metrics"));
        assert_eq!(named.origin.host, "vllm.default.svc.cluster.local");
        assert_eq!((triton.metrics.port, &triton.engine), (Some(8002), &Engine::Triton));
        let kinds: Vec<_> = in_cluster.endpoints.iter().map(|it| matches!(it, Endpoint::Cluster { .. })).collect();
        assert_eq!(kinds, [true; 3]);
        let kubernetes = config.kubernetes.as_ref().unwrap();
        assert_eq!((kubernetes.home(), kubernetes.everywhere()), (Some("inference"), false));
        assert_eq!(kubernetes.workload_label.as_deref(), Some("kaito.sh/workspace"));
        assert!(!kubernetes.named_pools_only);
        let Engine::Custom(custom) = &homemade.engine else { panic!("{:?}", homemade.engine) };
        assert_eq!(custom.waiting.as_deref(), Some("queue_size{queue=\"main\"}"));
        let Scheduler::Weighted(scorers) = &config.scheduler else { panic!("{:?}", config.scheduler) };
        assert_eq!(scorers.iter().map(|scorer| scorer.weight).collect::<Vec<_>>(), [2.0, 1.0, 2.0, 3.0, 1.0]);
        assert_eq!(config.probes.unwrap().port(), 9091);
    }

    #[test]
    fn what_is_given_of_splits_and_times_arrives() {
        let (config, _) = load("t.yaml", EVERYTHING).unwrap();
        let weights = config.models[0].targets.iter().map(|target| target.weight);
        assert_eq!(weights.collect::<Vec<_>>(), [90, 10]);
        assert_eq!(config.timeouts.total, Some(Duration::from_secs(3600)));
        assert_eq!(config.api.heartbeat, Some(Duration::from_secs(15)));
        let own = config.timeouts.with(&config.models[0].timeouts);
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert_eq!((own.first_byte, own.first_token, own.idle), (minutes(5), minutes(5), minutes(1)));
        assert_eq!((own.total, own.connect), (Some(minutes(30)), Duration::from_secs(2)));
        let other = config.timeouts.with(&config.models[1].timeouts);
        assert_eq!((other.first_token, other.total), (minutes(10), Some(minutes(60))));
    }

    #[test]
    fn an_alias_repeats_a_value() {
        let text = "listeners: [{ name: a, address: 127.0.0.1:1, scheduler: &s { policy: random } }]
pools: [{ name: p, endpoints: [{ url: \"http://a\" }] }]
scheduler: *s
";
        assert_eq!(load("t.yaml", text).unwrap().0.scheduler, Scheduler::Random);
    }

    #[test]
    fn a_report_shows_every_problem_with_its_line_and_a_remedy() {
        let text = "listeners:
  - { name: openai, adress: 127.0.0.1:8081 }
  - { name: classic, address: :8080, scheduler: { policy: round_robbin } }
pools:
  - name: vllm
    endpoints: [ { url: http://10.0.0.1:8000/v1 } ]
    metrics: { interval: 250 }
models:
  - { modelName: 7, poolRef: vlm }
  - { modelName: llama2, poolRef: vlm }
admin: { address: 0.0.0.0:9090 }
";
        let expected = "t.yaml:2:21: error: `adress` is not a field here
  |
2 |   - { name: openai, adress: 127.0.0.1:8081 }
  |                     ^^^^^^
  = help: did you mean `address`? the fields are: name, address, scheduler, models, pool, protocol, ext_proc, identity, allow_anonymous, trust_headers, tls, proxy_protocol, trusted_proxies, client_address_header, allow, deny, cors

t.yaml:3:31: error: `:8080` is not an address to listen on
  |
3 |   - { name: classic, address: :8080, scheduler: { policy: round_robbin } }
  |                               ^^^^^
  = help: write `0.0.0.0:8080` for all addresses, or `127.0.0.1:8080` for this machine alone

t.yaml:3:59: error: `round_robbin` is not known here
  |
3 |   - { name: classic, address: :8080, scheduler: { policy: round_robbin } }
  |                                                           ^^^^^^^^^^^^
  = help: did you mean `round-robin`? allowed are: least-cost, weighted, least-request, power-of-two, round-robin, random, session-hash

t.yaml:6:25: error: this URL ends in an API path
  |
6 |     endpoints: [ { url: http://10.0.0.1:8000/v1 } ]
  |                         ^^^^^^^^^^^^^^^^^^^^^^^
  = help: drop `/v1`: Tidegate adds the path of each request

t.yaml:7:26: error: the duration `250` has no unit
  |
7 |     metrics: { interval: 250 }
  |                          ^^^
  = help: write a whole number with `ms`, `s`, `m` or `h`, such as `250ms`, `5s`, `2m` or `1h30m`

t.yaml:9:18: error: the number 7 does not fit here
  |
9 |   - { modelName: 7, poolRef: vlm }
  |                  ^
  = help: write plain text: put it in \"quotes\"

t.yaml:10:35: error: there is no pool called `vlm`
   |
10 |   - { modelName: llama2, poolRef: vlm }
   |                                   ^^^
   = help: did you mean `vllm`?

t.yaml:11:19: error: the admin listener tells everything, and asks other machines for no token
   |
11 | admin: { address: 0.0.0.0:9090 }
   |                   ^^^^^^^^^^^^
   = help: add `token_file`, or listen on `127.0.0.1:9090` and give kubelet and Prometheus `probes: { address: 0.0.0.0:9091 }`
";
        pretty_eq(&report(text), expected);
    }

    fn pretty_eq(found: &str, expected: &str) {
        assert!(found == expected, "found:\n{found}\nexpected:\n{expected}");
    }

    #[test]
    fn what_is_said_of_envoy_arrives() {
        let (config, _) = load("t.yaml", EVERYTHING).unwrap();
        let how = config.listeners[3].ext_proc.as_ref().unwrap();
        assert_eq!(how.cert_path.as_deref(), Some(Path::new("/etc/tidegate/picker")));
        assert_eq!(how.health.unwrap().port(), 9003);
        assert!(how.client_certificates.as_ref().unwrap().required);
        assert_eq!(how.message_timeout, Some(Duration::from_secs(10)));
        let rest = crate::config::ExtProc {
            cert_path: None,
            client_certificates: None,
            health: None,
            message_timeout: None,
            ..how.clone()
        };
        assert_eq!(rest, defaults::EXT_PROC, "the example says that these are the defaults");
    }

    #[test]
    fn what_is_said_of_envoy_needs_a_listener_that_it_asks_and_stays_within_bounds() {
        let with = |keys: &str| {
            let good = "pools: [{ name: vllm, endpoints: [{ url: \"http://10.0.0.1:8000\" }] }]";
            told(&format!("listeners: [{{ name: a, address: 127.0.0.1:9002, {keys} }}]\n{good}\n"))
        };
        assert_eq!(with("protocol: ext-proc"), [""; 0]);
        let one = |keys: &str| with(keys).join("\n");
        assert!(one("ext_proc: { secure: false }").contains("not asked by Envoy"));
        assert!(one("protocol: http, ext_proc: { secure: false }").contains("not asked by Envoy"));
        assert!(one("protocol: ext-proc, ext_proc: { fallbacks: 11 }").contains("too many"));
        assert!(one("protocol: ext-proc, ext_proc: { secure: false, cert_path: /x }").contains("no certificate"));
        let same = "protocol: ext-proc, ext_proc: { health: { address: 127.0.0.1:9002 } }";
        assert!(one(same).contains("want the same address"));
        assert!(one("pool: pods, models: [{ modelName: m }]").contains("`pool` and `models` both say"));
        assert!(one("pool: elsewhere").contains("there is no pool called `elsewhere`"));
    }

    #[test]
    fn a_pool_is_full_when_it_says_so_itself_or_else_all_do() {
        let (config, _) = load("t.yaml", EVERYTHING).unwrap();
        let waits: Vec<u64> = config.pools.iter().map(|pool| pool.saturation.wait.as_secs()).collect();
        assert_eq!((waits, config.saturation.batch), (vec![2, 1, 1, 1], Some(256)));
        assert_eq!(config.saturation.wait, defaults::SATURATION.wait);
        let (config, _) = load("t.yaml", &format!("{GOOD}saturation: {{ wait: 300ms }}\n")).unwrap();
        assert_eq!(config.pools[0].saturation.wait, Duration::from_millis(300));
        let told = told(&format!("{GOOD}saturation: {{ wait: 0s }}\n"));
        assert!(told.join("\n").contains("cannot be zero"), "{told:?}");
    }

    #[test]
    fn headers_are_trusted_where_envoy_asks_and_where_the_operator_says_so() {
        let trusts = |keys: &str| {
            let text = GOOD.replace("127.0.0.1:8081", &format!("127.0.0.1:8081{keys}"));
            let (config, warnings) = load("t.yaml", &text).unwrap();
            (config.listeners[0].trust_headers, warnings.len())
        };
        assert_eq!(trusts(""), (false, 0));
        assert_eq!(trusts(", trust_headers: true"), (true, 0));
        assert_eq!(trusts(", protocol: ext-proc"), (true, 0));
        assert_eq!(trusts(", protocol: ext-proc, trust_headers: false"), (false, 0));
    }

    #[test]
    fn a_file_that_is_no_yaml_says_where_and_what_to_do() {
        for (text, expected) in [
            ("", "t.yaml: error: the configuration is empty"),
            ("# nothing\n", "t.yaml: error: the configuration is empty"),
            ("hello", "t.yaml:1:1: error: the text `hello` does not fit here"),
            ("listeners:\n\t- name: a\n", "t.yaml:2:1: error: a tab is used for indentation"),
            ("a:\n  b: 1\n \tc: 2\n", "t.yaml:3:2: error: a tab is used for indentation"),
            ("a: 1\n---\nb: 2\n", "t.yaml:3:1: error: there is more than one YAML document"),
            ("a: *b\n", "t.yaml:1:4: error: this alias has no anchor"),
            ("a: !foo b\n", "t.yaml:1:9: error: the tag `!foo` is not supported"),
            ("a: [1\n", "t.yaml:1:4: error: this is not valid YAML: unclosed bracket '['"),
            ("a: \"x\n", "t.yaml:1:6: error: this is not valid YAML: invalid indentation in multiline quoted scalar"),
            ("a: b: c\n", "t.yaml:1:5: error: this is not valid YAML: mapping values are not allowed in this context"),
            ("? [a]\n: d\n", "t.yaml:1:3: error: a key has to be text"),
        ] {
            let report = report(text);
            assert_eq!(report.lines().next(), Some(expected), "{report}");
            assert!(report.contains("= help: "), "{report}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_pointed_at() {
        let report = load_bytes("t.yaml", b"listeners:\n  - caf\xe9\n").unwrap_err();
        assert!(report.to_string().starts_with("t.yaml:2:8: error: this file is not UTF-8 text\n"), "{report}");
    }

    #[test]
    fn a_bomb_of_aliases_is_stopped() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (before, letter) in ('a'..'j').zip('b'..) {
            let nine = vec![format!("*{before}"); 9].join(", ");
            text.extend([&letter.to_string(), ": &", &letter.to_string(), " [", &nine, "]\n"]);
        }
        assert!(report(&text).contains("larger or more deeply nested"));
        assert!(load("t.yaml", &"[".repeat(100_000)).is_err());
    }

    #[test]
    fn a_file_of_nothing_but_mistakes_is_cut_short() {
        let lines: Vec<String> = (0..5_000).map(|number| format!("key{number}: 1")).collect();
        let report = load("t.yaml", &lines.join("\n")).unwrap_err();
        assert!(report.problems.len() < 110, "{}", report.problems.len());
        assert!(report.to_string().contains("only the first 100 problems are shown"));
    }

    /// What is wrong with each of these, besides nothing.
    const WRONG: &[(&str, &[&str])] = &[
        (
            "limits: { body: 2GiB }",
            &[
                "3:17 `body` (2GiB) is more than `buffered_bodies` (1GiB) -> the largest body alone has to fit: raise `buffered_bodies` or lower `body`",
            ],
        ),
        (
            "limits: { connections: 0 }",
            &["3:24 this cannot be zero -> a limit of zero would refuse everything; leave it out for the default"],
        ),
        (
            "limits: { connections: -1 }",
            &["3:24 the number -1 does not fit here -> write a whole number from 0 to 4294967295"],
        ),
        ("limits: { body: 1MiB, body: 2MiB }", &["3:23 `body` is given twice -> keep one: the first is on line 3"]),
        (
            "timeouts: { connect: 0s }",
            &["3:22 this cannot be zero -> a limit of zero would end everything at once; leave it out for the default"],
        ),
        (
            "timeouts: { pool_idle: 30s }",
            &[
                "3:24 warning: uvicorn, under most engines, closes idle connections after 5s, and requests would be lost to that race -> stay below 5s, unless every pod was started with a longer keep-alive timeout",
            ],
        ),
        ("timeouts: { drain_delay: 0s }", &[]),
        ("timeouts:", &[]),
        (
            "models: [{ modelName: m, poolRef: vllm, timeouts: { first_token: 0s } }]",
            &["3:66 this cannot be zero -> a limit of zero would end everything at once; leave it out for the default"],
        ),
        (
            "retry: { budget: 120% }",
            &[
                "3:18 `120%` is more than the whole -> write a percentage such as `20%`, or a number from 0 to 1 such as `0.2`",
            ],
        ),
        (
            "retry: { on: [conection_died, 404] }",
            &[
                "3:15 `conection_died` is nothing to try again on -> did you mean `connection_died`? a pod's status from 500 to 599 or 429 may stand here, and the words: first_byte_timeout, connection_died, empty_answer",
                "3:31 `404` is nothing to try again on -> a pod's status from 500 to 599 or 429 may stand here, and the words: first_byte_timeout, connection_died, empty_answer",
            ],
        ),
        ("retry: { on: [first_byte_timeout, \"500\", 429] }", &[]),
        ("retry: { attempts: 11 }", &["3:20 11 further attempts are too many -> write at most 10"]),
        ("sessions: { header: \"x y\" }", &["3:21 `x y` is not a header's name -> write one such as `x-session-id`"]),
        ("sessions: {}", &["3:11 `header` is missing -> add `header: ...` here"]),
        ("api: { inject_usage: yes }", &["3:22 the text `yes` does not fit here -> write `true` or `false`"]),
        (
            "api: { extra_paths: [v1/x] }",
            &[
                "3:22 `v1/x` is not a path -> write it as in a request, from `/` on and without a query: `/v1/moderations`",
            ],
        ),
        (
            "api: { serve_reported_models: false }",
            &[
                "0:0 there is no model, and those that pods report are not served -> add `models: [ { modelName: llama2, poolRef: vllm } ]`, or remove `serve_reported_models: false`",
            ],
        ),
        (
            "log: { level: \"inof,tidegate::x=debug\" }",
            &[
                "3:15 `inof` is not a log level -> did you mean `info`? the levels are: off, error, warn, info, debug, trace",
            ],
        ),
        ("log: { format: [json] }", &["3:16 a list does not fit here -> write one of auto, json, pretty"]),
        (
            "admin: { address: localhost:9090 }",
            &["3:19 `localhost:9090` is not an address to listen on -> write `127.0.0.1:9090`"],
        ),
        (
            "admin: { address: 9090 }",
            &[
                "3:19 `9090` is not an address to listen on -> write `0.0.0.0:9090` for all addresses, or `127.0.0.1:9090` for this machine alone",
            ],
        ),
        (
            "admin: { address: [9090] }",
            &[
                "3:19 a list does not fit here -> write an IP address and a port, such as `0.0.0.0:8081` or, in quotes, `\"[::]:8081\"`",
            ],
        ),
        (
            "admin: { address: [::]:9090 }",
            &[
                "3:23 this is not valid YAML: while parsing a flow mapping, did not find expected ',' or '}' -> a value that begins with `[` or `{`, or holds one of them or a `:` within `{ }`, is not plain text to YAML: put it in quotes, such as `\"[::]:8081\"`",
            ],
        ),
        (
            "admin: { address: 127.0.0.1:8081 }",
            &["3:19 the admin listener and listener `a` want the same address -> give one of them another port"],
        ),
        (
            "probes: { address: 0.0.0.0:9090 }",
            &[
                "3:20 the probes listener and the admin listener (by default) want the same address -> give one of them another port",
            ],
        ),
        (
            "probes: { address: 0.0.0.0:8081 }",
            &["3:20 the probes listener and listener `a` want the same address -> give one of them another port"],
        ),
        ("models: [{ modelName: m, poolRef: y }]", &["3:35 there is no pool called `y` -> the pools are: vllm"]),
        (
            "shceduler: { policy: weighted, scorers: [] }",
            &[
                "3:1 `shceduler` is not a field here -> did you mean `scheduler`? the fields are: listeners, reuse_port, pools, kubernetes, models, scheduler, admin, probes, limits, timeouts, retry, waiting, saturation, identity, quotas, sessions, api, log",
                "3:41 no scorer counts, so every pod would score the same -> give at least one scorer a weight above 0, or leave `scorers` out for the defaults",
            ],
        ),
        (
            "scheduler: { policy: fastest }",
            &[
                "3:22 `fastest` is not known here -> allowed are: least-cost, weighted, least-request, power-of-two, round-robin, random, session-hash",
            ],
        ),
        (
            "scheduler: { policy: random, scorers: [] }",
            &["3:39 `scorers` are read only by `policy: weighted` -> write `policy: weighted`, or remove `scorers`"],
        ),
        (
            "scheduler: { policy: weighted, scorers: [] }",
            &[
                "3:41 no scorer counts, so every pod would score the same -> give at least one scorer a weight above 0, or leave `scorers` out for the defaults",
            ],
        ),
        (
            "scheduler: { policy: weighted, scorers: [{ name: queue-scorer, weight: -1 }, { name: queue-scorer }] }",
            &[
                "3:72 the weight -1 is not usable -> write a number, 0 or more",
                "3:86 this scorer is listed twice -> keep one, with the sum of the weights",
            ],
        ),
        ("models: [{ modelName: m, poolRef: vlm }]", &["3:35 there is no pool called `vlm` -> did you mean `vllm`?"]),
        (
            "models: [{ modelName: m, poolRef: other }]",
            &["3:35 there is no pool called `other` -> the pools are: vllm"],
        ),
        (
            "models: [{ modelName: m, poolRef: vllm }, { modelName: m, poolRef: vllm }]",
            &["3:56 there are two models called `m` -> give one of them another name: the first is on line 3"],
        ),
        (
            "models: [{ modelName: \" m\", poolRef: vllm }]",
            &["3:23 this is not a name for a model -> use at least one character, and no space at either end"],
        ),
        ("models: [{ modelName: m, poolRef: { name: vllm } }]", &["3:35 a map does not fit here -> write plain text"]),
        (
            "models: [{ modelName: m, poolRef: vllm, criticality: critical }]",
            &[
                "3:54 `critical` is not known here -> did you mean `Critical`? allowed are: Critical, Standard, Sheddable",
            ],
        ),
        (
            "models: [{ modelName: m, poolRef: vllm, targetModels: [{ name: a, weight: 1 }, { name: b }] }]",
            &[
                "3:88 `b` has no weight, but others here have one -> give a weight to all target models or to none (equal shares)",
            ],
        ),
        (
            "models: [{ modelName: m, poolRef: vllm, targetModels: [{ name: a, weight: 0 }] }]",
            &[
                "3:55 all weights are zero, so nothing could be chosen -> give at least one target model a weight above 0",
            ],
        ),
        (
            "models: [{ modelName: m, poolRef: vllm, targetModels: [{ name: a, weight: 0.9 }] }]",
            &[
                "3:75 the weight 0.9 is not a whole number, 0 or more -> write whole numbers, such as 90 and 10 for nine to one; only the proportions matter",
            ],
        ),
        (
            "models: [{ modelName: m, poolRef: vllm, targetModels: [{ name: a, weight: 1000001 }] }]",
            &["3:75 the weight 1000001 is too large -> write 0 to 1000000; only the proportions matter"],
        ),
        (
            "models: [{ modelName: m, poolRef: vllm, targetModels: [{ name: a }, { name: a }] }]",
            &["3:77 there are two target models called `a` -> give one of them another name: the first is on line 3"],
        ),
        ("models: [{ modelName: m, poolRef: vllm, targetModels: [] }]", &[]),
    ];

    #[test]
    fn each_mistake_is_named_with_its_place_and_remedy() {
        for (more, expected) in WRONG {
            assert_eq!(told(&format!("{GOOD}{more}\n")), *expected, "{more}");
        }
    }

    /// The same for pools, written as one pool's further fields.
    const WRONG_POOLS: &[(&str, &[&str])] = &[
        (
            "endpoints: []",
            &[
                "3:31 pool `q` has no endpoints -> add one: `{ url: \"http://10.0.0.1:8000\" }`, `{ dns: \"http://name:8000\" }` or `{ file: pods.yaml }`",
            ],
        ),
        (
            "endpoints: [{}]",
            &[
                "3:32 this endpoint says nothing about where it is -> add `url:`, `dns:` or `file:`; or, in a cluster, `inferencePool:`, `pods:` or `service:`",
            ],
        ),
        (
            "endpoints: [{ inferencePool: { name: p } }]",
            &[
                "3:49 no cluster is asked, so there are no such pods -> add `kubernetes: {}` at the top level, or start with `--manifests DIR`",
            ],
        ),
        (
            "endpoints: [{ inferencePool: { name: p }, url: \"http://a\" }]",
            &[
                "3:32 this endpoint is in more than one place -> keep one of its places, and make the others entries of their own",
            ],
        ),
        (
            "endpoints: [{ url: \"http://a\", file: b }]",
            &[
                "3:32 this endpoint is in more than one place -> keep one of `url`, `dns` and `file`, and make the others entries of their own",
            ],
        ),
        (
            "endpoints: [{ url: \"http://a\" }, { url: \"http://A:80/\" }]",
            &["3:60 this endpoint is listed twice in its pool -> keep one: the first is on line 3"],
        ),
        (
            "endpoints: [{ dns: \"http://a\", metrics_url: \"http://b\" }]",
            &[
                "3:64 `metrics_url` would be the same page for every address of the name -> set `path` and `port` under the pool's `metrics` instead",
            ],
        ),
        (
            "endpoints: [{ dns: \"http://10.0.0.1\" }]",
            &["3:39 there is nothing to resolve in an IP address -> write `url:` instead of `dns:`"],
        ),
        (
            "endpoints: [{ file: a }], token_file: t",
            &[
                "3:58 this does not reach the endpoints that are read from a file -> give it to each entry in that file: `- { url: ..., token_file: ... }`",
            ],
        ),
        (
            "endpoints: [{ url: \"http://a\" }], engine: custom",
            &[
                "3:62 a custom engine needs the names of its metrics -> add `metrics: { custom: { waiting: ..., running: ..., kv_cache_usage: ... } }` to this pool, with at least one of the three",
            ],
        ),
        (
            "endpoints: [{ url: \"http://a\" }], engine: vllm, metrics: { custom: { waiting: w } }",
            &[
                "3:87 `metrics.custom` is read only for `engine: custom` -> write `engine: custom` in this pool, or remove `custom`",
            ],
        ),
        (
            "endpoints: [{ url: \"http://a\" }], engine: custom, metrics: { custom: { waiting: \"a b\" } }",
            &["3:100 `a b` is not a metric -> write a name, or a name with labels: `my_queue_size{queue=\"main\"}`"],
        ),
        (
            "endpoints: [{ url: \"http://a\" }], metrics: { path: metrics, port: 0, interval: 1ms }",
            &[
                "3:71 `metrics` is not a path -> write one that begins with `/`, such as `/metrics`",
                "3:86 no pod listens on port 0 -> write a number from 1 to 65535",
                "3:99 warning: engines renew their gauges about every step, so reading them this often costs much and tells nothing new -> write 50ms or more",
            ],
        ),
        (
            "endpoints: [{ url: \"http://a\", token_file: t }], forward_authorization: true",
            &[
                "3:92 warning: a pool's own token replaces the client's Authorization, so both cannot reach the pods -> remove `forward_authorization`, or `token_file`",
            ],
        ),
        (
            "endpoints: [{ url: \"http://a\" }], ca_file: ca.pem",
            &[
                "3:63 warning: no endpoint of this pool uses https, so `ca_file` has no effect -> write `https://`, or remove `ca_file`",
            ],
        ),
    ];

    #[test]
    fn each_mistake_in_a_pool_is_named_with_its_place_and_remedy() {
        for (fields, expected) in WRONG_POOLS {
            let text =
                format!("listeners: [{{ name: a, address: 127.0.0.1:8081 }}]\n\npools: [{{ name: q, {fields} }}]");
            assert_eq!(told(&text), *expected, "{fields}");
        }
    }

    #[test]
    fn a_cluster_may_bring_the_pools_and_what_is_wrong_with_that_is_told() {
        let alone = |rest: &str| told(&format!("listeners: [{{ name: a, address: 127.0.0.1:8081 }}]\n{rest}"));
        assert_eq!(alone("kubernetes: {}"), [] as [&str; 0]);
        assert_eq!(alone("kubernetes: {}\nmodels: [{ modelName: m, poolRef: default/llama }]"), [] as [&str; 0]);
        let pools = "\npools: [{ name: q, endpoints: [";
        for (rest, expected) in [
            ("kubernetes: { namespaces: [Default] }".to_owned(), "2:28 `Default` is not a namespace ->"),
            (
                "kubernetes: { kubeconfig: a, manifests: b }".to_owned(),
                "2:27 warning: with `manifests` no cluster is asked",
            ),
            (
                format!("kubernetes: {}{pools}{{ pods: {{ selector: {{}} }} }}] }}]", "{}"),
                "3:52 this selector chooses no pod",
            ),
            (
                format!("kubernetes: {}{pools}{{ service: {{ port: 1 }} }}] }}]", "{}"),
                "3:43 this does not say which Service",
            ),
            (
                format!("kubernetes: {}{pools}{{ service: {{ name: a, port: 70000 }} }}] }}]", "{}"),
                "3:60 70000 is not a port -> write a number from 1 to 65535, or a name",
            ),
            (
                format!(
                    "kubernetes: {}{pools}{{ url: \"http://a\" }}] }}]\nmodels: [{{ modelName: m, poolRef: p }}]",
                    "{}"
                ),
                "4:35 there is no pool called `p` -> the pools are: q",
            ),
        ] {
            let said = alone(&rest);
            assert!(said.len() == 1 && said[0].starts_with(expected), "{rest}: {said:?}");
        }
    }

    #[test]
    fn listeners_may_not_share_an_address_or_name_what_does_not_exist() {
        let text = "listeners:
  - { name: a, address: 0.0.0.0:8080, allow_anonymous: true }
  - { name: b, address: 127.0.0.1:8080, models: [{ modelName: lama2 }] }
  - { name: c, address: 127.0.0.1:0, models: [{ modelName: llama2, poolRef: q }] }
  - { name: a, address: 127.0.0.1:0, models: [] }
pools: [{ name: p, endpoints: [{ url: \"http://a\" }] }]
models: [{ modelName: llama2, poolRef: p }]
";
        let report = load("t.yaml", text).unwrap_err();
        let messages: Vec<&str> = report.problems.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "listener `b` and listener `a` want the same address",
                "there is no model called `lama2`",
                "there is no pool called `q`",
                "there are two listeners called `a`",
                "listener `a` serves no model",
            ]
        );
    }

    #[test]
    fn what_no_request_can_reach_is_a_warning() {
        let text = "listeners: [{ name: a, address: 127.0.0.1:8080, models: [{ modelName: m }] }]
pools: [{ name: p, endpoints: [{ url: \"http://a\" }] }, { name: idle, endpoints: [{ url: \"http://b\" }] }]
models: [{ modelName: m, poolRef: p }, { modelName: n, poolRef: p }]
api: { serve_reported_models: false }
";
        let (_, warnings) = load("t.yaml", text).unwrap();
        let messages: Vec<&str> = warnings.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(messages, ["no model uses pool `idle`", "no listener serves model `n`"]);
    }

    #[test]
    fn a_misfit_brings_no_false_alarms_after_it() {
        // The pool that does not fit is not "unknown", and the typo in `pools` leaves models unjudged.
        let dropped = "pools: [{ name: p, endpoints: 5 }]\nlisteners: [{ name: a, address: 127.0.0.1:1 }]\nmodels: [{ modelName: m, poolRef: p }]\n";
        assert_eq!(load("t.yaml", dropped).unwrap_err().problems.len(), 1, "{}", report(dropped));
        let typo = dropped.replace("pools", "poools").replace('5', "[{ url: \"http://a\" }]");
        assert_eq!(load("t.yaml", &typo).unwrap_err().problems.len(), 1, "{}", report(&typo));
    }

    #[test]
    fn what_cannot_work_or_is_risky_is_warned_of() {
        let text = format!(
            "{GOOD}timeouts: {{ total: 5m, first_byte: 4m, first_token: 6m }}
retry: {{ attempts: 0, on: [500] }}
models: [{{ modelName: m, poolRef: vllm, timeouts: {{ total: 10s, first_byte: 11s }} }}]
api: {{ extra_paths: [/metrics, /v1/score, /v1/moderations], heartbeat: 4m }}
"
        );
        assert_eq!(
            told(&text),
            [
                "3:20 warning: `total` is shorter than `first_token`, which can never be reached -> raise `total`, or lower `first_token` below it",
                "4:20 warning: `attempts` is 0, so nothing of what `on` names is tried again -> write at least 1, or leave `on` out",
                "5:60 warning: `total` is shorter than `first_byte`, which can never be reached -> raise `total`, or lower `first_byte` below it",
                "6:22 warning: the pods' own metrics become public -> take it out: Tidegate's own `/metrics` are at `admin` and `probes`",
                "6:32 warning: `/v1/score` is served anyway -> take it out",
                "6:72 warning: `heartbeat` is no shorter than `first_byte` (240s), so it never beats -> lower it below `first_byte`, well below what clients and proxies wait",
            ]
        );
        let well = "timeouts: { total: 5m }\nretry: { attempts: 0 }\napi: { extra_paths: [/v1/moderations], heartbeat: 15s }\n";
        assert_eq!(told(&format!("{GOOD}{well}")), [""; 0], "a default that is never reached is nobody's mistake");
    }

    #[test]
    fn a_path_that_is_warned_of_as_served_is_served() {
        for path in settings::SERVED {
            let problem = crate::openai::classify(&http::Method::PUT, path, &[]);
            assert!(matches!(problem, Err(crate::openai::PathProblem::WrongMethod { .. })), "{path}: {problem:?}");
        }
    }

    #[test]
    fn a_file_of_one_endless_line_is_told_of_in_a_few() {
        let endless = "x".repeat(1 << 20);
        for text in [endless.clone(), format!("{endless}: 1"), format!("{GOOD}log: {{ level: {endless} }}")] {
            let shown = report(&text);
            assert!(shown.len() < 3_000, "{} bytes", shown.len());
        }
    }

    #[test]
    fn names_that_are_offered_are_offered_once_and_have_letters() {
        let models = "models: [{ modelName: a, poolRef: vllm }, { modelName: a, poolRef: vllm }, { modelName: '', poolRef: vllm }]";
        let text =
            format!("{GOOD}{models}\n").replace("127.0.0.1:8081 }", "127.0.0.1:8081, models: [{ modelName: other }] }");
        let found = report(&text);
        assert!(found.contains("the models are: a\n"), "{found}");
    }

    #[test]
    fn escape_codes_in_a_file_do_not_reach_the_terminal() {
        let found = report("listeners: [{ name: \"\u{202e}\", address: x\u{9b}31m }]\npools: []\n");
        assert!(!found.contains(['\u{202e}', '\u{9b}', '\x1b']), "{found:?}");
    }

    /// A piece of a configuration, or of something else.
    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            "[ \\n\\t:,&*!|>%@`'\"{}\\[\\]#?-]{1,4}",
            "(listeners|pools|models|name|url|endpoints|timeouts|metrics|scheduler|policy|weight)(: |:\n  )",
            "(5s|1\\.5|20%|0x1F|~|null|true|yes|http://a:1/v1|[a-z]{1,6}|-?[0-9]{1,30})[ ,\n]?",
            "\\PC{0,3}",
        ]
    }

    fn sound(bytes: &[u8]) -> Result<(), TestCaseError> {
        let problems = match load_bytes("t.yaml", bytes) {
            Ok((_, warnings)) => {
                prop_assert!(warnings.iter().all(|problem| problem.severity == Severity::Warning));
                warnings
            }
            Err(report) => {
                prop_assert!(report.errors() > 0);
                report.problems
            }
        };
        for problem in problems {
            prop_assert!(!problem.message.is_empty() && !problem.remedy.is_empty());
            let shown = problem.rendered(false);
            prop_assert!(!shown.chars().any(|letter| letter.is_control() && letter != '\n'), "{:?}", shown);
            prop_assert_eq!(shown.lines().count(), if problem.place.line == 0 { 2 } else { 5 }, "{}", shown);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn no_text_panics_and_every_report_is_sound(pieces in prop::collection::vec(piece(), 0..40)) {
            sound(pieces.concat().as_bytes())?;
        }

        #[test]
        fn no_change_to_a_good_file_panics(at in 0..EVERYTHING.len(), cut in 0_usize..20, put in piece()) {
            let mut bytes = EVERYTHING.as_bytes().to_vec();
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, put.bytes());
            sound(&bytes)?;
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            sound(&bytes)?;
        }
    }
}
