//! What one page of metrics said, and when.
//!
//! A metric that was not on the page is `None`, never zero: an engine that does not tell its KV-cache usage has not
//! said that its cache is empty.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// A reading older than this many scrape intervals is stale: three misses in a row are no accident
/// (the rule of thumb of "3 x interval" in production balancers).
const STALE_INTERVALS: u32 = 3;

/// No reading counts as stale before this age, so that a 50 ms interval does not make every hiccup a blackout. It
/// covers the longest back-off of an idle pod (2 s) plus a slow page (cold servers were seen to take seconds).
const STALE_FLOOR: Duration = Duration::from_secs(5);

/// A reading with its instant and with what our own ledger said at that instant.
#[derive(Clone, Debug)]
pub struct PodLoad {
    /// When the scrape began. What we sent later cannot be in it.
    pub began: Instant,
    /// The ledger's count of requests sent, at `began`.
    pub sent_mark: u64,
    /// The ledger's count of requests ended, at `began`.
    pub ended_mark: u64,
    /// What the page said.
    pub reading: Reading,
}

impl PodLoad {
    /// How old the reading is.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// Whether it is the page from `before` though it was read anew: requests run there, one of ours has ended since, and
    /// not a number has moved, the count of tokens among them. Whatever it says is as old as it was.
    pub(super) fn repeats(&self, before: &Self) -> bool {
        let reading = &self.reading;
        self.ended_mark != before.ended_mark
            && reading.generation_tokens_total.is_some()
            && reading.streams().is_some_and(|streams| streams > 0)
            && *reading == before.reading
    }

    /// Whether the reading is too old to steer by, for a pod scraped every `interval`.
    pub fn is_stale(&self, now: Instant, interval: Duration) -> bool {
        self.age(now) > stale_after(interval)
    }

    /// How much the reading counts: all when it was just made, then less in proportion to its age, and nothing once it
    /// is stale.
    pub fn trust(&self, now: Instant, interval: Duration) -> f64 {
        (1.0 - self.age(now).as_secs_f64() / stale_after(interval).as_secs_f64()).max(0.0)
    }
}

/// The age at which a reading of a pod scraped every `interval` is stale.
pub(super) fn stale_after(interval: Duration) -> Duration {
    STALE_FLOOR.max(interval * STALE_INTERVALS)
}

/// The numbers of one page, engine differences removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reading {
    /// The engine whose names were found (`vllm`, `sglang`, ...).
    pub engine: String,
    /// Requests in the running batch, over all data-parallel ranks.
    pub running: Option<u32>,
    /// Requests waiting to be scheduled, over all ranks.
    pub waiting: Option<u32>,
    /// Requests swapped out to the host (older engines).
    pub swapped: Option<u32>,
    /// KV-cache usage, 0 to 1: the mean over ranks, weighted by their capacity.
    pub kv_usage: Option<f64>,
    /// KV-cache usage of the fullest rank.
    pub kv_usage_max: Option<f64>,
    /// Tokens in one KV-cache block.
    pub block_size: Option<u32>,
    /// KV-cache blocks, over all ranks.
    pub blocks: Option<u64>,
    /// LoRA adapters; `None` where the page does not speak of them.
    pub adapters: Option<Adapters>,
    /// The engine has put itself to sleep: it answers probes but no request.
    pub asleep: bool,
    /// Preemptions since the engine started.
    pub preemptions_total: Option<u64>,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries_total: Option<u64>,
    /// Prompt tokens found there.
    pub prefix_hits_total: Option<u64>,
    /// Prompt tokens computed or found since the engine started.
    pub prompt_tokens_total: Option<u64>,
    /// Tokens generated since the engine started.
    pub generation_tokens_total: Option<u64>,
    /// Lines that looked wanted but could not be read.
    pub unparsed_lines: u32,
}

impl Reading {
    /// Running, waiting and swapped together; `None` if the page told neither of the first two.
    pub fn streams(&self) -> Option<u32> {
        match (self.running, self.waiting) {
            (None, None) => None,
            (running, waiting) => Some(
                running.unwrap_or(0).saturating_add(waiting.unwrap_or(0)).saturating_add(self.swapped.unwrap_or(0)),
            ),
        }
    }

    /// KV-cache capacity in tokens, where the page tells it.
    pub fn kv_capacity(&self) -> Option<u64> {
        // An engine without blocks would answer nobody: it has not told.
        Some(self.blocks?.saturating_mul(u64::from(self.block_size?))).filter(|tokens| *tokens > 0)
    }
}

/// The LoRA adapters of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adapters {
    /// How many fit at once.
    pub max: Option<u32>,
    /// Names in use by running requests.
    pub running: Vec<Arc<str>>,
    /// Names that waiting requests want (vLLM 0.12 to 0.32 repeats the running ones here).
    pub waiting: Vec<Arc<str>>,
}

impl Adapters {
    /// Whether `name` is in use there.
    pub fn holds(&self, name: &str) -> bool {
        self.running.iter().any(|it| &**it == name)
    }

    /// Whether one more adapter fits without pushing another out.
    pub fn has_room(&self) -> bool {
        self.max.is_none_or(|max| self.running.len() < max as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_without_gauges_is_not_an_idle_pod() {
        assert_eq!(Reading::default().streams(), None);
        assert_eq!(Reading { running: Some(0), ..Reading::default() }.streams(), Some(0));
        assert_eq!(Reading { blocks: Some(96), ..Reading::default() }.kv_capacity(), None);
        assert_eq!(Reading { blocks: Some(0), block_size: Some(16), ..Reading::default() }.kv_capacity(), None);
    }

    #[test]
    fn a_page_on_which_nothing_has_moved_though_a_request_has_ended_is_the_page_from_before() {
        let reading = Reading { running: Some(3), generation_tokens_total: Some(500), ..Reading::default() };
        let at = |ended_mark, reading: &Reading| PodLoad {
            began: crate::clock::now(),
            sent_mark: 3,
            ended_mark,
            reading: reading.clone(),
        };
        let before = at(0, &reading);
        assert!(at(1, &reading).repeats(&before));
        assert!(!at(0, &reading).repeats(&before), "it may be within a long step");
        let moved = Reading { generation_tokens_total: Some(501), ..reading.clone() };
        assert!(!at(1, &moved).repeats(&before));
        let idle = Reading { running: Some(0), ..reading.clone() };
        assert!(!at(1, &idle).repeats(&at(0, &idle)), "who left before its first token leaves no trace");
        let uncounted = Reading { generation_tokens_total: None, ..reading };
        assert!(!at(1, &uncounted).repeats(&at(0, &uncounted)), "as many as before may run");
    }

    #[test]
    fn a_reading_goes_stale_by_its_interval_but_never_within_the_floor() {
        let began = crate::clock::now();
        let load = PodLoad { began, sent_mark: 0, ended_mark: 0, reading: Reading::default() };
        let after = |seconds| began + Duration::from_secs(seconds);
        assert!(!load.is_stale(after(5), Duration::from_millis(50)));
        assert!(load.is_stale(after(6), Duration::from_millis(50)));
        assert!(!load.is_stale(after(29), Duration::from_secs(10)));
        assert!(load.is_stale(after(31), Duration::from_secs(10)));
        assert!((load.trust(began, Duration::from_millis(50)) - 1.0).abs() < f64::EPSILON);
        assert!((load.trust(after(2), Duration::from_millis(50)) - 0.6).abs() < 1e-9);
        assert!(load.trust(after(6), Duration::from_millis(50)).abs() < f64::EPSILON);
    }
}
