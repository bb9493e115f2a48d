//! Requests that cannot be served yet wait here: for a pod, while none is ready, or for room, while all are full.
//!
//! In which order, `admission::line` says. Everything after which there may be a pod or room (what discovery and the scrape
//! hear, a first token, an answer's end) calls who is next, if there is room for it; who was called tries, and once it has its
//! place on a pod the next is called. So a thousand that waited are picked one after the other, each seeing the
//! reservations of those before it, and slow start holds. Nobody polls: who waits for what passes by itself (a pod's pause
//! after it said no) is woken at that instant. Who leaves, by whatever way, is out of the line by `Drop`. It decides nothing
//! about pods: whether one will do, the scheduler says.

mod crowd;
mod eviction;
mod gaps;
mod lane;
mod place;
mod state;
mod view;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::{family::Family, gauge::Gauge};
use tokio::sync::Notify;

pub use self::view::{BandView, LineView};
pub(super) use self::{
    eviction::Evictable,
    lane::{Among, Few},
    place::Place,
};
use self::{
    lane::{Lane, room},
    state::{AtPool, State},
};
use super::{
    rejection::Rejection,
    telling::{busy::Busy, receipt::WaitsFor},
};
use crate::{
    admission::line::{Entered, Entry, Full},
    clock, config,
    fleet::{Admission, Pod, PoolState, Room},
    telemetry::{
        Histograms, Metrics, Name,
        labels::{PoolBandLabels, PoolReasonLabels},
    },
};

/// The bands as they are shown. Priorities may be any number, and are shown by what they mean.
const BANDS: [&str; 3] = ["critical", "standard", "sheddable"];

/// Who waits, for which pool and model.
pub struct Waiting {
    state: Mutex<State>,
    /// How many there are, to be asked without the lock.
    many: AtomicUsize,
    shown: Family<PoolBandLabels, Gauge>,
    waited: Histograms<PoolReasonLabels>,
}

/// What a request brings to the line.
#[derive(Clone)]
pub(super) struct Asked {
    /// What the model is called at the pods.
    pub(super) model: Arc<str>,
    /// The only pods that will do, if not all will.
    pub(super) few: Option<Few>,
    /// Whose turn it takes.
    pub(super) tenant: Arc<str>,
    /// How much it matters.
    pub(super) priority: i32,
    /// What it costs.
    pub(super) tokens: u32,
    /// When it will be too late for it, if that is before all who wait give up.
    pub(super) deadline: Option<Instant>,
}

/// How it comes to the line.
#[derive(Clone, Copy)]
pub(super) struct Coming<'a> {
    /// The size of its body.
    pub(super) bytes: usize,
    /// The pool's news before it found no pod, if it tried.
    pub(super) tried: Option<u64>,
    /// For how long it may wait.
    pub(super) timeout: Duration,
    /// What may wait.
    pub(super) limits: &'a config::Waiting,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("many", &self.many).finish_non_exhaustive()
    }
}

impl Waiting {
    /// Nobody waits; `metrics` show who does.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            state: Mutex::default(),
            many: AtomicUsize::new(0),
            shown: metrics.waiting.clone(),
            waited: metrics.waited.clone(),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.many.load(Relaxed)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Something was heard of `pod` after which it may do for somebody who waits.
    pub fn pod_may_do(&self, pool: &PoolState, pod: &Pod, now: Instant) {
        if !matches!(pod.admits(now), Admission::No(_)) {
            pool.tell_news();
            self.room_may_be(pool.name());
        }
    }

    /// A pool has other pods, or is gone.
    pub fn pool_changed(&self, name: &str, pool: Option<&PoolState>) {
        if let Some(pool) = pool {
            pool.tell_news();
            // A row that is not there before the first waits hides that one from whoever looks at increases.
            for band in BANDS {
                self.shown.get_or_create_owned(&PoolBandLabels { pool: Name::from(pool.name()), band });
            }
        } else {
            let mut state = self.state();
            if state.line.waiting_for(name) == 0 {
                state.pools.remove(name);
                state.line.forget(name);
                self.hide(name);
            }
        }
        self.room_may_be(name);
    }

    /// A request left a pod of the pool of that name, or its prompt stands in nobody's way there any more.
    pub(super) fn room_may_be(&self, pool: &str) {
        if !self.is_empty() {
            self.state().ring(pool, clock::now());
        }
    }

