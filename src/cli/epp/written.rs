//! What the flags say, as one would write it in a configuration.
//!
//! Every value is looked at here, where the flag's name is known: nobody shall be shown YAML that he never wrote.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, bail};

use super::flags::{Flags, port};

/// Envoy asks here, as the reference has it.
const GRPC: u16 = 9002;
/// Health in clear text, as the reference has it.
const HEALTH: u16 = 9003;
/// Metrics and probes, as the reference has it.
const METRICS: u16 = 9090;

/// The configuration, YAML.
pub(super) fn configuration(flags: &Flags) -> anyhow::Result<String> {
    let Ports { grpc, health, metrics, admin } = Ports::of(flags)?;
    let secure = flags.switch("secure-serving", true)?;
    // The reference looks for changes of it only if it is told to; we always do.
    flags.switch("enable-cert-reload", true)?;
    let certificate = flags.value("cert-path").filter(|_| secure);
    let certificate = certificate.map(|path| format!(", cert_path: {}", quoted(path))).unwrap_or_default();
    let fallbacks = flags.value("fallbacks").unwrap_or("0");
    let fallbacks: u32 = fallbacks.parse().ok().with_context(|| format!("--fallbacks: `{fallbacks}` is no number"))?;
    let Pods { pool, endpoints, cluster } = pods(flags)?;
    Ok(format!(
        "listeners:
  - name: picker
    address: 0.0.0.0:{grpc}
    protocol: ext-proc
    ext_proc: {{ secure: {secure}{certificate}, fallbacks: {fallbacks}, health: {{ address: 0.0.0.0:{health} }} }}
probes: {{ address: 0.0.0.0:{metrics} }}
admin: {{ address: 127.0.0.1:{admin} }}
pools:
  - name: {}
    metrics: {{ {} }}
    endpoints: [{}]
{cluster}# As the reference: who finds no pod is told at once.
waiting: {{ timeout: 0s }}
log: {{ level: {}, format: {} }}
",
        quoted(&pool),
        pages(flags)?,
        endpoints.join(", "),
        level(flags)?,
        format(flags)?,
    ))
}

/// Where it listens.
struct Ports {
    grpc: u16,
    health: u16,
    metrics: u16,
    admin: u16,
}

impl Ports {
    fn of(flags: &Flags) -> anyhow::Result<Self> {
        let (grpc, health) = (flags.port("grpc-port", GRPC)?, flags.port("grpc-health-port", HEALTH)?);
        let metrics = flags.port("metrics-port", METRICS)?;
        // Port 0 is whichever is free, here too.
        let beside = if metrics == 0 { Some(0) } else { metrics.checked_add(1) };
        let admin = flags.port("admin-port", beside.unwrap_or_default())?;
        if beside.is_none() && flags.value("admin-port").is_none() {
            bail!("--metrics-port {metrics}: there is no port above it; give --admin-port");
        }
        let named = [
            ("--grpc-port", grpc),
            ("--grpc-health-port", health),
            ("--metrics-port", metrics),
            ("--admin-port (by default --metrics-port + 1)", admin),
        ];
        for (at, (name, port)) in named.iter().enumerate() {
            let other = named.iter().take(at).find(|(_, other)| other == port && *port != 0);
            if let Some((other, _)) = other {
                bail!("{other} and {name} are both {port}");
            }
        }
        Ok(Self { grpc, health, metrics, admin })
    }
}

/// The pool, its endpoints, and what is needed to know them.
struct Pods {
    pool: String,
    endpoints: Vec<String>,
    cluster: String,
}

fn pods(flags: &Flags) -> anyhow::Result<Pods> {
    let name = flags.value("pool-name");
    let pool = name.unwrap_or("pods").to_owned();
    let scheme = match flags.value("model-server-metrics-scheme") {
        None | Some("http") => "http",
        Some("https") => "https",
        Some(other) => bail!("--model-server-metrics-scheme: `{other}` is neither http nor https"),
    };
    if let Some(urls) = flags.value("endpoints") {
        let urls: anyhow::Result<BTreeSet<String>> = parts(urls).map(|url| endpoint(url, scheme)).collect();
        let endpoints = urls?.iter().map(|url| format!("{{ url: {} }}", quoted(url))).collect();
        return Ok(Pods { pool, endpoints, cluster: String::new() });
    }
    let space = flags.value("pool-namespace").map(ToOwned::to_owned).or_else(|| std::env::var("NAMESPACE").ok());
    let space = quoted(space.as_deref().filter(|it| !it.is_empty()).unwrap_or("default"));
    let kubeconfig = flags.value("kubeconfig").map(|file| format!(", kubeconfig: {}", quoted(file)));
    // Other pools of the namespace have pickers of their own.
    let cluster =
        format!("kubernetes: {{ namespaces: [{space}], named_pools_only: true{} }}\n", kubeconfig.unwrap_or_default());
    if let Some(selector) = flags.value("endpoint-selector") {
        let labels = parts(selector).map(label).collect::<anyhow::Result<Vec<_>>>()?.join(", ");
        let ports =
            flags.value("endpoint-target-ports").context("--endpoint-selector needs --endpoint-target-ports")?;
        let ports: anyhow::Result<BTreeSet<u16>> = parts(ports).map(|it| port("endpoint-target-ports", it)).collect();
        let pods = |port: &u16| format!("{{ pods: {{ selector: {{ {labels} }}, namespace: {space}, port: {port} }} }}");
        return Ok(Pods { pool, endpoints: ports?.iter().map(pods).collect(), cluster });
    }
    let Some(name) = name else {
        bail!("which pods? Give --pool-name, --endpoint-selector, --endpoints or a --config-file");
    };
    let endpoint = format!("{{ inferencePool: {{ name: {}, namespace: {space} }} }}", quoted(name));
    Ok(Pods { pool, endpoints: vec![endpoint], cluster })
}

