//! How long a pod may take to its first token, how long it may be silent then, and how long the whole may take.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    clock,
    gateway::rejection::{EVICTED, FIRST_TOKEN_TIMEOUT, IDLE_TIMEOUT, STOPPING, TOTAL_TIMEOUT},
};

/// How often a pod that always has something to say is looked away from, to see whether we stop: that takes a lock.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The times of one answer. Armed only while nothing comes, so that an event costs no timer.
pub(super) struct Timer {
    waits_for: WaitsFor,
    idle: Duration,
    total: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    stop: CancellationToken,
    /// Cancelled to end this answer alone.
    evict: Option<CancellationToken>,
    /// Made when it is first waited for, which few whole answers are.
    stopped: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    evicted: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// Whom both wake. While it is the same, they need not be told again: then an event costs a look at the clock.
    waker: Option<Waker>,
    /// When we last looked whether to stop.
    looked: Option<Instant>,
}

/// What the pod owes.
enum WaitsFor {
    /// A stream's first token, by then.
    FirstToken(Instant),
    /// The first piece of another answer, by then.
    FirstPiece(Instant),
    /// The next piece. Its time begins when we look for it and find nothing: while a client is too slow to take what
    /// there is, the pod is not silent.
    Next(Option<Instant>),
}

/// What an answer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// By when a stream's first token is due; `None` if the answer is none that begins with one.
    pub(super) first_token: Option<Instant>,
    /// By when the first piece of any other is due.
    pub(super) first_piece: Instant,
    /// The longest silence after that.
    pub(super) idle: Duration,
    /// When all of it must be over.
    pub(super) total: Option<Instant>,
}

impl Timer {
    pub(super) fn new(patience: Patience, stop: &CancellationToken) -> Self {
        let Patience { first_token, first_piece, idle, total } = patience;
        let waits_for = first_token.map_or(WaitsFor::FirstPiece(first_piece), WaitsFor::FirstToken);
        Self {
            waits_for,
            idle,
            total,
            sleep: None,
            stop: stop.clone(),
            evict: None,
            stopped: None,
            evicted: None,
            waker: None,
            looked: None,
        }
    }

    /// The answer may be ended by `token` as well.
    pub(super) fn ends_by(&mut self, token: &CancellationToken) {
        self.evict = Some(token.clone());
    }

