//! The attempts of one request: pods one after the other until one answers or no further one is allowed.
//!
//! Whose fault a failure is and whether it may be tried again, `upstream` says; how many, the operator.

use std::{pin::pin, sync::Arc, time::Duration};

use http::StatusCode;
use tokio::time::sleep;

use super::Story;
use crate::{
    clock,
    config::{RetryOn, Timeouts},
    fleet::{Pod, PoolState},
    gateway::{
        decide::{Matter, Pick},
        receipt::Receipt,
        rejection::Rejection,
    },
    scheduler::{NoPod, Tried},
    telemetry::{Name, labels::PoolReasonLabels},
    upstream::{self, Carry, Failure, FailureKind, Fault, Over},
};

/// How long a body is kept for another attempt while a pod has it. A pod that takes no more says so in milliseconds; one
/// that is silent so long works on it, and what fails then is not tried again.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Smaller bodies are kept until the answer begins: not worth a timer, as large as a connection's own buffers.
const WORTH_LETTING_GO: usize = 16 << 10;

/// A request, for as long as another attempt could follow.
pub(super) struct Held {
    pub(super) carry: Option<Carry>,
    /// Whether a pod may have died of it.
    killed: bool,
}

impl Held {
    /// One that no pod has had yet.
    pub(super) fn new(carry: Carry) -> Self {
        Self { carry: Some(carry), killed: false }
    }
}

/// An attempt that is to be followed by another one, if there may be one.
struct Spent {
    failure: Failure,
    /// What the pod said, if it said something: the client's, if nobody says better.
    answer: Option<upstream::Answer>,
}

impl From<Failure> for Spent {
    fn from(failure: Failure) -> Self {
        Self { failure, answer: None }
    }
}

impl Story {
    /// Attempts until one brings an answer, or no further one is allowed. Nothing of an answer has gone out before. The
    /// request is `held` for as long as another attempt could follow.
    pub(super) async fn attempts(
        &self,
        held: &mut Held,
        timeouts: &Timeouts,
        matter: &Matter,
        receipt: &mut Receipt,
    ) -> Result<(upstream::Answer, Pick), Rejection> {
        let retry = &self.policy.config.retry;
        let mut tried = Tried::none();
        // Who waited after a race has one attempt left.
        let mut left = if held.killed { 0 } else { retry.attempts };
        let (mut died, mut raced) = (false, held.killed);
        let mut over = if held.killed { Over::New } else { Over::Any };
        let mut pick = matter.reserve(&self.house, &self.listener, &tried).map_err(Rejection::NoPod)?;
        loop {
            let carry = if retry.attempts == 0 { held.carry.take() } else { held.carry.clone() };
            // Who goes on to another attempt has seen that it is there.
            let Some(carry) = carry else { return Err(Rejection::NoPod(NoPod::AllTried)) };
            receipt.chose(pick.chosen(&matter.route.served_model), pick.took);
            let mut ours = Attempt { pick: &mut pick, streamed: receipt.streamed, held: &mut held.carry, over };
            let answered = self.attempt(carry, timeouts, &mut ours).await;
            let spent = match answered {
                Ok(answer) => match self.weigh(answer, &pick, matter).await {
                    Ok(answer) => return Ok((answer, pick)),
                    Err(spent) => spent,
                },
                Err(failure) => Spent::from(failure),
            };
            if spent.failure.may_have_killed() {
                // A request that kills pods is tried at most once more, whatever the configuration says.
                left = left.min(u32::from(!held.killed));
                held.killed = true;
                died |= spent.failure.kind == FailureKind::Died;
            }
            let race = spent.failure.fault() == Fault::Race;
            // A pod whose idle timer was faster than we is well, and may be the only one there is.
            if !race {
                tried.add(&pick.verdict.pod);
            }
            over = if race { Over::New } else { Over::Any };
            let free = race && !raced;
            raced |= race;
            let may = left > 0 && held.carry.is_some();
            let next = if may { self.another(&spent.failure, matter, &tried, free) } else { None };
            match (next, spent.answer) {
                // Whoever relays it notes what it says of the pod.
                (None, Some(answer)) => return Ok((answer, pick)),
                (None, None) => {
                    self.note_failure(&pick, &spent.failure);
                    if died {
                        // Nor does it wait for a pod that it could try next. After a race, which is most often an idle
                        // timer's doing, it may.
                        held.carry = None;
                    }
                    return Err(Rejection::Failed(spent.failure));
                }
                (Some(next), _) => {
                    self.note_failure(&pick, &spent.failure);
                    receipt.tried_again(spent.failure.kind);
                    left -= 1;
                    pick = next;
                }
            }
        }
    }

