//! `gie`: the flow control of the Gateway API Inference Extension, with its own defaults.
//!
//! Everybody passes its queues. A cycle runs when a request comes and every millisecond: it asks how full the pool is, takes
//! the highest band that has anybody and lets one request in, if the pool is not full. How full it is comes from pages
//! alone: for each pod, requests waiting over 5 or KV-cache usage over 0.8, whichever is more, and 1 if its page is older
//! than 200 ms; the mean over the pods. Within a band the flow whose first request has waited longest is next
//! (`global-strict`), or flows take turns (`round-robin`). Whoever has waited a minute is refused.
//!
//! Left out: the pool is looked up anew every 50 ms, and expired items are swept once a second there; here at once.

use std::collections::{BTreeMap, VecDeque};

use super::{Arrival, Door, PAUSE_MS, Sight, Word};

/// From one page to the next (`refreshMetricsInterval`).
pub(super) const SCRAPE_MS: f64 = 50.0;

/// From one cycle to the next.
const CYCLE_MS: f64 = 1.0;

/// How old a page may be.
const STALE_MS: f64 = 200.0;

/// Requests waiting at a pod, and its KV-cache usage, that make it full.
const QUEUE: f64 = 5.0;
const KV: f64 = 0.8;

/// How long one waits (`defaultRequestTTL`), and how many do in one band.
const TTL_MS: f64 = 60_000.0;
const MOST: usize = 5_000;

/// And how much they occupy there.
const MOST_BYTES: usize = 1_000_000_000;

pub(super) fn make_strict() -> Box<dyn Door> {
    Box::new(Gie::new(false))
}

pub(super) fn make_round_robin() -> Box<dyn Door> {
    Box::new(Gie::new(true))
}

#[derive(Debug)]
struct Gie {
    /// By how much they matter.
    bands: BTreeMap<i32, Band>,
    turns: bool,
    /// Cycles that arrivals have called for.
    called: u32,
    /// When the next one is due by itself.
    tick_ms: f64,
    turned_away: VecDeque<u32>,
}

#[derive(Debug, Default)]
struct Band {
    /// By tenant, each in its order.
    flows: BTreeMap<u32, VecDeque<Arrival>>,
    requests: usize,
    bytes: usize,
    /// The flow that had its turn last.
    last: Option<u32>,
}

impl Gie {
    fn new(turns: bool) -> Self {
        Self { bands: BTreeMap::new(), turns, called: 0, tick_ms: f64::INFINITY, turned_away: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.bands.values().all(|band| band.requests == 0)
    }

    /// The longest waiting of all, if it has waited too long.
    fn expired(&mut self, now_ms: f64) -> Option<u32> {
        let over = |band: &Band| {
            let heads = band.flows.iter().filter_map(|(tenant, flow)| Some((*tenant, flow.front()?.at_ms)));
            heads.into_iter().find(|(_, at_ms)| now_ms - at_ms >= TTL_MS).map(|(tenant, _)| tenant)
        };
        self.bands.values_mut().find_map(|band| over(band).and_then(|tenant| band.take(tenant)))
    }

    /// One cycle: at most one request.
    fn cycle(&mut self, sight: &Sight<'_>) -> Option<u32> {
        if self.is_empty() || saturation(sight) >= 1.0 {
            return None;
        }
        let turns = self.turns;
        self.bands.values_mut().rev().find_map(|band| band.next(turns).and_then(|tenant| band.take(tenant)))
    }
}

impl Band {
    /// Whose turn it is.
    fn next(&self, turns: bool) -> Option<u32> {
        let waiting = || self.flows.iter().filter_map(|(tenant, flow)| Some((*tenant, flow.front()?.at_ms)));
        if turns {
            let after = self.last.and_then(|last| waiting().find(|(tenant, _)| *tenant > last));
            return after.or_else(|| waiting().next()).map(|(tenant, _)| tenant);
        }
        waiting().min_by(|one, other| one.1.total_cmp(&other.1)).map(|(tenant, _)| tenant)
    }

    fn take(&mut self, tenant: u32) -> Option<u32> {
        let taken = self.flows.get_mut(&tenant)?.pop_front()?;
        self.requests -= 1;
        self.bytes -= taken.bytes;
        self.last = Some(tenant);
        Some(taken.nth)
    }

    fn remove(&mut self, nth: u32) {
        for flow in self.flows.values_mut() {
            if let Some(gone) = flow.iter().position(|it| it.nth == nth).and_then(|at| flow.remove(at)) {
                self.requests -= 1;
                self.bytes -= gone.bytes;
            }
        }
    }
}

impl Door for Gie {
    fn came(&mut self, arrival: Arrival, sight: &Sight<'_>) {
        let band = self.bands.entry(arrival.client.priority).or_default();
        if band.requests >= MOST || band.bytes + arrival.bytes > MOST_BYTES {
            return self.turned_away.push_back(arrival.nth);
        }
        band.requests += 1;
        band.bytes += arrival.bytes;
        band.flows.entry(arrival.client.tenant).or_default().push_back(arrival);
        self.called += 1;
        if self.tick_ms.is_infinite() {
            self.tick_ms = sight.now_ms + CYCLE_MS;
        }
    }

    fn gone(&mut self, nth: u32) {
        self.bands.values_mut().for_each(|band| band.remove(nth));
    }

