//! Requests that found no pod wait here, first come first served, until one may do: a rollout, a scale-up from zero.
//!
//! Everything that may make a pod usable calls the first of each line of its pool; who was called tries again, and once
//! it has its place on a pod it calls the next. So a thousand that waited are picked one after the other, each seeing
//! the reservations of those before it, and slow start holds. Nobody polls. Who leaves, by whatever way, is out of the
//! line by `Drop`. It decides nothing about pods: whether one will do, the scheduler says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::{family::Family, gauge::Gauge};
use tokio::sync::Notify;

use super::rejection::Rejection;
use crate::{
    clock, config,
    fleet::{Admission, Pod, PoolState},
    telemetry::{
        Histograms, Metrics, Name,
        labels::{PoolLabels, PoolReasonLabels},
    },
};

/// When to come again where nothing was measured yet: an engine takes half a minute and more to load a model, and a
/// client that asks six times a minute finds it soon after.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Never sooner: the header counts whole seconds.
const RETRY_AFTER_LEAST: Duration = Duration::from_secs(1);

/// Never later: the OpenAI SDKs follow the header up to a minute and ignore a longer one.
const RETRY_AFTER_MOST: Duration = Duration::from_secs(60);

/// Weight of the last gap or interval in what is expected of the next: the last three count for most of it.
const WEIGHT: f64 = 0.3;

/// A pool's gap is told no more often than this: pods that flap would fill the log.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Who waits, for which pool and model.
pub struct Waiting {
    state: Mutex<State>,
    /// How many there are, to be asked without the lock.
    many: AtomicUsize,
    shown: Family<PoolLabels, Gauge>,
    waited: Histograms<PoolReasonLabels>,
}

/// A pool and what the model is called there: for all in one line the same pods will do.
type Key = (Arc<str>, Arc<str>);

#[derive(Default)]
struct State {
    /// Each line by number, the first first; none is empty.
    lines: BTreeMap<Key, BTreeMap<u64, Arc<Notify>>>,
    next: u64,
    bytes: u64,
    /// By pool. No more than there are pools.
    gaps: BTreeMap<Arc<str>, Gaps>,
}

