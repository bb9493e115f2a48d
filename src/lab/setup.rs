//! What a run is about besides its traffic: the pods, how they are seen, and what goes wrong with them when.

use super::doors::{self, Entry};
use crate::{
    config::{self, Config, Endpoint, Target},
    sim::EngineConfig,
};

/// How pages of metrics are read.
///
/// Every pod has its turn at this interval, give or take a tenth as in `serve`. That `serve` asks idle pods less often
/// is left out: it belongs to `scrape`, a sense with I/O that the lab does not know, and saves pages of pods of which
/// there is nothing to tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scrape {
    /// From one read to the next, give or take a tenth.
    pub interval_ms: f64,
    /// From asking for a page to having read it; what it says is from the middle of that.
    pub delay_ms: f64,
    /// The share of pages that never come.
    pub loss: f64,
}

impl Default for Scrape {
    fn default() -> Self {
        // The gateway's own default interval; rendering a page takes vLLM 8 ms (measured with 0.32).
        Self { interval_ms: 250.0, delay_ms: 8.0, loss: 0.0 }
    }
}

/// Something that happens to a pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fault {
    /// When.
    pub at_ms: f64,
    /// To which.
    pub pod: usize,
    /// What.
    pub what: Mishap,
}

/// What can happen to one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mishap {
    /// From then on its steps take so many times as long.
    Slow(f64),
    /// Its process is gone: answers break off, and its port refuses connections.
    Dies,
    /// It listens again, with an empty cache.
    Returns,
    /// Whatever it is asked, it says at once that it is too busy.
    SaysNo,
    /// Whatever it is asked, it fails at once.
    Fails,
    /// Its pages do not come any more; its answers do.
    PagesHang,
    /// Its pages come and say what the last one said.
    PagesFreeze,
    /// Its pages come as they should.
    PagesHeal,
    /// Discovery finds it. Only the last pods can be late.
    Joins,
}

/// A model whose traffic is split between itself and adapter 0, and how the split changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// The adapter's share before, in per cent.
    pub before: u32,
    /// Its share from then on.
    pub after: u32,
}

/// The stage of a run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The pods' engines.
    pub pods: Vec<EngineConfig>,
    /// How each gateway sees them.
    pub scrape: Scrape,
    /// Gateways that share the traffic by chance and know nothing of each other.
    pub gateways: usize,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Adapters that every pod serves besides the model.
    pub adapters: u32,
    /// How the model's traffic is split, if it is.
    pub shift: Option<Shift>,
    /// Whether a request is tried elsewhere when its pod dies before the first byte of an answer. `serve` does not: the
    /// pod may have died of it.
    pub retries_died: bool,
    /// Who says what may come in, and when.
    pub door: &'static Entry,
    /// From which wait on a pod counts as full, in milliseconds, where that is not the configuration's default.
    pub full_ms: Option<f64>,
    /// What `saturation.between_tokens` says, in milliseconds, if it says anything.
    pub between_ms: Option<f64>,
    /// What `waiting.first_token` says, in milliseconds, if it says anything.
    pub first_token_ms: Option<f64>,
}

impl Setup {
    /// These pods behind one gateway, all well.
    pub fn new(pods: Vec<EngineConfig>) -> Self {
        Self {
            pods,
            scrape: Scrape::default(),
            gateways: 1,
            faults: Vec::new(),
            adapters: 0,
            shift: None,
            retries_died: false,
            door: &doors::OPEN,
            full_ms: None,
            between_ms: None,
            first_token_ms: None,
        }
    }

    /// Pods that are there from the start.
    pub fn early_pods(&self) -> usize {
        let late = self.faults.iter().filter(|fault| fault.what == Mishap::Joins).map(|fault| fault.pod).min();
        late.unwrap_or(self.pods.len()).min(self.pods.len())
    }

    /// What an operator would have configured, the split's second arm at this share.
    pub(super) fn configured(&self, second: Option<u32>) -> Result<Config, config::Report> {
        let mut text = config_text(self.pods.len(), self.scrape.interval_ms, None, second);
        let said = [("wait", self.full_ms), ("between_tokens", self.between_ms)];
        let said = said.iter().filter_map(|(key, ms)| Some(format!("{key}: {:.0}ms", (*ms)?))).collect::<Vec<_>>();
        text.push_str(&format!("saturation: {{ {} }}\n", said.join(", ")));
        if let Some(first_token_ms) = self.first_token_ms {
            text.push_str(&format!("waiting: {{ first_token: {first_token_ms:.0}ms }}\n"));
        }
        config::load("lab", &text).map(|(config, _)| config)
    }
}

/// A configuration file of a pool of so many pods, as an operator would write it.
pub(super) fn config_text(pods: usize, interval_ms: f64, policy: Option<&str>, second: Option<u32>) -> String {
    let mut text = "listeners: [{ name: openai, address: 127.0.0.1:8081 }]\n".to_owned();
    if let Some(policy) = policy {
        text.push_str(&format!("scheduler: {{ policy: {policy} }}\n"));
    }
    let arms = second.map(|share| {
        let (first, second) = (100 - share.min(100), adapter_name(0));
        format!(", targetModels: [{{ name: {MODEL}, weight: {first} }}, {{ name: {second}, weight: {share} }}]")
    });
    text.push_str(&format!("models: [{{ modelName: {MODEL}, poolRef: {POOL}{} }}]\n", arms.unwrap_or_default()));
    text.push_str(&format!("pools:\n  - name: {POOL}\n    engine: vllm\n"));
    text.push_str(&format!("    metrics: {{ interval: {interval_ms:.0}ms }}\n    endpoints:\n"));
    for pod in 0..pods {
        text.push_str(&format!("      - {{ url: \"http://pod-{pod}:8000\" }}\n"));
    }
    text
}

/// The addresses of all pods.
pub(super) fn targets(config: &Config) -> Vec<Target> {
    let endpoints = config.pools.iter().flat_map(|pool| &pool.endpoints);
    let fixed = endpoints.filter_map(|endpoint| match endpoint {
        Endpoint::Fixed(target) => Some(target.clone()),
        Endpoint::Dns(_) | Endpoint::File(_) | Endpoint::Cluster { .. } => None,
    });
    fixed.collect()
}

/// What an adapter is called.
pub(super) fn adapter_name(adapter: u32) -> String {
    format!("adapter-{adapter}")
}

/// The model that everybody asks for.
pub(super) const MODEL: &str = "lab-model";

/// The pool that serves it.
pub(super) const POOL: &str = "lab";