    fn next(&mut self, sight: &Sight<'_>) -> Option<Word> {
        if let Some(nth) = self.turned_away.pop_front().or_else(|| self.expired(sight.now_ms)) {
            return Some(Word::Refuse(nth, PAUSE_MS));
        }
        if sight.now_ms >= self.tick_ms {
            self.called += 1;
            self.tick_ms = sight.now_ms + CYCLE_MS;
        }
        while self.called > 0 {
            self.called -= 1;
            if let Some(nth) = self.cycle(sight) {
                return Some(Word::Enter(nth));
            }
        }
        if self.is_empty() {
            self.tick_ms = f64::INFINITY;
        }
        None
    }

    fn alarm_ms(&self) -> f64 {
        self.tick_ms
    }
}

/// How full the pool is by its pages: the mean hides one hot pod, and an old page counts as a full pod.
fn saturation(sight: &Sight<'_>) -> f64 {
    let of_pod = |pod: &std::sync::Arc<crate::fleet::Pod>| {
        let load = pod.load_guard();
        let fresh = load.as_ref().filter(|load| load.age(sight.now).as_secs_f64() * 1e3 <= STALE_MS);
        fresh.map_or(1.0, |load| {
            let waiting = f64::from(load.reading.waiting.unwrap_or(0));
            (waiting / QUEUE).max(load.reading.kv_usage.unwrap_or(0.0) / KV)
        })
    };
    let pods = sight.pods.len();
    if pods == 0 { 1.0 } else { sight.pods.iter().map(of_pod).sum::<f64>() / pods as f64 }
}

#[cfg(test)]
mod tests {
    use super::{
        super::bench::{Hall, all, arrival},
        *,
    };

    fn full(hall: &Hall, at_ms: f64) {
        hall.page(0, at_ms, 5, 0.1);
    }

    #[test]
    fn a_pod_is_as_full_as_its_page_says_and_an_old_page_is_a_full_pod() {
        let hall = Hall::new(2);
        assert!((saturation(&hall.at(0.0)) - 1.0).abs() < 1e-9, "no page yet");
        hall.page(0, 0.0, 1, 0.4);
        hall.page(1, 0.0, 5, 0.1);
        // max(1/5, 0.4/0.8) and 5/5.
        assert!((saturation(&hall.at(200.0)) - 0.75).abs() < 1e-9);
        assert!((saturation(&hall.at(201.0)) - 1.0).abs() < 1e-9);
        let nobody = Sight { pods: &[], ..hall.at(0.0) };
        assert!((saturation(&nobody) - 1.0).abs() < 1e-9, "no pod has room");
    }

    #[test]
    fn one_a_cycle_comes_in_however_many_would_fit_and_between_pages_all_do() {
        let hall = Hall::new(1);
        let mut door = make_strict();
        full(&hall, 0.0);
        for nth in 0..4 {
            door.came(arrival(nth, (0, 0), 0.0), &hall.at(0.0));
        }
        assert_eq!(all(&mut *door, &hall.at(0.0)), [], "full");
        hall.page(0, 1.0, 0, 0.1);
        assert_eq!(door.alarm_ms().to_bits(), 1.0_f64.to_bits());
        // What is let in fills the pod, but its page does not say so yet.
        for (nth, now_ms) in [(0, 1.0), (1, 2.0), (2, 3.0)] {
            assert_eq!(all(&mut *door, &hall.at(now_ms)), [Word::Enter(nth)]);
        }
        assert_eq!(all(&mut *door, &hall.at(3.5)), []);
        assert_eq!(all(&mut *door, &hall.at(4.0)), [Word::Enter(3)]);
        assert!(door.alarm_ms().is_infinite(), "nobody waits");
    }

    #[test]
    fn higher_bands_go_first_and_flows_are_one_line_or_take_turns() {
        let order = |make: fn() -> Box<dyn Door>| -> Vec<u32> {
            let hall = Hall::new(1);
            let mut door = make();
            full(&hall, 0.0);
            let who = [(1, 0), (1, 0), (1, 0), (2, 0), (2, 1), (1, -1)];
            for (nth, who) in who.into_iter().enumerate() {
                let at_ms = nth as f64 / 10.0;
                door.came(arrival(u32::try_from(nth).unwrap(), who, at_ms), &hall.at(at_ms));
                assert_eq!(all(&mut *door, &hall.at(at_ms)), []);
            }
            hall.page(0, 1.0, 0, 0.0);
            let words = (1..=9).filter_map(|tick| door.next(&hall.at(f64::from(tick))));
            words.map(|word| if let Word::Enter(nth) = word { nth } else { u32::MAX }).collect()
        };
        assert_eq!(order(make_strict), [4, 0, 1, 2, 3, 5]);
        assert_eq!(order(make_round_robin), [4, 0, 3, 1, 2, 5], "tenant 2 has its turn after tenant 1's first");
    }

    #[test]
    fn who_has_waited_a_minute_is_refused_and_who_has_gone_is_forgotten() {
        let hall = Hall::new(1);
        let mut door = make_strict();
        door.came(arrival(0, (0, 0), 0.0), &hall.at(0.0));
        door.came(arrival(1, (0, 0), 0.0), &hall.at(0.0));
        door.gone(0);
        assert_eq!(all(&mut *door, &hall.at(59_999.0)), []);
        assert_eq!(all(&mut *door, &hall.at(60_000.0)), [Word::Refuse(1, PAUSE_MS)]);
    }
}
