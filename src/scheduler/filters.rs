//! Which pods may be chosen at all: in use by their health, not yet tried for this request, and serving its model.
//!
//! What nobody knows excludes nobody: a pod that was never asked what it serves is taken to serve everything. If no pod
//! is left, ejected ones are taken after all, because a likely failure is better than a certain one; a pod that sleeps
//! or leaves never is.
//!
//! A pod that lately said no is slow, not out. `least-cost` prices that; the other policies have no such number, so for
//! them it is passed over while there are others. So is a pod that warms up and has had its part of late.

use std::sync::Arc;

use super::{NoPod, Outs, Question, Scene, Tried};
use crate::{
    config::Scheduler,
    fleet::{Admission, Condition, Pod, Serving},
};

/// A pod that may be chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a> {
    /// Its place in the scene.
    pub(super) at: usize,
    pub(super) pod: &'a Arc<Pod>,
    /// What it gets of a warm pod's share.
    pub(super) share: f64,
}

/// The pods that may be chosen for one request.
#[derive(Debug)]
pub(super) struct Field<'a> {
    pub(super) scene: &'a Scene<'a>,
    pub(super) question: &'a Question<'a>,
    pub(super) candidates: Vec<Candidate<'a>>,
    /// Whether a pod says that the served model is an adapter.
    pub(super) adapter: bool,
    /// Whether one says that it is a model of its own.
    pub(super) base: bool,
    pub(super) failed_open: bool,
}

/// What a filter says of one pod.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Standing {
    /// It may be chosen, at this share.
    In { share: f64, serving: Serving },
    /// It may not.
    Out(Reason),
}

/// Why a pod may not be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Tried,
    NotServed,
    Ejected,
    Asleep,
    Draining,
}

impl Reason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tried => "tried",
            Self::NotServed => "does not serve the model",
            Self::Ejected => "ejected",
            Self::Asleep => "asleep",
            Self::Draining => "draining",
        }
    }
}

/// What the served model is to pods, remembered by what they report: pods of one pool mostly report the same.
#[derive(Debug)]
struct Menus<'a> {
    model: &'a str,
    last: Option<(u64, Serving)>,
}

impl Menus<'_> {
    #[inline]
    fn serving(&mut self, pod: &Pod) -> Serving {
        let menu = pod.menu();
        match self.last {
            Some((last, serving)) if last == menu => serving,
            _ => {
                let serving = pod.serving(self.model);
                self.last = Some((menu, serving));
                serving
            }
        }
    }
}

/// Whether `pod` may be chosen.
pub(super) fn standing(pod: &Pod, scene: &Scene<'_>, question: &Question<'_>, tried: &Tried) -> Standing {
    stands(pod, scene, pod.serving(question.served_model), tried)
}

#[expect(clippy::inline_always, reason = "a call a pod, with all it passes, is a tenth of a pick")]
#[inline(always)]
fn stands(pod: &Pod, scene: &Scene<'_>, serving: Serving, tried: &Tried) -> Standing {
    if tried.contains(pod) {
        return Standing::Out(Reason::Tried);
    }
    if serving == Serving::No {
        return Standing::Out(Reason::NotServed);
    }
    match pod.admits(scene.now) {
        Admission::Yes => Standing::In { share: 1.0, serving },
        Admission::Warming(share) => Standing::In { share, serving },
        // A request that failed once already is not the one to find out with.
        Admission::Probe if tried.is_empty() => Standing::In { share: 1.0, serving },
        Admission::No(Condition::Asleep) => Standing::Out(Reason::Asleep),
        Admission::No(Condition::Draining) => Standing::Out(Reason::Draining),
        Admission::Probe | Admission::No(_) => Standing::Out(Reason::Ejected),
    }
}

impl<'a> Field<'a> {
    pub(super) fn gather(
        policy: &Scheduler,
        scene: &'a Scene<'a>,
        question: &'a Question<'a>,
        tried: &Tried,
    ) -> Result<Self, NoPod> {
        let mut field = Self {
            scene,
            question,
            candidates: Vec::with_capacity(scene.pods.len()),
            adapter: false,
            base: false,
            failed_open: false,
        };
        let mut warming = false;
        let mut menus = Menus { model: question.served_model, last: None };
        for (at, pod) in scene.pods.iter().enumerate() {
            if let Standing::In { share, serving } = stands(pod, scene, menus.serving(pod), tried) {
                field.candidates.push(Candidate { at, pod, share });
                warming |= share < 1.0;
                field.adapter |= serving == Serving::Adapter;
                field.base |= serving == Serving::Base;
            }
        }
        if field.candidates.is_empty() {
            field.fail_open(tried)?;
        }
        if !matches!(policy, Scheduler::LeastCost) {
            let now = scene.now;
            field.pass_over(|it| !it.pod.health.pushback(now).is_zero());
        }
        if warming {
            let (nth, pods) = (scene.pool.sent(), scene.pods.len());
            field.pass_over(|it| it.share < 1.0 && !it.pod.health.has_allowance(nth, pods));
        }
        Ok(field)
    }

    /// If it holds for all of them, all of them stay, and the policy finds the least bad one by its own measure.
    fn pass_over(&mut self, for_now: impl Fn(&Candidate<'_>) -> bool) {
        let many = self.candidates.iter().filter(|it| for_now(it)).count();
        if (1..self.candidates.len()).contains(&many) {
            self.candidates.retain(|it| !for_now(it));
        }
    }

    fn fail_open(&mut self, tried: &Tried) -> Result<(), NoPod> {
        self.failed_open = true;
        let (mut outs, mut were_tried) = (Outs::default(), 0);
        for (at, pod) in self.scene.pods.iter().enumerate() {
            match standing(pod, self.scene, self.question, tried) {
                // It was out a moment ago and is no longer.
                Standing::In { share, .. } => self.candidates.push(Candidate { at, pod, share }),
                Standing::Out(Reason::Ejected) => self.candidates.push(Candidate { at, pod, share: 1.0 }),
                Standing::Out(Reason::Asleep) => outs.asleep += 1,
                Standing::Out(Reason::Draining) => outs.draining += 1,
                Standing::Out(Reason::Tried) => were_tried += 1,
                Standing::Out(Reason::NotServed) => {}
            }
        }
        match (self.candidates.len(), self.scene.pods.len()) {
            (1.., _) => Ok(()),
            (0, 0) => Err(NoPod::PoolEmpty),
            _ if were_tried > 0 => Err(NoPod::AllTried),
            _ if outs != Outs::default() => Err(NoPod::AllOut(outs)),
            _ => Err(NoPod::NotServed),
        }
    }
}
