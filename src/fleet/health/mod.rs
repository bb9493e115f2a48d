//! Whether a pod may be used, from what the scrape and the traffic saw of it.
//!
//! Evidence goes in, a condition comes out; the numbers below decide. A pod that says "too busy" (429, 503) is loaded,
//! not sick: it looks slow for a while (`pushback`) and is never ejected for it. Timeouts of `/metrics` alone are no
//! evidence either: the reading just ages.
//!
//! All of it belongs to the pod, so what one model or listener finds out holds for every other.

mod allowance;
mod condition;
mod pushback;
mod window;

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

pub use self::condition::{Admission, Condition, Ejection, Evidence};
use self::{allowance::Allowance, pushback::Pushback, window::Window};

/// Failed requests in a row that eject a pod (Envoy's `consecutive_5xx` default).
const REQUEST_FAILURES: u32 = 5;

/// Refused scrapes in a row that eject a pod: one may be a restart of the listener, two at 250 ms are an absence.
const REFUSED_SCRAPES: u32 = 2;

/// First ejection time; doubles with each further one (Envoy's `base_ejection_time` is 30 s; LLM pods are few and
/// dear, so a third of it).
const EJECTION: Duration = Duration::from_secs(10);

/// Longest ejection (Envoy's `max_ejection_time`). Also: after this long without one, the count starts anew.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// How long a new or returned pod is given less than its share: its prefix cache is empty and its first steps are slow
/// (30 s is the ramp that Envoy's slow start documentation uses).
const WARM_UP: Duration = Duration::from_secs(30);

/// The share a pod starts with (Envoy's `min_weight_percent` default).
const WARM_UP_SHARE: f64 = 0.1;

/// One pod's health. Evidence is rare and takes a lock; the question whether it may be used reads atomics only.
/// (In this order in memory; see [`super::Pod`].)
#[derive(Debug)]
#[repr(C)]
pub struct Health {
    record: Mutex<Record>,
    /// Why it is ejected, as long as it is.
    ejection: AtomicU8,
    allowance: Allowance,
    epoch: Instant,
    /// Until when it looks slow because it said no; 0 once it took a request again.
    pushed_until_ms: AtomicU64,
    turns_at_ms: AtomicU64,
    probing: AtomicBool,
    condition: AtomicU8,
}

#[derive(Debug, Default)]
struct Record {
    failures: u32,
    refused: u32,
    ejections: u32,
    ejected_at: Option<Instant>,
    /// Its own word was the last to say that it is not well.
    self_reported: bool,
    window: Window,
    pushback: Pushback,
}

impl Health {
    /// A pod that was there when the gateway started: nothing is known, and it needs no slow start, because no other
    /// pod is warmer. Its times are counted from `epoch`.
    pub fn present_from_the_start(epoch: Instant) -> Self {
        Self::with(Condition::Unknown, epoch)
    }

    /// A pod that joins while others already work: it warms up from now. Its times are counted from `epoch`.
    pub fn newcomer(now: Instant, epoch: Instant) -> Self {
        let health = Self::with(Condition::Warming, epoch);
        health.turns_at_ms.store(health.millis(now + WARM_UP), Relaxed);
        health
    }

    fn with(condition: Condition, epoch: Instant) -> Self {
        Self {
            epoch,
            record: Mutex::default(),
            ejection: AtomicU8::default(),
            allowance: Allowance::default(),
            pushed_until_ms: AtomicU64::new(0),
            condition: AtomicU8::new(condition as u8),
            turns_at_ms: AtomicU64::new(0),
            probing: AtomicBool::new(false),
        }
    }

    /// The instant from which this pod's times are counted.
    pub(super) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// What it is now.
    pub fn condition(&self, now: Instant) -> Condition {
        let condition = Condition::of(self.condition.load(Relaxed));
        if condition == Condition::Warming && self.millis(now) >= self.turns_at_ms.load(Relaxed) {
            return Condition::Ready;
        }
        condition
    }

    /// Whether a request may go there now.
    #[inline]
    pub fn admits(&self, now: Instant) -> Admission {
        match Condition::of(self.condition.load(Relaxed)) {
            Condition::Ready | Condition::Unknown => Admission::Yes,
            Condition::Warming => self.warming_share(now).map_or(Admission::Yes, Admission::Warming),
            Condition::Ejected => {
                let over = self.millis(now) >= self.turns_at_ms.load(Relaxed);
                if over && !self.probing.load(Relaxed) { Admission::Probe } else { Admission::No(Condition::Ejected) }
            }
            out @ (Condition::Asleep | Condition::Draining) => Admission::No(out),
        }
    }

