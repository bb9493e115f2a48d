//! An engine in real time: sleeps until each step is over, then tells the waiting clients how far they are.
//!
//! A client holds a [`Ticket`]; dropping it is how it leaves, whatever the reason, and the engine hears of it at
//! once. Progress is a value that is overwritten, not a queue: nothing here grows when a client reads slowly.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    time::sleep_until,
};

use super::{
    engine::Engine,
    faults::FaultSwitch,
    metrics::{Finished, Seen},
    terms::{Emitted, EngineConfig, Gauges, PromptBlocks, SimRequest, TooLong, Totals},
};
use crate::clock;

/// A timer that fires late is made up for by up to this much (tokio's resolution is 1 ms, a busy machine adds some), so
/// that steps shorter than that keep their average; more would let a stalled machine race through its backlog.
const CATCH_UP: Duration = Duration::from_millis(20);

/// How far an answer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Tokens generated.
    pub(super) tokens: u32,
    /// Prompt tokens that were found in the cache.
    pub(super) cached: u32,
    /// Whether that was all.
    pub(super) complete: bool,
}

/// Why the engine would not take a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    /// It could never fit.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// As many wait as may (`--max-num-queued-reqs`).
    #[error("{0} requests are waiting already")]
    QueueFull(usize),
}

/// What to run.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) prompt: PromptBlocks,
    pub(super) output_tokens: u32,
    /// Whether the answer ends because of the client's limit.
    pub(super) limited: bool,
    pub(super) adapter: Option<u32>,
}

/// What a scrape reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown {
    pub(super) gauges: Gauges,
    pub(super) totals: Totals,
    pub(super) seen: Seen,
}

#[derive(Debug)]
struct Client {
    progress: watch::Sender<Progress>,
    order: Order,
    arrived_ms: f64,
    admitted_ms: Option<f64>,
    first_ms: f64,
    last_ms: f64,
}

#[derive(Debug)]
struct Room {
    engine: Engine,
    clients: HashMap<u64, Client>,
    next_id: u64,
    began_ms: f64,
    seen: Seen,
    left_early: u64,
    /// What metrics show while a fault makes them stand still.
    frozen: Option<Box<Shown>>,
}

/// An engine, its clients and the time it lives in.
#[derive(Debug)]
pub(super) struct LiveEngine {
    room: Mutex<Room>,
    work: Notify,
    faults: FaultSwitch,
    origin: Instant,
    /// Real time per virtual time.
    scale: f64,
    max_queued: Option<usize>,
}

impl LiveEngine {
    pub(super) fn new(config: EngineConfig, faults: FaultSwitch, scale: f64, max_queued: Option<usize>) -> Self {
        let room = Room {
            engine: Engine::new(config),
            clients: HashMap::new(),
            next_id: 0,
            began_ms: 0.0,
            seen: Seen::default(),
            left_early: 0,
            frozen: None,
        };
        Self { room: Mutex::new(room), work: Notify::new(), faults, origin: clock::now(), scale, max_queued }
    }

    /// Puts a request in line.
    pub(super) fn take(self: &Arc<Self>, order: Order) -> Result<Ticket, NotTaken> {
        let arrived_ms = self.now_ms();
        let mut room = self.enter();
        if let Some(limit) = self.max_queued.filter(|&limit| room.engine.live() >= room.engine.gauges().running + limit)
        {
            room.seen.rejected += 1;
            return Err(NotTaken::QueueFull(limit));
        }
        let id = room.next_id;
        let (prompt, output_tokens, adapter) = (order.prompt.clone(), order.output_tokens, order.adapter);
        room.engine.add(SimRequest { id, prompt, output_tokens, adapter })?;
        room.next_id += 1;
        let (progress, news) = watch::channel(Progress::default());
        room.clients.insert(
            id,
            Client { progress, order, arrived_ms, admitted_ms: None, first_ms: arrived_ms, last_ms: arrived_ms },
        );
        drop(room);
        self.work.notify_one();
        Ok(Ticket { id, news, engine: Arc::clone(self) })
    }

    /// What `/metrics` shows now.
    pub(super) fn shown(&self) -> Shown {
        let room = self.enter();
        room.frozen.as_deref().cloned().unwrap_or_else(|| room.show())
    }

