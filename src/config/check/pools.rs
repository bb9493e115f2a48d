//! Pools: where the pods are, what engine they run and how their load is read.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use super::{Sheet, address, covers, doors, settings};
use crate::config::{
    CustomMetrics, Endpoint, Engine, Metrics, Origin, Place, Pool, Saturation, Target, defaults,
    file::{CustomFile, EndpointFile, EngineFile, File, MetricsFile, PoolFile},
    resources,
    target::{metrics_page, parse_target},
    tree::At,
};

/// Every pool of the file.
pub(super) fn pools(pools: &At<Vec<PoolFile>>, full: Saturation, sheet: &mut Sheet) -> Vec<Arc<Pool>> {
    if pools.value.is_empty() && sheet.pools_known && !sheet.resources {
        let remedy = "add one: `- { name: vllm, endpoints: [ { url: \"http://10.0.0.1:8000\" } ] }`, or `kubernetes: {}` for \
                      the InferencePools of the cluster";
        sheet.error(pools.place, "there is no pool, so nobody could answer", remedy);
    }
    sheet.names("pool", &pools.value.iter().map(|pool| &pool.name).collect::<Vec<_>>());
    pools.value.iter().map(|file| Arc::new(pool(file, full, sheet))).collect()
}

fn pool(file: &PoolFile, full: Saturation, sheet: &mut Sheet) -> Pool {
    let engine = engine(file, sheet);
    let endpoints = endpoints(file, sheet);
    let forward_authorization = file.forward_authorization.as_ref().is_some_and(|forward| forward.value);
    if let Some(forward) = file.forward_authorization.as_ref().filter(|forward| forward.value) {
        let token = |endpoint: &Endpoint| match endpoint {
            Endpoint::Fixed(target) | Endpoint::Dns(target) => target.token_file.is_some(),
            Endpoint::Cluster { token_file, .. } => token_file.is_some(),
            Endpoint::File(_) => false,
        };
        if endpoints.iter().any(token) {
            let message = "a pool's own token replaces the client's Authorization, so both cannot reach the pods";
            sheet.warning(forward.place, message, "remove `forward_authorization`, or `token_file`");
        }
    }
    without_tls(file, &endpoints, sheet);
    Pool {
        name: file.name.value.as_str().into(),
        metrics: metrics(file.metrics.as_ref(), &engine, sheet),
        engine,
        endpoints,
        forward_authorization,
        client_certificate: file.client_certificate.as_ref().and_then(|at| doors::certificate(at, sheet)),
        server_name: server_name(file, sheet),
        ca_file: file.ca_file.as_ref().map(|path| path.value.clone()),
        saturation: settings::saturation(file.saturation.as_ref(), full, sheet),
        priority_scheduling: file.priority_scheduling.unwrap_or_default(),
    }
}

/// What is said of TLS where no pod speaks it.
fn without_tls(file: &PoolFile, endpoints: &[Endpoint], sheet: &mut Sheet) {
    let tls = |endpoint: &Endpoint| match endpoint {
        Endpoint::Fixed(target) | Endpoint::Dns(target) => target.origin.https,
        Endpoint::File(_) => true,
        Endpoint::Cluster { .. } => false,
    };
    if endpoints.is_empty() || endpoints.iter().any(tls) {
        return;
    }
    let said = [
        ("ca_file", file.ca_file.as_ref().map(|at| at.place)),
        ("client_certificate", file.client_certificate.as_ref().map(|at| at.place)),
        ("server_name", file.server_name.as_ref().map(|at| at.place)),
    ];
    for (key, place) in said {
        let Some(place) = place else { continue };
        let message = format!("no endpoint of this pool uses https, so `{key}` has no effect");
        sheet.warning(place, message, format!("write `https://`, or remove `{key}`"));
    }
}

/// The name that pods' certificates have to be for.
fn server_name(file: &PoolFile, sheet: &mut Sheet) -> Option<String> {
    let at = file.server_name.as_ref()?;
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_".contains(&it));
    if !at.value.split('.').all(label) {
        let remedy = "write the name alone, such as `vllm.inference.svc`";
        sheet.error(at.place, format!("`{}` is not the name of a server", at.value), remedy);
    }
    Some(at.value.clone())
}

