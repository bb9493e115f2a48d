//! When a pod is asked how it is. A vLLM whose engine died still answers `/metrics`, with gauges that no longer move;
//! only `/health` tells. Pure: time comes in.

use std::time::{Duration, Instant};

use crate::fleet::{Condition, Reading};

/// A pod is not asked more often than this, however many of its requests fail; an ejected one is asked this often, so
/// that it returns soon.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Nothing on the page moved for this long while requests are there: no engine step takes 5 s (the slowest seen on
/// GPUs, a full prefill batch, stays below 1 s).
const STILL_AFTER: Duration = Duration::from_secs(5);

/// Whether and when one pod's health is asked.
#[derive(Debug, Default)]
pub(super) struct HealthWatch {
    asked: Option<Instant>,
    doubted: bool,
    out: bool,
    stillness: Stillness,
    silence: Silence,
}

impl HealthWatch {
    /// Somebody has reason to doubt.
    pub(super) fn doubt(&mut self) {
        self.doubted = true;
    }

    /// A page was read while `in_flight` of our requests were there.
    pub(super) fn note(&mut self, reading: &Reading, in_flight: u64, now: Instant) {
        self.doubted |= self.stillness.note(reading, in_flight, now);
        self.silence = Silence::default();
    }

    /// No page came in time while `in_flight` of our requests were there, of whose answers `heard` pieces had come.
    pub(super) fn note_unread(&mut self, in_flight: u64, heard: u64, now: Instant) {
        self.silence.note(in_flight, heard, now);
        self.doubted |= self.silence.is_long(now);
    }

    /// Whether it has shown no sign of life for so long that not answering when asked how it is means something: a
    /// process that is frozen still accepts connections.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.silence.is_long(now)
    }

    /// Whether to ask now.
    pub(super) fn is_due(&self, condition: Condition, now: Instant) -> bool {
        let wanted = self.doubted || condition == Condition::Ejected;
        let rested = self.asked.is_none_or(|at| now.saturating_duration_since(at) >= ASK_EVERY);
        wanted && rested && !self.out
    }

    /// Somebody went to ask.
    pub(super) fn left(&mut self, now: Instant) {
        self.asked = Some(now);
        self.doubted = false;
        self.out = true;
    }

    /// They are back.
    pub(super) fn returned(&mut self) {
        self.out = false;
    }
}

/// What would have moved if the engine had done anything.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Trace {
    running: Option<u32>,
    waiting: Option<u32>,
    kv_usage: Option<f64>,
    prompt_tokens: Option<u64>,
    generation_tokens: Option<u64>,
}

/// Since when nothing moved.
#[derive(Debug, Default)]
struct Stillness {
    last: Option<(Trace, Instant)>,
}

impl Stillness {
    /// Whether the page has now stood still for long enough, with requests there all the time. Says so once, then
    /// again only after as long.
    fn note(&mut self, reading: &Reading, in_flight: u64, now: Instant) -> bool {
        let trace = Trace::of(reading);
        let since = match self.last {
            Some((last, since)) if in_flight > 0 && last == trace => since,
            _ => now,
        };
        let still = now.saturating_duration_since(since) >= STILL_AFTER;
        self.last = Some((trace, if still { now } else { since }));
        still
    }
}

/// Since when neither a page nor a byte of an answer came, with requests there all the time. Slow pages alone mean
/// nothing: an API server that is busy with prompts is late with them, but its streams go on.
#[derive(Debug, Default)]
struct Silence {
    last: Option<(u64, Instant)>,
}

impl Silence {
    fn note(&mut self, in_flight: u64, heard: u64, now: Instant) {
        let since = self.last.filter(|(before, _)| *before == heard).map_or(now, |(_, since)| since);
        self.last = (in_flight > 0).then_some((heard, since));
    }

    fn is_long(&self, now: Instant) -> bool {
        self.last.is_some_and(|(_, since)| now.saturating_duration_since(since) >= STILL_AFTER)
    }
}