    /// How many requests are here, whatever the metrics say.
    pub(super) fn live(&self) -> usize {
        self.enter().engine.live()
    }

    /// How many left before their last token, counted the moment they left.
    pub(super) fn left_early(&self) -> u64 {
        self.enter().left_early
    }

    /// Forgets all cached prefixes.
    pub(super) fn reset_prefix_cache(&self) {
        self.enter().engine.reset_prefix_cache();
    }

    /// Runs step after step, for ever.
    pub(super) async fn run(self: Arc<Self>) {
        let mut faults = self.faults.watch();
        loop {
            let stands_still = faults.borrow_and_update().engine_stands_still();
            let busy_until = if stands_still { None } else { self.begin() };
            let Some(ends_at) = busy_until else {
                tokio::select! {
                    () = self.work.notified() => {}
                    _ = faults.changed() => {}
                }
                continue;
            };
            sleep_until(self.instant_of(ends_at).into()).await;
            if !self.faults.now().engine_stands_still() {
                self.end();
            }
            // A past deadline does not suspend, and clients must get their turn.
            tokio::task::yield_now().await;
        }
    }

    fn begin(&self) -> Option<f64> {
        let now_ms = self.now_ms();
        let slow = self.faults.now().slow.max(f64::MIN_POSITIVE);
        let mut room = self.enter();
        if let Some(ends_at) = room.engine.busy_until() {
            return Some(ends_at);
        }
        room.engine.slow_down(slow);
        // The step before ended at `began_ms` unless the engine was idle since.
        let begin_ms = room.began_ms.max(now_ms - self.virtual_ms(CATCH_UP));
        let begin_ms = if room.engine.gauges().running == 0 { now_ms } else { begin_ms };
        room.began_ms = begin_ms;
        room.engine.begin_step(begin_ms)
    }

    fn end(&self) {
        let mut guard = self.enter();
        let Room { engine, clients, seen, began_ms, .. } = &mut *guard;
        let report = engine.end_step();
        for id in &report.admitted {
            if let Some(client) = clients.get_mut(id) {
                client.admitted_ms.get_or_insert(*began_ms);
            }
        }
        seen.step(report.computed);
        for token in &report.emitted {
            tell(clients, seen, token, report.ended_at);
        }
        *began_ms = report.ended_at;
    }

    fn leave(&self, id: u64) {
        let mut room = self.enter();
        if room.clients.remove(&id).is_some() {
            room.left_early += 1;
            room.engine.abort(id);
            drop(room);
            self.work.notify_one();
        }
    }

    /// Every look at the room passes here, so that metrics freeze before anything changes that they would show.
    fn enter(&self) -> MutexGuard<'_, Room> {
        let still = self.faults.now().metrics_stand_still();
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        match (still, room.frozen.is_some()) {
            (true, false) => room.frozen = Some(Box::new(room.show())),
            (false, true) => room.frozen = None,
            _ => {}
        }
        room
    }

    fn now_ms(&self) -> f64 {
        self.virtual_ms(clock::now().duration_since(self.origin))
    }

    fn virtual_ms(&self, real: Duration) -> f64 {
        real.as_secs_f64() * 1_000.0 / self.scale
    }

    fn instant_of(&self, at_ms: f64) -> Instant {
        self.origin + Duration::from_secs_f64(at_ms * self.scale / 1_000.0)
    }
}

impl Room {
    fn show(&self) -> Shown {
        Shown { gauges: self.engine.gauges().clone(), totals: *self.engine.totals(), seen: self.seen.clone() }
    }
}

/// One token: the client hears of it and the histograms remember it.
fn tell(clients: &mut HashMap<u64, Client>, seen: &mut Seen, token: &Emitted, at_ms: f64) {
    let Some(client) = clients.get_mut(&token.id) else {
        return;
    };
    if token.index == 0 {
        client.first_ms = at_ms;
        seen.first_token((at_ms - client.arrived_ms) / 1_000.0);
    } else {
        seen.next_token((at_ms - client.last_ms) / 1_000.0);
    }
    client.last_ms = at_ms;
    client.progress.send_replace(Progress { tokens: token.index + 1, cached: token.cached, complete: token.last });
    if token.last {
        let admitted_ms = client.admitted_ms.unwrap_or(client.arrived_ms);
        seen.finished(&Finished {
            prompt_tokens: client.order.prompt.tokens,
            output_tokens: client.order.output_tokens,
            cached_tokens: token.cached,
            limited: client.order.limited,
            queued_s: (admitted_ms - client.arrived_ms) / 1_000.0,
            prefill_s: (client.first_ms - admitted_ms) / 1_000.0,
            decode_s: (at_ms - client.first_ms) / 1_000.0,
        });
        clients.remove(&token.id);
    }
}

