//! What nearly every request counts in, found once for its listener and model and kept. To find the member of a family
//! takes the hash of all its labels, ten times a request: more than the counting.
//!
//! A member is made when it is first counted in, as without this, so that the page shows nothing that never was.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use prometheus_client::metrics::{
    counter::Counter,
    family::{Family, MetricConstructor},
    gauge::Gauge,
    histogram::Histogram,
};

use super::{
    Metrics, Name,
    labels::{ArmLabels, DecisionLabels, ListenerLabels, ModelLabels, RequestLabels, TokenLabels},
};

/// The tallies by listener and model; as many as their names, which are bounded.
#[derive(Debug, Default)]
pub struct Tallies(RwLock<HashMap<ModelLabels, Arc<Tally>>>);

impl Tallies {
    fn get(&self, labels: &ModelLabels) -> Option<Arc<Tally>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(labels).cloned()
    }
}

/// One listener's requests for one model.
pub struct Tally {
    labels: ModelLabels,
    requests: First<RequestLabels, Counter>,
    decisions: First<DecisionLabels, (Counter, Histogram)>,
    arms: First<ArmLabels, Counter>,
    open: OnceLock<Gauge>,
    duration: OnceLock<Histogram>,
    ttft: OnceLock<Histogram>,
    itl: OnceLock<Histogram>,
    overhead: OnceLock<Histogram>,
    /// Input, output and cached.
    tokens: [OnceLock<Counter>; 3],
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").field("labels", &self.labels).finish_non_exhaustive()
    }
}

/// The member that was asked for first, which is nearly always the one that is asked for again.
struct First<L, M>(OnceLock<(L, M)>);

impl<L: Eq, M: Clone> First<L, M> {
    fn of(&self, labels: L, find: impl FnOnce(&L) -> M) -> M {
        match self.0.get() {
            Some((first, member)) if *first == labels => member.clone(),
            Some(_) => find(&labels),
            None => {
                let member = find(&labels);
                // Whoever came at the same time found the same or something as good.
                _ = self.0.set((labels, member.clone()));
                member
            }
        }
    }
}

impl Metrics {
    /// The tally of `listener`'s requests for `model`, whose name is bounded here.
    pub fn tally(&self, listener: &Name, model: &Arc<str>) -> Arc<Tally> {
        let labels = ModelLabels { listener: listener.clone(), model: Name::from(model) };
        if let Some(known) = self.tallies.get(&labels) {
            return known;
        }
        let labels = ModelLabels { model: self.names.name(model), ..labels };
        self.tallies.get(&labels).unwrap_or_else(|| {
            let mut all = self.tallies.0.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(labels.clone()).or_insert_with(|| Arc::new(Tally::new(labels))))
        })
    }
}

impl Tally {
    fn new(labels: ModelLabels) -> Self {
        Self {
            labels,
            requests: First(OnceLock::new()),
            decisions: First(OnceLock::new()),
            arms: First(OnceLock::new()),
            open: OnceLock::new(),
            duration: OnceLock::new(),
            ttft: OnceLock::new(),
            itl: OnceLock::new(),
            overhead: OnceLock::new(),
            tokens: Default::default(),
        }
    }

    /// The model's label.
    pub fn model(&self) -> &Name {
        &self.labels.model
    }

    /// [`Metrics::requests_open`].
    pub fn open(&self, of: &Metrics) -> &Gauge {
        self.open.get_or_init(|| of.requests_open.get_or_create_owned(&self.labels))
    }

    /// [`Metrics::requests`].
    pub fn requests(&self, of: &Metrics, endpoint: &'static str, code: u16) -> Counter {
        let ModelLabels { listener, model } = self.labels.clone();
        self.requests.of(RequestLabels { listener, endpoint, model, code }, |it| of.requests.get_or_create_owned(it))
    }

    /// [`Metrics::decisions`] and [`Metrics::pick`].
    pub fn decisions(&self, of: &Metrics, labels: DecisionLabels) -> (Counter, Histogram) {
        self.decisions.of(labels, |it| (of.decisions.get_or_create_owned(it), of.pick.get_or_create_owned(it)))
    }

    /// [`Metrics::arms`].
    pub fn arms(&self, of: &Metrics, target: &Name) -> Counter {
        let labels = ArmLabels { model: self.labels.model.clone(), target: target.clone() };
        self.arms.of(labels, |it| of.arms.get_or_create_owned(it))
    }

