//! What the users of one gateway felt, summed up; readable at any time while it still grows.
//!
//! A request that is given up at the end is not forgotten: if it was still waiting for its first token, the time it
//! had waited counts, which is less than it would have been in the end. Otherwise the slowest would vanish from the
//! figures, and with them the reason to measure.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    client::{Outcome, Timeline},
    quantiles::Samples,
};
use crate::{clock, openai};

/// The requests sent to one gateway.
#[derive(Debug, Default)]
pub struct Tally {
    sums: Mutex<Sums>,
}

#[derive(Debug, Default)]
struct Sums {
    sent: u64,
    done: u64,
    failed: u64,
    given_up: u64,
    tokens: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    first_token: Samples,
    gaps: Samples,
    lateness: Samples,
    last_token: Option<Instant>,
    last_error: Option<String>,
}

/// What a tally says at one moment. Times are in seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Requests sent.
    pub sent: u64,
    /// Those answered to the end.
    pub done: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those given up because time was over.
    pub given_up: u64,
    /// Tokens received.
    pub tokens: u64,
    /// Prompt tokens of all finished requests, as the pods counted them.
    pub prompt_tokens: u64,
    /// Those of them that a pod had cached.
    pub cached_tokens: u64,
    /// Time to first token: p50, p90, p99; `None` before the first.
    pub first_token: [Option<f64>; 3],
    /// Time between tokens: p50, p99.
    pub gap: [Option<f64>; 2],
    /// How much later than it was due a question left that waited for nothing but the time: p99. What the machine that
    /// plays is behind, and no gateway's fault.
    pub lateness: Option<f64>,
    /// When the last token came.
    pub last_token: Option<Instant>,
    /// What the last failure said.
    pub last_error: Option<String>,
}

impl Figures {
    /// Requests not ended yet.
    pub fn open(&self) -> u64 {
        self.sent.saturating_sub(self.done + self.failed + self.given_up)
    }

    /// How many of so many planned requests have not been sent.
    pub fn unsent(&self, planned: usize) -> u64 {
        (planned as u64).saturating_sub(self.sent)
    }

    /// The share of prompt tokens that was cached.
    pub fn cached_share(&self) -> Option<f64> {
        (self.prompt_tokens > 0).then(|| self.cached_tokens as f64 / self.prompt_tokens as f64)
    }
}

impl Tally {
    /// A request leaves now.
    pub fn begin(self: &Arc<Self>, now: Instant) -> Open {
        self.sums().sent += 1;
        Open { tally: Arc::clone(self), sent: now, waiting: true, closed: false }
    }

    /// A question that waited for nothing but the time left so much later than it was due.
    pub fn late(&self, by: Duration) {
        self.sums().lateness.add(by.as_secs_f64());
    }

    /// The figures as they are.
    pub fn figures(&self) -> Figures {
        let sums = self.sums();
        Figures {
            sent: sums.sent,
            done: sums.done,
            failed: sums.failed,
            given_up: sums.given_up,
            tokens: sums.tokens,
            prompt_tokens: sums.prompt_tokens,
            cached_tokens: sums.cached_tokens,
            first_token: sums.first_token.quantiles([0.5, 0.9, 0.99]),
            gap: sums.gaps.quantiles([0.5, 0.99]),
            lateness: sums.lateness.quantile(0.99),
            last_token: sums.last_token,
            last_error: sums.last_error.clone(),
        }
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way. Dropping it without [`Open::close`] gives it up.
#[derive(Debug)]
pub struct Open {
    tally: Arc<Tally>,
    sent: Instant,
    waiting: bool,
    closed: bool,
}

impl Open {
    /// These tokens came.
    pub fn saw(&mut self, seen: openai::Seen, now: Instant) {
        let mut sums = self.tally.sums();
        sums.tokens += u64::from(seen.tokens);
        if seen.tokens > 0 {
            sums.last_token = Some(now);
        }
        if seen.first {
            sums.first_token.add(now.saturating_duration_since(self.sent).as_secs_f64());
            self.waiting = false;
        }
    }

    /// It ended in this way.
    pub fn close(mut self, timeline: &Timeline, outcome: &Outcome) {
        self.closed = true;
        let mut sums = self.tally.sums();
        for gap in &timeline.gaps {
            sums.gaps.add(gap.as_secs_f64());
        }
        if let Some(usage) = timeline.usage {
            sums.prompt_tokens += u64::from(usage.prompt_tokens.unwrap_or(0));
            sums.cached_tokens += u64::from(usage.cached_tokens.unwrap_or(0));
        }
        match outcome {
            Outcome::Complete => sums.done += 1,
            Outcome::Failed(why) => {
                sums.failed += 1;
                sums.last_error = Some(why.clone());
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let waited = clock::now().saturating_duration_since(self.sent);
        let mut sums = self.tally.sums();
        sums.given_up += 1;
        if self.waiting {
            sums.first_token.add(waited.as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: openai::Seen = openai::Seen { tokens: 1, first: true, moved: true };

    #[tokio::test(start_paused = true)]
    async fn every_request_ends_in_exactly_one_way() {
        let tally = Arc::new(Tally::default());
        let mut done = tally.begin(clock::now());
        let failed = tally.begin(clock::now());
        let given_up = tally.begin(clock::now());
        assert_eq!(tally.figures().open(), 3);
        done.saw(FIRST, clock::now() + Duration::from_millis(250));
        let timeline = Timeline::sent(clock::now());
        done.close(&timeline, &Outcome::Complete);
        failed.close(&timeline, &Outcome::Failed("503".to_owned()));
        tokio::time::advance(Duration::from_secs(4)).await;
        drop(given_up);
        let figures = tally.figures();
        assert_eq!((figures.sent, figures.done, figures.failed, figures.given_up, figures.open()), (3, 1, 1, 1, 0));
        assert_eq!(figures.last_error.as_deref(), Some("503"));
        // The one that was given up had waited four seconds without a token, and that counts.
        assert_eq!(figures.first_token, [Some(0.25), Some(4.0), Some(4.0)]);
    }

    #[test]
    fn lateness_is_the_99th_percentile() {
        let tally = Tally::default();
        assert_eq!(tally.figures().lateness, None);
        for ms in 1..=100 {
            tally.late(Duration::from_millis(ms));
        }
        assert_eq!(tally.figures().lateness, Some(0.099));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_given_up_in_the_middle_keeps_its_first_token() {
        let tally = Arc::new(Tally::default());
        let mut open = tally.begin(clock::now());
        open.saw(FIRST, clock::now() + Duration::from_millis(100));
        tokio::time::advance(Duration::from_secs(9)).await;
        drop(open);
        let figures = tally.figures();
        assert_eq!((figures.given_up, figures.tokens), (1, 1));
        assert_eq!(figures.first_token[2], Some(0.1));
    }
}