/// A place in the engine; dropping it leaves.
#[derive(Debug)]
pub(super) struct Ticket {
    id: u64,
    news: watch::Receiver<Progress>,
    engine: Arc<LiveEngine>,
}

impl Ticket {
    /// The request's number in this pod.
    pub(super) fn number(&self) -> u64 {
        self.id
    }

    /// Waits until there are more than `tokens` tokens, or all.
    pub(super) async fn beyond(&mut self, tokens: u32) -> Progress {
        let there = self.news.wait_for(|progress| progress.tokens > tokens || progress.complete).await;
        there.map(|progress| *progress).unwrap_or_default()
    }

    /// Waits for the last token.
    pub(super) async fn end(&mut self) -> Progress {
        self.beyond(u32::MAX).await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.engine.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::{
        faults::Faults,
        profiles::PROFILES,
        step::{StepLoad, StepModel},
    };

    fn engine(scale: f64, faults: &FaultSwitch) -> Arc<LiveEngine> {
        let config = EngineConfig::new(StepModel::new(&PROFILES[0], 1.0));
        Arc::new(LiveEngine::new(config, faults.clone(), scale, None))
    }

    fn order(prompt: u32, output_tokens: u32) -> Order {
        let prompt = PromptBlocks { tokens: prompt, ..PromptBlocks::default() };
        Order { prompt, output_tokens, limited: true, adapter: None }
    }

    #[tokio::test(start_paused = true)]
    async fn real_time_is_the_sum_of_the_steps_times_the_scale() {
        for scale in [1.0, 0.1] {
            let live = engine(scale, &FaultSwitch::new(Faults::default()));
            let tasks = crate::tasks::Tasks::new();
            tasks.spawn_until_stop(Arc::clone(&live).run());
            let model = StepModel::new(&PROFILES[0], 1.0);
            let mut load = StepLoad::default();
            load.add_chunk(1_000, 0);
            let mut wanted = model.millis(&load);
            for said in 0..99 {
                load = StepLoad::default();
                load.add_decode(1_000 + said);
                wanted += model.millis(&load);
            }
            let began = clock::now();
            let end = live.take(order(1_000, 100)).unwrap().end().await;
            let took = clock::now().duration_since(began).as_secs_f64() * 1_000.0;
            assert_eq!(end, Progress { tokens: 100, cached: 0, complete: true });
            assert!((took - wanted * scale).abs() < 3.0, "{took} ms, wanted {}", wanted * scale);
            tasks.stop();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn histograms_tell_waiting_from_prefill_and_decode() {
        let live = engine(1.0, &FaultSwitch::new(Faults::default()));
        let tasks = crate::tasks::Tasks::new();
        tasks.spawn_until_stop(Arc::clone(&live).run());
        live.take(order(4_000, 50)).unwrap().end().await;
        let seen = live.shown().seen;
        assert!(seen.queued.sum.abs() < 0.002, "nothing was before it: {}", seen.queued.sum);
        assert!((seen.prefill.sum - seen.ttft.sum).abs() < 0.002);
        assert!((seen.e2e.sum - seen.ttft.sum - seen.inter_token.sum).abs() < 0.002);
        assert_eq!((seen.limited, seen.stopped), (1, 0));
        tasks.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_pod_takes_that_many_times_as_long() {
        let faults = FaultSwitch::new(Faults::default());
        let live = engine(1.0, &faults);
        let tasks = crate::tasks::Tasks::new();
        tasks.spawn_until_stop(Arc::clone(&live).run());
        let mut took = Vec::new();
        for slow in [1.0, 4.0] {
            faults.change(|it| it.slow = slow);
            let began = clock::now();
            live.take(order(100, 50)).unwrap().end().await;
            took.push(clock::now().duration_since(began).as_secs_f64());
        }
        assert!((took[1] / took[0] - 4.0).abs() < 0.1, "{took:?}");
        tasks.stop();
    }
}
