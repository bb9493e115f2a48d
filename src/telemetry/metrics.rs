//! Every metric family, in one place. Names carry their unit; label values are enums, configured names or bounded.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeMetric, text},
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

use super::{
    CertificateMetrics, IdentityMetrics, QuotaMetrics, Tallies,
    labels::{
        ArmLabels, Bounded, ConditionLabels, ConfigLabels, DecisionLabels, KindLabels, ListenerLabels, ModelLabels,
        OutcomeLabels, PodLabels, PoolBandLabels, PoolLabels, PoolReasonLabels, ReasonLabels, RequestLabels,
        TokenLabels,
    },
    rows::{KindRow, PodRow, PoolRow, ReadRows, Rows},
};

/// Time to first token, seconds: the OpenTelemetry GenAI buckets, with more around the usual targets and up to a
/// minute, where overload lives.
const TTFT: [f64; 23] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0,
    30.0, 45.0, 60.0,
];

/// Time between tokens, seconds: the same convention's, finer below 10 ms.
const ITL: [f64; 16] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5];

/// Whole requests, seconds: the same convention's, up to the ten minutes that clients wait.
const DURATION: [f64; 17] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92, 163.84, 327.68, 655.36];

/// What the gateway itself adds, seconds: from a microsecond (a pick) to a quarter second (trouble).
const OVERHEAD: [f64; 15] = [
    0.000_001,
    0.000_002_5,
    0.000_005,
    0.000_01,
    0.000_025,
    0.000_05,
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.002_5,
    0.005,
    0.01,
    0.05,
    0.25,
];

/// Makes histograms with fixed buckets.
#[derive(Clone, Copy, Debug)]
pub struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// A family of histograms.
pub type Histograms<L> = Family<L, Histogram, Buckets>;

fn histograms<L: Clone + Eq + std::hash::Hash>(buckets: &'static [f64]) -> Histograms<L> {
    Family::new_with_constructor(Buckets(buckets))
}

