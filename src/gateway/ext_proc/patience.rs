//! How long Envoy may say nothing in a conversation that it has begun.
//!
//! One timer a conversation, set once and looked at when it fires: a message only writes down when it came. What follows
//! from the end of patience is the dialog's matter.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use crate::clock;

/// What is left of it.
pub(super) struct Patience {
    timer: Pin<Box<Sleep>>,
    /// When the timer fires; never later than patience ends.
    fires: Instant,
    ends: Instant,
}

impl Patience {
    /// It lasts for so long.
    pub(super) fn new(within: Duration) -> Self {
        let ends = clock::now() + within;
        Self { timer: Box::pin(sleep_until(ends.into())), fires: ends, ends }
    }

    /// It lasts for so long from now on.
    pub(super) fn again(&mut self, within: Duration) {
        self.ends = clock::now() + within;
        if self.ends < self.fires {
            self.set();
        }
    }

    /// Resolves when it is over.
    pub(super) async fn is_over(&mut self) {
        loop {
            self.timer.as_mut().await;
            if clock::now() >= self.ends {
                return;
            }
            self.set();
        }
    }

    fn set(&mut self) {
        self.fires = self.ends;
        self.timer.as_mut().reset(self.ends.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_lasts_from_what_was_heard_last_and_may_become_shorter() {
        let began = clock::now();
        let mut patience = Patience::new(Duration::from_secs(10));
        tokio::time::advance(Duration::from_secs(9)).await;
        patience.again(Duration::from_secs(600));
        assert!(tokio::time::timeout(Duration::from_secs(599), patience.is_over()).await.is_err());
        patience.again(Duration::from_secs(60));
        patience.is_over().await;
        assert_eq!((clock::now() - began).as_secs(), 9 + 599 + 60);
    }
}
