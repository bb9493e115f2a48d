//! `tidegate epp`: the gateway as an endpoint picker, started as the reference picker is.
//!
//! It takes the reference's flags, so that it drops into manifests and charts made for that, with or without the verb:
//! what matters here becomes a configuration as one would write it for `serve`, and what does not is told in a note.

mod flags;
mod written;

use std::{ffi::OsString, path::Path, process::ExitCode};

use anyhow::{Context as _, bail};

use super::{PROBLEMS, load_config_text, serve};
use crate::{
    app::StartError,
    config::{self, Config, Given, resources::picker_config},
};
use flags::Flags;

const AFTER: &str = "Flags, as the reference picker has them: `--name value` or `--name=value`, also with one dash. A
command line that begins with one of them means `epp`. (*): not in the reference.
  --pool-name NAME           the InferencePool whose pods to pick from
  --pool-namespace NS        its namespace [default: $NAMESPACE, else default]
  --endpoint-selector K=V,.. instead of a pool: the labels of its pods
  --endpoint-target-ports N,..
                             and their ports
  --endpoints IP:PORT,..     instead of both: these pods; https://IP:PORT: metrics over TLS (*)
  --kubeconfig FILE          how to reach the cluster
                             [default: a service account, else KUBECONFIG, else ~/.kube/config]
  --grpc-port N              where Envoy asks [default: 9002]
  --grpc-health-port N       where health is told [default: 9003], by these names: liveness;
                             inference-extension (until a stop begins); readiness, the empty one
                             and envoy.service.ext_proc.v3.ExternalProcessor (once a pod was ready)
  --metrics-port N           metrics and probes over HTTP [default: 9090]
  --admin-port N             the operator's, on loopback [default: one above --metrics-port] (*)
  --secure-serving BOOL      TLS [default: true]
  --cert-path DIR            tls.crt and tls.key, read again when they change
                             [default: a certificate of its own making]
  --fallbacks N              further pods named behind the chosen one, for gateways that retry
                             along the list [default: 0] (*)
  --model-server-metrics-port N, --model-server-metrics-path PATH
                             where pods tell their load [default: their own port, /metrics]
  --config-file FILE         a Tidegate configuration, which then says all of this itself; of an
                             EndpointPickerConfig it is said what becomes of each plugin, and
                             the flags count
  --config-text TEXT         the same, at once
  -v N, --zap-log-level N    4 logs at debug, 5 at trace
  --zap-encoder json|console how log lines look [default: json, unless on a terminal]
A port of 0 is whichever is free; the log says which. Of any other flag it is said whether it
changes nothing here, is not supported or is not known.

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

/// The command line with its verb: manifests for the reference picker, whose binary has none, begin with a flag.
pub(super) fn with_verb(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    let own = ["-h", "--help", "-V", "--version"];
    let first = words.get(1).and_then(|word| word.to_str());
    let begins = first.is_some_and(|word| word.starts_with('-') && !own.contains(&word));
    if begins && words.iter().skip(1).any(|word| word.to_str().is_some_and(flags::is_flag)) {
        words.insert(1, "epp".into());
    }
    words
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let flags = Flags::read(&args.flags);
    let own = Own::of(&flags);
    let name = own.as_ref().ok().and_then(|own| own.as_ref()).map(Own::name);
    for note in flags.notes(name) {
        say(&note);
    }
    flags.complete()?;
    match own? {
        Some(Own::File(file)) => {
            let Some((config, text)) = load_config_text(Path::new(&file), &Given::default())? else {
                return Ok(ExitCode::from(PROBLEMS));
            };
            somebody_may_ask(&config, &file)?;
            serve::run_config(config, serve::Source::File(Path::new(&file), &text), None)
        }
        Some(Own::Text(text)) => {
            let (config, warnings) = config::load(TEXT, &text).map_err(|report| anyhow::anyhow!("{report}"))?;
            for warning in &warnings {
                say(&warning.to_string());
            }
            somebody_may_ask(&config, TEXT)?;
            serve::run_config(config, serve::Source::Flags(&text), None)
        }
        None => {
            let text = written::configuration(&flags)?;
            let (config, _) = config::load("the flags", &text).map_err(|report| plainly(&report))?;
            serve::run_config(config, serve::Source::Flags(&text), None).map_err(|error| of_flags(error, &flags))
        }
    }
}

/// How the flag is called whose value is a configuration.
const TEXT: &str = "--config-text";

/// A Tidegate configuration that is given instead of flags.
enum Own {
    File(String),
    Text(String),
}

impl Own {
    /// Of the reference picker's own configuration it is said what becomes of it; then the flags count.
    fn of(flags: &Flags) -> anyhow::Result<Option<Self>> {
        if let Some(file) = flags.value("config-file") {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read --config-file {file}"))?;
            if !is_the_references(&format!("--config-file {file}"), &text) {
                return Ok(Some(Self::File(file.to_owned())));
            }
        }
        let text = flags.value("config-text").filter(|text| !is_the_references(TEXT, text));
        Ok(text.map(|text| Self::Text(text.to_owned())))
    }

