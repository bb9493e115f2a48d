//! What every pick wants to know of a pod's last reading, small enough to be read for a thousand pods in microseconds.
//!
//! It is the same reading as the whole [`PodLoad`], published beside it; whoever wants more than these numbers takes
//! that.

use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::{Adapters, PodLoad, load, slate::Slate};

/// Adapters whose names fit on the slate: more than engines are usually told to hold at once (vLLM's `max_loras`
/// defaults to 1). A pod with more is looked up in its whole reading.
const ADAPTERS: usize = 5;

/// Counts, then names.
const WORDS: usize = 1 + ADAPTERS;

/// What the epoch is in microseconds: a reading taken over from a saved state can be older than its pod, by 12 days.
const EPOCH: u64 = 1 << 40;

/// The numbers of one reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Glance {
    /// How much the reading counts by its age: 1 when new, 0 when stale.
    pub trust: f32,
    /// The ledger's count of requests sent when the reading began.
    pub sent_mark: u64,
    /// The ledger's count of requests ended then.
    pub ended_mark: u64,
    /// Requests there: running, waiting and swapped.
    pub streams: u32,
    /// Of those, the ones that do not run.
    pub waiting: u32,
    /// And the ones that run.
    pub running: u32,
    /// KV-cache usage, 0 to 1; 0 where it is not told.
    pub kv_usage: f32,
    /// KV-cache capacity in tokens, where it is told.
    pub kv_capacity: Option<f32>,
}

/// How ready a pod is for an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterState {
    /// Its page does not speak of adapters.
    #[default]
    Untold,
    /// It is loaded.
    Held,
    /// It is not, and there is room.
    Room,
    /// It is not, there is no room, and waiting requests want it.
    Wanted,
    /// It is not, there is no room, and nobody there wants it.
    Full,
}

/// A model name with its hash, made once for a walk over many pods.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// The name.
    pub text: &'a str,
    hash: u64,
}

impl<'a> Name<'a> {
    /// Hashes `text`.
    pub fn new(text: &'a str) -> Self {
        Self { text, hash: xxh3_64(text.as_bytes()) }
    }
}

/// The slates of one pod: load for every pick, adapters for those that ask for one.
#[derive(Debug)]
pub(super) struct Board {
    load: Slate<6>,
    adapters: Slate<WORDS>,
    epoch: Instant,
    /// One over the age in microseconds at which a reading is stale. (An age of more than 71 minutes counts as that.)
    fading: f64,
}

impl Board {
    /// For a pod scraped every `interval`.
    pub(super) fn new(epoch: Instant, interval: Duration) -> Self {
        Self {
            load: Slate::default(),
            adapters: Slate::default(),
            epoch,
            fading: 1.0 / load::stale_after(interval).as_secs_f64() / 1e6,
        }
    }

    pub(super) fn write(&self, load: &PodLoad) {
        let reading = &load.reading;
        self.adapters.write(Slots::of(reading.adapters.as_ref()).words());
        let Some(streams) = reading.streams() else {
            // A page without gauges tells nothing, however new it is.
            return self.load.write([0; 6]);
        };
        let running = reading.running.unwrap_or(0);
        let usage = reading.kv_usage.unwrap_or(0.0).clamp(0.0, 1.0);
        self.load.write([
            self.micros(load.began),
            load.sent_mark,
            load.ended_mark,
            pair(streams, streams.saturating_sub(running)),
            pair(running, single(usage).to_bits()),
            reading.kv_capacity().map_or(0, |tokens| tokens.max(1)),
        ]);
    }

    /// `None` if the pod was never read or its page has no gauges.
    #[inline]
    pub(super) fn read(&self, now: Instant) -> Option<Glance> {
        let [began, sent_mark, ended_mark, queue, work, capacity] = self.load.read();
        if began == 0 {
            return None;
        }
        let age = u32::try_from(self.micros(now).saturating_sub(began)).unwrap_or(u32::MAX);
        let (streams, waiting) = halves(queue);
        let (running, usage) = halves(work);
        Some(Glance {
            trust: single((1.0 - f64::from(age) * self.fading).max(0.0)),
            sent_mark,
            ended_mark,
            streams,
            waiting,
            running,
            kv_usage: f32::from_bits(usage),
            kv_capacity: (capacity > 0).then_some(u32::try_from(capacity).unwrap_or(u32::MAX) as f32),
        })
    }

    /// How ready the pod is for an adapter; `None` if it has too many for the slate.
    pub(super) fn adapter(&self, name: Name<'_>) -> Option<AdapterState> {
        let [counts, names @ ..] = self.adapters.read();
        Slots::from(counts, names).state(name.hash)
    }

    /// Never 0, which means that nothing was written.
    #[inline]
    fn micros(&self, at: Instant) -> u64 {
        let whole = |span: Duration| span.as_secs() * 1_000_000 + u64::from(span.subsec_micros());
        match at.checked_duration_since(self.epoch) {
            Some(after) => EPOCH + whole(after),
            None => EPOCH.saturating_sub(whole(self.epoch.saturating_duration_since(at))).max(1),
        }
    }
}

/// Adapters as hashes: the running ones, then those that only waiting requests want.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Slots {
    told: bool,
    room: bool,
    running: u8,
    waiting: u8,
    names: [u64; ADAPTERS],
}

