//! How far the index may be believed of one pod: what the pod says that it found, against what we believed was there.
//!
//! A cache that others fill too, that is smaller than it says, or that is switched off holds less than we were led to
//! believe by what we sent. Two sources tell. The usage of an answer says it exactly, where the engine reports it; an
//! engine that does not has not said zero. The page's counter of hits counts everybody's, so it can only show that there
//! were far fewer than believed, never that all is well.

use std::time::{Duration, Instant};

/// Believed tokens that stand for full trust before anything was heard: two answers of [`CLIP`] that found nothing leave
/// a third of the trust, nine or so leave none.
const PRIOR: f32 = 2_000.0;

/// No answer counts for more tokens than this, so that one long prompt that was just evicted is an anecdote.
const CLIP: f32 = 2_000.0;

/// Believed tokens remembered: twenty long answers. What is older fades as newer ones come.
const MEMORY: f32 = 40_000.0;

/// Half of what was heard is forgotten in this time, so that a pod which is avoided since is tried again.
/// Ten times what a pod's speed keeps: an engine's settings do not change by the minute.
const HALF_LIFE: Duration = Duration::from_secs(300);

/// Below this trust a pod is taken to hold nothing: what is left of it is the prior.
const NOTHING: f32 = 0.1;

/// Trust is used in steps of this size, so that it changes seldom; a 32nd moves no decision.
const STEP: f32 = 1.0 / 32.0;

/// Believed tokens after which the page's counter is asked: enough that a few requests at its edges do not matter.
const WINDOW: f32 = 8_000.0;

/// The counter speaks only if it has less than this share of what was believed: three quarters can be our rounding.
const FAR_FEWER: f32 = 0.5;

/// What was believed of a request when it was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    /// Tokens of its prompt that the pod was believed to hold.
    pub tokens: f32,
    /// When it was sent.
    pub sent: Instant,
}

/// What was heard of one pod.
#[derive(Debug, Default)]
pub(super) struct Record {
    believed: f32,
    found: f32,
    faded: Option<Instant>,
    window: Option<Window>,
}

/// What was believed since the page told its hits.
#[derive(Debug)]
struct Window {
    since: Instant,
    hits: u64,
    believed: f32,
}

impl Record {
    /// An answer came to its end; `found` are the prompt tokens that the pod says it found in its cache.
    pub(super) fn answered(&mut self, claim: Claim, found: Option<u32>, now: Instant) {
        if !(claim.tokens.is_finite() && claim.tokens > 0.0) {
            return;
        }
        match (found, &mut self.window) {
            (Some(found), window) => {
                // It tells for itself: the counter, which tells less, is not needed.
                *window = None;
                self.learn(claim.tokens, found as f32, CLIP, now);
            }
            // Sent since the counter was read, so what it found is not in that reading yet.
            (None, Some(window)) if claim.sent >= window.since => window.believed += claim.tokens,
            (None, _) => {}
        }
    }

    /// A page says that `hits` prompt tokens were found since the engine started.
    pub(super) fn counted(&mut self, hits: u64, now: Instant) {
        self.fade(now);
        let window = self.window.take().filter(|window| window.hits <= hits);
        self.window = Some(match window {
            Some(window) if window.believed < WINDOW => window,
            Some(window) => {
                let found = (hits - window.hits) as f32;
                if found < window.believed * FAR_FEWER {
                    self.learn(window.believed, found, WINDOW, now);
                }
                Window { since: now, hits, believed: 0.0 }
            }
            None => Window { since: now, hits, believed: 0.0 },
        });
    }

    /// 0 to 1, in steps.
    pub(super) fn trust(&self) -> f32 {
        let trust = (self.found + PRIOR) / (self.believed + PRIOR);
        if trust < NOTHING { 0.0 } else { ((trust / STEP).round() * STEP).min(1.0) }
    }

    fn learn(&mut self, believed: f32, found: f32, clip: f32, now: Instant) {
        self.fade(now);
        let scale = (clip / believed).min(1.0);
        self.believed += believed * scale;
        self.found += found.min(believed) * scale;
        let kept = (MEMORY / self.believed).min(1.0);
        self.believed *= kept;
        self.found *= kept;
    }

