//! What is to be seen at one moment, gathered: the gateway's own view of its pods (as it would see real ones) and what
//! the users felt. Facts only; how they look is decided in `panel`.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use super::scene::SPEEDS;
use crate::{
    bench::{Figures, Tally},
    fleet::{Fleet, Pod},
};

/// Tokens per second are a mean over this long: short enough to follow a burst, long enough to read.
const RATE_OVER: Duration = Duration::from_secs(2);

/// One moment.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// Since the first arrival.
    pub(super) elapsed: Duration,
    /// How long arrivals come.
    pub(super) length: Duration,
    pub(super) seed: u64,
    /// Requests that the plan has for each side.
    pub(super) planned: usize,
    /// Round robin, then inference-aware.
    pub(super) sides: [Side; 2],
}

/// One listener.
#[derive(Clone, Debug)]
pub(super) struct Side {
    pub(super) policy: &'static str,
    /// `127.0.0.1:8080`.
    pub(super) address: String,
    pub(super) figures: Figures,
    pub(super) tokens_per_second: f64,
    pub(super) pods: Vec<PodRow>,
}

/// One pod as the gateway sees it.
#[derive(Clone, Debug)]
pub(super) struct PodRow {
    pub(super) port: u16,
    pub(super) slow: bool,
    /// `None`: never read, or not told.
    pub(super) running: Option<u32>,
    pub(super) waiting: Option<u32>,
    /// 0 to 1.
    pub(super) kv_usage: Option<f64>,
    pub(super) in_flight: u64,
}

/// What is looked at, for one side.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) policy: &'static str,
    pub(super) address: String,
    pub(super) pool: &'static str,
    pub(super) tally: Arc<Tally>,
    /// When how many tokens had come, over the last [`RATE_OVER`].
    history: VecDeque<(Instant, u64)>,
}

impl Watched {
    pub(super) fn new(policy: &'static str, address: String, pool: &'static str, tally: Arc<Tally>) -> Self {
        Self { policy, address, pool, tally, history: VecDeque::new() }
    }

    /// What is to be seen of it now.
    pub(super) fn side(&mut self, fleet: &Fleet, now: Instant) -> Side {
        let figures = self.tally.figures();
        let pods = fleet.pool(self.pool).map(|pool| pool.pods()).unwrap_or_default();
        Side {
            policy: self.policy,
            address: self.address.clone(),
            tokens_per_second: self.rate(figures.tokens, now),
            figures,
            pods: pods.iter().zip(SPEEDS).map(|(pod, speed)| row(pod, speed)).collect(),
        }
    }

    fn rate(&mut self, tokens: u64, now: Instant) -> f64 {
        self.history.push_back((now, tokens));
        while self.history.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > RATE_OVER) {
            self.history.pop_front();
        }
        let Some((from, before)) = self.history.front() else {
            return 0.0;
        };
        let seconds = now.saturating_duration_since(*from).as_secs_f64();
        if seconds > 0.0 { tokens.saturating_sub(*before) as f64 / seconds } else { 0.0 }
    }
}

fn row(pod: &Pod, speed: f64) -> PodRow {
    let load = pod.load();
    let reading = load.as_ref().map(|load| &load.reading);
    PodRow {
        port: pod.target.origin.port,
        slow: speed < 1.0,
        running: reading.and_then(|reading| reading.running),
        waiting: reading.and_then(|reading| reading.waiting),
        kv_usage: reading.and_then(|reading| reading.kv_usage),
        in_flight: pod.ledger.in_flight(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_per_second_are_those_of_the_last_two_seconds() {
        let mut watched = Watched::new("round-robin", String::new(), "classic", Arc::default());
        let start = crate::clock::now();
        let mut rate = |ms: u64, tokens| watched.rate(tokens, start + Duration::from_millis(ms));
        assert!((rate(0, 0) - 0.0).abs() < 1e-9);
        assert!((rate(1_000, 100) - 100.0).abs() < 1e-9);
        assert!((rate(2_000, 200) - 100.0).abs() < 1e-9);
        assert!((rate(3_000, 200) - 50.0).abs() < 1e-9);
        assert!((rate(4_000, 200) - 0.0).abs() < 1e-9);
    }
}