/// How long a pool was without a usable pod lately, and how fast those who waited were served then.
#[derive(Clone, Copy, Debug, Default)]
struct Gaps {
    /// Since when there is somebody who waits.
    began: Option<Instant>,
    seconds: Option<f64>,
    last_served: Option<Instant>,
    seconds_each: Option<f64>,
    told: Option<Instant>,
    /// When the gap began that was told of and of whose end nobody was told.
    open: Option<Instant>,
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
            self.call(pool.name());
        }
    }

    /// A pool has other pods, or is gone.
    pub fn pool_changed(&self, name: &str, pool: Option<&PoolState>) {
        if let Some(pool) = pool {
            pool.tell_news();
        } else {
            let mut state = self.state();
            state.gaps.remove(name);
            if !state.lines.keys().any(|(pool, _)| **pool == *name) {
                self.shown.remove(&PoolLabels { pool: Name::from(name) });
            }
        }
        self.call(name);
    }

    /// Whether somebody waits for the same, and so comes first.
    pub(super) fn has_line(&self, pool: &PoolState, model: &Arc<str>) -> bool {
        !self.is_empty() && self.state().lines.contains_key(&(Arc::clone(pool.name()), Arc::clone(model)))
    }

    /// The end of the line.
    ///
    /// # Errors
    /// If there is no room.
    pub(super) fn enter(
        &self,
        pool: &Arc<PoolState>,
        model: &Arc<str>,
        asked: &Asked<'_>,
    ) -> Result<Place<'_>, Rejection> {
        let Asked { bytes, news, limits } = *asked;
        let now = clock::now();
        let bytes = bytes as u64;
        let mut state = self.state();
        let full = self.len() >= limits.requests || state.bytes.saturating_add(bytes) > limits.bytes.0;
        if full {
            return Err(Rejection::LineFull { pause: state.retry_after(pool.name(), now) });
        }
        let id = state.next;
        state.next += 1;
        state.bytes += bytes;
        drop(state);
        let key = (Arc::clone(pool.name()), Arc::clone(model));
        let until = now + limits.timeout;
        let call = Arc::new(Notify::new());
        let mut place = Place {
            room: self,
            pool: Arc::clone(pool),
            key,
            id,
            bytes,
            began: now,
            until,
            call,
            in_line: false,
            news,
            outcome: "left",
        };
        place.stand();
        Ok(place)
    }

    fn call(&self, pool: &str) {
        if self.is_empty() {
            return;
        }
        for (_, line) in self.state().lines.iter().filter(|((name, _), _)| **name == *pool) {
            call_first(line);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn call_first(line: &BTreeMap<u64, Arc<Notify>>) {
    if let Some((_, first)) = line.first_key_value() {
        first.notify_one();
    }
}

impl State {
    /// When a client of `pool` should come again: when the gap is likely over and the line served.
    fn retry_after(&self, pool: &Arc<str>, now: Instant) -> Duration {
        let gaps = self.gaps.get(pool).copied().unwrap_or_default();
        let Some(expected) = gaps.seconds else { return RETRY_AFTER };
        let elapsed = gaps.began.map_or(0.0, |began| now.saturating_duration_since(began).as_secs_f64());
        // A gap that already lasts longer than the others did lasts about as long again.
        let left = if elapsed < expected { expected - elapsed } else { elapsed };
        let line = gaps.seconds_each.unwrap_or_default() * self.waiting_for(pool) as f64;
        let pause = Duration::try_from_secs_f64((left + line).ceil()).unwrap_or(RETRY_AFTER_MOST);
        pause.clamp(RETRY_AFTER_LEAST, RETRY_AFTER_MOST)
    }

    fn waiting_for(&self, pool: &Arc<str>) -> usize {
        self.lines.iter().filter(|((name, _), _)| name == pool).map(|(_, line)| line.len()).sum()
    }

    fn gaps(&mut self, pool: &Arc<str>) -> &mut Gaps {
        self.gaps.entry(Arc::clone(pool)).or_default()
    }
}

impl Gaps {
    /// Somebody waits since `began`; whether an operator is to be told now.
    fn begins(&mut self, began: Instant) -> bool {
        let new = self.began.is_none();
        let since = *self.began.get_or_insert(began);
        let now = clock::now();
        let tell = new && self.told.is_none_or(|told| now.saturating_duration_since(told) >= TELL_EVERY);
        if tell {
            self.told = Some(now);
            self.open = Some(since);
        }
        tell
    }

    /// The first of a gap, or one more, was served: how long the gap was, if an operator knows of it.
    fn served(&mut self, now: Instant) -> Option<Duration> {
        let mean = |known: Option<f64>, since: Instant| {
            let seen = now.saturating_duration_since(since).as_secs_f64();
            Some(known.map_or(seen, |known| known + (seen - known) * WEIGHT))
        };
        if let Some(began) = self.began.take() {
            self.seconds = mean(self.seconds, began);
        } else if let Some(last) = self.last_served {
            self.seconds_each = mean(self.seconds_each, last);
        }
        self.last_served = Some(now);
        self.open.take().map(|open| now.saturating_duration_since(open))
    }
}

/// What a request brings to the line.
pub(super) struct Asked<'a> {
    /// The size of its body.
    pub(super) bytes: usize,
    /// The pool's news before it found no pod.
    pub(super) news: u64,
    /// What may wait.
    pub(super) limits: &'a config::Waiting,
}

/// One request's place in a line. Dropping it leaves the line, and whoever is first then is called.
pub(super) struct Place<'a> {
    room: &'a Waiting,
    pool: Arc<PoolState>,
    key: Key,
    id: u64,
    bytes: u64,
    began: Instant,
    until: Instant,
    call: Arc<Notify>,
    in_line: bool,
    /// The pool's news as of the last try.
    news: u64,
    outcome: &'static str,
}