    /// Why it is ejected, if it is.
    pub fn ejection(&self) -> Option<Ejection> {
        let ejected = Condition::of(self.condition.load(Relaxed)) == Condition::Ejected;
        ejected.then(|| Ejection::of(self.ejection.load(Relaxed))).flatten()
    }

    /// Whether it is on its way out: no longer listed, or the scrape finds nobody there any more.
    pub fn is_leaving(&self) -> bool {
        let draining = Condition::of(self.condition.load(Relaxed)) == Condition::Draining;
        draining || self.ejection() == Some(Ejection::Unreachable) || self.record().refused > 0
    }

    /// It said no to a request that was sent at `sent`, and `asked` to be left alone for so long. It looks slow from now
    /// on, for a while; its condition stays.
    pub fn pushed_back(&self, asked: Option<Duration>, sent: Instant, now: Instant) {
        let pause = self.record().pushback.refused(asked, sent, now);
        self.push_back(pause, now);
    }

    /// It took a request that was sent at `sent`: what it said before no longer holds. Cheap while it said nothing.
    #[inline]
    pub fn accepted(&self, sent: Instant) {
        if self.pushed_until_ms.load(Relaxed) != 0 && self.record().pushback.accepted(sent) {
            self.pushed_until_ms.store(0, Relaxed);
        }
    }

    /// For how long it still looks slow because it said no; mostly nothing.
    #[inline]
    pub fn pushback(&self, now: Instant) -> Duration {
        match self.pushed_until_ms.load(Relaxed) {
            0 => Duration::ZERO,
            until => Duration::from_millis(until.saturating_sub(self.millis(now))),
        }
    }

    /// Whether a pod that warms up has a request left of what it may be sent, as the `nth` of those that its pool of so
    /// many `pods` was sent.
    pub fn has_allowance(&self, nth: u64, pods: usize) -> bool {
        self.allowance.is_left(nth, pods)
    }

    /// It was sent the `nth` request of its pool of so many `pods`.
    pub(super) fn use_allowance(&self, nth: u64, pods: usize) {
        self.allowance.take(nth, pods);
    }

    fn push_back(&self, pause: Duration, now: Instant) {
        self.pushed_until_ms.fetch_max(self.millis(now + pause), Relaxed);
    }

    /// Takes over from elsewhere (a saved state) why it is ejected and for how long it still looks slow.
    pub(super) fn assume(&self, ejection: Option<Ejection>, pushback: Duration, now: Instant) {
        if let Some(why) = ejection {
            self.eject(&mut self.record(), now, why);
        }
        if !pushback.is_zero() {
            self.push_back(pushback, now);
        }
    }

    /// Takes note of `evidence`. Returns the new condition if it changed.
    pub fn note(&self, evidence: Evidence, now: Instant) -> Option<Condition> {
        let mut record = self.record();
        let before = Condition::of(self.condition.load(Relaxed));
        let after = self.judge(&mut record, before, evidence, now);
        (after != before).then_some(after)
    }

    /// Marks the start of the one request that tries an ejected pod; `false` if the pod is not ejected or another
    /// request already tries.
    pub(super) fn begin_probe(&self) -> bool {
        Condition::of(self.condition.load(Relaxed)) == Condition::Ejected && !self.probing.swap(true, Relaxed)
    }

    /// The probing request ended, however it did.
    pub(super) fn end_probe(&self) {
        self.probing.store(false, Relaxed);
    }