impl Trace {
    fn of(reading: &Reading) -> Self {
        Self {
            running: reading.running,
            waiting: reading.waiting,
            kv_usage: reading.kv_usage,
            prompt_tokens: reading.prompt_tokens_total,
            generation_tokens: reading.generation_tokens_total,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn reading(tokens: u64) -> Reading {
        Reading {
            running: Some(3),
            waiting: Some(0),
            kv_usage: Some(0.5),
            generation_tokens_total: Some(tokens),
            ..Reading::default()
        }
    }

    /// Reads a page every 250 ms for `seconds` and tells how often it seemed to stand still.
    fn watch(seconds: u64, mut page: impl FnMut(u64) -> (Reading, u64)) -> usize {
        let start = crate::clock::now();
        let mut stillness = Stillness::default();
        (0..=seconds * 4)
            .filter(|turn| {
                let (reading, in_flight) = page(*turn);
                stillness.note(&reading, in_flight, start + millis(turn * 250))
            })
            .count()
    }

    #[test]
    fn a_pod_that_says_nothing_at_all_is_asked_and_one_whose_streams_go_on_is_not() {
        let start = crate::clock::now();
        let mut watch = HealthWatch::default();
        let mut after_seconds = |in_flight, heard, seconds| {
            let now = start + Duration::from_secs(seconds);
            watch.note_unread(in_flight, heard, now);
            watch.is_silent(now)
        };
        assert!(!after_seconds(1, 7, 0));
        assert!(!after_seconds(2, 7, 4));
        assert!(after_seconds(2, 7, 5), "five seconds without a word");
        assert!(!after_seconds(2, 8, 6), "a stream went on");
        assert!(!after_seconds(0, 8, 8));
        assert!(!after_seconds(1, 8, 12), "nobody waited there in between");
        assert!(after_seconds(1, 8, 17));
        let now = start + Duration::from_secs(17);
        assert!(watch.is_due(Condition::Ready, now));
        watch.note(&reading(1), 1, now);
        assert!(!watch.is_silent(now), "a page came");
    }

    #[test]
    fn a_page_that_stands_still_under_requests_is_suspect_every_five_seconds() {
        assert_eq!(watch(4, |_| (reading(9), 1)), 0);
        assert_eq!(watch(5, |_| (reading(9), 1)), 1);
        assert_eq!(watch(14, |_| (reading(9), 1)), 2);
    }

    #[test]
    fn moving_tokens_are_a_sign_of_life() {
        assert_eq!(watch(60, |turn| (reading(turn / 12), 1)), 0);
    }

    #[test]
    fn an_idle_pod_may_stand_still() {
        assert_eq!(watch(60, |_| (reading(9), 0)), 0);
    }

    #[test]
    fn stillness_counts_from_the_moment_requests_are_there() {
        assert_eq!(watch(8, |turn| (reading(9), u64::from(turn > 4 * 4))), 0);
        assert_eq!(watch(10, |turn| (reading(9), u64::from(turn > 4 * 4))), 1);
    }

    #[test]
    fn many_doubts_are_one_question_a_second() {
        let start = crate::clock::now();
        let mut watch = HealthWatch::default();
        let mut asked = 0;
        for turn in 0..=300 {
            let now = start + millis(turn * 10);
            watch.doubt();
            if watch.is_due(Condition::Ready, now) {
                asked += 1;
                watch.left(now);
                watch.returned();
            }
        }
        assert_eq!(asked, 4);
    }

    #[test]
    fn an_ejected_pod_is_asked_unasked_and_a_ready_one_is_not() {
        let now = crate::clock::now();
        let mut watch = HealthWatch::default();
        assert!(!watch.is_due(Condition::Ready, now));
        assert!(watch.is_due(Condition::Ejected, now));
        watch.left(now);
        assert!(!watch.is_due(Condition::Ejected, now + ASK_EVERY), "one is still out");
        watch.returned();
        assert!(watch.is_due(Condition::Ejected, now + ASK_EVERY));
    }
}