/// All families. Cheap to share; every field counts by itself.
pub struct Metrics {
    registry: Registry,
    /// Bounds label values that pods, not the configuration, name.
    pub names: Bounded,
    /// What nearly every request counts in, kept at hand.
    pub tallies: Tallies,
    /// Who came, and by what they are known.
    pub identity: IdentityMetrics,
    /// Requests answered or refused.
    pub requests: Family<RequestLabels, Counter>,
    /// Requests being worked on.
    pub requests_open: Family<ModelLabels, Gauge>,
    /// From the request's head to the answer's last byte.
    pub duration: Histograms<ModelLabels>,
    /// From the request's head to the first token.
    pub ttft: Histograms<ModelLabels>,
    /// Mean time between tokens, one observation a stream.
    pub itl: Histograms<ModelLabels>,
    /// From the request's last byte to the choice of its first pod: reading, routing, picking.
    pub overhead: Histograms<ListenerLabels>,
    /// The choice of a pod alone.
    pub pick: Histograms<DecisionLabels>,
    /// Tokens, as pods report them.
    pub tokens: Family<TokenLabels, Counter>,
    /// Requests by arm of a split.
    pub arms: Family<ArmLabels, Counter>,
    /// Choices by what they stood on.
    pub decisions: Family<DecisionLabels, Counter>,
    /// Further attempts, by what went wrong before.
    pub retries: Family<PoolReasonLabels, Counter>,
    /// Further attempts that were allowed but for the budget, by what had gone wrong.
    pub retries_denied: Family<PoolReasonLabels, Counter>,
    /// Pods' noes, by what they meant.
    pub refusals: Family<PoolReasonLabels, Counter>,
    /// Attempts that failed, by how.
    pub failures: Family<PoolReasonLabels, Counter>,
    /// Requests that Envoy took elsewhere than to the pod chosen, by where that was.
    pub elsewhere: Family<PoolReasonLabels, Counter>,
    /// Answers that broke off after they had begun, by how.
    pub cuts: Family<PoolReasonLabels, Counter>,
    /// Clients that left, by how far their request was.
    pub aborts: Family<ReasonLabels, Counter>,
    /// Requests refused by the gateway itself.
    pub rejections: Family<ReasonLabels, Counter>,
    /// Requests refused that a pod could have had, because all were busy and these may be refused then.
    pub shed: Family<PoolReasonLabels, Counter>,
    /// What the doors turned away before it was a request, or let go while it did not read.
    pub edge_rejected: Family<ReasonLabels, Counter>,
    /// Reads of pods' metrics, by outcome.
    pub scrapes: Family<PoolReasonLabels, Counter>,
    /// How long they took.
    pub scrape_duration: Histograms<PoolReasonLabels>,
    /// Metric lines that looked wanted and could not be read.
    pub scrape_unparsed: Family<PoolReasonLabels, Counter>,
    /// Changes of a pod's condition, by the new one.
    pub conditions: Family<PoolReasonLabels, Counter>,
    /// Bytes of request bodies held now.
    pub buffered: Gauge,
    /// Client connections open now.
    pub connections: Gauge,
    /// Tasks of the whole process; set when the page is read.
    pub tasks: Gauge,
    /// Lines that the decision log has not.
    pub decisions_dropped: Counter,
    /// Requests that wait because no pod is ready or all are full, now.
    pub waiting: Family<PoolBandLabels, Gauge>,
    /// How long those waited that do so no more, by how it ended: `served`, `expired`, `pushed_out`, `left`.
    pub waited: Histograms<PoolReasonLabels>,
    /// Limits and budgets.
    pub quotas: QuotaMetrics,
    /// Reloads of the configuration, by how they went.
    pub reloads: Family<OutcomeLabels, Counter>,
    /// 1 if the last reload was applied, and before the first.
    pub last_reload_successful: Gauge,
    /// How many configurations have been in force; the first is 1.
    pub config_generation: Gauge,
    /// 1 for the one in force.
    pub config_hash: Family<ConfigLabels, Gauge>,
    /// What is shown and believed at the doors.
    pub certificates: CertificateMetrics,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// All families, with `rows` asked for whenever the page is read.
    pub fn new(rows: ReadRows) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("tidegate"),
            names: Bounded::default(),
            tallies: Tallies::default(),
            identity: IdentityMetrics::default(),
            requests: Family::default(),
            requests_open: Family::default(),
            duration: histograms(&DURATION),
            ttft: histograms(&TTFT),
            itl: histograms(&ITL),
            overhead: histograms(&OVERHEAD),
            pick: histograms(&OVERHEAD),
            tokens: Family::default(),
            arms: Family::default(),
            decisions: Family::default(),
            retries: Family::default(),
            retries_denied: Family::default(),
            refusals: Family::default(),
            failures: Family::default(),
            elsewhere: Family::default(),
            cuts: Family::default(),
            aborts: Family::default(),
            rejections: Family::default(),
            shed: Family::default(),
            edge_rejected: Family::default(),
            scrapes: Family::default(),
            scrape_duration: histograms(&ITL),
            scrape_unparsed: Family::default(),
            conditions: Family::default(),
            buffered: Gauge::default(),
            connections: Gauge::default(),
            tasks: Gauge::default(),
            decisions_dropped: Counter::default(),
            waiting: Family::default(),
            waited: histograms(&DURATION),
            quotas: QuotaMetrics::default(),
            reloads: Family::default(),
            last_reload_successful: Gauge::default(),
            config_generation: Gauge::default(),
            config_hash: Family::default(),
            certificates: CertificateMetrics::default(),
        };
        metrics.register_requests();
        metrics.register_attempts();
        metrics.register_waiting();
        metrics.quotas.register(&mut metrics.registry, std::sync::Arc::clone(&rows));
        metrics.identity.register(&mut metrics.registry);
        metrics.register_state(rows);
        metrics.certificates.register(&mut metrics.registry);
        metrics
    }

    /// The page, in `OpenMetrics` text.
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail; if a value refuses to be encoded, the page so far is still the truth.
        text::encode(&mut page, &self.registry).ok();
        page
    }

    /// The page's content type.
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    fn register_requests(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Requests, by the status of their answer", self.requests.clone());
        r.register("requests_open", "Requests being worked on", self.requests_open.clone());
        let seconds = || Unit::Seconds;
        let whole = "From the request's head to the answer's last byte";
        r.register_with_unit("request_duration", whole, seconds(), self.duration.clone());
        let ttft = "From the request's head to its first token, streams only";
        r.register_with_unit("time_to_first_token", ttft, seconds(), self.ttft.clone());
        let itl = "Mean time between a stream's tokens, one observation a stream";
        r.register_with_unit("inter_token_latency", itl, seconds(), self.itl.clone());
        let overhead = "From the request's last byte to its first attempt, added by the gateway";
        r.register_with_unit("overhead", overhead, seconds(), self.overhead.clone());
        r.register_with_unit("pick_duration", "The choice of a pod alone", seconds(), self.pick.clone());
        r.register("tokens", "Tokens by kind, as the pods report them", self.tokens.clone());
        r.register("split_requests", "Requests by arm of a split", self.arms.clone());
        r.register("decisions", "Choices of a pod, by policy and by what they stood on", self.decisions.clone());
        r.register(
            "aborts",
            "Clients that left before their answer was complete; behind Envoy, perhaps their pods",
            self.aborts.clone(),
        );
        r.register("rejections", "Requests that the gateway itself refused", self.rejections.clone());
        r.register("shed_requests", "Requests refused because they may be while their pool is full", self.shed.clone());
        let turned_away = "Clients turned away before they had asked, or let go because they did not read";
        r.register("edge_rejected", turned_away, self.edge_rejected.clone());
    }

    fn register_attempts(&mut self) {
        let r = &mut self.registry;
        r.register("retries", "Further attempts on another pod, by what had gone wrong", self.retries.clone());
        let denied = "Further attempts that only the retry budget forbade, by what had gone wrong";
        r.register("retries_denied", denied, self.retries_denied.clone());
        r.register("pod_refusals", "Requests that pods said no to, by what it meant", self.refusals.clone());
        r.register("attempt_failures", "Attempts that failed before any answer", self.failures.clone());
        let elsewhere = "Requests that Envoy took to another pod than the one chosen, by whether it was named as well";
        r.register("picker_elsewhere", elsewhere, self.elsewhere.clone());
        r.register("cuts", "Answers that broke off after they had begun", self.cuts.clone());
        r.register("scrapes", "Reads of pods' metrics, by outcome", self.scrapes.clone());
        r.register_with_unit("scrape_duration", "Reads of pods' metrics", Unit::Seconds, self.scrape_duration.clone());
        let unparsed = "Metric lines that looked wanted and could not be read";
        r.register("scrape_unparsed_lines", unparsed, self.scrape_unparsed.clone());
        r.register("pod_condition_changes", "Changes of a pod's condition, by the new one", self.conditions.clone());
    }

    fn register_waiting(&mut self) {
        let r = &mut self.registry;
        r.register(
            "waiting_requests",
            "Requests that wait because no pod is ready or all are full",
            self.waiting.clone(),
        );
        let waited = "How long requests waited for a pod or for room, by how it ended";
        r.register_with_unit("waited", waited, Unit::Seconds, self.waited.clone());
        r.register("config_reloads", "Reloads of the configuration, by how they went", self.reloads.clone());
        let last = "1 if the last reload was applied, 0 if the configuration before it is still in force";
        r.register("config_last_reload_successful", last, self.last_reload_successful.clone());
        let generation = "How many configurations have been in force";
        r.register("config_generation", generation, self.config_generation.clone());
        r.register(
            "config_hash",
            "1 for the configuration in force, by the hash of its text",
            self.config_hash.clone(),
        );
    }

    fn register_state(&mut self, rows: ReadRows) {
        let r = &mut self.registry;
        r.register_with_unit("buffered_bodies", "Request bodies held now", Unit::Bytes, self.buffered.clone());
        r.register("connections", "Client connections open now", self.connections.clone());
        r.register("tasks", "Tasks alive: what never falls back when all is quiet is a leak", self.tasks.clone());
        let dropped = "Lines that the decision log has not, because the disk was too slow or full";
        r.register("decision_log_dropped_lines", dropped, self.decisions_dropped.clone());
        r.register("build", "What runs here", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        r.register_collector(Box::new(FleetCollector(rows)));
    }
}