    /// Another pod, if this failure may be tried again, one is left and the budget allows it. A request's first race is
    /// `free`: on the new connection that follows there is no second, so that it adds no load to a sick fleet.
    fn another(&self, failure: &Failure, matter: &Matter, tried: &Tried, free: bool) -> Option<Pick> {
        let retry = &self.policy.config.retry;
        if !failure.may_retry(&retry.on) || !matter.leaves_a_pod(tried) {
            return None;
        }
        let metrics = &self.house.metrics;
        let labels = PoolReasonLabels { pool: Name::from(matter.pool.name()), reason: failure.kind.name() };
        let now = clock::now();
        if !free && !self.house.retries.spend(retry, now) {
            metrics.retries_denied.get_or_create(&labels).inc();
            if let Some(denied) = self.house.retries.denied(matter.pool.name(), now) {
                tracing::warn!(pool = &**matter.pool.name(), denied, "retry budget spent");
            }
            return None;
        }
        let next = matter.reserve(&self.house, &self.listener, tried).ok()?;
        metrics.retries.get_or_create(&labels).inc();
        Some(next)
    }

    /// Whether an answer is one for the client, or one of those after which another pod may be asked.
    async fn weigh(
        &self,
        mut answer: upstream::Answer,
        pick: &Pick,
        matter: &Matter,
    ) -> Result<upstream::Answer, Spent> {
        let status = answer.head.status;
        if status.is_success() {
            let looks = matter.generates && self.policy.config.retry.on.contains(&RetryOn::EmptyAnswer);
            if !(looks && answer.is_empty().await) {
                return Ok(answer);
            }
        }
        let pod = &pick.verdict.pod;
        let known = if status.is_success() {
            Some(FailureKind::EmptyAnswer)
        } else {
            answer.refusal(pod.health.is_leaving()).await
        };
        let kind = known.unwrap_or(FailureKind::Status(status.as_u16()));
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            self.house.pod_refused(pod, kind.name(), answer.retry_after(), answer.sent);
        } else if kind == FailureKind::ModelUnknown {
            self.house.pod_refused(pod, kind.name(), None, answer.sent);
            (self.house.doubt)(&pod.id);
        }
        let failure = Failure::new(kind, status);
        if failure.may_retry(&self.policy.config.retry.on) {
            return Err(Spent { failure, answer: Some(answer) });
        }
        Ok(answer)
    }

    /// One attempt. A whole answer does not show its first token, so its prefill is taken to be over when it should be;
    /// else it would count as waiting until its last token.
    async fn attempt(
        &self,
        carry: Carry,
        timeouts: &Timeouts,
        ours: &mut Attempt<'_>,
    ) -> Result<upstream::Answer, Failure> {
        let pod = Arc::clone(&ours.pick.verdict.pod);
        // An operator who has slow failures tried again needs the body for as long as they take.
        let large = carry.body.len() >= WORTH_LETTING_GO && self.policy.config.retry.on.is_empty();
        // Boxed, because connecting needs much room, and all around it would have to be as large, and is moved.
        let mut attempt = Box::pin(self.house.upstream.attempt(&pod, carry, timeouts, ours.over));
        let (mut unstarted, mut keeps) = (!ours.streamed, large);
        if !unstarted && !keeps {
            return attempt.await;
        }
        let mut started = pin!(sleep(ours.pick.course.first_token_due()));
        let mut kept = pin!(sleep(KEPT_FOR));
        loop {
            tokio::select! {
                biased;
                answer = &mut attempt => return answer,
                () = &mut started, if unstarted => {
                    ours.pick.first_token();
                    unstarted = false;
                }
                () = &mut kept, if keeps => {
                    *ours.held = None;
                    keeps = false;
                }
            }
        }
    }

    /// The one attempt of a request that only this pod can answer.
    pub(super) async fn only_attempt(
        &self,
        carry: Carry,
        timeouts: &Timeouts,
        (pool, pod): (&Arc<PoolState>, &Arc<Pod>),
    ) -> Result<(upstream::Answer, Pick), Rejection> {
        let pick = Pick::of_pod(&self.house, pool, pod);
        let mut told = self.house.upstream.attempt(pod, carry.clone(), timeouts, Over::Any).await;
        if told.as_ref().is_err_and(|failure| failure.fault() == Fault::Race) {
            // The pod is well.
            told = self.house.upstream.attempt(pod, carry, timeouts, Over::New).await;
        }
        match told {
            Ok(answer) => Ok((answer, pick)),
            Err(failure) => {
                self.note_failure(&pick, &failure);
                Err(Rejection::Failed(failure))
            }
        }
    }

    fn note_failure(&self, pick: &Pick, failure: &Failure) {
        let pod = &pick.verdict.pod;
        let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: failure.kind.name() };
        self.house.metrics.failures.get_or_create(&labels).inc();
        tracing::debug!(pod = %pod.id, %failure, "attempt failed");
        if failure.fault() == Fault::Pod {
            self.house.pod_failed(pod);
        } else if failure.kind == FailureKind::Unbuildable {
            // It failed at once and cost nothing: without a price it would be everybody's favourite.
            self.house.pod_refused(pod, failure.kind.name(), None, clock::now());
        }
    }
}

/// One attempt, and what another would need.
struct Attempt<'a> {
    pick: &'a mut Pick,
    streamed: bool,
    /// The request once more, while another attempt is possible.
    held: &'a mut Option<Carry>,
    over: Over,
}