    fn judge(&self, record: &mut Record, before: Condition, evidence: Evidence, now: Instant) -> Condition {
        if before == Condition::Draining {
            return before;
        }
        match evidence {
            Evidence::Gone => self.set(Condition::Draining, now),
            Evidence::ScrapeOk { asleep: true } => self.set(Condition::Asleep, now),
            Evidence::ScrapeOk { asleep: false } => {
                record.refused = 0;
                match before {
                    Condition::Unknown => self.set(Condition::Ready, now),
                    Condition::Asleep => self.warm_up(now),
                    // Nobody listened there and now somebody does: it was restarted.
                    Condition::Ejected if self.is_unreachable() => self.readmit(record, now),
                    _ => before,
                }
            }
            Evidence::RequestOk { sent } => {
                record.failures = 0;
                record.window.note(false, now);
                match before {
                    Condition::Unknown => self.set(Condition::Ready, now),
                    Condition::Ejected if record.ejected_at.is_none_or(|at| sent > at) => self.readmit(record, now),
                    _ => before,
                }
            }
            Evidence::HealthOk => {
                // It takes back its own word: let one request find out now. A pod whose requests fail sits out its
                // time, however well it says it is.
                if std::mem::take(&mut record.self_reported) && before == Condition::Ejected && !self.is_unreachable() {
                    self.turns_at_ms.store(self.millis(now), Relaxed);
                }
                before
            }
            Evidence::HealthBad => {
                record.self_reported = true;
                if before == Condition::Ejected {
                    // Nothing new: no request need find out soon, and its time out does not double each time it is
                    // asked.
                    self.turns_at_ms.fetch_max(self.millis(now + EJECTION), Relaxed);
                    return before;
                }
                self.eject(record, now, Ejection::OwnWord)
            }
            Evidence::RequestFailed { spare } => self.failed(record, before, spare, now),
            Evidence::ScrapeRefused => {
                record.refused += 1;
                if record.refused >= REFUSED_SCRAPES && before != Condition::Ejected {
                    return self.eject(record, now, Ejection::Unreachable);
                }
                if before == Condition::Ejected {
                    self.ejection.store(Ejection::Unreachable as u8, Relaxed);
                }
                before
            }
        }
    }

    /// A request failed: its speed of failing must not make the pod look fast, and too many of them eject it.
    fn failed(&self, record: &mut Record, before: Condition, spare: bool, now: Instant) -> Condition {
        record.failures += 1;
        record.window.note(true, now);
        self.push_back(record.pushback.failed(record.failures, now), now);
        if before == Condition::Ejected {
            let probed = self.probing.load(Relaxed);
            return if probed { self.eject(record, now, Ejection::FailuresInARow) } else { before };
        }
        let why = if record.failures >= REQUEST_FAILURES {
            Some(Ejection::FailuresInARow)
        } else {
            record.window.is_bad().then_some(Ejection::FailureShare)
        };
        why.filter(|_| spare).map_or(before, |why| self.eject(record, now, why))
    }

    fn is_unreachable(&self) -> bool {
        self.ejection() == Some(Ejection::Unreachable)
    }

    fn eject(&self, record: &mut Record, now: Instant, why: Ejection) -> Condition {
        let long_ago = |at: Instant| now.saturating_duration_since(at) > EJECTION_MAX * 2;
        if record.ejected_at.is_none_or(long_ago) {
            record.ejections = 0;
        }
        let doubled = EJECTION.saturating_mul(1 << record.ejections.min(8));
        record.ejections += 1;
        record.ejected_at = Some(now);
        // Who failed a probe where nobody listened is still taken back by its first page.
        if !self.is_unreachable() {
            self.ejection.store(why as u8, Relaxed);
        }
        self.set(Condition::Ejected, now + doubled.min(EJECTION_MAX))
    }

    fn readmit(&self, record: &mut Record, now: Instant) -> Condition {
        record.failures = 0;
        record.refused = 0;
        record.self_reported = false;
        record.window = Window::default();
        self.warm_up(now)
    }

    fn warm_up(&self, now: Instant) -> Condition {
        self.set(Condition::Warming, now + WARM_UP)
    }

    fn set(&self, condition: Condition, turns_at: Instant) -> Condition {
        self.turns_at_ms.store(self.millis(turns_at), Relaxed);
        self.condition.store(condition as u8, Relaxed);
        condition
    }

