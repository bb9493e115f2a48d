//! The one task that goes the rounds: looks at every pod every few milliseconds and sends somebody where something is
//! due.
//!
//! Looking costs some 100 ns a pod, so there is no timer a pod, no heap to keep right when a pod wakes up early, and
//! nobody has to tell us what discovery changed: a pool's published slice is another one. Each pod has at most one
//! visit of a kind under way, which bounds them all.

use std::{
    mem,
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::time::MissedTickBehavior;

use super::{Doubted, fetch::Fetcher, report::Report, visit::Watch};
use crate::{
    clock,
    config::Pool,
    fleet::{Fleet, Pod, PoolState},
    tasks::Tasks,
};

/// How often everybody is looked at: well below the shortest useful interval (vLLM's gauges move once a step, 10 to
/// 50 ms). 40 wake-ups a second over 100 pods cost half a percent of a core.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// All pods under watch.
pub(super) struct Rounds {
    pools: Vec<PoolWatch>,
    report: Arc<dyn Report>,
    doubted: Arc<Doubted>,
}

struct PoolWatch {
    state: Arc<PoolState>,
    fetcher: Arc<Fetcher>,
    pods: Arc<Vec<Arc<Pod>>>,
    watches: Vec<Arc<Watch>>,
}

impl Rounds {
    pub(super) fn new(
        fleet: &Fleet,
        tls: &dyn Fn(&Pool) -> rustls::ClientConfig,
        report: &Arc<dyn Report>,
        doubted: &Arc<Doubted>,
    ) -> Result<Self, reqwest::Error> {
        let pools = fleet.pools().map(|state| PoolWatch::new(state, tls));
        Ok(Self { pools: pools.collect::<Result<_, _>>()?, report: Arc::clone(report), doubted: Arc::clone(doubted) })
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
}

impl PoolWatch {
    fn new(state: &Arc<PoolState>, tls: &dyn Fn(&Pool) -> rustls::ClientConfig) -> Result<Self, reqwest::Error> {
        let config = &state.config;
        Ok(Self {
            state: Arc::clone(state),
            fetcher: Arc::new(Fetcher::new(tls(config), config.metrics.timeout)?),
            pods: Arc::default(),
            watches: Vec::new(),
        })
    }

    /// Takes over what discovery changed; pods that stay keep their turns.
    fn follow(&mut self, report: &Arc<dyn Report>) {
        let pods = self.state.pods();
        if Arc::ptr_eq(&pods, &self.pods) {
            return;
        }
        let old = mem::take(&mut self.watches);
        let watch = |pod: &Arc<Pod>| {
            let stays = old.iter().find(|watch| Arc::ptr_eq(&watch.pod, pod));
            stays.map_or_else(|| Arc::new(Watch::new(pod, &self.fetcher, report)), Arc::clone)
        };
        self.watches = pods.iter().map(watch).collect();
        self.pods = pods;
    }
}