/// What stands between commas.
fn parts(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|it| !it.is_empty())
}

/// A pod's URL. Envoy is told addresses, so there is neither a name nor a path in it; the scheme is how its load is read.
fn endpoint(given: &str, scheme: &str) -> anyhow::Result<String> {
    let (scheme, rest) = given.split_once("://").unwrap_or((scheme, given));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let alone = authority.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let port = authority.parse::<SocketAddr>().ok().map(|it| it.port());
    if !["http", "https"].contains(&scheme) || !(port.is_some_and(|port| port != 0) || alone && given != rest) {
        bail!("--endpoints: `{given}` is no address: an endpoint picker names IP addresses; write http://IP:PORT");
    }
    if !path.is_empty() {
        bail!("--endpoints: `{given}` has a path, and Envoy is told an address alone; write {scheme}://{authority}");
    }
    Ok(format!("{scheme}://{authority}"))
}

/// A label that pods carry.
fn label(pair: &str) -> anyhow::Result<String> {
    match pair.split_once('=') {
        Some((label, value)) if !label.trim().is_empty() && !label.ends_with('!') => {
            Ok(format!("{}: {}", quoted(label.trim()), quoted(value.trim_start_matches('=').trim())))
        }
        _ => bail!("--endpoint-selector: `{pair}` is not LABEL=VALUE, and only such are understood"),
    }
}

/// Where the pods' metrics are.
fn pages(flags: &Flags) -> anyhow::Result<String> {
    let mut keys = Vec::new();
    if let Some(path) = flags.value("model-server-metrics-path") {
        if !path.starts_with('/') || path.contains(char::is_whitespace) {
            bail!("--model-server-metrics-path: `{path}` is no path; write it from `/` on, such as /metrics");
        }
        keys.push(format!("path: {}", quoted(path)));
    }
    // 0 is the reference's way to say: the pod's own.
    match flags.port("model-server-metrics-port", 0)? {
        0 => {}
        port => keys.push(format!("port: {port}")),
    }
    Ok(keys.join(", "))
}

/// How much is logged.
fn level(flags: &Flags) -> anyhow::Result<&'static str> {
    let given = ["v", "zap-log-level"].into_iter().find_map(|name| Some((name, flags.value(name)?)));
    let Some((name, value)) = given else { return Ok("info") };
    Ok(match (value, value.parse::<u32>()) {
        (_, Ok(0..=3)) => "info",
        (_, Ok(4)) => "debug",
        (_, Ok(5..)) => "trace",
        ("debug", _) if name != "v" => "debug",
        ("info", _) if name != "v" => "info",
        ("warn", _) if name != "v" => "warn",
        ("error" | "panic", _) if name != "v" => "error",
        _ => bail!("--{name}: `{value}` is no level; 0 to 3 log what is usual, 4 at debug, 5 at trace"),
    })
}

/// How lines look.
fn format(flags: &Flags) -> anyhow::Result<&'static str> {
    Ok(match flags.value("zap-encoder") {
        None => "auto",
        Some("json") => "json",
        Some("console") => "pretty",
        Some(other) => bail!("--zap-encoder: `{other}` is neither json nor console"),
    })
}

