//! The attempts of one request: pods one after the other until one answers or no further one is allowed.
//!
//! Whose fault a failure is and whether it may be tried again, `upstream` says; how many, the operator.

use std::sync::Arc;

use super::Story;
use crate::{
    clock,
    gateway::{
        decide::{Matter, Pick},
        receipt::{Chosen, Receipt},
        rejection::Rejection,
    },
    scheduler::{NoPod, Tried},
    telemetry::{Name, labels::PoolReasonLabels},
    upstream::{self, Carry, Failure, Fault},
};

impl Story<'_> {
    /// Attempts until one brings an answer, or no further one is allowed. Nothing of an answer has come before.
    pub(super) async fn attempts(
        &self,
        carry: &Carry,
        matter: &Matter,
        receipt: &mut Receipt,
    ) -> Result<(upstream::Answer, Pick), Rejection> {
        let retry = &self.policy.config.retry;
        self.house.retries.earn(retry);
        let mut tried = Tried::none();
        let mut failed: Option<Failure> = None;
        loop {
            let mut pick = match (matter.reserve(self.house, self.listener, &tried), failed) {
                (Ok(pick), _) => pick,
                (Err(NoPod::AllTried), Some(failure)) => return Err(Rejection::Failed(failure)),
                (Err(no_pod), _) => return Err(Rejection::NoPod(no_pod)),
            };
            receipt.chose(chosen(&pick, matter), pick.took);
            let failure = match self.attempt(carry, &mut pick, receipt.streamed).await {
                Ok(answer) => return Ok((answer, pick)),
                Err(failure) => failure,
            };
            self.note_failure(&pick, &failure);
            let pod = &pick.verdict.pod;
            // A pod whose idle timer was faster than we is well, and may be the only one there is.
            if failure.fault() != Fault::Race {
                tried.add(pod);
            }
            let spent = receipt.attempts > retry.attempts;
            if spent || !failure.may_retry() || !self.house.retries.spend(retry, clock::now()) {
                return Err(Rejection::Failed(failure));
            }
            let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: failure.kind.name() };
            self.house.metrics.retries.get_or_create(&labels).inc();
            failed = Some(failure);
        }
    }

    /// One attempt. A whole answer does not show its first token, so its prefill is taken to be over when it should be;
    /// else it would count as waiting until its last token.
    async fn attempt(&self, carry: &Carry, pick: &mut Pick, streamed: bool) -> Result<upstream::Answer, Failure> {
        let (pod, timeouts) = (Arc::clone(&pick.verdict.pod), self.timeouts());
        let attempt = self.house.upstream.attempt(&pod, carry, &timeouts);
        if streamed {
            return attempt.await;
        }
        let mut attempt = std::pin::pin!(attempt);
        tokio::select! {
            biased;
            answer = &mut attempt => return answer,
            () = tokio::time::sleep(pick.course.first_token_due()) => pick.course.first_token(),
        }
        attempt.await
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