fn endpoints(pool: &PoolFile, sheet: &mut Sheet) -> Vec<Endpoint> {
    if pool.endpoints.value.is_empty() {
        let remedy =
            "add one: `{ url: \"http://10.0.0.1:8000\" }`, `{ dns: \"http://name:8000\" }` or `{ file: pods.yaml }`";
        sheet.error(pool.endpoints.place, format!("pool `{}` has no endpoints", pool.name.value), remedy);
    }
    let mut endpoints = Vec::new();
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for entry in &pool.endpoints.value {
        let Some((place, endpoint)) = endpoint(entry, pool.token_file.as_ref(), sheet) else {
            continue;
        };
        let key = match &endpoint {
            Endpoint::Fixed(target) => format!("url {}{}", target.origin.authority(), target.base_path),
            Endpoint::Dns(target) => format!("dns {}{}", target.origin.authority(), target.base_path),
            Endpoint::File(path) => format!("file {}", path.display()),
            Endpoint::Cluster { members, .. } => format!("{members:?}"),
        };
        match seen.get(&key) {
            Some(line) => sheet.error(
                place,
                "this endpoint is listed twice in its pool",
                format!("keep one: the first is on line {line}"),
            ),
            None => drop(seen.insert(key, place.line)),
        }
        endpoints.push(endpoint);
    }
    endpoints
}

fn endpoint(
    entry: &At<EndpointFile>,
    pool_token: Option<&At<PathBuf>>,
    sheet: &mut Sheet,
) -> Option<(Place, Endpoint)> {
    let given = &entry.value;
    let token = given.token_file.as_ref().or(pool_token);
    let cluster = [
        given.inference_pool.as_ref().map(|at| at.place),
        given.pods.as_ref().map(|at| at.place),
        given.service.as_ref().map(|at| at.place),
    ];
    let mut cluster = cluster.into_iter().flatten();
    let (in_cluster, more) = (cluster.next(), cluster.next());
    match (&given.url, &given.dns, &given.file) {
        (None, None, None) if in_cluster.is_some() && more.is_none() => {
            in_cluster.zip(self::cluster(given, token.map(|path| path.value.clone()), sheet))
        }
        _ if in_cluster.is_some() => {
            let remedy = "keep one of its places, and make the others entries of their own";
            sheet.error(entry.place, "this endpoint is in more than one place", remedy);
            None
        }
        (Some(url), None, None) => {
            let metrics_url = metrics_page(sheet, given.metrics_url.as_ref());
            let token_file = token.map(|path| path.value.clone());
            let target = parse_target(sheet, url)?;
            Some((url.place, Endpoint::Fixed(Target { token_file, metrics_url, ..target })))
        }
        (None, Some(dns), None) => {
            let target = resolved(dns, given.metrics_url.as_ref(), sheet)?;
            let token_file = token.map(|path| path.value.clone());
            Some((dns.place, Endpoint::Dns(Target { token_file, ..target })))
        }
        (None, None, Some(file)) => {
            let elsewhere = [token.map(|path| path.place), given.metrics_url.as_ref().map(|url| url.place)];
            for place in elsewhere.into_iter().flatten() {
                let message = "this does not reach the endpoints that are read from a file";
                sheet.error(place, message, "give it to each entry in that file: `- { url: ..., token_file: ... }`");
            }
            Some((file.place, Endpoint::File(file.value.clone())))
        }
        (None, None, None) => {
            let message = "this endpoint says nothing about where it is";
            let remedy = "add `url:`, `dns:` or `file:`; or, in a cluster, `inferencePool:`, `pods:` or `service:`";
            sheet.error(entry.place, message, remedy);
            None
        }
        _ => {
            let remedy = "keep one of `url`, `dns` and `file`, and make the others entries of their own";
            sheet.error(entry.place, "this endpoint is in more than one place", remedy);
            None
        }
    }
}

