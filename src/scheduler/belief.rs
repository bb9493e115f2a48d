//! What is believed of each candidate at this moment: our own ledger, which is exact, and the rest of its traffic,
//! which only its last reading tells.
//!
//! A reading counts less the older it is. For the part that it no longer tells, and for a pod that was never read, the
//! other pods' mean stands in: such a pod is neither taken to be idle nor shunned. Once nothing is fresh the mean is
//! nothing, and our own ledger is all there is.

use super::{
    Sight,
    filters::{Candidate, Field},
};
use crate::fleet::{AdapterState, Glance, Moment, Name, Pod};

/// KV-cache tokens of a pod that does not tell: what Llama-3.1-8B leaves on an 80 GB H100 (90 % of the memory).
const KV_TOKENS: f32 = 422_000.0;

/// What is believed of one pod. Single precision holds every count that matters here, and a belief a cache line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Belief {
    /// How much its reading counts, 0 to 1.
    pub(super) trust: f32,
    /// Our requests there.
    pub(super) own: f32,
    /// Our requests there without a first token yet.
    pub(super) unstarted: f32,
    /// Their uncached prompt tokens.
    pub(super) prefill_tokens: f32,
    /// Requests of others there.
    pub(super) others: f32,
    /// Of those, the ones that wait.
    pub(super) others_waiting: f32,
    /// Requests there that wait, ours included, as it last said plus what we sent since.
    pub(super) waiting: f32,
    /// Requests that it last said to be running.
    pub(super) running: f32,
    /// KV-cache usage as it last said, 0 to 1.
    pub(super) kv_usage: f32,
    /// Its KV cache in tokens.
    pub(super) kv_capacity: f32,
    /// KV-cache tokens that our requests took since that reading.
    pub(super) kv_since: f32,
    /// Leading blocks of this prompt that it holds.
    pub(super) blocks: u32,
    /// What the served model, if it is an adapter, finds there.
    pub(super) adapter: AdapterState,
}

impl Belief {
    /// Requests there.
    pub(super) fn streams(&self) -> f32 {
        self.own + self.others
    }
}

/// What is believed of every candidate, in the field's order.
#[derive(Debug)]
pub(super) struct Beliefs {
    /// As each pod tells, before the mean stands in for what it does not.
    told: Vec<Belief>,
    mean: Means,
    /// Whether a page has the served model among its adapters.
    pub(super) adapter: bool,
}

impl Beliefs {
    /// `adapters`: whether it matters how ready the pods are for the served model as an adapter.
    pub(super) fn gather(field: &Field<'_>, adapters: bool) -> Self {
        let mut beliefs =
            Self { told: Vec::with_capacity(field.candidates.len()), mean: Means::default(), adapter: false };
        let model = Name::new(field.question.served_model);
        let mut hits = field.question.hits.walk();
        let mut sums = Means::default();
        let moment = field.scene.pool.moment(field.scene.now);
        for Candidate { pod, .. } in &field.candidates {
            let mut belief = of_pod(pod, &moment);
            if adapters {
                belief.adapter = pod.adapter(model);
            }
            belief.blocks = u32::try_from(hits.blocks(pod.slot)).unwrap_or(u32::MAX);
            beliefs.adapter |= matches!(belief.adapter, AdapterState::Held | AdapterState::Wanted);
            sums.add(&belief);
            beliefs.told.push(belief);
        }
        beliefs.mean = sums.mean();
        beliefs
    }

    /// The candidates of `field`, for which these were gathered, each with what is believed of it.
    #[inline]
    pub(super) fn of<'a>(&'a self, field: &'a Field<'a>) -> impl Iterator<Item = (&'a Candidate<'a>, Belief)> {
        let both = field.candidates.iter().zip(&self.told);
        both.map(|(candidate, told)| (candidate, self.mean.filled(told)))
    }

    /// One of them.
    pub(super) fn at<'a>(&'a self, field: &'a Field<'a>, place: usize) -> Option<(&'a Candidate<'a>, Belief)> {
        let both = field.candidates.get(place).zip(self.told.get(place));
        both.map(|(candidate, told)| (candidate, self.mean.filled(told)))
    }

    /// What these beliefs stand on.
    pub(super) fn sight(&self) -> Sight {
        if self.mean.trust > 0.0 { Sight::Fresh } else { Sight::InFlightOnly }
    }
}

#[inline]
fn of_pod(pod: &Pod, moment: &Moment) -> Belief {
    let ledger = &pod.ledger;
    let mut belief = Belief {
        own: count(ledger.in_flight()),
        unstarted: count(ledger.unstarted()),
        prefill_tokens: count(ledger.prefill_tokens()),
        kv_capacity: KV_TOKENS,
        kv_since: count(ledger.kv_tokens()),
        ..Belief::default()
    };
    if let Some(glance) = pod.glance(moment) {
        belief.look(&glance);
    }
    belief
}

impl Belief {
    #[inline]
    fn look(&mut self, glance: &Glance) {
        // What we sent since less what ended.
        let since = self.own - glance.ours;
        self.trust = glance.trust;
        self.others = glance.others;
        self.others_waiting = glance.others_waiting;
        self.waiting = (glance.waiting + since).max(0.0);
        self.running = glance.running;
        self.kv_usage = glance.kv_usage;
        self.kv_capacity = glance.kv_capacity.unwrap_or(KV_TOKENS);
        // Of what our requests hold, the part of those sent since.
        self.kv_since *= since.clamp(0.0, self.own) / self.own.max(1.0);
    }
}

/// By way of a signed number: the processor has no instruction for unsigned ones.
#[inline]
fn count(n: u64) -> f32 {
    n.cast_signed() as f32
}

/// Means over what readings tell, each weighted by how much it counts.
#[derive(Debug, Default)]
struct Means {
    trust: f32,
    others: f32,
    others_waiting: f32,
    waiting: f32,
    running: f32,
    kv_usage: f32,
}

impl Means {
    #[inline]
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
        let all = self.trust.max(f32::MIN_POSITIVE);
        Self {
            trust: self.trust,
            others: self.others / all,
            others_waiting: self.others_waiting / all,
            waiting: self.waiting / all,
            running: self.running / all,
            kv_usage: self.kv_usage / all,
        }
    }

    /// Inlined, this costs a policy only what it looks at.
    #[inline]
    fn filled(&self, told: &Belief) -> Belief {
        let trust = told.trust;
        let mix = |told: f32, mean: f32| told * trust + mean * (1.0 - trust);
        Belief {
            others: mix(told.others, self.others),
            others_waiting: mix(told.others_waiting, self.others_waiting),
            waiting: mix(told.waiting, self.waiting).max(told.waiting_at_least()),
            running: mix(told.running, self.running),
            kv_usage: mix(told.kv_usage, self.kv_usage),
            ..*told
        }
    }
}

impl Belief {
    /// Where no reading counts, our own requests without a first token are those that wait.
    #[inline]
    fn waiting_at_least(&self) -> f32 {
        if self.trust > 0.0 { 0.0 } else { self.unstarted }
    }
}
