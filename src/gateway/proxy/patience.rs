//! The attempts of one request, and the wait for a pod where none is ready or all are full.

use std::{future::poll_fn, pin::pin, task::Poll};

use super::{Story, attempts::Held};
use crate::{
    clock,
    config::Timeouts,
    gateway::{
        decide::{Matter, Pick},
        receipt::{Receipt, Step},
        rejection::Rejection,
        waiting::Coming,
    },
    scheduler::NoPod,
    upstream::{self, Carry, Fault},
};

impl Story {
    /// Attempts as [`Story::attempts`] makes them; and where no pod is ready, none of the first is reached, all are full or
    /// others already wait, when it is its turn.
    pub(super) async fn attempts_with_patience(
        &self,
        carry: Carry,
        timeouts: &Timeouts,
        matter: &Matter,
        receipt: &mut Receipt,
    ) -> Result<(upstream::Answer, Pick), Rejection> {
        let (news, bytes) = (matter.pool.news(), carry.body.len());
        let limits = &self.policy.config.waiting;
        let mut held = Held::new(carry);
        self.house.retries.earn(&self.policy.config.retry);
        let mut coming = Coming { bytes, tried: None, timeout: limits.timeout, limits };
        if !matter.must_wait(&self.house, limits, clock::now()) {
            match self.attempts(&mut held, timeouts, matter, receipt).await {
                Err(refused) if held.carry.is_some() && self.may_wait(&refused, matter) => coming.tried = Some(news),
                told => return told,
            }
        }
        // Rare, and as large as the attempts themselves: not carried along by every request.
        Box::pin(self.attempts_in_line(held, (timeouts, matter), receipt, coming)).await
    }

    /// Stands in line, and attempts whenever it is called.
    async fn attempts_in_line(
        &self,
        mut held: Held,
        (timeouts, matter): (&Timeouts, &Matter),
        receipt: &mut Receipt,
        coming: Coming<'_>,
    ) -> Result<(upstream::Answer, Pick), Rejection> {
        let mut place = self.house.waiting.enter(&matter.pool, matter.asked(coming.limits), coming)?;
        receipt.in_line_since = Some(place.began());
        receipt.waits_for = Some(place.waits_for());
        loop {
            receipt.step = Step::Waiting;
            place.called().await?;
            receipt.waited = Some(place.waited());
            if matter.pool.is_closed() {
                place.turned_away();
                return Err(Rejection::NoPod(NoPod::PoolEmpty));
            }
            let told = {
                let mut attempts = pin!(self.attempts(&mut held, timeouts, matter, receipt));
                // The first poll picks and reserves, or finds that there is nothing to pick.
                match poll_fn(|cx| Poll::Ready(attempts.as_mut().poll(cx))).await {
                    Poll::Ready(Err(refused)) if self.may_wait(&refused, matter) => {
                        place.stays();
                        continue;
                    }
                    first => {
                        place.served();
                        match first {
                            Poll::Ready(told) => told,
                            Poll::Pending => attempts.await,
                        }
                    }
                }
            };
            match told {
                Err(refused) if held.carry.is_some() && self.may_wait(&refused, matter) => place.back(),
                told => return told,
            }
        }
    }

    /// Whether this refusal may pass: no pod can be used now, or none was reached. Whoever allows no further attempt
    /// gets none here either.
    fn may_wait(&self, refused: &Rejection, matter: &Matter) -> bool {
        let config = &self.policy.config;
        let may_pass = match refused {
            Rejection::NoPod(NoPod::AllTried) => false,
            Rejection::NoPod(_) => true,
            Rejection::Failed(failure) => {
                config.retry.attempts > 0 && failure.fault() != Fault::Gateway && !failure.bytes_left()
            }
            _ => false,
        };
        may_pass && !config.waiting.timeout.is_zero() && !matter.pool.is_closed()
    }
}