    /// Whether somebody waits for a pod of `pool`, so that who comes now may not be first.
    pub(super) fn has_line(&self, pool: &PoolState) -> bool {
        !self.is_empty() && self.state().line.waiting_for(pool.name()) > 0
    }

    /// Into the line, at its place.
    ///
    /// # Errors
    /// If there is no room in it, or no hope.
    pub(super) fn enter<'a>(
        &'a self,
        pool: &Arc<PoolState>,
        asked: Asked,
        coming: Coming<'a>,
    ) -> Result<Place<'a>, Rejection> {
        let now = clock::now();
        let limits = coming.limits;
        let lane = Lane { model: asked.model, few: asked.few.as_ref().map_or(0, |few| few.number) };
        let latest = now + coming.timeout;
        let entry = Entry {
            pool: Arc::clone(pool.name()),
            lane,
            tenant: asked.tenant,
            priority: asked.priority,
            tokens: asked.tokens,
            bytes: coming.bytes as u64,
            due: asked.deadline.map_or(latest, |deadline| deadline.min(latest)),
        };
        let room = room(pool, &entry.lane, asked.few.as_ref(), now);
        let waits_for = if room == Room::NoPod || coming.tried.is_some() { WaitsFor::Pod } else { WaitsFor::Room };
        if matches!(room, Room::No(_)) && coming.tried.is_none() {
            self.is_in_time(pool, &entry, now)?;
        }
        let id = self.line_up(pool, &entry, limits, waits_for)?;
        let call = Arc::new(Notify::new());
        let mut place = Place {
            room: self,
            pool: Arc::clone(pool),
            id,
            entry,
            few: asked.few,
            limits,
            began: now,
            call,
            waits_for,
            in_line: false,
            news: coming.tried.unwrap_or_default(),
            outcome: "left",
        };
        place.stand(coming.tried);
        Ok(place)
    }

    /// Whether `entry`, for which there is no room now, can go before it is too late. Nobody knows while some of those before
    /// it wait for a pod to be usable, and may be passed over.
    fn is_in_time(&self, pool: &PoolState, entry: &Entry<Lane>, now: Instant) -> Result<(), Rejection> {
        let state = self.state();
        if state.pools.get(pool.name()).is_some_and(AtPool::lacks_pods) {
            return Ok(());
        }
        let tokens = state.line.ahead(entry).tokens;
        let expected = state.line.wait_for(pool.name(), tokens, now).unwrap_or_default();
        if now + expected < entry.due {
            return Ok(());
        }
        Err(Rejection::Busy { why: Busy::TooLate, pause: state.pause_for_room(pool, tokens, now) })
    }

    /// Its number in the line; whoever makes room for it is told.
    fn line_up(
        &self,
        pool: &PoolState,
        entry: &Entry<Lane>,
        limits: &config::Waiting,
        waits_for: WaitsFor,
    ) -> Result<u64, Rejection> {
        let now = clock::now();
        let mut state = self.state();
        let tokens = state.line.ahead(entry).tokens;
        let busy = |state: &State, why| Rejection::Busy { why, pause: state.pause_for_room(pool, tokens, now) };
        let entered = state.line.enter(entry.clone(), limits, now);
        let Entered { id, pushed_out } = entered.map_err(|full| match (waits_for, full) {
            (WaitsFor::Pod, _) => Rejection::LineFull { pause: state.pause_for_a_pod(pool.name(), now) },
            (WaitsFor::Room, Full::Line) => busy(&state, Busy::LineFull),
            (WaitsFor::Room, Full::Tenant) => busy(&state, Busy::TenantFull),
        })?;
        for (id, gone) in pushed_out {
            if let Some(call) = state.left(id, &gone.pool, &gone.lane) {
                call.notify_one();
            }
        }
        self.many.store(state.line.len(), Relaxed);
        Ok(id)
    }

    fn hide(&self, pool: &str) {
        for band in BANDS {
            self.shown.remove(&PoolBandLabels { pool: Name::from(pool), band });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a priority means: the sign is the Inference Extension's.
fn band(priority: i32) -> &'static str {
    let [critical, standard, sheddable] = BANDS;
    match priority.signum() {
        1 => critical,
        0 => standard,
        _ => sheddable,
    }
}

#[cfg(test)]
mod tests;
