//! The one task that goes the rounds: looks at every pod every few milliseconds and sends somebody where something is
//! due.
//!
//! Looking costs some 100 ns a pod, so there is no timer a pod, no heap to keep right when a pod wakes up early, and
//! nobody has to tell us what discovery changed: a pool's published slice is another one. Each pod has at most one
//! visit of a kind under way, which bounds them all.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::MissedTickBehavior;

use super::{Doubted, Seat, Seats, report::Report, visit::Watch};
use crate::{clock, fleet::Pod, tasks::Tasks};

/// How often everybody is looked at: well below the shortest useful interval (vLLM's gauges move once a step, 10 to
/// 50 ms). 40 wake-ups a second over 100 pods cost half a percent of a core.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// All pods under watch.
pub(super) struct Rounds {
    seats: Arc<Seats>,
    /// The seats as last seen, and their watches in the same order.
    seen: Arc<Vec<Seat>>,
    pools: Vec<PoolWatch>,
    report: Arc<dyn Report>,
    doubted: Arc<Doubted>,
}

struct PoolWatch {
    seat: Seat,
    pods: Arc<Vec<Arc<Pod>>>,
    watches: Vec<Arc<Watch>>,
}

impl Rounds {
    pub(super) fn new(seats: &Arc<Seats>, report: &Arc<dyn Report>, doubted: &Arc<Doubted>) -> Self {
        Self {
            seats: Arc::clone(seats),
            seen: Arc::default(),
            pools: Vec::new(),
            report: Arc::clone(report),
            doubted: Arc::clone(doubted),
        }
    }

    /// Goes the rounds for ever; visits run on `tasks`.
    pub(super) async fn drive(mut self, tasks: Tasks) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.go_round(&tasks);
        }
    }

    fn go_round(&mut self, tasks: &Tasks) {
        let now = clock::now();
        self.follow();
        let doubted = mem::take(&mut *self.doubted.lock().unwrap_or_else(PoisonError::into_inner));
        for pool in &mut self.pools {
            pool.follow(&self.report);
            for watch in &pool.watches {
                if doubted.contains(&watch.pod.id) {
                    watch.doubt();
                }
                for errand in watch.due(now) {
                    tasks.spawn_until_stop(Arc::clone(watch).run(errand));
                }
            }
        }
    }

    /// Takes over which pools there are; those that stay as they were keep their turns.
    fn follow(&mut self) {
        let seats = self.seats.load_full();
        if Arc::ptr_eq(&seats, &self.seen) {
            return;
        }
        let mut old = mem::take(&mut self.pools);
        let watch = |seat: &Seat| {
            let stays = old.iter().position(|watch| watch.seat.is(seat));
            stays.map_or_else(|| PoolWatch::new(seat), |at| old.swap_remove(at))
        };
        self.pools = seats.iter().map(watch).collect();
        self.seen = seats;
    }
}

impl Seat {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state) && Arc::ptr_eq(&self.kit.fetcher, &other.kit.fetcher)
    }
}

impl PoolWatch {
    fn new(seat: &Seat) -> Self {
        Self { seat: seat.clone(), pods: Arc::default(), watches: Vec::new() }
    }

    /// Takes over what discovery changed; pods that stay keep their turns.
    fn follow(&mut self, report: &Arc<dyn Report>) {
        let pods = self.seat.state.pods();
        if Arc::ptr_eq(&pods, &self.pods) {
            return;
        }
        // By slot, which no two pods share: there may be thousands.
        let old: HashMap<u32, Arc<Watch>> = self.watches.drain(..).map(|watch| (watch.pod.slot, watch)).collect();
        let watch = |pod: &Arc<Pod>| {
            let stays = old.get(&pod.slot);
            stays.map_or_else(|| Arc::new(Watch::new(pod, &self.seat.kit.fetcher, report)), Arc::clone)
        };
        self.watches = pods.iter().map(watch).collect();
        self.pods = pods;
    }
}