/// As YAML, whatever is in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config, Endpoint};

    fn written(line: &str) -> anyhow::Result<String> {
        configuration(&Flags::read(&line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>()))
    }

    fn loaded(line: &str) -> Config {
        let text = written(line).unwrap();
        let (config, warnings) = config::load("t", &text).unwrap_or_else(|report| panic!("{report}\n{text}"));
        assert_eq!(warnings, [], "{text}");
        config
    }

    fn told(line: &str) -> String {
        written(line).unwrap_err().to_string()
    }

    #[test]
    fn a_charts_flags_become_a_configuration() {
        let config = loaded(
            "--endpoints http://10.0.0.1:8000,10.0.0.2:8000 --pool-name p -grpc-port=9012 --v 4 --secure-serving=false \
             --cert-path /certs --metrics-port 9099 --fallbacks 2 --zap-encoder json --model-server-metrics-port 9400 \
             --model-server-metrics-path /other",
        );
        let listener = &config.listeners[0];
        assert_eq!(listener.address.port(), 9012);
        let how = listener.ext_proc.as_ref().unwrap();
        assert_eq!((how.secure, how.fallbacks, how.health.unwrap().port()), (false, 2, 9003));
        assert_eq!((config.probes.unwrap().port(), config.admin.address.port()), (9099, 9100));
        let pool = &config.pools[0];
        assert_eq!((&*pool.name, pool.endpoints.len()), ("p", 2));
        assert_eq!((pool.metrics.port, &*pool.metrics.path), (Some(9400), "/other"));
        assert!(config.waiting.timeout.is_zero());
        assert_eq!((&*config.log.level, config.log.format), ("debug", config::LogFormat::Json));
        assert_eq!(loaded("--endpoints 10.0.0.1:1 --admin-port 9200").admin.address.port(), 9200);
    }

    #[test]
    fn a_pool_is_named_in_the_configuration_as_one_would_write_it() {
        let text = written("--pool-name llama --pool-namespace ai --kubeconfig /k/config").unwrap();
        assert!(text.contains(r#"{ inferencePool: { name: "llama", namespace: "ai" } }"#), "{text}");
        let config = loaded("--pool-name llama --pool-namespace ai --kubeconfig /k/config");
        let kubernetes = config.kubernetes.unwrap();
        assert_eq!((kubernetes.write_status, kubernetes.named_pools_only), (false, true));
        assert_eq!((kubernetes.namespaces, kubernetes.kubeconfig), (vec!["ai".to_owned()], Some("/k/config".into())));
        let text = written("--endpoint-selector app=vllm,tier==a --endpoint-target-ports 8000,8001").unwrap();
        let pods = r#"{ pods: { selector: { "app": "vllm", "tier": "a" }, namespace: "default", port: 8001 } }"#;
        assert!(text.contains(pods), "{text}");
    }

    #[test]
    fn a_picker_takes_addresses_and_nothing_that_would_have_to_be_looked_up() {
        for given in ["10.0.0.1:8000", "http://10.0.0.1:8000/", "http://10.0.0.1:8000,10.0.0.1:8000"] {
            let config = loaded(&format!("--endpoints {given}"));
            let [Endpoint::Fixed(target)] = &config.pools[0].endpoints[..] else { panic!("{given}") };
            assert_eq!((target.origin.authority().as_str(), target.origin.https), ("10.0.0.1:8000", false));
        }
        let tls = loaded("--endpoints [fd00::1]:8443 --model-server-metrics-scheme https");
        let Endpoint::Fixed(target) = &tls.pools[0].endpoints[0] else { panic!("{tls:?}") };
        assert_eq!((target.origin.authority().as_str(), target.origin.https), ("[fd00::1]:8443", true));
        for given in
            ["foo", "true", "http://localhost:21101", "localhost:8000", "10.0.0.1", "ftp://10.0.0.1:1", "10.0.0.1:0"]
        {
            assert_eq!(
                told(&format!("--endpoints {given}")),
                format!(
                    "--endpoints: `{given}` is no address: an endpoint picker names IP addresses; write http://IP:PORT"
                )
            );
        }
        let path = told("--endpoints http://10.0.0.1:8000/base");
        assert!(path.ends_with("Envoy is told an address alone; write http://10.0.0.1:8000"), "{path}");
    }

    #[test]
    fn a_value_that_makes_no_sense_is_told_with_its_flag() {
        for (line, part) in [
            ("--grpc-port 9002", "which pods?"),
            ("--endpoints 10.0.0.1:1 --grpc-port soon", "--grpc-port: `soon` is no port"),
            ("--endpoints 10.0.0.1:1 -v=abc", "--v: `abc` is no level"),
            ("--endpoints 10.0.0.1:1 --zap-encoder xml", "`xml` is neither json nor console"),
            ("--endpoints 10.0.0.1:1 --fallbacks many", "--fallbacks: `many` is no number"),
            ("--endpoint-selector a=b --endpoint-target-ports 8000,abc", "--endpoint-target-ports: `abc` is no port"),
            ("--endpoint-selector a=b", "needs --endpoint-target-ports"),
            ("--endpoint-selector a!=b --endpoint-target-ports 1", "`a!=b` is not LABEL=VALUE"),
            ("--endpoint-selector a --endpoint-target-ports 1", "`a` is not LABEL=VALUE"),
            ("--endpoints 10.0.0.1:1 --model-server-metrics-path x", "`x` is no path"),
            ("--endpoints 10.0.0.1:1 --model-server-metrics-scheme ftp", "neither http nor https"),
            ("--endpoints 10.0.0.1:1 --metrics-port 65535", "give --admin-port"),
            ("--endpoints 10.0.0.1:1 --grpc-port 9091", "--admin-port (by default --metrics-port + 1) are both 9091"),
        ] {
            assert!(told(line).contains(part), "{line}: {}", told(line));
        }
    }
}