/// Pods that a cluster knows.
fn cluster(given: &EndpointFile, token_file: Option<PathBuf>, sheet: &mut Sheet) -> Option<Endpoint> {
    if let Some(metrics_url) = &given.metrics_url {
        let message = "`metrics_url` would be the same page for every pod";
        sheet.error(metrics_url.place, message, "set `path` and `port` under the pool's `metrics` instead");
    }
    let members = resources::members(given, sheet)?;
    if !sheet.resources {
        let place = [&given.inference_pool.as_ref().map(|at| at.place), &given.pods.as_ref().map(|at| at.place)];
        let place = place.into_iter().flatten().next().copied().or(given.service.as_ref().map(|at| at.place));
        let remedy = "add `kubernetes: {}` at the top level, or start with `--manifests DIR`";
        sheet.error(place.unwrap_or_default(), "no cluster is asked, so there are no such pods", remedy);
    }
    Some(Endpoint::Cluster { members, token_file })
}

/// A target whose host name stands for several pods.
fn resolved(dns: &At<String>, metrics_url: Option<&At<String>>, sheet: &mut Sheet) -> Option<Target> {
    if let Some(metrics_url) = metrics_url {
        let message = "`metrics_url` would be the same page for every address of the name";
        sheet.error(metrics_url.place, message, "set `path` and `port` under the pool's `metrics` instead");
    }
    let target = parse_target(sheet, dns)?;
    if target.origin.host.parse::<IpAddr>().is_ok() {
        sheet.error(dns.place, "there is nothing to resolve in an IP address", "write `url:` instead of `dns:`");
    }
    Some(target)
}

/// Endpoints that are listeners of this gateway, as far as the text alone tells: what a name or a file leads to, and
/// which addresses this machine has, it does not. What goes round all the same is refused when it comes.
pub(super) fn loops(file: &File, sheet: &mut Sheet) {
    // Others have said what is wrong with these texts.
    let quiet = &mut Sheet::default();
    let mut own = Vec::new();
    for listener in &file.listeners.value {
        own.extend(address(&listener.address, quiet).map(|address| (&listener.name.value, address)));
    }
    for entry in file.pools.value.iter().flat_map(|pool| &pool.endpoints.value) {
        let Some(url) = entry.value.url.as_ref().or(entry.value.dns.as_ref()) else { continue };
        let Some(target) = parse_target(quiet, url) else { continue };
        if let Some((name, _)) = own.iter().find(|(_, listener)| leads_to(&target.origin, *listener)) {
            let message =
                format!("this endpoint is listener `{name}` of this gateway: requests would go round for ever");
            let remedy = "name where the pod listens; if it is on this machine, give one of them another port";
            sheet.error(url.place, message, remedy);
        }
    }
}

/// Whether who connects to `origin` meets whoever listens at `listener` on this machine.
fn leads_to(origin: &Origin, listener: SocketAddr) -> bool {
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    let meant = match origin.host.parse::<IpAddr>() {
        // To connect to no address in particular is to connect to this machine.
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => vec![v4],
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => vec![v6],
        Ok(ip) => vec![ip],
        Err(_) if origin.host == "localhost" => vec![v4, v6],
        Err(_) => Vec::new(),
    };
    let meets = |ip: IpAddr| listener.ip() == ip || (ip.is_loopback() && covers(listener, (ip, origin.port).into()));
    listener.port() == origin.port && meant.into_iter().any(meets)
}

fn engine(pool: &PoolFile, sheet: &mut Sheet) -> Engine {
    let engine = pool.engine.as_ref().map_or(EngineFile::Auto, |engine| engine.value);
    let custom = pool.metrics.as_ref().and_then(|metrics| metrics.custom.as_ref());
    if let Some(custom) = custom.filter(|_| engine != EngineFile::Custom) {
        sheet.error(
            custom.place,
            "`metrics.custom` is read only for `engine: custom`",
            "write `engine: custom` in this pool, or remove `custom`",
        );
    }
    match engine {
        EngineFile::Auto => Engine::Auto,
        EngineFile::Vllm => Engine::Vllm,
        EngineFile::Sglang => Engine::Sglang,
        EngineFile::TrtllmServe => Engine::TrtllmServe,
        EngineFile::Triton => Engine::Triton,
        EngineFile::LlamaCpp => Engine::LlamaCpp,
        EngineFile::Custom => {
            let place = pool.engine.as_ref().map(|engine| engine.place).unwrap_or_default();
            Engine::Custom(custom_metrics(custom, place, sheet))
        }
    }
}

