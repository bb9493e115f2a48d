//! The reference picker's flags: which there are, what each means here, and which of them were given.
//!
//! A flag that is not known is told of and passed over: a chart that has learned one since must not keep the picker from
//! starting. What it looks like decides nothing; only a value that is missing or makes no sense ends the start.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};

use crate::config::nearest;

/// Flags with a value that become a part of the configuration.
const USED: [&str; 21] = [
    "admin-port",
    "cert-path",
    "config-file",
    "config-text",
    "endpoint-selector",
    "endpoint-target-ports",
    "endpoints",
    "fallbacks",
    "grpc-health-port",
    "grpc-port",
    "kubeconfig",
    "metrics-port",
    "model-server-metrics-path",
    "model-server-metrics-port",
    "model-server-metrics-scheme",
    "pool-group",
    "pool-name",
    "pool-namespace",
    "v",
    "zap-encoder",
    "zap-log-level",
];

/// The same without one: on, unless `false` follows.
const USED_SWITCHES: [&str; 2] = ["enable-cert-reload", "secure-serving"];

/// Flags with a value for what is not there or settles itself.
const NOTHING: [&str; 6] = [
    "fairness-id-header-key",
    "metrics-staleness-threshold",
    "refresh-metrics-interval",
    "refresh-prometheus-metrics-interval",
    "zap-stacktrace-level",
    "zap-time-encoding",
];

/// Such switches. Health is always told, and no picker leads the others.
const NOTHING_SWITCHES: [&str; 6] =
    ["enable-pprof", "grpc-health-checking", "ha-enable-leader-election", "health-checking", "tracing", "zap-devel"];

/// A flag that asks for what is not done here.
struct Missed {
    name: &'static str,
    /// What may be asked for all the same, because it is what is done.
    usual: &'static [&'static str],
    why: &'static str,
}

const METRIC_NAMES: &str =
    "the usual engines are known by their pages; a pool with `engine: custom` in a Tidegate configuration names others";
const FIXED_NAMES: &str = "this name cannot be changed";

const MISSED: [Missed; 8] = [
    Missed { name: "cache-info-metric", usual: &["vllm:cache_config_info"], why: METRIC_NAMES },
    Missed { name: "destination-endpoint-hint-key", usual: &["x-gateway-destination-endpoint"], why: FIXED_NAMES },
    Missed { name: "destination-endpoint-hint-metadata-namespace", usual: &["envoy.lb"], why: FIXED_NAMES },
    Missed {
        name: "kv-cache-usage-percentage-metric",
        usual: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
        why: METRIC_NAMES,
    },
    Missed { name: "lora-info-metric", usual: &["vllm:lora_requests_info"], why: METRIC_NAMES },
    Missed { name: "total-queued-requests-metric", usual: &["vllm:num_requests_waiting"], why: METRIC_NAMES },
    Missed { name: "total-running-requests-metric", usual: &["vllm:num_requests_running"], why: METRIC_NAMES },
    Missed { name: "zap-disable-stacktrace", usual: &["true"], why: "there are no stack traces in the log" },
];

const MISSED_SWITCHES: [Missed; 4] = [
    Missed {
        name: "disable-endpoint-subset-filter",
        usual: &["false"],
        why: "the subset that a gateway names is always kept to",
    },
    Missed {
        name: "emit-endpoint-scores",
        usual: &["false"],
        why: "`tidegate explain --admin` tells every pod's score",
    },
    Missed {
        name: "metrics-endpoint-auth",
        usual: &["false"],
        why: "metrics and probes ask for no token; let a NetworkPolicy say who reaches that port",
    },
    Missed {
        name: "model-server-metrics-https-insecure-skip-verify",
        usual: &["false"],
        why: "pods that are read over https show a certificate of a known authority, or of the `ca_file` that a Tidegate \
              configuration names",
    },
];

/// A cluster does not say that its pods speak TLS.
const OVER_TLS: &str = "warning: --model-server-metrics-scheme https is not supported for the pods of a cluster, which are \
                        read over http; where they speak TLS name them: --endpoints https://IP:PORT,..";

