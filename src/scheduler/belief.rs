//! What is believed of each candidate at this moment: our own ledger, which is exact, and the rest of its traffic,
//! which only its last reading tells.
//!
//! A reading counts less the older it is. For the part that it no longer tells, and for a pod that was never read, the
//! other pods' mean stands in: such a pod is neither taken to be idle nor shunned. Once nothing is fresh the mean is
//! nothing, and our own ledger is all there is.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Sight, filters::Field};
use crate::fleet::{Pod, PodLoad};

/// KV-cache tokens of a pod that does not tell: what Llama-3.1-8B leaves on an 80 GB H100 (90 % of the memory).
const KV_TOKENS: f64 = 422_000.0;

/// What is believed of one pod.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Belief {
    /// How much its reading counts, 0 to 1.
    pub(super) trust: f64,
    /// Our requests there.
    pub(super) own: f64,
    /// Our requests there without a first token yet.
    pub(super) unstarted: f64,
    /// Their uncached prompt tokens.
    pub(super) prefill_tokens: f64,
    /// Requests of others there.
    pub(super) others: f64,
    /// Of those, the ones that wait.
    pub(super) others_waiting: f64,
    /// Requests there that wait, ours included, as it last said plus what we sent since.
    pub(super) waiting: f64,
    /// Requests that it last said to be running.
    pub(super) running: f64,
    /// KV-cache usage as it last said, 0 to 1.
    pub(super) kv_usage: f64,
    /// Its KV cache in tokens.
    pub(super) kv_capacity: f64,
    /// KV-cache tokens that our requests took since that reading.
    pub(super) kv_since: f64,
    /// What the served model, if it is an adapter, finds there.
    pub(super) adapter: Adapter,
}

/// How ready a pod is for an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Adapter {
    /// Its page does not speak of adapters.
    #[default]
    Untold,
    /// It is loaded.
    Held,
    /// It is not, and there is room.
    Room,
    /// It is not, but a waiting request wants it.
    Wanted,
    /// It is not, and another must go first.
    Full,
}

impl Belief {
    /// Requests there.
    pub(super) fn streams(&self) -> f64 {
        self.own + self.others
    }
}

/// What is believed of every candidate, in the field's order.
#[derive(Debug)]
pub(super) struct Beliefs {
    pub(super) list: SmallVec<[Belief; 16]>,
    /// Whether a page has the served model among its adapters.
    pub(super) adapter: bool,
}

impl Beliefs {
    pub(super) fn gather(field: &Field<'_>) -> Self {
        let mut beliefs = Self { list: SmallVec::with_capacity(field.candidates.len()), adapter: false };
        let mut told = Means::default();
        for (_, pod) in field.pods() {
            let belief = of_pod(pod, field);
            beliefs.adapter |= matches!(belief.adapter, Adapter::Held | Adapter::Wanted);
            told.add(&belief);
            beliefs.list.push(belief);
        }
        let mean = told.mean();
        for belief in &mut beliefs.list {
            mean.fill(belief);
        }
        beliefs
    }

    /// What these beliefs stand on.
    pub(super) fn sight(&self) -> Sight {
        if self.list.iter().any(|belief| belief.trust > 0.0) { Sight::Fresh } else { Sight::InFlightOnly }
    }
}

fn of_pod(pod: &Pod, field: &Field<'_>) -> Belief {
    let ledger = &pod.ledger;
    let mut belief = Belief {
        own: ledger.in_flight() as f64,
        unstarted: ledger.unstarted() as f64,
        prefill_tokens: ledger.prefill_tokens() as f64,
        kv_capacity: KV_TOKENS,
        kv_since: ledger.kv_tokens() as f64,
        ..Belief::default()
    };
    let load = pod.load_guard();
    let Some(load) = load.as_deref() else { return belief };
    // A page without gauges tells nothing, however new it is.
    let Some(said) = load.reading.streams() else {
        return belief;
    };
    belief.trust = load.trust(field.scene.now, pod.view.interval);
    read(&mut belief, load, said, pod);
    belief.adapter = adapter(load, field.question.served_model);
    belief
}

fn read(belief: &mut Belief, load: &PodLoad, said: u32, pod: &Pod) {
    let reading = &load.reading;
    let since = pod.ledger.sent().saturating_sub(load.sent_mark) as f64
        - pod.ledger.ended().saturating_sub(load.ended_mark) as f64;
    let said = f64::from(said);
    let waiting = f64::from(reading.waiting.unwrap_or(0)) + f64::from(reading.swapped.unwrap_or(0));
    // What we have there now less what changed since is what we had there then; the rest of what it said is others'.
    // Which of them wait is not told: in proportion.
    belief.others = (said + since - belief.own).max(0.0);
    belief.others_waiting = waiting * belief.others / said.max(belief.others).max(1.0);
    belief.waiting = (waiting + since).max(0.0);
    belief.running = f64::from(reading.running.unwrap_or(0));
    belief.kv_usage = reading.kv_usage.unwrap_or(0.0).clamp(0.0, 1.0);
    belief.kv_capacity = reading.kv_capacity().map_or(KV_TOKENS, |tokens| tokens as f64);
    belief.kv_since = belief.kv_since / belief.own.max(1.0) * since.clamp(0.0, belief.own.max(0.0));
}

fn adapter(load: &PodLoad, model: &str) -> Adapter {
    let Some(adapters) = &load.reading.adapters else {
        return Adapter::Untold;
    };
    if adapters.holds(model) {
        return Adapter::Held;
    }
    let other = |name: &&Arc<str>| !adapters.running.contains(name);
    let waiting = adapters.waiting.iter().filter(other).count();
    let taken = adapters.running.len() + waiting;
    if adapters.max.is_none_or(|max| taken < max as usize) {
        Adapter::Room
    } else if waiting > 0 && adapters.waiting.iter().any(|name| &**name == model) {
        Adapter::Wanted
    } else {
        Adapter::Full
    }
}

/// Means over what readings tell, each weighted by how much it counts.
#[derive(Debug, Default)]
struct Means {
    trust: f64,
    others: f64,
    others_waiting: f64,
    waiting: f64,
    running: f64,
    kv_usage: f64,
}

impl Means {
    fn add(&mut self, belief: &Belief) {
        let trust = belief.trust;
        self.trust += trust;
        self.others += trust * belief.others;
        self.others_waiting += trust * belief.others_waiting;
        self.waiting += trust * belief.waiting;
        self.running += trust * belief.running;
        self.kv_usage += trust * belief.kv_usage;
    }

    fn mean(self) -> Self {
        let all = self.trust.max(f64::MIN_POSITIVE);
        Self {
            trust: self.trust,
            others: self.others / all,
            others_waiting: self.others_waiting / all,
            waiting: self.waiting / all,
            running: self.running / all,
            kv_usage: self.kv_usage / all,
        }
    }

    fn fill(&self, belief: &mut Belief) {
        let trust = belief.trust;
        let mix = |told: f64, mean: f64| told * trust + mean * (1.0 - trust);
        belief.others = mix(belief.others, self.others);
        belief.others_waiting = mix(belief.others_waiting, self.others_waiting);
        belief.waiting = mix(belief.waiting, self.waiting).max(belief.waiting_at_least());
        belief.running = mix(belief.running, self.running);
        belief.kv_usage = mix(belief.kv_usage, self.kv_usage);
    }
}

impl Belief {
    /// Where no reading counts, our own requests without a first token are those that wait.
    fn waiting_at_least(&self) -> f64 {
        if self.trust > 0.0 { 0.0 } else { self.unstarted }
    }
}
