//! `tidegate epp`: the gateway as an endpoint picker, started as the reference picker is.
//!
//! It takes the reference's flags, so that it drops into manifests and charts made for that: what matters here becomes a
//! configuration as one would write it for `serve`, and what does not is named in a warning and passed over. A chart that
//! has learned a flag since must not keep the picker from starting.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use anyhow::{Context as _, bail};

use super::{PROBLEMS, load_config_text, serve};
use crate::config::{self, Given, resources::picker_config};

const AFTER: &str = "Flags, as the reference picker has them (`--name value`, `--name=value`, also with one dash):
  --pool-name NAME            the InferencePool whose pods to pick from
  --pool-namespace NS         its namespace [default: default, or $NAMESPACE]
  --endpoint-selector K=V,..  instead of a pool: the labels of its pods
  --endpoint-target-ports N,..  and their ports
  --endpoints URL,..          instead of both: these pods (not in the reference)
  --grpc-port N               where Envoy asks [default: 9002]
  --grpc-health-port N        where health is told [default: 9003], under these names: liveness; inference-extension
                              (until a stop begins); readiness, envoy.service.ext_proc.v3.ExternalProcessor and the
                              empty one (once a pod was ready)
  --metrics-port N            metrics and probes over HTTP [default: 9090]
  --secure-serving BOOL       TLS [default: true]
  --cert-path DIR             tls.crt and tls.key, read again when they change [default: a certificate of its own making]
  --config-file FILE          a Tidegate configuration, which then says all of this itself; of an EndpointPickerConfig
                              it is said what becomes of each plugin, and the flags count
  --config-text TEXT          the same, at once
  -v N                        4 logs at debug, 5 at trace

Any other flag is named in a warning and passed over.

Exit codes:
  0  stopped, and every request got its whole answer
  1  the flags have problems, or an address could not be bound
  3  stopped, but requests had to be cut off; the log says how many";

/// Run the gateway as an endpoint picker for Envoy.
///
/// Takes the flags of the Gateway API Inference Extension's reference picker and answers its protocol.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER)]
pub(super) struct Args {
    /// Flags of the reference picker, listed below
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut flags = Flags::read(&args.flags);
    let (file, text) = (flags.config_file()?, flags.config_text());
    if let Some(file) = file {
        flags.warn_of_the_rest();
        let Some((config, text)) = load_config_text(Path::new(&file), &Given::default())? else {
            return Ok(ExitCode::from(PROBLEMS));
        };
        return serve::run_config(config, serve::Source::File(Path::new(&file), &text), None);
    }
    let text = match text {
        Some(text) => text,
        None => configuration(&mut flags)?,
    };
    flags.warn_of_the_rest();
    let (config, _) = config::load("the flags", &text).map_err(|report| anyhow::anyhow!("{report}"))?;
    serve::run_config(config, serve::Source::Flags(&text), None)
}

/// Flags by name; each is taken once.
#[derive(Debug, Default)]
struct Flags {
    given: BTreeMap<String, String>,
    /// What belongs to no flag.
    stray: Vec<String>,
}

impl Flags {
    fn read(words: &[String]) -> Self {
        let mut flags = Self::default();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|it| !it.is_empty())
            else {
                flags.stray.push(word.clone());
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                // A flag without a value is a switch.
                None => (flag, words.next_if(|next| !next.starts_with('-')).map_or("true".to_owned(), Clone::clone)),
            };
            flags.given.insert(name.to_owned(), value);
        }
        flags
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.given.remove(name).filter(|value| !value.is_empty())
    }

    fn number(&mut self, name: &str, default: u16) -> anyhow::Result<u16> {
        let Some(value) = self.take(name) else { return Ok(default) };
        value.parse().with_context(|| format!("--{name} {value} is no port"))
    }

    /// A Tidegate configuration, if one is given.
    fn config_file(&mut self) -> anyhow::Result<Option<String>> {
        let Some(file) = self.take("config-file") else { return Ok(None) };
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read --config-file {file}"))?;
        Ok(Some(file).filter(|file| !is_the_references(&format!("--config-file {file}"), &text)))
    }

    fn config_text(&mut self) -> Option<String> {
        self.take("config-text").filter(|text| !is_the_references("--config-text", text))
    }

    fn warn_of_the_rest(&self) {
        for name in self.given.keys() {
            say(&format!("--{name} means nothing here and is passed over"));
        }
        for word in &self.stray {
            say(&format!("`{word}` belongs to no flag and is passed over"));
        }
    }
}

/// Whether `text` is a configuration of the reference picker's; what becomes of it is said.
fn is_the_references(name: &str, text: &str) -> bool {
    let Some(told) = picker_config(text) else { return false };
    let told: Vec<String> = told.iter().map(|it| format!("; {it}")).collect();
    say(&format!("{name} is an EndpointPickerConfig, and the policy least-cost decides instead{}", told.concat()));
    true
}

/// Before the log is there.
fn say(what: &str) {
    use std::io::Write as _;
    let told = writeln!(std::io::stderr().lock(), "warning: {what}");
    drop(told);
}