fn is_switch(name: &str) -> bool {
    USED_SWITCHES.contains(&name)
        || NOTHING_SWITCHES.contains(&name)
        || MISSED_SWITCHES.iter().any(|it| it.name == name)
}

fn missed(name: &str) -> Option<&'static Missed> {
    MISSED.iter().chain(&MISSED_SWITCHES).find(|it| it.name == name)
}

fn is_used(name: &str) -> bool {
    USED.contains(&name) || USED_SWITCHES.contains(&name)
}

fn is_nothing(name: &str) -> bool {
    NOTHING.contains(&name) || NOTHING_SWITCHES.contains(&name)
}

fn is_known(name: &str) -> bool {
    is_used(name) || is_nothing(name) || missed(name).is_some()
}

/// What a word says after its dashes, if it begins with one or two.
fn after_dashes(word: &str) -> Option<&str> {
    word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|it| !it.is_empty())
}

/// Whether a word is one of the reference's flags.
pub(super) fn is_flag(word: &str) -> bool {
    after_dashes(word).is_some_and(|flag| is_known(flag.split_once('=').map_or(flag, |(name, _)| name)))
}

/// What is given as yes or no, in the words that Go takes.
fn yes_or_no(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Flags by name; of one that is given twice the last counts.
#[derive(Debug, Default)]
pub(super) struct Flags {
    given: BTreeMap<String, String>,
    /// Those that need a value and have none.
    lacking: Vec<String>,
    /// What belongs to no flag.
    stray: Vec<String>,
}

impl Flags {
    pub(super) fn read(words: &[String]) -> Self {
        let mut flags = Self::default();
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            let Some(flag) = after_dashes(word) else {
                flags.stray.push(word.clone());
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None if is_switch(flag) => (flag, words.next_if(|next| yes_or_no(next).is_some()).cloned()),
                None => (flag, words.next_if(|next| !next.starts_with('-')).cloned()),
            };
            if value.is_none() && is_known(name) && !is_switch(name) {
                flags.lacking.push(format!("--{name}"));
            }
            flags.given.insert(name.to_owned(), value.unwrap_or_else(|| "true".to_owned()));
        }
        flags
    }

    /// What is to be said of flags that change nothing, or not what one may expect. `own` is the configuration, if one of
    /// ours is given, and says everything itself.
    pub(super) fn notes(&self, own: Option<&str>) -> Vec<String> {
        let mut notes = Vec::new();
        for (name, value) in &self.given {
            if !is_known(name) {
                let known = USED.into_iter().chain(USED_SWITCHES);
                let meant = nearest(name, known).map(|near| format!("; did you mean --{near}?")).unwrap_or_default();
                notes.push(format!("warning: --{name} is not known here and passed over{meant}"));
            }
            if let Some(Missed { usual, why, .. }) = missed(name).filter(|_| own.is_none()) {
                let asked = yes_or_no(value).filter(|_| is_switch(name)).map(|it| it.to_string());
                let asked = asked.as_ref().unwrap_or(value);
                if !asked.is_empty() && !usual.contains(&asked.as_str()) {
                    notes.push(format!("warning: --{name} {value} is not supported: {why}"));
                }
            }
        }
        let over_tls = self.value("model-server-metrics-scheme") == Some("https");
        if over_tls && own.is_none() && self.value("endpoints").is_none() {
            notes.push(OVER_TLS.to_owned());
        }
        for word in &self.stray {
            notes.push(format!("warning: `{word}` belongs to no flag and is passed over"));
        }
        let row = |wanted: &dyn Fn(&str) -> bool| {
            let names: Vec<String> =
                self.given.keys().filter(|it| wanted(it)).map(|name| format!("--{name}")).collect();
            (names.len(), names.join(", "))
        };
        if let (1.., names) = row(&is_nothing) {
            notes.push(format!("note: nothing here needs {names}"));
        }
        if let Some(own) = own {
            let beside = |name: &str| !name.starts_with("config-") && (is_used(name) || missed(name).is_some());
            match row(&beside) {
                (0, _) => {}
                (1, name) => notes.push(format!("warning: {name} is ignored, because {own} says everything itself")),
                (_, names) => notes.push(format!("warning: {names} are ignored, because {own} says everything itself")),
            }
        }
        notes
    }

    /// Whether every flag has the value that it needs.
    pub(super) fn complete(&self) -> anyhow::Result<()> {
        match &self.lacking[..] {
            [] => Ok(()),
            [one] => bail!("{one} needs a value"),
            more => bail!("{} need values", more.join(" and ")),
        }
    }

    /// The value of a flag; an empty one is as good as none.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn port(&self, name: &str, default: u16) -> anyhow::Result<u16> {
        self.value(name).map_or(Ok(default), |value| port(name, value))
    }

    pub(super) fn switch(&self, name: &str, default: bool) -> anyhow::Result<bool> {
        let Some(value) = self.value(name) else { return Ok(default) };
        yes_or_no(value).with_context(|| format!("--{name}: `{value}` is neither true nor false"))
    }
}

