//! What is told of limits and budgets: who was refused, what was used, what it cost.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{Name, rows::ReadRows};

/// Whose tokens and money.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct SpendLabels {
    /// A tenant that the configuration names, `anonymous`, or `other`.
    pub tenant: Name,
    /// The client's name for the model.
    pub model: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpentTokens {
    tenant: Name,
    model: Name,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    scope: &'static str,
    limit: &'static str,
    enforced: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    scope: &'static str,
    name: Name,
    limit: &'static str,
}

/// One limit of a scope that the configuration names, for the families that are read at scrape time.
#[derive(Clone, Debug)]
pub struct QuotaRow {
    /// `all`, `tenant` or `model`.
    pub scope: &'static str,
    /// Whose, where there are several.
    pub name: Name,
    /// The limit's key in the configuration.
    pub limit: &'static str,
    /// What is used of it.
    pub used: f64,
    /// How large it is.
    pub size: f64,
}

/// Families of limits and budgets.
#[derive(Debug, Default)]
pub struct QuotaMetrics {
    refusals: Family<RefusalLabels, Counter>,
    tokens: Family<SpentTokens, Counter>,
    cost: Family<SpendLabels, Counter<f64, AtomicU64>>,
    /// 1 while the counts that several gateways share answer; told once [`QuotaMetrics::share`] was called.
    pub shared_up: Gauge,
    shares: Arc<AtomicBool>,
    /// Settlements that they did not get.
    pub shared_lost: Counter,
    /// Reservations that were decided without them.
    pub shared_unasked: Counter,
}

impl QuotaMetrics {
    /// This gateway shares its counts with others: from now on it is told whether they answer.
    pub fn share(&self) {
        self.shares.store(true, Relaxed);
    }

    /// A limit refused a request, or would have if it were kept.
    pub fn refused(&self, scope: &'static str, limit: &'static str, enforced: bool) {
        let enforced = if enforced { "true" } else { "false" };
        self.refusals.get_or_create(&RefusalLabels { scope, limit, enforced }).inc();
    }

    /// A request took so many tokens (input, output, cached) and so much money.
    pub fn spent(&self, labels: &SpendLabels, tokens: [u64; 3], cost: f64) {
        for (kind, tokens) in ["input", "output", "cached"].into_iter().zip(tokens) {
            if tokens > 0 {
                let SpendLabels { tenant, model } = labels.clone();
                self.tokens.get_or_create(&SpentTokens { tenant, model, kind }).inc_by(tokens);
            }
        }
        if cost > 0.0 {
            self.cost.get_or_create(labels).inc_by(cost);
        }
    }

    pub(super) fn register(&self, r: &mut Registry, rows: ReadRows) {
        let refusals = "Requests over a limit, by whose and which; not enforced: they were let in";
        r.register("quota_refusals", refusals, self.refusals.clone());
        let tokens = "Tokens that counted against limits, as reported or else as seen or estimated";
        r.register("spent_tokens", tokens, self.tokens.clone());
        r.register("spent", "What requests cost, in the currency of the price table", self.cost.clone());
        let lost = "Settlements that the shared counts did not get, so that reservations stay counted";
        r.register("shared_counts_lost_settlements", lost, self.shared_lost.clone());
        let unasked = "Requests over whose limits the shared counts could not be asked";
        r.register("shared_counts_unasked", unasked, self.shared_unasked.clone());
        let up = (self.shared_up.clone(), Arc::clone(&self.shares));
        r.register_collector(Box::new(QuotaCollector { rows, up }));
    }
}

struct QuotaCollector {
    rows: ReadRows,
    up: (Gauge, Arc<AtomicBool>),
}

impl fmt::Debug for QuotaCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuotaCollector")
    }
}

impl Collector for QuotaCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Gauges = Family<LimitLabels, Gauge<f64, AtomicU64>>;
        let (used, size) = (Gauges::default(), Gauges::default());
        if self.up.1.load(Relaxed) {
            let help = "1 while the counts that several gateways share answer";
            let up = &self.up.0;
            up.encode(encoder.encode_descriptor("shared_counts_up", help, None, up.metric_type())?)?;
        }
        for row in (self.rows)().quotas {
            let labels = LimitLabels { scope: row.scope, name: row.name, limit: row.limit };
            used.get_or_create(&labels).set(row.used);
            size.get_or_create(&labels).set(row.size);
        }
        let help = "What is used of a limit that the configuration names";
        used.encode(encoder.encode_descriptor("quota_used", help, None, used.metric_type())?)?;
        size.encode(encoder.encode_descriptor("quota_limit", "How large it is", None, size.metric_type())?)
    }
}
