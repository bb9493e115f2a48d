//! A decision in full: every pod with its price and its parts, or why it was passed over, and the verdict.
//!
//! It asks the same filters and the same judge as a pick; only the turn of round robin is read and not taken.

use std::{borrow::Cow, sync::atomic::Ordering::Relaxed, time::Duration};

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::{
    NoPod, Question, Scene, Sight, Term, Tried, choice,
    filters::{Field, Reason, Standing, standing},
    policies::Judge,
};
use crate::{config::Scheduler, fleet::Pod};

/// What would be decided, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The policy.
    pub policy: Cow<'static, str>,
    /// The pool.
    pub pool: String,
    /// The name that pods know the model by.
    pub served_model: String,
    /// Estimated prompt tokens.
    pub prompt_tokens: u32,
    /// What the decision stands on; absent if there is none.
    pub sight: Option<Sight>,
    /// Whether pods that are out had to be taken.
    pub failed_open: bool,
    /// Every pod of the pool.
    pub candidates: Vec<Candidate>,
    /// The chosen pod's id.
    pub verdict: Option<String>,
    /// Why there is none.
    pub refusal: Option<String>,
}

/// One pod in an explanation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its id.
    pub pod: String,
    /// Its condition.
    pub condition: Cow<'static, str>,
    /// Why it could not be chosen.
    pub excluded: Option<Cow<'static, str>>,
    /// For how many milliseconds it still looks slow because it said no; absent if it does not.
    #[serde(default)]
    pub pushback_ms: Option<u64>,
    /// Age of its last reading; absent if it was never read.
    pub reading_age_ms: Option<u64>,
    /// How much that reading counts, 0 to 1.
    pub reading_trust: f64,
    /// Our requests there.
    pub in_flight: u64,
    /// Requests there as believed, others' included; absent where the policy does not look.
    pub streams: Option<f64>,
    /// Prompt tokens that it would have to compute.
    pub uncached_tokens: u32,
    /// How far it is believed to hold what it was sent, 0 to 1; absent if it was sent nothing like this prompt.
    pub prefix_trust: Option<f32>,
    /// Its price; the lowest wins, but most points do.
    pub total: Option<f64>,
    /// What the price counts: `ms`, `points`, `requests`, ...
    pub unit: Cow<'static, str>,
    /// The parts of the price.
    pub terms: Vec<Term>,
}

/// What [`super::pick`] would decide with the same arguments, and every number on the way.
pub fn explain(
    policy: &Scheduler,
    scene: &Scene<'_>,
    question: &Question<'_>,
    tried: &Tried,
    rng: &mut impl Rng,
) -> Explanation {
    let mut told = Explanation {
        policy: policy.name().into(),
        pool: scene.pool.name().to_string(),
        served_model: question.served_model.to_owned(),
        prompt_tokens: question.prompt_tokens,
        sight: None,
        failed_open: false,
        candidates: scene.pods.iter().map(|pod| Candidate::of(pod, scene, question, tried)).collect(),
        verdict: None,
        refusal: None,
    };
    let judged = Field::gather(policy, scene, question, tried).and_then(|field| told.judge(policy, &field, rng));
    if let Err(refusal) = judged {
        told.refusal = Some(refusal.to_string());
    }
    told
}

impl Explanation {
    fn judge(&mut self, policy: &Scheduler, field: &Field<'_>, rng: &mut impl Rng) -> Result<(), NoPod> {
        let turn = || field.scene.pool.turn.load(Relaxed);
        let judge = Judge::new(policy, field, &turn, rng);
        self.failed_open = field.failed_open;
        // Who is a candidate all the same is told so below.
        for passed_over in self.candidates.iter_mut().filter(|it| it.excluded.is_none()) {
            let why =
                if passed_over.pushback_ms.is_some() { "said no lately" } else { "warming: has had its part of late" };
            passed_over.excluded = Some(why.into());
        }
        for (place, candidate) in field.candidates.iter().enumerate() {
            let Some(told) = self.candidates.get_mut(candidate.at) else {
                continue;
            };
            let belief = judge.beliefs().and_then(|it| it.at(field, place));
            let price = judge.price(place);
            told.excluded = None;
            told.streams = belief.map(|(_, it)| f64::from(it.streams()));
            told.total = Some(price.total());
            told.unit = price.unit().into();
            told.terms = price.terms().to_vec();
        }
        let verdict = choice::choose(policy, field, &judge, &turn, rng)?;
        self.sight = Some(verdict.sight);
        self.verdict = Some(verdict.pod.id.to_string());
        Ok(())
    }
}

impl Candidate {
    fn of(pod: &Pod, scene: &Scene<'_>, question: &Question<'_>, tried: &Tried) -> Self {
        let load = pod.load();
        let age = load.as_deref().map(|load| load.age(scene.now));
        let pushback = pod.health.pushback(scene.now);
        let excluded = match standing(pod, scene, question, tried) {
            Standing::In { .. } => None,
            Standing::Out(Reason::Ejected) => pod.health.ejection().map(|why| why.told().into()),
            Standing::Out(reason) => Some(reason.name().into()),
        };
        let trust = load.as_deref().map(|load| load.trust(scene.now, pod.view.interval));
        Self {
            pod: pod.id.to_string(),
            condition: pod.condition(scene.now).name().into(),
            excluded,
            pushback_ms: Some(millis(pushback)).filter(|ms| *ms > 0),
            reading_age_ms: age.map(millis),
            reading_trust: trust.unwrap_or(0.0),
            in_flight: pod.ledger.in_flight(),
            streams: None,
            uncached_tokens: question.send(pod.slot).uncached_tokens,
            prefix_trust: question.hits.trust(pod.slot),
            total: None,
            unit: "none".into(),
            terms: Vec::new(),
        }
    }
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}