/// What the flags say, as one would write it.
fn configuration(flags: &mut Flags) -> anyhow::Result<String> {
    let (grpc, health) = (flags.number("grpc-port", 9002)?, flags.number("grpc-health-port", 9003)?);
    let metrics = flags.number("metrics-port", 9090)?;
    let secure = flags.take("secure-serving").unwrap_or_else(|| "true".to_owned());
    let secure: bool =
        secure.to_lowercase().parse().with_context(|| format!("--secure-serving {secure} is no yes or no"))?;
    let certificate = flags.take("cert-path").map(|path| format!(", cert_path: {}", quoted(&path)));
    // The reference looks for changes only if it is told to; we always do.
    flags.take("enable-cert-reload");
    let level = match flags.take("v").or_else(|| flags.take("zap-log-level")).as_deref() {
        Some("4" | "debug") => "debug",
        Some("5" | "6" | "7" | "8" | "9" | "10" | "trace") => "trace",
        _ => "info",
    };
    let (pool, endpoints, senses) = endpoints(flags)?;
    Ok(format!(
        "listeners:
  - name: picker
    address: 0.0.0.0:{grpc}
    protocol: ext-proc
    ext_proc: {{ secure: {secure}{}, health: {{ address: 0.0.0.0:{health} }} }}
probes: {{ address: 0.0.0.0:{metrics} }}
admin: {{ address: 127.0.0.1:{} }}
pools:
  - name: {}
    endpoints: [{endpoints}]
{senses}# As the reference: who finds no pod is told at once.
waiting: {{ timeout: 0s }}
log: {{ level: {level} }}
",
        certificate.filter(|_| secure).unwrap_or_default(),
        // Port 0 is whichever is free, here too.
        if metrics == 0 { 0 } else { metrics.wrapping_add(1) },
        quoted(&pool),
    ))
}

/// The pool's name, its endpoints, and what is needed to know them.
fn endpoints(flags: &mut Flags) -> anyhow::Result<(String, String, String)> {
    let name = flags.take("pool-name");
    let space = flags.take("pool-namespace").or_else(|| std::env::var("NAMESPACE").ok());
    let space = quoted(&space.unwrap_or_else(|| "default".to_owned()));
    flags.take("pool-group");
    // Other pools of the namespace have pickers of their own.
    let cluster = format!("kubernetes: {{ namespaces: [{space}], named_pools_only: true }}\n");
    if let Some(urls) = flags.take("endpoints") {
        let urls: Vec<String> = urls.split(',').map(|url| format!("{{ url: {} }}", quoted(url.trim()))).collect();
        return Ok((name.unwrap_or_else(|| "pods".to_owned()), urls.join(", "), String::new()));
    }
    if let Some(selector) = flags.take("endpoint-selector") {
        let labels: Vec<String> = selector
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(label, value)| format!("{}: {}", quoted(label.trim()), quoted(value.trim())))
            .collect();
        let ports = flags.take("endpoint-target-ports").context("--endpoint-selector needs --endpoint-target-ports")?;
        let pods = |port: &str| {
            format!(
                "{{ pods: {{ selector: {{ {} }}, namespace: {space}, port: {} }} }}",
                labels.join(", "),
                port.trim()
            )
        };
        let pods: Vec<String> = ports.split(',').map(pods).collect();
        return Ok((name.unwrap_or_else(|| "pods".to_owned()), pods.join(", "), cluster));
    }
    let Some(name) = name else {
        bail!("which pods? Give --pool-name, --endpoint-selector, --endpoints or a --config-file");
    };
    let endpoint = format!("{{ inferencePool: {{ name: {}, namespace: {space} }} }}", quoted(&name));
    Ok((name, endpoint, cluster))
}

/// As YAML, whatever is in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::read(&line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_charts_flags_become_a_configuration_and_unknown_ones_are_passed_over() {
        let line = "--endpoints http://10.0.0.1:8000,http://10.0.0.2:8000 --pool-name p -grpc-port=9012 --v 4 \
                    --secure-serving=false --cert-path /certs --metrics-port 9099 --tracing --refresh-metrics-interval 50ms";
        let mut flags = flags(line);
        let text = configuration(&mut flags).unwrap();
        let left: Vec<_> = flags.given.keys().map(String::as_str).collect();
        assert_eq!(left, ["refresh-metrics-interval", "tracing"]);
        let (config, _) = config::load("t", &text).unwrap_or_else(|report| panic!("{report}\n{text}"));
        let listener = &config.listeners[0];
        assert_eq!(listener.address.port(), 9012);
        let how = listener.ext_proc.as_ref().unwrap();
        assert_eq!((how.secure, how.health.unwrap().port()), (false, 9003));
        assert_eq!((config.probes.unwrap().port(), config.admin.port()), (9099, 9100));
        assert_eq!((&*config.pools[0].name, config.pools[0].endpoints.len()), ("p", 2));
        assert!(config.waiting.timeout.is_zero());
        assert_eq!(config.log.level, "debug");
    }

    #[test]
    fn a_pool_is_named_in_the_configuration_as_one_would_write_it() {
        let text = configuration(&mut flags("--pool-name llama --pool-namespace ai")).unwrap();
        assert!(text.contains(r#"{ inferencePool: { name: "llama", namespace: "ai" } }"#), "{text}");
        assert!(text.contains(r#"kubernetes: { namespaces: ["ai"], named_pools_only: true }"#), "{text}");
        let (config, warnings) = config::load("t", &text).unwrap_or_else(|report| panic!("{report}\n{text}"));
        assert!(warnings.is_empty() && !config.kubernetes.unwrap().write_status, "{text}");
        let text = configuration(&mut flags("--endpoint-selector app=vllm --endpoint-target-ports 8000,8001")).unwrap();
        assert!(
            text.contains(r#"{ pods: { selector: { "app": "vllm" }, namespace: "default", port: 8001 } }"#),
            "{text}"
        );
    }

    #[test]
    fn what_nobody_could_serve_is_told() {
        assert!(configuration(&mut flags("--grpc-port 9002")).unwrap_err().to_string().contains("which pods?"));
        assert!(configuration(&mut flags("--endpoints x --grpc-port soon")).is_err());
    }
}