    /// [`Metrics::duration`].
    pub fn duration(&self, of: &Metrics) -> &Histogram {
        member(&self.duration, &of.duration, &self.labels)
    }

    /// [`Metrics::ttft`].
    pub fn ttft(&self, of: &Metrics) -> &Histogram {
        member(&self.ttft, &of.ttft, &self.labels)
    }

    /// [`Metrics::itl`].
    pub fn itl(&self, of: &Metrics) -> &Histogram {
        member(&self.itl, &of.itl, &self.labels)
    }

    /// [`Metrics::overhead`].
    pub fn overhead(&self, of: &Metrics) -> &Histogram {
        let labels = || ListenerLabels { listener: self.labels.listener.clone() };
        self.overhead.get_or_init(|| of.overhead.get_or_create_owned(&labels()))
    }

    /// [`Metrics::tokens`], of each kind that is known: input, output, cached.
    pub fn count_tokens(&self, of: &Metrics, input: Option<u32>, output: Option<u32>, cached: Option<u32>) {
        let kinds = [("input", input), ("output", output), ("cached", cached)];
        for (member, (kind, tokens)) in self.tokens.iter().zip(kinds) {
            if let Some(tokens) = tokens {
                let labels = || TokenLabels { model: self.labels.model.clone(), kind };
                member.get_or_init(|| of.tokens.get_or_create_owned(&labels())).inc_by(u64::from(tokens));
            }
        }
    }
}

fn member<'a, L, M, C>(kept: &'a OnceLock<M>, family: &Family<L, M, C>, labels: &L) -> &'a M
where
    L: Clone + Hash + Eq,
    M: Clone,
    C: MetricConstructor<M>,
{
    kept.get_or_init(|| family.get_or_create_owned(labels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Rows;

    fn metrics() -> Metrics {
        Metrics::new(Arc::new(Rows::default))
    }

    #[test]
    fn what_is_kept_counts_in_the_families_and_what_was_not_counted_is_not_on_the_page() {
        let metrics = metrics();
        let tally = metrics.tally(&"door".into(), &"tiny".into());
        assert!(!metrics.page().contains("tiny"), "{}", metrics.page());
        tally.open(&metrics).inc();
        for code in [200, 200, 503] {
            tally.requests(&metrics, "chat_completions", code).inc();
        }
        tally.arms(&metrics, &"a".into()).inc();
        tally.arms(&metrics, &"b".into()).inc();
        tally.duration(&metrics).observe(1.0);
        tally.count_tokens(&metrics, Some(7), None, Some(3));
        let page = metrics.page();
        for line in [
            r#"tidegate_requests_open{listener="door",model="tiny"} 1"#,
            r#"tidegate_requests_total{listener="door",endpoint="chat_completions",model="tiny",code="200"} 2"#,
            r#"tidegate_requests_total{listener="door",endpoint="chat_completions",model="tiny",code="503"} 1"#,
            r#"tidegate_split_requests_total{model="tiny",target="a"} 1"#,
            r#"tidegate_split_requests_total{model="tiny",target="b"} 1"#,
            r#"tidegate_request_duration_seconds_count{listener="door",model="tiny"} 1"#,
            r#"tidegate_tokens_total{model="tiny",kind="input"} 7"#,
            r#"tidegate_tokens_total{model="tiny",kind="cached"} 3"#,
        ] {
            assert!(page.contains(line), "{line} not in\n{page}");
        }
        assert!(!page.contains("kind=\"output\"") && !page.contains("tidegate_time_to_first_token_seconds_count"));
    }

    #[test]
    fn one_listener_and_model_have_one_tally_and_names_beyond_the_bound_share_one() {
        let metrics = metrics();
        let (door, other) = (Name::from("door"), Name::from("other"));
        let one = metrics.tally(&door, &"tiny".into());
        assert!(Arc::ptr_eq(&one, &metrics.tally(&"door".into(), &"tiny".into())));
        assert!(!Arc::ptr_eq(&one, &metrics.tally(&"window".into(), &"tiny".into())));
        let of: Vec<_> = (0..3_000).map(|i| metrics.tally(&door, &format!("m{i}").into())).collect();
        let beyond: Vec<_> = of.iter().filter(|tally| *tally.model() == other).collect();
        assert!(beyond.len() > 1_900 && beyond.iter().all(|tally| Arc::ptr_eq(tally, beyond[0])));
        assert!(metrics.tallies.0.read().unwrap().len() < 1_100);
    }
}
