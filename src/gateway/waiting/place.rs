//! One request's place in the line. Dropping it leaves the line, and whoever is next then is called.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use super::{
    Waiting,
    lane::{Few, Lane},
    state::State,
};
use crate::{
    admission::line::{Entry, Id},
    clock, config,
    fleet::PoolState,
    gateway::{
        Rejection,
        telling::{busy::Busy, receipt::WaitsFor},
    },
    telemetry::{
        Name,
        labels::{PoolBandLabels, PoolReasonLabels},
    },
};

/// A place in the line.
pub(in crate::gateway) struct Place<'a> {
    pub(super) room: &'a Waiting,
    pub(super) pool: Arc<PoolState>,
    pub(super) id: Id,
    pub(super) entry: Entry<Lane>,
    pub(super) few: Option<Few>,
    pub(super) limits: &'a config::Waiting,
    pub(super) began: Instant,
    pub(super) call: Arc<Notify>,
    /// What it waits for, as it was when it came.
    pub(super) waits_for: WaitsFor,
    pub(super) in_line: bool,
    /// The pool's news as of the last try.
    pub(super) news: u64,
    pub(super) outcome: &'static str,
}

impl Place<'_> {
    /// Resolves when it is its turn and a pod may do.
    ///
    /// # Errors
    /// If that took too long, or it had to make room.
    pub(in crate::gateway) async fn called(&mut self) -> Result<(), Rejection> {
        loop {
            let wakes = self.alarm().map_or(self.entry.due, |alarm| alarm.min(self.entry.due));
            // Whichever it was: what is so now counts.
            drop(tokio::time::timeout_at(wakes.into(), self.call.notified()).await);
            let now = clock::now();
            let mut state = self.room.state();
            let pool = self.pool.name();
            if state.line.entry(self.id).is_none() {
                self.outcome = "pushed_out";
                return Err(self.refusal(&state, Busy::PushedOut, now));
            }
            let Some(at) = state.pools.get_mut(pool) else { continue };
            if at.has_called(self.id) {
                // What is heard from here on, it may not have seen when it tries.
                self.news = self.pool.news();
                return Ok(());
            }
            let looks = at.alarm_of(self.id).is_some_and(|alarm| alarm <= now);
            if self.entry.due <= now {
                self.outcome = "expired";
                return Err(self.refusal(&state, Busy::Expired, now));
            }
            if looks {
                at.looked();
                state.ring(pool, now);
            }
        }
    }

    fn alarm(&self) -> Option<Instant> {
        self.room.state().pools.get(self.pool.name()).and_then(|at| at.alarm_of(self.id))
    }

    /// In what words it is refused depends on whether there are pods at all now.
    fn refusal(&self, state: &State, why: Busy, now: Instant) -> Rejection {
        if State::has_pods(&self.pool, &self.entry.lane, self.few.as_ref(), now) {
            let tokens = state.line.ahead(&self.entry).tokens;
            return Rejection::Busy { why, pause: state.pause_for_room(&self.pool, tokens, now) };
        }
        let pause = state.pause_for_a_pod(self.pool.name(), now);
        match why {
            Busy::Expired => {
                Rejection::NoPodInTime { waited: self.entry.due.saturating_duration_since(self.began), pause }
            }
            _ => Rejection::LineFull { pause },
        }
    }

    /// It has its place on a pod and is out of the line.
    pub(in crate::gateway) fn served(&mut self) {
        let now = clock::now();
        let pool = self.pool.name();
        let mut state = self.room.state();
        state.found_one(pool, &self.entry.lane);
        state.line.take(self.id, now);
        let gap = match self.waits_for {
            WaitsFor::Pod => state.at(&self.pool).gaps.served(now),
            WaitsFor::Room => None,
        };
        let waited = state.line.waiting_for(pool);
        drop(state);
        if let Some(gap) = gap {
            let pool = &**pool;
            tracing::info!(pool, waited, "pool is served again after {:.1} s, {waited} waited", gap.as_secs_f64());
        }
        self.leave();
        self.outcome = "served";
    }

    /// Its pool is gone, and so are the hopes of whoever stands behind it.
    pub(in crate::gateway) fn turned_away(&mut self) {
        self.leave();
        self.outcome = "turned_away";
    }

    /// The pod that it had could not be reached after all: it stands where it stood, until something is heard.
    pub(in crate::gateway) fn back(&mut self) {
        self.outcome = "left";
        {
            let mut state = self.room.state();
            state.line.enter_again(self.id, self.entry.clone(), self.limits, clock::now());
            self.room.many.store(state.line.len(), super::Relaxed);
        }
        self.stand(Some(self.news));
    }

    /// It was called and found no pod: it waits until something is heard, which may have been meanwhile.
    pub(in crate::gateway) fn stays(&self) {
        let pool = self.pool.name();
        let mut state = self.room.state();
        state.found_none(pool, &self.entry.lane, self.news);
        if let Some(at) = state.pools.get_mut(pool) {
            at.answered(self.id);
        }
        state.ring(pool, clock::now());
    }

    /// When it came into the line.
    pub(in crate::gateway) fn began(&self) -> Instant {
        self.began
    }

    /// What it waits for.
    pub(in crate::gateway) fn waits_for(&self) -> WaitsFor {
        self.waits_for
    }

    /// How long it waited so far.
    pub(in crate::gateway) fn waited(&self) -> Duration {
        clock::now().saturating_duration_since(self.began)
    }

    /// Is in all that goes with standing in line, and the next is called, who may be this one. `tried`: the news that were
    /// seen when one of its lane last found no pod.
    pub(super) fn stand(&mut self, tried: Option<u64>) {
        let now = clock::now();
        let mut state = self.room.state();
        state.at(&self.pool).evicts = self.limits.evict_sheddable;
        state.stands(self.id, &self.entry, (&self.pool, self.few.as_ref()), &self.call);
        if let Some(news) = tried {
            state.found_none(self.pool.name(), &self.entry.lane, news);
        }
        self.in_line = true;
        self.shown().inc();
        let waiting = state.line.waiting_for(self.pool.name());
        let at = state.at(&self.pool);
        let tell = match self.waits_for {
            WaitsFor::Pod => at.gaps.begins(self.began, now),
            WaitsFor::Room => at.crowd.waits(waiting, now),
        };
        state.ring(self.pool.name(), now);
        drop(state);
        if tell {
            let (pool, timeout) = (&**self.pool.name(), self.entry.due.saturating_duration_since(self.began));
            match self.waits_for {
                WaitsFor::Pod => tracing::warn!(pool, ?timeout, "pool has no usable pod; requests wait"),
                WaitsFor::Room => tracing::warn!(pool, ?timeout, "pool is full; requests wait in line"),
            }
        }
    }

    pub(super) fn leave(&mut self) {
        if !std::mem::take(&mut self.in_line) {
            return;
        }
        let pool = self.pool.name();
        let mut state = self.room.state();
        state.line.leave(self.id);
        state.left(self.id, pool, &self.entry.lane);
        self.room.many.store(state.line.len(), super::Relaxed);
        let last = state.line.waiting_for(pool) == 0;
        let gone = last && self.pool.is_closed();
        let over = if last { state.at(&self.pool).crowd.ends(clock::now()) } else { None };
        if gone {
            state.pools.remove(pool);
            state.line.forget(pool);
        } else if last {
            state.at(&self.pool).gaps.ends();
        }
        state.ring(pool, clock::now());
        drop(state);
        if let Some((span, most)) = over {
            tracing::info!(pool = &**pool, most, "nobody waits for room any more, after {:.1} s", span.as_secs_f64());
        }
        self.shown().dec();
        if gone {
            self.room.hide(pool);
        }
    }

    fn shown(&self) -> Gauge {
        let labels = PoolBandLabels { pool: Name::from(self.pool.name()), band: super::band(self.entry.priority) };
        self.room.shown.get_or_create_owned(&labels)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave();
        let labels = PoolReasonLabels { pool: Name::from(self.pool.name()), reason: self.outcome };
        self.room.waited.get_or_create(&labels).observe(self.waited().as_secs_f64());
    }
}