    fn name(&self) -> &str {
        match self {
            Self::File(file) => file,
            Self::Text(_) => TEXT,
        }
    }
}

/// Whether `text` is a configuration of the reference picker's; what becomes of it is said.
fn is_the_references(name: &str, text: &str) -> bool {
    let Some(told) = picker_config(text) else { return false };
    let told: Vec<String> = told.iter().map(|it| format!("; {it}")).collect();
    let told = told.concat();
    say(&format!("warning: {name} is an EndpointPickerConfig, and the policy least-cost decides instead{told}"));
    true
}

/// A configuration without a listener for Envoy is an ordinary gateway's, and here by mistake.
fn somebody_may_ask(config: &Config, name: &str) -> anyhow::Result<()> {
    if config.listeners.iter().all(|listener| listener.ext_proc.is_none()) {
        bail!(
            "{name} has no listener with `protocol: ext-proc`, so Envoy could ask nowhere; add one, or run it by `tidegate serve`"
        );
    }
    Ok(())
}

/// What is wrong with a configuration that nobody wrote.
fn plainly(report: &config::Report) -> anyhow::Error {
    let told: Vec<String> = report.problems.iter().map(|it| format!("{}; {}", it.message, it.remedy)).collect();
    anyhow::anyhow!("the flags make no picker: {}", told.join("\n"))
}

/// Why the picker did not start, with the flags that it is about.
fn of_flags(error: anyhow::Error, flags: &Flags) -> anyhow::Error {
    match error.downcast_ref::<StartError>() {
        Some(StartError::Cluster(report)) => {
            let given = ["pool-name", "endpoint-selector"].into_iter().find(|name| flags.value(name).is_some());
            let why: Vec<String> = report.problems.iter().map(|it| it.message.clone()).collect();
            anyhow::anyhow!(
                "no cluster: --{} needs one (a service account, --kubeconfig or KUBECONFIG); without one name the pods: \
                 --endpoints http://IP:PORT,.. ({})",
                given.unwrap_or("pool-name"),
                why.join("; ")
            )
        }
        Some(StartError::Bind { what, .. }) => {
            let flag = match what.as_str() {
                "admin" => "--admin-port (by default --metrics-port + 1)",
                "probes" => "--metrics-port",
                health if health.starts_with("health") => "--grpc-health-port",
                _ => "--grpc-port",
            };
            error.context(flag)
        }
        _ => error,
    }
}

/// Before the log is there.
fn say(what: &str) {
    use std::io::Write as _;
    let told = writeln!(std::io::stderr().lock(), "{what}");
    drop(told);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verb(line: &str) -> String {
        let words = with_verb(line.split_whitespace().map(OsString::from));
        words.get(1).map(|word| word.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    #[test]
    fn a_chart_for_the_reference_picker_needs_no_verb() {
        for line in
            ["t --pool-name p", "t -pool-name p", "t --v=4 --pool-name p", "t --new-flag x --grpc-port=9002", "t -v 4"]
        {
            assert_eq!(verb(line), "epp", "{line}");
        }
        for (line, first) in [
            ("t serve --config x", "serve"),
            ("t --help", "--help"),
            ("t -V", "-V"),
            ("t --config x", "--config"),
            ("t epp --pool-name p", "epp"),
            ("t", ""),
        ] {
            assert_eq!(verb(line), first, "{line}");
        }
    }

    #[test]
    fn a_configuration_that_envoy_cannot_ask_is_no_pickers() {
        let load = |listener: &str| {
            let pods = "pools: [{ name: p, endpoints: [{ url: \"http://10.0.0.1:1\" }] }]";
            config::load("t", &format!("listeners: [{{ name: a, address: 127.0.0.1:1{listener} }}]\n{pods}")).unwrap().0
        };
        assert!(somebody_may_ask(&load(", protocol: ext-proc"), "own.yaml").is_ok());
        let told = somebody_may_ask(&load(""), "own.yaml").unwrap_err().to_string();
        assert!(told.starts_with("own.yaml has no listener with `protocol: ext-proc`"), "{told}");
    }

    #[test]
    fn who_names_a_pool_and_has_no_cluster_is_told_what_to_do_instead() {
        let error = StartError::Cluster(config::Report::whole_file("kubernetes", "there is no way", "x")).into();
        let told = of_flags(error, &Flags::read(&["--pool-name".to_owned(), "p".to_owned()])).to_string();
        assert!(told.starts_with("no cluster: --pool-name needs one (a service account, --kubeconfig"), "{told}");
        assert!(told.ends_with("--endpoints http://IP:PORT,.. (there is no way)"), "{told}");
    }
}
