//! Connections kept for the next request, per pod.
//!
//! Nobody waits on them. Whether one is still good is seen when it is wanted, and every second, so that what a pod has
//! closed does not stay half open here.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dashmap::DashMap;

use super::connect::Live;
use crate::fleet::PodId;

/// Idle connections kept for one pod: as many as a full batch (vLLM's default `max_num_seqs` is 256).
const MAX_IDLE: usize = 256;

/// A pod that wins so many races in a row closes connections as a habit: one is chance, two may be a restart and chance.
const RACES_THAT_TELL: u32 = 3;

/// Races that lie further apart than this are not in a row: in so long an idle timer of 5 s (uvicorn) strikes twice.
const IN_A_ROW: Duration = Duration::from_secs(10);

/// How long nothing is kept of a pod that closes as a habit. A connection costs a round trip, a lost race an attempt.
const NOT_KEPT_FOR: Duration = Duration::from_secs(10);

/// How long a pod's habit is remembered without a race, so that it is told once and not every ten seconds.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// Idle connections by pod. Entries go when discovery drops the pod.
#[derive(Debug, Default)]
pub(super) struct IdleConnections {
    pods: DashMap<PodId, Mutex<Kept>>,
    /// From now on none is kept.
    closed: AtomicBool,
}

/// One pod's.
#[derive(Debug, Default)]
struct Kept {
    idle: Vec<Idle>,
    /// Once it had won one.
    races: Option<Races>,
}

/// Races that a pod won: it closed a kept connection as a request was written on it.
#[derive(Debug)]
struct Races {
    in_a_row: u32,
    last: Instant,
    /// Until then nothing is kept.
    not_kept_until: Option<Instant>,
    told: bool,
}

impl Races {
    fn are_forgotten(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= REMEMBERED_FOR
    }
}

#[derive(Debug)]
struct Idle {
    live: Live,
    since: Instant,
}

impl Idle {
    /// Whether it may carry another request. The pod's own idle timer (5 s in uvicorn) must never be about to strike.
    fn is_good(&mut self, now: Instant, limit: Duration) -> bool {
        now.saturating_duration_since(self.since) < limit && self.live.stream_mut().is_quiet()
    }
}

impl IdleConnections {
    /// The connection used last that is younger than `limit`, and that the pod has neither closed nor spoken on; and
    /// since when it was kept.
    pub(super) fn take(&self, pod: &PodId, now: Instant, limit: Duration) -> Option<(Live, Instant)> {
        let entry = self.pods.get(pod)?;
        let mut kept = lock(&entry);
        while let Some(mut last) = kept.idle.pop() {
            if last.is_good(now, limit) {
                return Some((last.live, last.since));
            }
        }
        None
    }

    /// Keeps a connection whose answer was read to its end, if another request may follow on it.
    pub(super) fn keep(&self, pod: &PodId, live: Live, now: Instant) {
        if !live.is_reusable() || self.closed.load(Relaxed) {
            return;
        }
        if !self.pods.contains_key(pod) {
            self.pods.entry(pod.clone()).or_default();
        }
        if let Some(entry) = self.pods.get(pod) {
            let mut kept = lock(&entry);
            let not_kept = kept.races.as_ref().is_some_and(|it| it.not_kept_until.is_some_and(|until| now < until));
            if kept.idle.len() < MAX_IDLE && !not_kept {
                kept.idle.push(Idle { live, since: now });
            }
        }
    }

    /// Closes what is idle longer than `limit`, and what the pod has closed. A pod without any has no entry: an answer
    /// that ended after its pod left may have made one.
    pub(super) fn prune(&self, now: Instant, limit: Duration) {
        self.pods.retain(|_, kept| {
            let kept = kept.get_mut().unwrap_or_else(PoisonError::into_inner);
            kept.idle.retain_mut(|one| one.is_good(now, limit));
            kept.races.take_if(|it| it.are_forgotten(now));
            !kept.idle.is_empty() || kept.races.is_some()
        });
    }

    /// A connection kept `since` then was closed by its pod as it was used. Those kept beside it are as old, or belong to
    /// a pod that has restarted: they are forgotten. `true` if from now on none is kept for a while, and nobody was told.
    pub(super) fn raced(&self, pod: &PodId, since: Instant, now: Instant) -> bool {
        let entry = self.pods.entry(pod.clone()).or_default();
        let mut kept = lock(&entry);
        kept.idle.clear();
        let new = Races { in_a_row: 0, last: since, not_kept_until: None, told: false };
        let races = kept.races.get_or_insert(new);
        if since < races.last {
            // Kept before the last one was lost: a pod that restarts closes all at once, and that is one race.
            return false;
        }
        let goes_on = now.saturating_duration_since(races.last) < IN_A_ROW;
        races.in_a_row = if goes_on { races.in_a_row + 1 } else { 1 };
        races.last = now;
        if races.in_a_row < RACES_THAT_TELL {
            return false;
        }
        races.in_a_row = 0;
        races.not_kept_until = Some(now + NOT_KEPT_FOR);
        !std::mem::replace(&mut races.told, true)
    }

    /// Forgets a pod that is gone.
    pub(super) fn forget(&self, pod: &PodId) {
        self.pods.remove(pod);
    }

    /// Closes all, for good.
    pub(super) fn close(&self) {
        self.closed.store(true, Relaxed);
        self.pods.clear();
    }

