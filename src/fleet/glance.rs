//! What every pick wants to know of a pod's last reading, small enough to be read for a thousand pods in microseconds.
//!
//! It is the same reading as the whole [`PodLoad`], published beside it; whoever wants more than these numbers takes
//! that.

use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

use super::{Adapters, PodLoad, Reading, load, slate::Slate};

/// Adapters whose names fit on the slate: more than engines are usually told to hold at once (vLLM's `max_loras`
/// defaults to 1). A pod with more is looked up in its whole reading.
const ADAPTERS: usize = 5;

/// The instant, then counts by twos.
const NUMBERS: usize = 5;

/// Facts, then names.
const WORDS: usize = 1 + ADAPTERS;

/// What the epoch is in microseconds: a reading taken over from a saved state can be older than its pod, by 12 days.
const EPOCH: u64 = 1 << 40;

/// The numbers of one reading, worked out as far as they can be when it is made. Single precision holds every count
/// that matters here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Glance {
    /// How much the reading counts by its age: 1 when new, 0 when stale.
    pub trust: f32,
    /// Our own requests in flight when the reading began.
    pub ours: f32,
    /// Requests there that were not ours then.
    pub others: f32,
    /// Of those, the ones that did not run. Which of all are theirs is not told: in proportion.
    pub others_waiting: f32,
    /// Requests there that did not run.
    pub waiting: f32,
    /// And the ones that ran.
    pub running: f32,
    /// KV-cache usage, 0 to 1; 0 where it is not told.
    pub kv_usage: f32,
    /// KV-cache capacity in tokens, where it is told.
    pub kv_capacity: Option<f32>,
    /// How many requests run at once at most, where that is why others wait.
    pub batch: Option<f32>,
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

/// An instant to ask many pods about. They count microseconds from when their pool was made; this is counted once.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    now: Instant,
    epoch: Instant,
    micros: u64,
}

impl Moment {
    /// `now`, for pods that count from `epoch`. Others may be asked, too; it takes longer.
    pub(super) fn new(now: Instant, epoch: Instant) -> Self {
        Self { now, epoch, micros: micros(now, epoch) }
    }

    /// Milliseconds since `epoch`, from some beginning; they wrap after 49 days.
    #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
    #[inline]
    pub(super) fn millis(&self, epoch: Instant) -> u32 {
        (self.micros(epoch) / 1_000) as u32
    }

    #[inline]
    fn micros(&self, epoch: Instant) -> u64 {
        if epoch == self.epoch { self.micros } else { micros(self.now, epoch) }
    }
}

/// Never 0, which means that nothing was written.
fn micros(at: Instant, epoch: Instant) -> u64 {
    let whole = |span: Duration| span.as_secs() * 1_000_000 + u64::from(span.subsec_micros());
    match at.checked_duration_since(epoch) {
        Some(after) => EPOCH + whole(after),
        None => EPOCH.saturating_sub(whole(epoch.saturating_duration_since(at))).max(1),
    }
}

/// The slates of one pod: load for every pick, adapters for those that ask for one.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Board {
    load: Slate<NUMBERS>,
    epoch: Instant,
    /// One over the age in microseconds at which a reading is stale.
    fading: f32,
    adapters: Slate<WORDS>,
}

impl Board {
    /// For a pod scraped every `interval`.
    pub(super) fn new(epoch: Instant, interval: Duration) -> Self {
        Self {
            load: Slate::default(),
            adapters: Slate::default(),
            epoch,
            fading: single(1.0 / load::stale_after(interval).as_secs_f64() / 1e6),
        }
    }

    /// `before` is what was told last.
    pub(super) fn write(&self, load: &PodLoad, before: Option<&PodLoad>) {
        let reading = &load.reading;
        self.adapters.write(words(reading.adapters.as_ref()));
        let Some(streams) = reading.streams() else {
            // A page without gauges tells nothing, however new it is.
            return self.load.write([0; NUMBERS]);
        };
        let ran = reading.running.unwrap_or(0);
        let (streams, running, waiting) = (streams as f32, ran as f32, streams.saturating_sub(ran) as f32);
        let ours = load.sent_mark.saturating_sub(load.ended_mark) as f32;
        let others = (streams - ours).max(0.0);
        let usage = reading.kv_usage.unwrap_or(0.0).clamp(0.0, 1.0);
        let [.., room] = self.load.read();
        let known = halves(room).1;
        let capacity = reading.kv_capacity().map_or(0.0, |tokens| tokens.max(1) as f32);
        self.load.write([
            micros(load.began, self.epoch),
            pair(ours, others),
            pair(waiting * others / streams.max(1.0), waiting),
            pair(running, single(usage)),
            pair(capacity, full_batch(reading, before.map(|before| &before.reading), known)),
        ]);
    }

    /// `None` if the pod was never read or its page has no gauges.
    #[inline]
    pub(super) fn read(&self, moment: &Moment) -> Option<Glance> {
        let [began, there, queue, work, room] = self.load.read();
        if began == 0 {
            return None;
        }
        // Signed, because the processor has no instruction for unsigned ones.
        let age = moment.micros(self.epoch).saturating_sub(began).cast_signed() as f32;
        let (ours, others) = halves(there);
        let (others_waiting, waiting) = halves(queue);
        let (running, kv_usage) = halves(work);
        let (capacity, batch) = halves(room);
        Some(Glance {
            trust: (1.0 - age * self.fading).max(0.0),
            ours,
            others,
            others_waiting,
            waiting,
            running,
            kv_usage,
            kv_capacity: (capacity > 0.0).then_some(capacity),
            batch: (batch > 0.0).then_some(batch),
        })
    }