impl Slots {
    fn of(adapters: Option<&Adapters>) -> Self {
        let Some(adapters) = adapters else {
            return Self::default();
        };
        let wanted = adapters.wanted().count();
        let taken = adapters.running.len() + wanted;
        let mut slots = Self {
            told: true,
            room: adapters.max.is_none_or(|max| taken < max as usize),
            // More than fit are counted, too: that is how a reader knows.
            running: u8::try_from(adapters.running.len()).unwrap_or(u8::MAX),
            waiting: u8::try_from(wanted).unwrap_or(u8::MAX),
            names: [0; ADAPTERS],
        };
        let names = adapters.running.iter().chain(adapters.wanted());
        for (slot, name) in slots.names.iter_mut().zip(names) {
            *slot = xxh3_64(name.as_bytes());
        }
        slots
    }

    fn words(&self) -> [u64; WORDS] {
        let counts = u64::from(self.told)
            | u64::from(self.room) << 1
            | u64::from(self.running) << 8
            | u64::from(self.waiting) << 16;
        let mut words = [counts; WORDS];
        for (word, name) in words.iter_mut().skip(1).zip(self.names) {
            *word = name;
        }
        words
    }

    fn from(counts: u64, names: [u64; ADAPTERS]) -> Self {
        let [flags, running, waiting, ..] = counts.to_le_bytes();
        Self { told: flags & 1 != 0, room: flags & 2 != 0, running, waiting, names }
    }

    fn state(&self, hash: u64) -> Option<AdapterState> {
        let (running, waiting) = (usize::from(self.running), usize::from(self.waiting));
        if running + waiting > ADAPTERS {
            return None;
        }
        let at = self.names.iter().take(running + waiting).position(|it| *it == hash);
        Some(match at {
            _ if !self.told => AdapterState::Untold,
            Some(at) if at < running => AdapterState::Held,
            _ if self.room => AdapterState::Room,
            Some(_) => AdapterState::Wanted,
            None => AdapterState::Full,
        })
    }
}

impl Adapters {
    /// Adapters that only waiting requests want. (vLLM 0.12 to 0.32 repeats the running ones among the waiting.)
    pub fn wanted(&self) -> impl Iterator<Item = &std::sync::Arc<str>> {
        self.waiting.iter().filter(|name| !self.running.contains(name))
    }

    /// How ready the pod is for the adapter `name`.
    pub fn state(&self, name: &str) -> AdapterState {
        let taken = self.running.len() + self.wanted().count();
        if self.holds(name) {
            AdapterState::Held
        } else if self.max.is_none_or(|max| taken < max as usize) {
            AdapterState::Room
        } else if self.wanted().any(|it| &**it == name) {
            AdapterState::Wanted
        } else {
            AdapterState::Full
        }
    }
}

fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(word: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    let low = word as u32;
    (u32::try_from(word >> 32).unwrap_or(u32::MAX), low)
}

#[expect(clippy::cast_possible_truncation, reason = "a share needs no more digits")]
fn single(share: f64) -> f32 {
    share as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fleet::Reading;

    fn adapters(running: &[&str], waiting: &[&str], max: Option<u32>) -> Adapters {
        let names = |list: &[&str]| list.iter().map(|it| (*it).into()).collect();
        Adapters { max, running: names(running), waiting: names(waiting) }
    }

    fn load(began: Instant, reading: Reading) -> PodLoad {
        PodLoad { began, sent_mark: 7, ended_mark: 3, reading }
    }

    #[test]
    fn a_glance_shows_the_reading_and_its_age() {
        let epoch = crate::clock::now();
        let board = Board::new(epoch, Duration::from_millis(250));
        assert_eq!(board.read(epoch), None);
        let reading = Reading {
            running: Some(4),
            waiting: Some(2),
            swapped: Some(1),
            kv_usage: Some(0.5),
            block_size: Some(16),
            blocks: Some(100),
            ..Reading::default()
        };
        board.write(&load(epoch + Duration::from_secs(10), reading));
        let glance = board.read(epoch + Duration::from_secs(12)).unwrap();
        assert!((glance.trust - 0.6).abs() < 1e-6);
        assert_eq!((glance.sent_mark, glance.ended_mark), (7, 3));
        assert_eq!((glance.streams, glance.waiting, glance.running), (7, 3, 4));
        assert_eq!((glance.kv_usage, glance.kv_capacity), (0.5, Some(1_600.0)));
        assert_eq!(board.adapter(Name::new("a")), Some(AdapterState::Untold));
        board.write(&load(epoch, Reading::default()));
        assert_eq!(board.read(epoch), None);
    }

    #[test]
    fn running_adapters_that_are_repeated_as_waiting_take_no_second_place() {
        let repeated = adapters(&["a"], &["a"], Some(2));
        assert_eq!(repeated.state("b"), AdapterState::Room);
        let wanted = adapters(&["a"], &["b"], Some(2));
        assert_eq!((wanted.state("b"), wanted.state("c")), (AdapterState::Wanted, AdapterState::Full));
    }

    proptest! {
        #[test]
        fn a_glance_says_of_adapters_what_the_reading_says(
            running in prop::collection::vec("[a-e]", 0..5),
            waiting in prop::collection::vec("[a-e]", 0..4),
            max in prop::option::of(0u32..6),
            asked in "[a-f]",
        ) {
            let list = |names: &[String]| names.iter().map(|it| it.as_str().into()).collect();
            let adapters = Adapters { max, running: list(&running), waiting: list(&waiting) };
            let board = Board::new(crate::clock::now(), Duration::from_millis(250));
            let said = adapters.state(&asked);
            let reading = Reading { running: Some(1), adapters: Some(adapters), ..Reading::default() };
            board.write(&load(crate::clock::now(), reading));
            let glance = board.adapter(Name::new(&asked));
            prop_assert!(glance.is_none_or(|it| it == said), "{glance:?} {said:?}");
            prop_assert!(glance.is_some() || running.len() + waiting.len() > ADAPTERS);
        }
    }
}
