//! What the line's lock guards: the line itself, who is called, and what to know of each pool that has one.
//!
//! One is called at a time in each pool. Who was called tries, and says how it went; only then is it known whether there
//! is room for the next. So nobody is woken in vain, and each sees the places of those before it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    crowd::Crowd,
    eviction::Running,
    gaps::{Gaps, pause},
    lane::{Few, Lane, Shut, Standing, room},
};
use crate::{
    admission::line::{Entry, Id, Line},
    fleet::{PoolState, Room, Saturation},
};

#[derive(Default)]
pub(super) struct State {
    pub(super) line: Line<Lane>,
    /// Those that have a line or had one, until they are gone. No more than there are pools.
    pub(super) pools: BTreeMap<Arc<str>, AtPool>,
    /// How to wake who stands in line.
    calls: HashMap<Id, Arc<Notify>>,
}

/// What is known of one pool.
pub(super) struct AtPool {
    pub(super) pool: Arc<PoolState>,
    pub(super) gaps: Gaps,
    pub(super) crowd: Crowd,
    /// Who was called and has not said yet how it went.
    called: Option<Id>,
    lanes: BTreeMap<Lane, Standing>,
    /// Streams that may be ended for who waits.
    pub(super) running: Running,
    /// Whether they are, for who is critical.
    pub(super) evicts: bool,
    /// When a lane opens though nothing is heard, and who looks then.
    alarm: Option<(Instant, Id)>,
}

impl State {
    /// The pool's, made if there is none.
    pub(super) fn at(&mut self, pool: &Arc<PoolState>) -> &mut AtPool {
        let at = self.pools.entry(Arc::clone(pool.name())).or_insert_with(|| AtPool {
            pool: Arc::clone(pool),
            gaps: Gaps::default(),
            crowd: Crowd::default(),
            called: None,
            lanes: BTreeMap::new(),
            running: Running::default(),
            evicts: false,
            alarm: None,
        });
        if at.pool.is_closed() {
            at.pool = Arc::clone(pool);
        }
        at
    }

    /// `id` stands in line.
    pub(super) fn stands(
        &mut self,
        id: Id,
        entry: &Entry<Lane>,
        (pool, few): (&Arc<PoolState>, Option<&Few>),
        call: &Arc<Notify>,
    ) {
        self.calls.insert(id, Arc::clone(call));
        let lanes = &mut self.at(pool).lanes;
        let standing = || Standing { few: few.cloned(), many: 0, seen: None };
        lanes.entry(entry.lane.clone()).or_insert_with(standing).many += 1;
    }

    /// One of `lane` found no pod, or reached none, after it had seen so much `news`.
    pub(super) fn found_none(&mut self, pool: &str, lane: &Lane, news: u64) {
        if let Some(standing) = self.pools.get_mut(pool).and_then(|at| at.lanes.get_mut(lane)) {
            standing.seen = Some(news);
        }
    }

    /// One of `lane` has its place on a pod.
    pub(super) fn found_one(&mut self, pool: &str, lane: &Lane) {
        if let Some(standing) = self.pools.get_mut(pool).and_then(|at| at.lanes.get_mut(lane)) {
            standing.seen = None;
        }
    }

    /// `id`, which is no longer in the line, is out of all that goes with it; how to wake it, if it was there.
    pub(super) fn left(&mut self, id: Id, pool: &str, lane: &Lane) -> Option<Arc<Notify>> {
        let call = self.calls.remove(&id)?;
        if let Some(at) = self.pools.get_mut(pool) {
            at.answered(id);
            at.alarm = at.alarm.filter(|(_, who)| *who != id);
            if let Some(standing) = at.lanes.get_mut(lane) {
                standing.many = standing.many.saturating_sub(1);
                if standing.many == 0 {
                    at.lanes.remove(lane);
                }
            }
        }
        Some(call)
    }

    /// Calls who is next in `pool`, if there is room for it and nobody else was just called.
    pub(super) fn ring(&mut self, pool: &str, now: Instant) {
        let Some(at) = self.pools.get_mut(pool).filter(|at| at.called.is_none() && !at.lanes.is_empty()) else {
            return;
        };
        let mut opens: Option<Instant> = None;
        let next = self.line.next(pool, |lane| match at.lanes.get(lane).map(|it| it.may_go(lane, &at.pool, now)) {
            Some(Ok(())) => true,
            Some(Err(Shut { until })) => {
                opens = opens.into_iter().chain(until).min();
                false
            }
            None => false,
        });
        if next.is_none() && at.evicts && self.line.bands(pool).first().is_some_and(|(priority, _)| *priority > 0) {
            at.running.end_one(now);
        }
        if let Some(id) = next {
            at.called = Some(id);
            self.wake(id);
        } else if let Some(opens) = opens.filter(|opens| at.alarm.is_none_or(|(set, _)| *opens < set)) {
            let somebody = self.line.entries().filter(|(_, it)| *it.pool == *pool).map(|(id, _)| id).min();
            at.alarm = somebody.map(|id| (opens, id));
            if let Some(id) = somebody {
                self.wake(id);
            }
        }
    }

    fn wake(&self, id: Id) {
        if let Some(call) = self.calls.get(&id) {
            call.notify_one();
        }
    }

    /// When a client should come again for which `pool` has no pod.
    pub(super) fn pause_for_a_pod(&self, pool: &str, now: Instant) -> Duration {
        let gaps = self.pools.get(pool).map(|at| at.gaps).unwrap_or_default();
        gaps.retry_after(self.line.waiting_for(pool), now)
    }

    /// When one should for which it is full, and `tokens` stand before it: when those have gone on.
    pub(super) fn pause_for_room(&self, pool: &PoolState, tokens: u64, now: Instant) -> Duration {
        let measured = self.line.wait_for(pool.name(), tokens, now);
        let full = || Saturation::of(pool, &pool.pods(), "", now).map_or(pause(0.0), |full| full.pause());
        measured.map_or_else(full, |wait| pause(wait.as_secs_f64()))
    }

    /// Whether a pod is in use for `lane`.
    pub(super) fn has_pods(pool: &PoolState, lane: &Lane, few: Option<&Few>, now: Instant) -> bool {
        room(pool, lane, few, now) != Room::NoPod
    }
}

impl AtPool {
    /// Whether some wait because no pod of theirs was found.
    pub(super) fn lacks_pods(&self) -> bool {
        self.lanes.values().any(|lane| lane.seen.is_some())
    }

    /// Whether `id` was called.
    pub(super) fn has_called(&self, id: Id) -> bool {
        self.called == Some(id)
    }

    /// `id` has said how it went.
    pub(super) fn answered(&mut self, id: Id) {
        self.called = self.called.filter(|called| *called != id);
    }

    /// When `id` is to look, if it is the one who does.
    pub(super) fn alarm_of(&self, id: Id) -> Option<Instant> {
        self.alarm.filter(|(_, who)| *who == id).map(|(at, _)| at)
    }

    /// It has looked.
    pub(super) fn looked(&mut self) {
        self.alarm = None;
    }
}