    /// How ready the pod is for an adapter; `None` if it has too many for the slate.
    #[inline]
    pub(super) fn adapter(&self, name: Name<'_>) -> Option<AdapterState> {
        state(self.adapters.read(), name.hash)
    }
}

/// How many requests run, if that is as many as may: requests wait on two pages in a row, and no more of them run than did.
/// While prompts wait for their turn alone, more and more run. What was `known` so stays known for as long as somebody
/// waits: who ends makes place for who waits, and between the two a page may show some more or fewer. 0 if it is not so.
fn full_batch(reading: &Reading, before: Option<&Reading>, known: f32) -> f32 {
    let stands = |page: &Reading| page.waiting.is_some_and(|waiting| waiting > 0);
    if !stands(reading) {
        return 0.0;
    }
    let full = before.is_some_and(|before| stands(before) && reading.running <= before.running);
    let running = reading.running.unwrap_or(0) as f32;
    if full || known > 0.0 { running.max(known) } else { 0.0 }
}

/// The page speaks of adapters.
const TOLD: u8 = 1;
/// There is room for one more.
const ROOM: u8 = 2;
/// There are more than fit on the slate.
const MANY: u8 = 4;

/// Adapters as hashes, the running ones first, behind three bytes: flags, which places run, which are taken.
fn words(adapters: Option<&Adapters>) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    let Some(adapters) = adapters else {
        return words;
    };
    let running = adapters.running.len();
    let taken = running + adapters.wanted().count();
    let flag = |flag: u8, is: bool| if is { flag } else { 0 };
    let room = flag(ROOM, adapters.max.is_none_or(|max| taken < max as usize));
    let flags = TOLD | room | flag(MANY, taken > ADAPTERS);
    let first = |places: usize| (1u8 << places.min(ADAPTERS)) - 1;
    let names = adapters.running.iter().chain(adapters.wanted());
    let hashes = names.map(|name| xxh3_64(name.as_bytes()));
    let facts = u64::from_le_bytes([flags, first(running), first(taken), 0, 0, 0, 0, 0]);
    for (word, new) in words.iter_mut().zip(std::iter::once(facts).chain(hashes)) {
        *word = new;
    }
    words
}

/// What [`words`] say of one name; `None` if there are too many for them.
#[inline]
fn state(words: [u64; WORDS], hash: u64) -> Option<AdapterState> {
    let [facts, names @ ..] = words;
    let [flags, running, taken, ..] = facts.to_le_bytes();
    if flags & TOLD == 0 {
        return Some(AdapterState::Untold);
    }
    if flags & MANY != 0 {
        return None;
    }
    // One bit a place: comparisons without a branch.
    let found = names.iter().rev().fold(0, |found, it| found << 1 | u8::from(*it == hash));
    Some(if found & running != 0 {
        AdapterState::Held
    } else if flags & ROOM != 0 {
        AdapterState::Room
    } else if found & taken != 0 {
        AdapterState::Wanted
    } else {
        AdapterState::Full
    })
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

fn pair(high: f32, low: f32) -> u64 {
    u64::from(high.to_bits()) << 32 | u64::from(low.to_bits())
}

#[inline]
fn halves(word: u64) -> (f32, f32) {
    #[expect(clippy::cast_possible_truncation, reason = "each half is what is wanted")]
    let (high, low) = ((word >> 32) as u32, word as u32);
    (f32::from_bits(high), f32::from_bits(low))
}

#[expect(clippy::cast_possible_truncation, reason = "a share needs no more digits")]
fn single(share: f64) -> f32 {
    share as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        let after = |secs| Moment::new(epoch + Duration::from_secs(secs), epoch);
        assert_eq!(board.read(&after(0)), None);
        let reading = Reading {
            running: Some(4),
            waiting: Some(2),
            swapped: Some(1),
            kv_usage: Some(0.5),
            block_size: Some(16),
            blocks: Some(100),
            ..Reading::default()
        };
        board.write(&load(epoch + Duration::from_secs(10), reading), None);
        let glance = board.read(&after(12)).unwrap();
        assert!((glance.trust - 0.6).abs() < 1e-6);
        assert_eq!((glance.ours, glance.others), (4.0, 3.0));
        assert_eq!((glance.waiting, glance.others_waiting, glance.running), (3.0, 9.0 / 7.0, 4.0));
        assert_eq!((glance.kv_usage, glance.kv_capacity), (0.5, Some(1_600.0)));
        assert_eq!(board.adapter(Name::new("a")), Some(AdapterState::Untold));
        board.write(&load(epoch, Reading::default()), None);
        assert_eq!(board.read(&after(0)), None);
    }

    #[test]
    fn a_pod_that_counts_from_elsewhere_reads_the_same_age() {
        let epoch = crate::clock::now();
        let now = epoch + Duration::from_secs(12);
        let read = |counted_from| {
            let board = Board::new(counted_from, Duration::from_millis(250));
            let reading = Reading { running: Some(1), ..Reading::default() };
            board.write(&load(epoch + Duration::from_secs(11), reading), None);
            board.read(&Moment::new(now, epoch)).map(|it| it.trust)
        };
        assert_eq!(read(epoch + Duration::from_millis(11_500)), read(epoch));
        assert!(read(epoch).is_some_and(|trust| (trust - 0.8).abs() < 1e-6));
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
            board.write(&load(crate::clock::now(), reading), None);
            let glance = board.adapter(Name::new(&asked));
            prop_assert!(glance.is_none_or(|it| it == said), "{glance:?} {said:?}");
            prop_assert!(glance.is_some() || running.len() + waiting.len() > ADAPTERS);
        }
    }
}
