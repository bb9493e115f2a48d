//! How long a pod may be silent while its answer is relayed, and how long the whole may take.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    clock,
    config::Timeouts,
    gateway::rejection::{STOPPING, TOTAL_TIMEOUT},
};

/// The longest silence allowed, and the end of the request's total time. Armed only while nothing comes, so that an
/// event costs no timer.
pub(super) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    silent_until: Instant,
    idle: Duration,
    total: Option<Instant>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Timer {
    pub(super) fn new(limits: &Timeouts, received: Instant, now: Instant, stop: &CancellationToken) -> Self {
        Self {
            sleep: None,
            silent_until: now + limits.first_byte,
            idle: limits.idle,
            total: limits.total.map(|limit| received + limit),
            stop: Box::pin(stop.clone().cancelled_owned()),
        }
    }

    pub(super) fn moved(&mut self, now: Instant) {
        self.silent_until = now + self.idle;
    }

    /// Ready with the reason once the time is up.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        if self.stop.as_mut().poll(cx).is_ready() {
            return Poll::Ready(STOPPING);
        }
        loop {
            let now = clock::now();
            if self.total.is_some_and(|total| now >= total) {
                return Poll::Ready(TOTAL_TIMEOUT);
            }
            if now >= self.silent_until {
                return Poll::Ready("idle_timeout");
            }
            // An armed sleep that fires early, because something came since, is simply armed again.
            let sleep = self.sleep.get_or_insert_with(|| {
                let until = self.total.map_or(self.silent_until, |total| total.min(self.silent_until));
                Box::pin(sleep_until(until.into()))
            });
            ready!(sleep.as_mut().poll(cx));
            self.sleep = None;
        }
    }
}