struct FleetCollector(ReadRows);

impl fmt::Debug for FleetCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetCollector")
    }
}

type Fractions<L> = Family<L, Gauge<f64, std::sync::atomic::AtomicU64>>;

fn encode_kinds(
    kinds: &[KindRow],
    encoder: &mut prometheus_client::encoding::DescriptorEncoder<'_>,
) -> Result<(), fmt::Error> {
    let (objects, heard) = (Fractions::<KindLabels>::default(), Fractions::<KindLabels>::default());
    for row in kinds {
        let labels = KindLabels { kind: row.kind, group: row.group };
        objects.get_or_create(&labels).set(row.objects as f64);
        if let Some(well) = row.heard {
            heard.get_or_create(&labels).set(f64::from(u8::from(well)));
        }
    }
    let help = "Objects of a kind, as last heard";
    objects.encode(encoder.encode_descriptor("kubernetes_objects", help, None, objects.metric_type())?)?;
    let help = "1 while the API server tells of a kind; at 0 its last word stays";
    heard.encode(encoder.encode_descriptor("kubernetes_watch_heard", help, None, heard.metric_type())?)
}

impl prometheus_client::collector::Collector for FleetCollector {
    fn encode(&self, mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Rows { kinds, pools, pods: rows, .. } = (self.0)();
        encode_kinds(&kinds, &mut encoder)?;
        let full = Fractions::<PoolLabels>::default();
        for PoolRow { pool, saturation } in pools {
            if let Some(saturation) = saturation {
                full.get_or_create(&PoolLabels { pool }).set(saturation);
            }
        }
        let help = "The wait at the pool's best pod, over the one from which sheddable requests are refused";
        full.encode(encoder.encode_descriptor("pool_saturation", help, None, full.metric_type())?)?;
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: &dyn Fn(&PodRow) -> Option<f64>| {
            let family = Fractions::<PodLabels>::default();
            for row in &rows {
                if let Some(value) = value(row) {
                    let labels = PodLabels { pool: row.pool.clone(), pod: row.pod.clone() };
                    family.get_or_create(&labels).set(value);
                }
            }
            family.encode(encoder.encode_descriptor(name, help, unit, family.metric_type())?)
        };
        let seconds = Unit::Seconds;
        gauge("pod_running_requests", "Running requests, as last read", None, &|row| row.running.map(f64::from))?;
        gauge("pod_waiting_requests", "Waiting requests, as last read", None, &|row| row.waiting.map(f64::from))?;
        gauge("pod_kv_cache_usage_ratio", "KV-cache usage, as last read", None, &|row| row.kv_usage)?;
        gauge("pod_reading_age", "Age of the last reading", Some(&seconds), &|row| row.age_seconds)?;
        gauge("pod_in_flight_requests", "Our own requests there", None, &|row| Some(row.in_flight as f64))?;
        let prefill = "Our own prompt tokens there, still without a first token";
        gauge("pod_prefill_tokens", prefill, None, &|row| Some(row.prefill_tokens as f64))?;
        let pace = "Learned time to compute one prompt token";
        gauge("pod_prefill_token", pace, Some(&seconds), &|row| Some(row.ms_per_token / 1e3))?;
        let itl = "Learned time between tokens";
        gauge("pod_inter_token_latency", itl, Some(&seconds), &|row| Some(row.itl_ms / 1e3))?;
        let trust = "What it finds of the prompts that its cache is believed to hold";
        gauge("pod_prefix_trust_ratio", trust, None, &|row| Some(f64::from(row.prefix_trust)))?;
        let conditions = Family::<ConditionLabels, Gauge>::default();
        for row in rows {
            let labels = ConditionLabels { pool: row.pool, pod: row.pod, condition: row.condition };
            conditions.get_or_create(&labels).set(1);
        }
        let kind = conditions.metric_type();
        conditions.encode(encoder.encode_descriptor("pod_condition", "1 for the pod's condition", None, kind)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_page_carries_units_and_the_pods_as_they_are_when_it_is_read() {
        let row = PodRow {
            pool: "pool".into(),
            pod: "10.0.0.1:8000".into(),
            condition: "ready",
            running: Some(3),
            waiting: None,
            kv_usage: Some(0.25),
            age_seconds: Some(0.1),
            in_flight: 2,
            prefill_tokens: 7,
            ms_per_token: 0.05,
            itl_ms: 10.0,
            prefix_trust: 0.5,
        };
        let pools = [("pool", Some(0.5)), ("empty", None)];
        let pools = pools.map(|(pool, saturation)| PoolRow { pool: pool.into(), saturation }).to_vec();
        let kinds = [("Pod", "", 7, Some(false)), ("InferencePool", "inference.networking.k8s.io", 1, None)];
        let kinds = kinds.map(|(kind, group, objects, heard)| KindRow { kind, group, objects, heard }).to_vec();
        let metrics = Metrics::new(Arc::new(move || Rows {
            kinds: kinds.clone(),
            pools: pools.clone(),
            pods: vec![row.clone()],
            quotas: Vec::new(),
        }));
        let labels = ModelLabels { listener: "openai".into(), model: "llama2".into() };
        metrics.ttft.get_or_create(&labels).observe(0.2);
        let page = metrics.page();
        for line in [
            r#"tidegate_kubernetes_objects{kind="Pod",group=""} 7.0"#,
            r#"tidegate_kubernetes_objects{kind="InferencePool",group="inference.networking.k8s.io"} 1.0"#,
            r#"tidegate_kubernetes_watch_heard{kind="Pod",group=""} 0.0"#,
            r#"tidegate_pool_saturation{pool="pool"} 0.5"#,
            r#"tidegate_pod_running_requests{pool="pool",pod="10.0.0.1:8000"} 3.0"#,
            r#"tidegate_pod_kv_cache_usage_ratio{pool="pool",pod="10.0.0.1:8000"} 0.25"#,
            r#"tidegate_pod_prefix_trust_ratio{pool="pool",pod="10.0.0.1:8000"} 0.5"#,
            r#"tidegate_pod_condition{pool="pool",pod="10.0.0.1:8000",condition="ready"} 1"#,
            r#"tidegate_time_to_first_token_seconds_count{listener="openai",model="llama2"} 1"#,
        ] {
            assert!(page.contains(line), "{line} not in\n{page}");
        }
        assert!(
            !page.contains("tidegate_pool_saturation{pool=\"empty\""),
            "a pool without pods is not empty but unusable"
        );
        assert!(!page.contains("tidegate_pod_waiting_requests{"), "what was not read is not shown as zero");
        assert!(page.ends_with("# EOF\n"));
    }
}