/// A port in a flag's value.
pub(super) fn port(name: &str, value: &str) -> anyhow::Result<u16> {
    value.parse().ok().with_context(|| format!("--{name}: `{value}` is no port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::read(&line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_changes_nothing_is_one_note_and_what_is_missed_has_its_reason() {
        let line = "--tracing --refresh-metrics-interval 50ms --ha-enable-leader-election=false --metrics-endpoint-auth=false \
                    --lora-info-metric vllm:lora_requests_info --kv-cache-usage-percentage-metric my:cache --pool-name p";
        let notes = flags(line).notes(None);
        let [missed, nothing] = &notes[..] else { panic!("{notes:?}") };
        assert!(
            missed.starts_with("warning: --kv-cache-usage-percentage-metric my:cache is not supported: "),
            "{missed}"
        );
        assert_eq!(
            nothing,
            "note: nothing here needs --ha-enable-leader-election, --refresh-metrics-interval, --tracing"
        );
    }

    #[test]
    fn beside_a_configuration_of_ones_own_flags_are_ignored_and_that_is_said_of_it() {
        let notes = flags("--config-file own.yaml --grpc-port 1 --endpoints http://10.0.0.1:1 --tracing")
            .notes(Some("own.yaml"));
        assert_eq!(
            notes,
            [
                "note: nothing here needs --tracing",
                "warning: --endpoints, --grpc-port are ignored, because own.yaml says everything itself"
            ]
        );
    }

    #[test]
    fn a_clusters_pods_are_read_over_http_and_that_is_said() {
        let scheme = "--model-server-metrics-scheme https";
        assert_eq!(flags(&format!("--pool-name p {scheme}")).notes(None), [OVER_TLS]);
        assert_eq!(flags(&format!("--endpoints 10.0.0.1:1 {scheme}")).notes(None), [""; 0]);
    }

    #[test]
    fn a_slip_is_recognised_and_a_value_that_is_missing_is_missed() {
        let slip = flags("--pool-nam x --frobnicate stray too");
        assert_eq!(
            slip.notes(None),
            [
                "warning: --frobnicate is not known here and passed over",
                "warning: --pool-nam is not known here and passed over; did you mean --pool-name?",
                "warning: `too` belongs to no flag and is passed over"
            ]
        );
        assert!(slip.complete().is_ok(), "an unknown flag may be a switch");
        let told = |line| flags(line).complete().unwrap_err().to_string();
        assert_eq!(told("--pool-name"), "--pool-name needs a value");
        assert_eq!(told("--endpoints --pool-name --v=4"), "--endpoints and --pool-name need values");
    }

    #[test]
    fn a_switch_takes_no_word_that_is_neither_yes_nor_no() {
        let flags = flags("--secure-serving false --tracing --enable-pprof stray -v 4");
        assert!(!flags.switch("secure-serving", true).unwrap());
        assert_eq!((flags.value("enable-pprof"), flags.value("v")), (Some("true"), Some("4")));
        assert_eq!(flags.stray, ["stray"]);
        assert!(self::flags("--secure-serving=maybe").switch("secure-serving", true).is_err());
    }
}
