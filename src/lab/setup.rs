//! What a run is about besides its traffic: the pods, how they are seen, and what goes wrong with them when.

use crate::sim::EngineConfig;

/// How pages of metrics are read.
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
    /// From then on its steps take so many times as long.
    pub slow: f64,
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
}

impl Setup {
    /// These pods behind one gateway, all well.
    pub fn new(pods: Vec<EngineConfig>) -> Self {
        Self { pods, scrape: Scrape::default(), gateways: 1, faults: Vec::new() }
    }
}

/// A configuration file of a pool of so many pods, as an operator would write it.
pub(super) fn config_text(pods: usize, interval_ms: f64, policy: Option<&str>) -> String {
    let mut text = "listeners: [{ name: openai, address: 127.0.0.1:8081 }]\n".to_owned();
    if let Some(policy) = policy {
        text.push_str(&format!("scheduler: {{ policy: {policy} }}\n"));
    }
    text.push_str(&format!("models: [{{ modelName: {MODEL}, poolRef: {POOL} }}]\n"));
    text.push_str(&format!("pools:\n  - name: {POOL}\n    engine: vllm\n"));
    text.push_str(&format!("    metrics: {{ interval: {interval_ms:.0}ms }}\n    endpoints:\n"));
    for pod in 0..pods {
        text.push_str(&format!("      - {{ url: \"http://pod-{pod}:8000\" }}\n"));
    }
    text
}

/// The model that everybody asks for.
pub(super) const MODEL: &str = "lab-model";

/// The pool that serves it.
pub(super) const POOL: &str = "lab";