fn custom_metrics(custom: Option<&At<CustomFile>>, engine: Place, sheet: &mut Sheet) -> CustomMetrics {
    let given = custom.map(|custom| &custom.value);
    let mut name = |field: fn(&CustomFile) -> Option<&At<String>>| {
        let name = given.and_then(field)?;
        if !is_metric(&name.value) {
            let remedy = "write a name, or a name with labels: `my_queue_size{queue=\"main\"}`";
            sheet.error(name.place, format!("`{}` is not a metric", name.value), remedy);
        }
        Some(name.value.clone())
    };
    let metrics = CustomMetrics {
        waiting: name(|file| file.waiting.as_ref()),
        running: name(|file| file.running.as_ref()),
        kv_cache_usage: name(|file| file.kv_cache_usage.as_ref()),
    };
    if metrics == CustomMetrics::default() {
        let place = custom.map_or(engine, |custom| custom.place);
        let remedy = "add `metrics: { custom: { waiting: ..., running: ..., kv_cache_usage: ... } }` to this pool, with at least one of the three";
        sheet.error(place, "a custom engine needs the names of its metrics", remedy);
    }
    metrics
}

/// Whether a text is `name` or `name{label="value",...}`, as on a page of metrics.
fn is_metric(text: &str) -> bool {
    let (name, labels) = match text.split_once('{') {
        Some((name, rest)) => match rest.strip_suffix('}') {
            Some(labels) => (name, labels),
            None => return false,
        },
        None => (text, ""),
    };
    let word = |word: &str, colon: bool| {
        let fits = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || (colon && letter == ':');
        !word.is_empty() && word.chars().all(fits) && !word.starts_with(|letter: char| letter.is_ascii_digit())
    };
    let label = |label: &str| {
        label.split_once('=').is_some_and(|(key, value)| {
            let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            word(key, false) && value.is_some_and(|value| !value.contains(['"', '\\', '\n']))
        })
    };
    word(name, true) && (labels.is_empty() || labels.split(',').all(label))
}

fn metrics(file: Option<&MetricsFile>, engine: &Engine, sheet: &mut Sheet) -> Metrics {
    let mut metrics = defaults::metrics();
    if *engine == Engine::Triton {
        metrics.port = Some(defaults::TRITON_METRICS_PORT);
    }
    let Some(file) = file else { return metrics };
    if let Some(path) = &file.path {
        if !path.value.starts_with('/')
            || path.value.chars().any(|letter| letter.is_whitespace() || letter.is_control())
        {
            sheet.error(
                path.place,
                format!("`{}` is not a path", path.value),
                "write one that begins with `/`, such as `/metrics`",
            );
        }
        metrics.path.clone_from(&path.value);
    }
    if let Some(port) = &file.port {
        if port.value == 0 {
            sheet.error(port.place, "no pod listens on port 0", "write a number from 1 to 65535");
        }
        metrics.port = Some(port.value);
    }
    metrics.interval = sheet.span(file.interval.as_ref(), metrics.interval);
    metrics.timeout = sheet.span(file.timeout.as_ref(), metrics.timeout);
    metrics.max_page = sheet.bytes(file.max_page.as_ref(), metrics.max_page);
    if let Some(interval) = file
        .interval
        .as_ref()
        .filter(|interval| !interval.value.0.is_zero() && interval.value.0 < defaults::SHORTEST_INTERVAL)
    {
        let message =
            "engines renew their gauges about every step, so reading them this often costs much and tells nothing new";
        sheet.warning(interval.place, message, "write 50ms or more");
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_names_with_or_without_labels() {
        for good in ["queue", "ns:queue_size", "q{a=\"b\"}", "q{a=\"b\",c=\"d e\"}", "q{}"] {
            assert!(is_metric(good), "{good}");
        }
        for bad in ["", "1queue", "a b", "q{", "q{a}", "q{a=b}", "q{a=\"b\"", "{a=\"b\"}", "q{a=\"b\"}x", "q{a=\"b\",}"]
        {
            assert!(!is_metric(bad), "{bad}");
        }
    }
}
