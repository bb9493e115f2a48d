//! What one connection has been doing, and for how long it may go on doing nothing.
//!
//! Kept in a few numbers that the connection's socket and its requests write as they go, and read by one timer that
//! looks again when it must: a request costs no timer of its own. It never closes anything; it says when and why.

use std::{
    error::Error,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::Version;
use tokio::{sync::Notify, time::sleep_until};

use super::{Limits, Rejected};
use crate::clock;

/// A request that its client gave up within this time was hardly meant: no answer comes sooner, and a person who typed
/// on takes longer.
const HARDLY_MEANT: Duration = Duration::from_millis(100);

/// From so many requests on, a connection most of whose requests were hardly meant is an attack (rapid reset): Envoy
/// looks from 500 on, but there one costs less than a prefill.
const ENOUGH_TO_JUDGE: u32 = 100;

/// Why a connection was ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It never asked anything.
    Silent,
    /// A head was begun and not completed.
    HeadTimeout,
    /// Nothing was asked for long: nobody's fault.
    Idle,
    /// Its client gave up most requests at once.
    Resets,
}

impl Why {
    /// The word in metrics; none for what is no fault.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Silent => Some("silent"),
            Self::HeadTimeout => Some("header_timeout"),
            Self::Resets => Some("resets"),
            Self::Idle => None,
        }
    }
}

/// One connection's doings.
#[derive(Debug)]
pub(super) struct Pulse {
    began: Instant,
    pub(super) rejected: Rejected,
    http2: AtomicBool,
    /// Requests so far; those open; those given up at once.
    asked: AtomicU32,
    open: AtomicU32,
    hardly_meant: AtomicU32,
    /// Milliseconds from the beginning to the end of the last request.
    quiet_since: AtomicU64,
    /// ... to the first byte since then, plus one; zero if none came.
    stirred: AtomicU64,
    flooded: Notify,
}

impl Pulse {
    pub(super) fn new(rejected: Rejected) -> Self {
        Self {
            began: clock::now(),
            rejected,
            http2: AtomicBool::new(false),
            asked: AtomicU32::new(0),
            open: AtomicU32::new(0),
            hardly_meant: AtomicU32::new(0),
            quiet_since: AtomicU64::new(0),
            stirred: AtomicU64::new(0),
            flooded: Notify::new(),
        }
    }