    fn warming_share(&self, now: Instant) -> Option<f64> {
        let left = self.turns_at_ms.load(Relaxed).checked_sub(self.millis(now)).filter(|left| *left > 0)?;
        let done = 1.0 - left as f64 / WARM_UP.as_millis() as f64;
        Some(done.max(WARM_UP_SHARE))
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn ready(now: Instant) -> Health {
        let health = Health::present_from_the_start(now);
        assert_eq!(health.note(Evidence::ScrapeOk { asleep: false }, now), Some(Condition::Ready));
        health
    }

    #[test]
    fn five_failures_in_a_row_eject_and_one_success_between_starts_the_count_anew() {
        let t = crate::clock::now();
        let health = ready(t);
        for _ in 0..4 {
            assert_eq!(health.note(Evidence::RequestFailed { spare: true }, t), None);
        }
        health.note(Evidence::RequestOk { sent: t }, t);
        for _ in 0..4 {
            assert_eq!(health.note(Evidence::RequestFailed { spare: true }, t), None);
        }
        assert_eq!(health.note(Evidence::RequestFailed { spare: true }, t), Some(Condition::Ejected));
        assert_eq!(health.admits(t + seconds(9)), Admission::No(Condition::Ejected));
    }

    #[test]
    fn after_its_time_one_request_probes_and_success_warms_the_pod_up() {
        let t = crate::clock::now();
        let health = ready(t);
        health.note(Evidence::HealthBad, t);
        let later = t + seconds(10);
        assert_eq!(health.admits(later), Admission::Probe);
        assert!(health.begin_probe());
        assert!(!health.begin_probe(), "a second request must not join the probe");
        assert_eq!(health.admits(later), Admission::No(Condition::Ejected));
        assert_eq!(health.note(Evidence::RequestOk { sent: later }, later), Some(Condition::Warming));
        health.end_probe();
        assert_eq!(health.admits(later), Admission::Warming(WARM_UP_SHARE));
        assert_eq!(health.admits(later + seconds(15)), Admission::Warming(0.5));
        assert_eq!(health.admits(later + seconds(30)), Admission::Yes);
        assert_eq!(health.condition(later + seconds(30)), Condition::Ready);
    }

    #[test]
    fn an_answer_to_what_was_sent_before_an_ejection_does_not_undo_it() {
        let t = crate::clock::now();
        let health = ready(t);
        for _ in 0..5 {
            health.note(Evidence::RequestFailed { spare: true }, t + seconds(1));
        }
        assert_eq!(health.note(Evidence::RequestOk { sent: t }, t + seconds(2)), None);
        assert_eq!(health.admits(t + seconds(2)), Admission::No(Condition::Ejected));
        let sent = t + seconds(3);
        assert_eq!(health.note(Evidence::RequestOk { sent }, t + seconds(4)), Some(Condition::Warming));
    }

    #[test]
    fn a_failed_probe_doubles_the_time_out() {
        let t = crate::clock::now();
        let health = ready(t);
        health.note(Evidence::HealthBad, t);
        let probe = t + seconds(10);
        assert!(health.begin_probe());
        health.note(Evidence::RequestFailed { spare: true }, probe);
        health.end_probe();
        assert_eq!(health.admits(probe + seconds(19)), Admission::No(Condition::Ejected));
        assert_eq!(health.admits(probe + seconds(20)), Admission::Probe);
    }

    #[test]
    fn a_pod_that_vanished_returns_with_its_first_page() {
        let t = crate::clock::now();
        let health = ready(t);
        assert_eq!(health.note(Evidence::ScrapeRefused, t), None);
        assert_eq!(health.note(Evidence::ScrapeRefused, t), Some(Condition::Ejected));
        assert_eq!(health.note(Evidence::ScrapeOk { asleep: false }, t), Some(Condition::Warming));
    }

    #[test]
    fn a_dead_engine_that_still_answers_metrics_stays_out() {
        let t = crate::clock::now();
        let health = ready(t);
        assert_eq!(health.note(Evidence::HealthBad, t), Some(Condition::Ejected));
        assert_eq!(health.note(Evidence::ScrapeOk { asleep: false }, t), None);
        assert_eq!(health.admits(t), Admission::No(Condition::Ejected));
        health.note(Evidence::HealthOk, t);
        assert_eq!(health.admits(t), Admission::Probe);
    }

    #[test]
    fn a_pod_asked_every_second_how_it_is_returns_as_soon_as_it_is_well() {
        let t = crate::clock::now();
        let health = ready(t);
        for second in 0..60 {
            health.note(Evidence::HealthBad, t + seconds(second));
            assert_eq!(health.admits(t + seconds(second)), Admission::No(Condition::Ejected), "{second}");
        }
        health.note(Evidence::HealthOk, t + seconds(60));
        assert_eq!(health.admits(t + seconds(60)), Admission::Probe);
        assert_eq!(
            health.note(Evidence::RequestOk { sent: t + seconds(60) }, t + seconds(60)),
            Some(Condition::Warming)
        );
        // The sixty answers were one ejection, so the next is the second.
        health.note(Evidence::HealthBad, t + seconds(61));
        assert_eq!(health.admits(t + seconds(61 + 20)), Admission::Probe);
    }

    #[test]
    fn a_pod_whose_requests_fail_does_not_talk_itself_back_in() {
        let t = crate::clock::now();
        let health = ready(t);
        for _ in 0..5 {
            health.note(Evidence::RequestFailed { spare: true }, t);
        }
        health.note(Evidence::HealthOk, t + seconds(1));
        assert_eq!(health.admits(t + seconds(1)), Admission::No(Condition::Ejected));
        assert_eq!(health.admits(t + seconds(10)), Admission::Probe);
    }

    #[test]
    fn a_pod_that_fails_every_other_request_is_ejected_by_its_share() {
        let t = crate::clock::now();
        let health = ready(t);
        let turns = (0..20u64).map(|n| {
            let evidence =
                if n % 2 == 0 { Evidence::RequestOk { sent: t } } else { Evidence::RequestFailed { spare: true } };
            health.note(evidence, t + Duration::from_millis(n * 100))
        });
        let turned: Vec<_> = turns.collect();
        assert_eq!(turned.iter().position(|it| it == &Some(Condition::Ejected)), Some(19), "{turned:?}");
        assert_eq!(health.ejection(), Some(Ejection::FailureShare));
    }

    #[test]
    fn a_pod_that_cannot_be_spared_stays_until_it_can() {
        let t = crate::clock::now();
        let health = ready(t);
        for _ in 0..30 {
            assert_eq!(health.note(Evidence::RequestFailed { spare: false }, t), None);
        }
        assert_eq!(health.note(Evidence::RequestFailed { spare: true }, t), Some(Condition::Ejected));
        assert_eq!(health.ejection(), Some(Ejection::FailuresInARow));
        assert_eq!(health.note(Evidence::ScrapeRefused, t), None);
        assert_eq!(health.ejection(), Some(Ejection::Unreachable), "it is gone, not suspect");
    }

    #[test]
    fn a_no_makes_it_look_slow_for_a_while_and_ejects_nobody() {
        let t = crate::clock::now();
        let health = ready(t);
        for n in 0..100 {
            health.pushed_back(None, t + seconds(n), t + seconds(n));
        }
        assert_eq!(health.admits(t + seconds(99)), Admission::Yes);
        assert_eq!(health.pushback(t + seconds(99)), seconds(16));
        assert_eq!(health.pushback(t + seconds(111)), seconds(4));
        health.accepted(t + seconds(98));
        assert_eq!(health.pushback(t + seconds(111)), seconds(4));
        health.accepted(t + seconds(100));
        assert_eq!(health.pushback(t + seconds(100)), Duration::ZERO);
    }

    #[test]
    fn who_fails_at_once_does_not_look_fast() {
        let t = crate::clock::now();
        let health = ready(t);
        health.note(Evidence::RequestFailed { spare: true }, t);
        assert_eq!(health.pushback(t), Duration::from_millis(250));
        health.note(Evidence::RequestFailed { spare: true }, t);
        assert_eq!(health.pushback(t), Duration::from_millis(500));
    }

    #[test]
    fn a_sleeper_is_out_and_warms_up_when_it_wakes() {
        let t = crate::clock::now();
        let health = ready(t);
        assert_eq!(health.note(Evidence::ScrapeOk { asleep: true }, t), Some(Condition::Asleep));
        assert_eq!(health.admits(t), Admission::No(Condition::Asleep));
        assert_eq!(health.note(Evidence::ScrapeOk { asleep: false }, t), Some(Condition::Warming));
    }

    #[test]
    fn a_pod_that_left_stays_gone() {
        let t = crate::clock::now();
        let health = ready(t);
        health.note(Evidence::Gone, t);
        health.note(Evidence::RequestOk { sent: t }, t);
        assert_eq!(health.admits(t), Admission::No(Condition::Draining));
    }
}