impl Place<'_> {
    /// Resolves when it is first and a pod may do.
    ///
    /// # Errors
    /// If that took too long.
    pub(super) async fn called(&mut self) -> Result<(), Rejection> {
        let left = self.until.saturating_duration_since(clock::now());
        if tokio::time::timeout(left, self.call.notified()).await.is_ok() {
            // What is heard from here on, it may not have seen when it tries.
            self.news = self.pool.news();
            return Ok(());
        }
        self.outcome = "expired";
        let pause = self.room.state().retry_after(&self.key.0, clock::now());
        Err(Rejection::NoPodInTime { waited: self.until.saturating_duration_since(self.began), pause })
    }

    /// It has its place on a pod and is out of the line. `more`: the next may find one too.
    pub(super) fn served(&mut self, more: bool) {
        let now = clock::now();
        let mut state = self.room.state();
        let (gap, waited) = (state.gaps(&self.key.0).served(now), state.waiting_for(&self.key.0));
        drop(state);
        if let Some(gap) = gap {
            let pool = &*self.key.0;
            tracing::info!(pool, waited, "pool is served again after {:.1} s, {waited} waited", gap.as_secs_f64());
        }
        self.leave(more);
        self.outcome = "served";
    }

    /// Its pool is gone, and so are the hopes of whoever stands behind it.
    pub(super) fn turned_away(&mut self) {
        self.leave(true);
        self.outcome = "turned_away";
    }

    /// The pod that it had could not be reached after all: it stands where it stood.
    pub(super) fn back(&mut self) {
        self.outcome = "left";
        self.stand();
    }

    /// It was called and found no pod: it is first and waits for the next call, which may have come meanwhile.
    pub(super) fn stays(&self) {
        self.catch_up();
    }

    /// What was heard since its last try called nobody, or somebody else. A try too many does no harm.
    fn catch_up(&self) {
        if self.pool.news() != self.news {
            self.call.notify_one();
        }
    }

    /// When it came into the line.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// How long it waited so far.
    pub(super) fn waited(&self) -> Duration {
        clock::now().saturating_duration_since(self.began)
    }

    fn stand(&mut self) {
        let mut state = self.room.state();
        let line = state.lines.entry(self.key.clone()).or_default();
        line.insert(self.id, Arc::clone(&self.call));
        let first = line.first_key_value().is_some_and(|(id, _)| *id == self.id);
        self.room.many.fetch_add(1, Relaxed);
        self.in_line = true;
        let tell = first && state.gaps(&self.key.0).begins(self.began);
        drop(state);
        if tell {
            let (pool, timeout) = (&*self.key.0, self.until.saturating_duration_since(self.began));
            tracing::warn!(pool, ?timeout, "pool has no usable pod; requests wait");
        }
        self.catch_up();
        self.shown().inc();
    }

    fn leave(&mut self, call_next: bool) {
        if !std::mem::take(&mut self.in_line) {
            return;
        }
        let mut state = self.room.state();
        if let Some(line) = state.lines.get_mut(&self.key) {
            line.remove(&self.id);
            if call_next {
                call_first(line);
            }
            if line.is_empty() {
                state.lines.remove(&self.key);
            }
        }
        let last = !state.lines.keys().any(|(pool, _)| *pool == self.key.0);
        let gone = self.pool.is_closed();
        if last && gone {
            state.gaps.remove(&self.key.0);
        } else if last {
            state.gaps(&self.key.0).began = None;
        }
        self.room.many.fetch_sub(1, Relaxed);
        drop(state);
        self.shown().dec();
        if last && gone {
            self.room.shown.remove(&PoolLabels { pool: Name::from(&self.key.0) });
        }
    }

    fn shown(&self) -> Gauge {
        self.room.shown.get_or_create_owned(&PoolLabels { pool: Name::from(&self.key.0) })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.leave(true);
        self.room.state().bytes -= self.bytes;
        let labels = PoolReasonLabels { pool: Name::from(&self.key.0), reason: self.outcome };
        self.room.waited.get_or_create(&labels).observe(self.waited().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Bytes, fleet::Fleet, telemetry::Rows};

    fn limits() -> config::Waiting {
        config::Waiting {
            timeout: Duration::from_secs(30),
            requests: 1_000,
            bytes: Bytes(1_000),
            tenant_requests: 1_000,
            tenant_bytes: Bytes(1_000),
            shares: [].into(),
        }
    }

    fn room() -> (Waiting, Arc<PoolState>) {
        let yaml = "listeners: [{ name: a, address: 127.0.0.1:1 }]
pools: [{ name: pool, endpoints: [{ url: \"http://10.0.0.1:8000\" }] }]";
        let (config, _) = config::load("t.yaml", yaml).unwrap();
        let fleet = Fleet::new(&config.pools, clock::now());
        (Waiting::new(&Metrics::new(Arc::new(Rows::default))), fleet.pool("pool").unwrap())
    }

    fn enter<'a>(room: &'a Waiting, pool: &Arc<PoolState>, bytes: usize) -> Result<Place<'a>, Rejection> {
        room.enter(pool, &"m".into(), &Asked { bytes, news: pool.news(), limits: &limits() })
    }

    fn called_now(place: &mut Place<'_>) -> bool {
        use futures_util::FutureExt as _;
        place.called().now_or_never().is_some_and(|called| called.is_ok())
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_that_wait_are_called_in_the_order_in_which_they_came() {
        let (room, pool) = room();
        let mut places: Vec<_> = (0..1_000).map(|_| enter(&room, &pool, 1).unwrap()).collect();
        assert!(places.iter_mut().all(|place| !called_now(place)), "nothing was heard yet");
        room.call("pool");
        for at in 0..places.len() {
            let called: Vec<_> = (0..places.len()).filter(|it| called_now(&mut places[*it])).collect();
            assert_eq!(called, [at], "one at a time");
            places[at].served(true);
        }
        drop(places);
        assert!(room.is_empty() && room.state().lines.is_empty());
        assert_eq!(room.state().bytes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_hands_the_call_on_and_who_comes_back_stands_where_it_stood() {
        let (room, pool) = room();
        let mut places: Vec<_> = (0..3).map(|_| enter(&room, &pool, 1).unwrap()).collect();
        room.call("pool");
        drop(places.remove(0));
        assert!(called_now(&mut places[0]), "the second is first now");
        places[0].served(false);
        assert!(!called_now(&mut places[1]), "it was told that there is no more");
        places[0].back();
        room.call("pool");
        assert!(!called_now(&mut places[1]) && called_now(&mut places[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_between_a_try_and_the_line_is_not_missed() {
        let (room, pool) = room();
        let before = pool.news();
        pool.tell_news();
        room.call("pool");
        let mut place = room.enter(&pool, &"m".into(), &Asked { bytes: 1, news: before, limits: &limits() }).unwrap();
        assert!(called_now(&mut place));
        pool.tell_news();
        place.stays();
        assert!(called_now(&mut place));
        place.stays();
        assert!(!called_now(&mut place), "nothing new");
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_is_bounded_in_requests_bytes_and_time() {
        let (room, pool) = room();
        let mut first = enter(&room, &pool, 999).unwrap();
        assert!(matches!(enter(&room, &pool, 2), Err(Rejection::LineFull { pause: RETRY_AFTER })));
        let began = clock::now();
        let expired = first.called().await;
        assert!(matches!(expired, Err(Rejection::NoPodInTime { .. })), "{expired:?}");
        assert_eq!(clock::now() - began, limits().timeout);
        drop(first);
        let few: Vec<_> = (0..1_000).map(|_| enter(&room, &pool, 0).unwrap()).collect();
        assert!(matches!(enter(&room, &pool, 0), Err(Rejection::LineFull { .. })));
        drop(few);
        assert!(room.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_told_when_it_begins_and_when_it_is_over_and_flapping_is_told_seldom() {
        let mut gaps = Gaps::default();
        let began = clock::now();
        assert!(gaps.begins(began));
        assert!(!gaps.begins(began), "the next who waits is no other gap");
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(gaps.served(clock::now()), Some(Duration::from_secs(7)));
        assert_eq!(gaps.served(clock::now()), None, "once");
        assert!(!gaps.begins(clock::now()), "it flaps");
        assert_eq!(gaps.served(clock::now()), None, "nobody was told that it began");
        tokio::time::advance(TELL_EVERY).await;
        assert!(gaps.begins(clock::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_told_to_come_again_when_gaps_are_usually_over() {
        let (room, pool) = room();
        let pause = |room: &Waiting| room.state().retry_after(pool.name(), clock::now()).as_secs();
        assert_eq!(pause(&room), RETRY_AFTER.as_secs(), "nothing measured");
        let mut places: Vec<_> = (0..3).map(|_| enter(&room, &pool, 0).unwrap()).collect();
        tokio::time::advance(Duration::from_secs(20)).await;
        for place in &mut places {
            place.served(true);
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        drop(places);
        // The gap took 20 s, each further one 2 s.
        let waiting: Vec<_> = (0..5).map(|_| enter(&room, &pool, 0).unwrap()).collect();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(pause(&room), 15 + 5 * 2);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(pause(&room), 25 + 5 * 2, "it lasts longer than usual, so as long again");
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!(pause(&room), RETRY_AFTER_MOST.as_secs());
        drop(waiting);
    }
}
