//! The attempts of one request: pods one after the other until one answers or no further one is allowed.
//!
//! Whose fault a failure is and whether it may be tried again, `upstream` says; how many, the operator.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::Story;
use crate::{
    clock,
    config::Timeouts,
    fleet::{Pod, PoolState},
    gateway::{
        decide::{Matter, Pick},
        receipt::{Chosen, Receipt},
        rejection::Rejection,
    },
    scheduler::{NoPod, Tried},
    telemetry::{Name, labels::PoolReasonLabels},
    upstream::{self, Carry, Failure, Fault},
};

/// How long a body is kept for another attempt while a pod has it. A pod that takes no more says so in milliseconds; one
/// that is silent so long works on it, and what fails then is not tried again.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Smaller bodies are kept until the answer begins: not worth a timer, as large as a connection's own buffers.
const WORTH_LETTING_GO: usize = 16 << 10;

impl Story {
    /// Attempts until one brings an answer, or no further one is allowed. Nothing of an answer has come before.
    pub(super) async fn attempts(
        &self,
        mut carry: Carry,
        timeouts: &Timeouts,
        matter: &Matter,
        receipt: &mut Receipt,
    ) -> Result<(upstream::Answer, Pick), Rejection> {
        let retry = &self.policy.config.retry;
        self.house.retries.earn(retry);
        let mut tried = Tried::none();
        let mut failed: Option<Failure> = None;
        loop {
            let mut pick = match (matter.reserve(&self.house, &self.listener, &tried), failed) {
                (Ok(pick), _) => pick,
                (Err(NoPod::AllTried), Some(failure)) => return Err(Rejection::Failed(failure)),
                (Err(no_pod), _) => return Err(Rejection::NoPod(no_pod)),
            };
            receipt.chose(chosen(&pick, matter), pick.took);
            let spare = (tried.len() < retry.attempts as usize).then(|| carry.clone());
            let mut attempt = Attempt { pick: &mut pick, streamed: receipt.streamed, spare };
            let answer = self.attempt(carry, timeouts, &mut attempt).await;
            let spare = attempt.spare;
            let failure = match answer {
                Ok(answer) => return Ok((answer, pick)),
                Err(failure) => failure,
            };
            self.note_failure(&pick, &failure);
            let pod = &pick.verdict.pod;
            tried.add(pod);
            let Some(again) = spare.filter(|_| failure.may_retry()) else {
                return Err(Rejection::Failed(failure));
            };
            if !self.house.retries.spend(retry, clock::now()) {
                return Err(Rejection::Failed(failure));
            }
            carry = again;
            let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: failure.kind.name() };
            self.house.metrics.retries.get_or_create(&labels).inc();
            failed = Some(failure);
        }
    }

    /// One attempt. A whole answer does not show its first token, so its prefill is taken to be over when it should be;
    /// else it would count as waiting until its last token.
    async fn attempt(
        &self,
        carry: Carry,
        timeouts: &Timeouts,
        ours: &mut Attempt<'_>,
    ) -> Result<upstream::Answer, Failure> {
        let (pod, large) = (Arc::clone(&ours.pick.verdict.pod), carry.body.len() >= WORTH_LETTING_GO);
        let mut attempt = std::pin::pin!(self.house.upstream.attempt(&pod, carry, timeouts));
        let (mut unstarted, mut spare) = (!ours.streamed, large && ours.spare.is_some());
        if !unstarted && !spare {
            return attempt.await;
        }
        let mut started = std::pin::pin!(sleep(ours.pick.course.first_token_due()));
        let mut kept = std::pin::pin!(sleep(KEPT_FOR));
        loop {
            tokio::select! {
                biased;
                answer = &mut attempt => return answer,
                () = &mut started, if unstarted => {
                    ours.pick.course.first_token();
                    unstarted = false;
                }
                () = &mut kept, if spare => {
                    ours.spare = None;
                    spare = false;
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
        let pick = Pick::of_pod(pool, pod);
        match self.house.upstream.attempt(pod, carry, timeouts).await {
            Ok(answer) => Ok((answer, pick)),
            Err(failure) => {
                self.note_failure(&pick, &failure);
                Err(Rejection::Failed(failure))
            }
        }
    }

    pub(super) fn note_failure(&self, pick: &Pick, failure: &Failure) {
        let pod = &pick.verdict.pod;
        let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: failure.kind.name() };
        self.house.metrics.failures.get_or_create(&labels).inc();
        tracing::debug!(pod = %pod.id, %failure, "attempt failed");
        if failure.fault() == Fault::Pod {
            self.house.pod_failed(pod);
        }
    }
}

/// One attempt, and what another would need.
struct Attempt<'a> {
    pick: &'a mut Pick,
    streamed: bool,
    /// The request once more, while another attempt is possible.
    spare: Option<Carry>,
}

fn chosen(pick: &Pick, matter: &Matter) -> Chosen {
    let verdict = &pick.verdict;
    Chosen {
        pool: Name::from(&verdict.pod.pool),
        pod: verdict.pod.address(),
        served_model: Name::from(&matter.route.served_model),
        policy: verdict.policy,
        sight: verdict.sight.name(),
        cost_ms: verdict.price.total(),
    }
}
