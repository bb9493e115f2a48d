//! What can be wrong with a simulated pod, switched while it runs by `POST /sim/faults` or by a test.
//!
//! A set of faults is a value that replaces the one before: an empty object heals everything. What each fault does is
//! decided where it bites (the server, the driver, the metrics page); this file only holds and announces the set.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Everything that is wrong now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own, and any of them may be on together")]
pub struct Faults {
    /// Share of inference requests that are answered 500, evenly spaced.
    pub error_rate: f64,
    /// Every inference request is answered with this status (429, 503 ...), nothing runs.
    pub status: Option<u16>,
    /// Inference requests are read and then nothing happens until the fault is lifted.
    pub hang_before_headers: bool,
    /// The connection breaks after this many tokens, without an end.
    pub cut_mid_stream: Option<u32>,
    /// After this many tokens an error event and `[DONE]` come, as when vLLM's engine dies.
    pub error_event: Option<u32>,
    /// After this many tokens the answer ends with `finish_reason: "abort"`, as when vLLM is told to stop.
    pub finish_abort: Option<u32>,
    /// `/metrics` answers this much later.
    pub slow_metrics_ms: u64,
    /// `/metrics` shows what it showed when this was switched on.
    pub stale_metrics: bool,
    /// Nobody listens and open connections are closed; over HTTP give `for_ms` too, or there is no way back.
    pub refuse_connections: bool,
    /// Asleep: says so in `engine_sleep_state`, answers `/health` with 200, computes nothing.
    pub sleep: bool,
    /// Every step takes this many times as long.
    pub slow: f64,
    /// The engine died: `/health` 503, requests 500, streams end in an error event, gauges stand still.
    pub engine_dead: bool,
    /// Not ready yet: `/health` and requests get 503.
    pub warm_up: bool,
    /// All of the above heals by itself after this long (real time).
    pub for_ms: Option<u64>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            error_rate: 0.0,
            status: None,
            hang_before_headers: false,
            cut_mid_stream: None,
            error_event: None,
            finish_abort: None,
            slow_metrics_ms: 0,
            stale_metrics: false,
            refuse_connections: false,
            sleep: false,
            slow: 1.0,
            engine_dead: false,
            warm_up: false,
            for_ms: None,
        }
    }
}

impl Faults {
    /// Whether the engine computes nothing.
    pub(super) fn engine_stands_still(&self) -> bool {
        self.sleep || self.engine_dead
    }

    /// Whether the metrics page stands still.
    pub(super) fn metrics_stand_still(&self) -> bool {
        self.stale_metrics || self.engine_dead
    }
}

/// The switch: anyone may set it, everyone concerned hears of it.
#[derive(Clone, Debug)]
pub struct FaultSwitch {
    now: Arc<watch::Sender<Faults>>,
    requests: Arc<AtomicU64>,
}

impl FaultSwitch {
    /// Starts with these faults.
    pub(super) fn new(faults: Faults) -> Self {
        Self { now: Arc::new(watch::Sender::new(faults)), requests: Arc::default() }
    }

    /// What is wrong now.
    pub fn now(&self) -> Faults {
        self.now.borrow().clone()
    }

    /// From now on this is wrong, and nothing else.
    pub fn set(&self, faults: Faults) {
        self.now.send_replace(faults);
    }

    /// Changes one thing and leaves the rest.
    pub fn change(&self, edit: impl FnOnce(&mut Faults)) {
        self.now.send_modify(edit);
    }

    /// Nothing is wrong any more.
    pub fn heal(&self) {
        self.set(Faults::default());
    }

    /// Hears of every change.
    pub(super) fn watch(&self) -> watch::Receiver<Faults> {
        self.now.subscribe()
    }

    /// Whether the next request is one of those that `error_rate` fails: evenly spaced, so that a test can count.
    pub(super) fn next_fails(&self) -> bool {
        let rate = self.now.borrow().error_rate.clamp(0.0, 1.0);
        let nth = self.requests.fetch_add(1, Ordering::Relaxed) as f64;
        (rate * (nth + 1.0)).floor() > (rate * nth).floor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_rate_fails_exactly_its_share() {
        let switch = FaultSwitch::new(Faults { error_rate: 0.25, ..Faults::default() });
        assert_eq!((0..1000).filter(|_| switch.next_fails()).count(), 250);
        switch.heal();
        assert_eq!((0..1000).filter(|_| switch.next_fails()).count(), 0);
        switch.change(|faults| faults.error_rate = 1.0);
        assert_eq!((0..10).filter(|_| switch.next_fails()).count(), 10);
    }

    #[test]
    fn an_unknown_fault_is_refused_and_an_empty_object_heals() {
        assert!(serde_json::from_str::<Faults>(r#"{"slwo":2}"#).is_err());
        assert_eq!(serde_json::from_str::<Faults>("{}").unwrap(), Faults::default());
    }
}