    /// How many are kept.
    pub(super) fn len(&self) -> usize {
        self.pods.iter().map(|entry| lock(entry.value()).idle.len()).sum()
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{
        clock,
        upstream::{http1::Connection, socket::Socket},
    };

    const MINUTE: Duration = Duration::from_secs(60);

    /// A kept connection, and the pod's end of it.
    async fn kept(idle: &IdleConnections, pod: &PodId, since: Instant) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        idle.keep(pod, Connection::new(Socket::Plain(ours)), since);
        listener.accept().await.unwrap().0
    }

    #[tokio::test]
    async fn the_youngest_is_taken_first_and_none_that_is_too_old() {
        let (idle, pod, now) = (IdleConnections::default(), PodId::new("p", "h:1"), clock::now());
        let _old = kept(&idle, &pod, now).await;
        let young = kept(&idle, &pod, now + MINUTE / 2).await;
        let (mut live, _) = idle.take(&pod, now + MINUTE, MINUTE).unwrap();
        let Socket::Plain(ours) = live.stream_mut() else { panic!("no TLS here") };
        assert_eq!(ours.local_addr().unwrap(), young.peer_addr().unwrap());
        assert!(idle.take(&pod, now + MINUTE, MINUTE).is_none());
        assert_eq!(idle.len(), 0, "who is too old is closed");
    }

    #[tokio::test]
    async fn a_connection_that_the_pod_closed_or_spoke_on_is_not_taken() {
        let (idle, pod, now) = (IdleConnections::default(), PodId::new("p", "h:1"), clock::now());
        let well = kept(&idle, &pod, now).await;
        // Both before the runtime has heard of anything: nothing is awaited behind them.
        let closed = kept(&idle, &pod, now).await;
        let spoken = kept(&idle, &pod, now).await;
        assert_eq!(spoken.try_write(b"HTTP/1.1 408 Request Timeout\r\n\r\n").unwrap(), 32);
        drop(closed);
        let (mut live, _) = idle.take(&pod, now, MINUTE).unwrap();
        let Socket::Plain(ours) = live.stream_mut() else { panic!("no TLS here") };
        assert_eq!(ours.local_addr().unwrap(), well.peer_addr().unwrap());
        assert_eq!(idle.len(), 0);
    }

    #[tokio::test]
    async fn the_sweep_closes_what_pods_have_closed() {
        let (idle, pod, now) = (IdleConnections::default(), PodId::new("p", "h:1"), clock::now());
        let mut ends = Vec::new();
        for _ in 0..200 {
            ends.push(kept(&idle, &pod, now).await);
        }
        idle.prune(now, MINUTE);
        assert_eq!(idle.len(), 200);
        for mut end in ends.split_off(50) {
            end.shutdown().await.unwrap();
        }
        idle.prune(now, MINUTE);
        assert_eq!(idle.len(), 50);
        drop(ends);
        idle.prune(now, MINUTE);
        assert!(idle.pods.is_empty(), "a pod without any has no entry");
    }

    #[tokio::test]
    async fn of_a_pod_that_closes_what_is_kept_as_a_habit_nothing_is_kept_for_a_while_and_that_is_told_once() {
        let (idle, pod, began) = (IdleConnections::default(), PodId::new("p", "h:1"), clock::now());
        let second = Duration::from_secs(1);
        let mut now = began;
        for nth in 1..=RACES_THAT_TELL {
            let _end = kept(&idle, &pod, now).await;
            let (_, since) = idle.take(&pod, now, MINUTE).unwrap();
            now += second;
            assert_eq!(idle.raced(&pod, since, now), nth == RACES_THAT_TELL, "race {nth}");
        }
        let _end = kept(&idle, &pod, now + NOT_KEPT_FOR.saturating_sub(second)).await;
        assert_eq!(idle.len(), 0);
        now += NOT_KEPT_FOR;
        let _end = kept(&idle, &pod, now).await;
        assert_eq!(idle.len(), 1, "it gets another chance");
        for _ in 0..RACES_THAT_TELL {
            assert!(!idle.raced(&pod, now, now), "it was told");
        }
        let _end = kept(&idle, &pod, now).await;
        assert_eq!(idle.len(), 0);
        idle.prune(now + REMEMBERED_FOR, MINUTE);
        assert!(idle.pods.is_empty());
    }

    #[tokio::test]
    async fn a_restart_that_closes_all_at_once_is_one_race_and_seldom_ones_are_chance() {
        let (idle, pod, now) = (IdleConnections::default(), PodId::new("p", "h:1"), clock::now());
        let second = Duration::from_secs(1);
        assert!((0..100).all(|_| !idle.raced(&pod, now, now + second)), "all were kept before the first was lost");
        let _end = kept(&idle, &pod, now + second).await;
        assert_eq!(idle.len(), 1);
        for nth in 2..20_u32 {
            let then = now + nth * IN_A_ROW;
            assert!(!idle.raced(&pod, then, then + second), "race {nth}");
        }
    }

    #[tokio::test]
    async fn after_the_stop_none_is_kept() {
        let (idle, pod, now) = (IdleConnections::default(), PodId::new("p", "h:1"), clock::now());
        let _one = kept(&idle, &pod, now).await;
        idle.close();
        let _other = kept(&idle, &pod, now).await;
        assert_eq!(idle.len(), 0);
    }
}