    fn fade(&mut self, now: Instant) {
        let passed = self.faded.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        let kept = (-passed.as_secs_f32() / HALF_LIFE.as_secs_f32()).exp2();
        self.believed *= kept;
        self.found *= kept;
        self.faded = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn claim(tokens: f32, sent: Instant) -> Claim {
        Claim { tokens, sent }
    }

    #[test]
    fn a_pod_that_finds_nothing_is_soon_believed_to_hold_nothing() {
        let (mut record, now) = (Record::default(), clock::now());
        assert!((record.trust() - 1.0).abs() < f32::EPSILON);
        // 2,000 / (2,000 + 1,000 * 19) is the first below a tenth.
        for answers in 1..=19 {
            record.answered(claim(1_000.0, now), Some(0), now);
            assert_eq!(record.trust() > 0.0, answers < 19, "{answers}");
        }
    }

    #[test]
    fn what_is_found_beyond_belief_is_no_more_than_full_trust() {
        let (mut record, now) = (Record::default(), clock::now());
        for _ in 0..50 {
            record.answered(claim(1_000.0, now), Some(1_500), now);
        }
        assert!((record.trust() - 1.0).abs() < f32::EPSILON);
        // Half of what was believed: 40,000 remembered tokens, of which all but the last few are of this kind.
        for _ in 0..400 {
            record.answered(claim(1_000.0, now), Some(500), now);
        }
        assert!((record.trust() - 0.53).abs() < 0.02, "{}", record.trust());
    }

    #[test]
    fn one_long_prompt_that_was_evicted_is_an_anecdote() {
        let (mut record, now) = (Record::default(), clock::now());
        for _ in 0..20 {
            record.answered(claim(1_000.0, now), Some(1_000), now);
        }
        record.answered(claim(120_000.0, now), Some(0), now);
        assert!(record.trust() > 0.9, "{}", record.trust());
    }

    #[test]
    fn a_pod_that_does_not_report_has_not_said_zero() {
        let (mut record, now) = (Record::default(), clock::now());
        for _ in 0..100 {
            record.answered(claim(1_000.0, now), None, now);
        }
        assert!((record.trust() - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn where_answers_do_not_tell_the_counter_shows_a_cache_that_is_off() {
        let (mut record, start) = (Record::default(), clock::now());
        record.counted(0, start);
        let mut now = start;
        for _ in 0..3 {
            for _ in 0..8 {
                now += Duration::from_millis(10);
                record.answered(claim(1_000.0, now), None, now);
            }
            record.counted(0, now);
        }
        assert!(record.trust() <= 0.0, "{}", record.trust());
    }

    #[test]
    fn others_hits_on_the_counter_prove_nothing_and_its_restart_starts_anew() {
        let (mut record, now) = (Record::default(), clock::now());
        record.counted(500, now);
        for _ in 0..10 {
            record.answered(claim(1_000.0, now), Some(0), now);
        }
        let doubted = record.trust();
        record.counted(500, now);
        (0..10).for_each(|_| record.answered(claim(1_000.0, now), None, now));
        record.counted(1_000_000, now);
        assert!((record.trust() - doubted).abs() < f32::EPSILON, "more hits than believed raise no trust");
        (0..10).for_each(|_| record.answered(claim(1_000.0, now), None, now));
        record.counted(7, now);
        assert!((record.trust() - doubted).abs() < f32::EPSILON, "the engine was restarted");
    }

    #[test]
    fn what_was_sent_before_the_counter_was_read_is_not_compared_with_it() {
        let (mut record, start) = (Record::default(), clock::now());
        let later = start + Duration::from_secs(1);
        record.counted(90_000, later);
        (0..50).for_each(|_| record.answered(claim(1_000.0, start), None, later));
        record.counted(90_000, later);
        assert!((record.trust() - 1.0).abs() < f32::EPSILON);
    }

    #[test]
    fn doubt_fades_with_time() {
        let (mut record, now) = (Record::default(), clock::now());
        (0..40).for_each(|_| record.answered(claim(1_000.0, now), Some(0), now));
        assert!(record.trust() <= 0.0);
        record.counted(0, now + HALF_LIFE * 5);
        // 40,000 / 32 = 1,250 tokens of doubt against 2,000 of prior.
        assert!((record.trust() - 2_000.0 / 3_250.0).abs() < STEP, "{}", record.trust());
    }
}