    /// A request's head is complete.
    pub(super) fn asked(self: &Arc<Self>, version: Version) -> Open {
        if version == Version::HTTP_2 {
            self.http2.store(true, Relaxed);
        }
        self.asked.fetch_add(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
        self.stirred.store(0, Relaxed);
        Open { pulse: Arc::clone(self), asked: clock::now(), whole: false }
    }

    /// Bytes came.
    pub(super) fn heard(&self, bytes: &[u8]) {
        if self.nothing_open() && self.stirred.load(Relaxed) == 0 {
            self.stirred.store(self.since_beginning() + 1, Relaxed);
            if bytes.starts_with(b"PRI * HTTP/2.0\r\n") {
                self.http2.store(true, Relaxed);
            }
        }
    }

    /// Whether no request is being answered.
    pub(super) fn nothing_open(&self) -> bool {
        self.open.load(Relaxed) == 0
    }

    /// Requests so far.
    pub(super) fn asked_so_far(&self) -> u32 {
        self.asked.load(Relaxed)
    }

    /// Whether it speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    /// Resolves when the connection has to be ended.
    pub(super) async fn runs_out(&self, limits: &Limits) -> Why {
        let patience = async {
            loop {
                let now = clock::now();
                let (until, why) = self.due(limits, now);
                match why.filter(|_| until <= now) {
                    Some(why) => return why,
                    // Something may begin meanwhile that has an earlier end: no head waits longer than twice its time.
                    None => sleep_until(until.min(now + limits.header_read).into()).await,
                }
            }
        };
        tokio::select! {
            why = patience => why,
            () = self.flooded.notified() => Why::Resets,
        }
    }

    /// The connection ended, perhaps by an error. A client that is gone is no fault; one that breaks the rules of HTTP/2
    /// is (of HTTP/1.1: see `wire`, which answers it).
    pub(super) fn ended(&self, error: Option<Box<dyn Error + Send + Sync>>) {
        let Some(error) = error else { return };
        let mut cause = Some(&*error as &(dyn Error + 'static));
        while let Some(this) = cause {
            // Of timeouts hyper has only that of its pings.
            if this.is::<io::Error>() || this.downcast_ref().is_some_and(hyper::Error::is_timeout) {
                return;
            }
            cause = this.source();
        }
        if self.is_http2() {
            self.rejected.count("http2");
        }
    }

    /// When its time is up, as things stand, and for what.
    fn due(&self, limits: &Limits, now: Instant) -> (Instant, Option<Why>) {
        let after = |millis: u64| self.began + Duration::from_millis(millis);
        let stirred = self.stirred.load(Relaxed);
        if !self.nothing_open() {
            (now + limits.header_read, None)
        } else if self.asked.load(Relaxed) == 0 {
            (self.began + limits.header_read, Some(Why::Silent))
        } else if stirred > 0 && !self.is_http2() {
            // In HTTP/2 the bytes may be no request at all.
            (after(stirred) + limits.header_read, Some(Why::HeadTimeout))
        } else {
            (after(self.quiet_since.load(Relaxed)) + limits.client_idle, Some(Why::Idle))
        }
    }

    fn since_beginning(&self) -> u64 {
        u64::try_from(clock::now().saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

/// An open request; over when dropped.
#[derive(Debug)]
pub(super) struct Open {
    pulse: Arc<Pulse>,
    asked: Instant,
    whole: bool,
}

impl Open {
    /// Its answer came to an end of its own.
    pub(super) fn complete(&mut self) {
        self.whole = true;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let pulse = &self.pulse;
        if !self.whole && clock::now().saturating_duration_since(self.asked) < HARDLY_MEANT {
            let gone = pulse.hardly_meant.fetch_add(1, Relaxed) + 1;
            let asked = pulse.asked.load(Relaxed);
            if pulse.is_http2() && asked >= ENOUGH_TO_JUDGE && gone > asked / 2 {
                pulse.flooded.notify_one();
            }
        }
        pulse.quiet_since.store(pulse.since_beginning(), Relaxed);
        pulse.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        header_read: Duration::from_secs(10),
        client_idle: Duration::from_secs(75),
        write_stall: Duration::from_secs(60),
        header_fields: 64,
        header_bytes: 32 << 10,
        http2_streams: 100,
        may_give_up: false,
    };

    async fn after(pulse: &Pulse) -> (Why, u64) {
        let began = clock::now();
        let why = pulse.runs_out(&LIMITS).await;
        (why, (clock::now() - began).as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_ten_seconds_and_a_pause_between_requests_has_more() {
        let pulse = Arc::new(Pulse::new(Rejected::default()));
        assert_eq!(after(&pulse).await, (Why::Silent, 10));
        let mut open = pulse.asked(Version::HTTP_11);
        tokio::time::advance(Duration::from_secs(300)).await;
        open.complete();
        drop(open);
        assert_eq!(after(&pulse).await, (Why::Idle, 75));
        drop(pulse.asked(Version::HTTP_11));
        pulse.heard(b"P");
        assert_eq!(after(&pulse).await, (Why::HeadTimeout, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_request_is_never_hurried() {
        let pulse = Arc::new(Pulse::new(Rejected::default()));
        let _open = pulse.asked(Version::HTTP_2);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, pulse.runs_out(&LIMITS)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_given_up_at_once_are_a_flood_and_those_given_up_later_are_not() {
        let pulse = Arc::new(Pulse::new(Rejected::default()));
        for _ in 0..1000 {
            let open = pulse.asked(Version::HTTP_2);
            tokio::time::advance(HARDLY_MEANT).await;
            drop(open);
        }
        assert_eq!(after(&pulse).await.0, Why::Idle);
        for _ in 0..1001 {
            drop(pulse.asked(Version::HTTP_2));
        }
        assert_eq!(after(&pulse).await, (Why::Resets, 0));
    }
}