    /// Why it is ended from outside, if it is.
    fn ended(&self) -> Option<&'static str> {
        if self.stop.is_cancelled() {
            return Some(STOPPING);
        }
        self.evict.as_ref().is_some_and(CancellationToken::is_cancelled).then_some(EVICTED)
    }

    /// Something came; `token`: content of the answer.
    pub(super) fn moved(&mut self, token: bool) {
        if token || !matches!(self.waits_for, WaitsFor::FirstToken(_)) {
            self.waits_for = WaitsFor::Next(None);
        }
    }

    /// Why the time is up at `now`, although something came. For what never lets us wait; arms nothing.
    pub(super) fn is_up(&mut self, now: Instant) -> Option<&'static str> {
        if self.looked.is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY) {
            self.looked = Some(now);
            if let Some(why) = self.ended() {
                return Some(why);
            }
        }
        if self.total.is_some_and(|total| now >= total) {
            return Some(TOTAL_TIMEOUT);
        }
        matches!(self.waits_for, WaitsFor::FirstToken(due) if now >= due).then_some(FIRST_TOKEN_TIMEOUT)
    }

    /// Ready with the reason once the time is up.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        let known = self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if !known {
            self.waker = Some(cx.waker().clone());
            let stopped = self.stopped.get_or_insert_with(|| Box::pin(self.stop.clone().cancelled_owned()));
            _ = stopped.as_mut().poll(cx);
            if let Some(evict) = &self.evict {
                let evicted = self.evicted.get_or_insert_with(|| Box::pin(evict.clone().cancelled_owned()));
                _ = evicted.as_mut().poll(cx);
            }
        }
        // Looked at after that, so that no stop is missed between the two.
        if let Some(why) = self.ended() {
            return Poll::Ready(why);
        }
        loop {
            let now = clock::now();
            self.looked = Some(now);
            let (due, why) = match &mut self.waits_for {
                WaitsFor::FirstToken(due) => (*due, FIRST_TOKEN_TIMEOUT),
                WaitsFor::FirstPiece(due) => (*due, IDLE_TIMEOUT),
                WaitsFor::Next(since) => (*since.get_or_insert(now) + self.idle, IDLE_TIMEOUT),
            };
            if self.total.is_some_and(|total| now >= total) {
                return Poll::Ready(TOTAL_TIMEOUT);
            }
            if now >= due {
                return Poll::Ready(why);
            }
            let until = self.total.map_or(due, |total| total.min(due)).into();
            // An armed sleep that fires early, because something came since, is simply armed again.
            match &mut self.sleep {
                Some(sleep) if known && sleep.deadline() > now.into() && sleep.deadline() <= until => {
                    return Poll::Pending;
                }
                Some(sleep) if sleep.deadline() > until => sleep.as_mut().reset(until),
                Some(_) => {}
                None => self.sleep = Some(Box::pin(sleep_until(until))),
            }
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
            }
            self.sleep = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::{advance, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);

    fn timer(first_token: bool, total: Option<Duration>) -> Timer {
        let now = clock::now();
        let patience = Patience {
            first_token: first_token.then(|| now + 600 * SECOND),
            first_piece: now + 300 * SECOND,
            idle: 120 * SECOND,
            total: total.map(|total| now + total),
        };
        Timer::new(patience, &CancellationToken::new())
    }

    /// Why the time is up, and after how long from now; none within three hours.
    async fn ends(timer: &mut Timer) -> Option<(&'static str, u64)> {
        let began = clock::now();
        let why = timeout(3 * HOUR, poll_fn(|cx| timer.poll(cx))).await.ok()?;
        Some((why, (clock::now() - began).as_secs()))
    }

    /// Looks for more, finds nothing, and lets `time` pass.
    async fn waits(timer: &mut Timer, time: Duration) {
        assert!(timeout(time, poll_fn(|cx| timer.poll(cx))).await.is_err(), "cut within {time:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_token_puts_the_first_tokens_time_off_by_nothing() {
        let mut timer = timer(true, None);
        for _ in 0..39 {
            waits(&mut timer, 15 * SECOND).await;
            timer.moved(false);
        }
        assert_eq!(ends(&mut timer).await, Some((FIRST_TOKEN_TIMEOUT, 15)));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_first_token_silence_counts_even_if_the_sleep_was_armed_for_longer() {
        let mut timer = timer(true, None);
        waits(&mut timer, SECOND).await;
        timer.moved(true);
        assert_eq!(ends(&mut timer).await, Some((IDLE_TIMEOUT, 120)));
    }

    #[tokio::test(start_paused = true)]
    async fn other_answers_begin_with_any_piece() {
        assert_eq!(ends(&mut timer(false, None)).await, Some((IDLE_TIMEOUT, 300)));
        let mut moving = timer(false, None);
        moving.moved(false);
        assert_eq!(ends(&mut moving).await, Some((IDLE_TIMEOUT, 120)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_a_day_goes_on_and_a_total_ends_it() {
        let mut day = timer(true, None);
        for _ in 0..24 * 60 {
            day.moved(true);
            waits(&mut day, 60 * SECOND).await;
        }
        day.moved(true);
        assert_eq!(ends(&mut day).await, Some((IDLE_TIMEOUT, 120)));
        let mut limited = timer(true, Some(HOUR));
        for _ in 0..59 {
            limited.moved(true);
            waits(&mut limited, 60 * SECOND).await;
        }
        assert_eq!(ends(&mut limited).await, Some((TOTAL_TIMEOUT, 60)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_not_the_pods_silence() {
        let mut timer = timer(true, None);
        timer.moved(true);
        // Nobody looks for more while the client's connection is full.
        advance(10 * 60 * SECOND).await;
        assert_eq!(ends(&mut timer).await, Some((IDLE_TIMEOUT, 120)), "the pod has its whole time from now on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_never_lets_us_wait_outruns_neither_time_nor_a_stop() {
        let now = clock::now();
        let mut comments = timer(true, None);
        assert_eq!(comments.is_up(now + 599 * SECOND), None);
        assert_eq!(comments.is_up(now + 600 * SECOND), Some(FIRST_TOKEN_TIMEOUT));
        comments.moved(true);
        assert_eq!(comments.is_up(now + 10 * HOUR), None, "silence is seen by who waits");
        let mut tokens = timer(true, Some(HOUR));
        tokens.moved(true);
        assert_eq!(tokens.is_up(now + HOUR.saturating_sub(SECOND)), None);
        assert_eq!(tokens.is_up(now + HOUR), Some(TOTAL_TIMEOUT));
        let mut stopping = timer(true, None);
        assert_eq!(stopping.is_up(now), None);
        stopping.stop.cancel();
        assert_eq!(stopping.is_up(now + LOOK_EVERY), Some(STOPPING));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_is_told_at_once() {
        let mut timer = timer(true, None);
        let stop = CancellationToken::new();
        timer.stop = stop.clone();
        waits(&mut timer, SECOND).await;
        stop.cancel();
        assert_eq!(ends(&mut timer).await, Some((STOPPING, 0)));
    }
}
