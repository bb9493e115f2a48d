//! The line as operators see it, and what one request would find there.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use super::{Asked, Waiting, lane::Lane};
use crate::{
    admission::line::{Ahead, Entry},
    clock,
    fleet::PoolState,
    gateway::telling::receipt::WaitsFor,
};

/// At most so many bands are shown of one pool: priorities may be any number, and nobody reads more.
const MOST_BANDS: usize = 32;

/// A pool's line.
#[derive(Debug, Serialize)]
pub struct LineView {
    /// How many wait.
    pub requests: usize,
    /// By priority, the highest first.
    pub bands: Vec<BandView>,
    /// Tokens that go on in a second, while somebody waits.
    pub tokens_per_second: Option<f64>,
}

/// One priority's part of it.
#[derive(Debug, Serialize)]
pub struct BandView {
    /// The priority.
    pub priority: i32,
    /// How many wait.
    pub requests: usize,
    /// Their prompts and answers.
    pub tokens: u64,
}

impl Waiting {
    /// The line of the pool of that name.
    pub fn view(&self, pool: &str) -> LineView {
        /// Enough that a wait for them is a number.
        const SAMPLE: u64 = 1_000;
        let state = self.state();
        let band = |(priority, all): (i32, Ahead)| BandView { priority, requests: all.requests, tokens: all.tokens };
        let wait = state.line.wait_for(pool, SAMPLE, clock::now());
        LineView {
            requests: state.line.waiting_for(pool),
            bands: state.line.bands(pool).into_iter().take(MOST_BANDS).map(band).collect(),
            tokens_per_second: wait.map(|wait| SAMPLE as f64 / wait.as_secs_f64().max(f64::MIN_POSITIVE)),
        }
    }

    /// What `asked` would find before it in the line of `pool`, and how long those are likely to take.
    pub(in crate::gateway) fn before(
        &self,
        pool: &Arc<PoolState>,
        asked: Asked,
        timeout: Duration,
    ) -> (Ahead, Option<Duration>) {
        let now = clock::now();
        let due = asked.due(timeout, WaitsFor::Room, now);
        let entry = Entry {
            pool: Arc::clone(pool.name()),
            lane: Lane { model: asked.model, few: 0 },
            tenant: asked.tenant,
            priority: asked.priority,
            tokens: asked.tokens,
            bytes: 0,
            due,
        };
        let state = self.state();
        let ahead = state.line.ahead(&entry);
        (ahead, state.line.wait_for(pool.name(), ahead.tokens, now))
    }
}
