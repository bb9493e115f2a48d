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

/// Idle connections by pod. Entries go when discovery drops the pod.
#[derive(Debug, Default)]
pub(super) struct IdleConnections {
    pods: DashMap<PodId, Mutex<Vec<Idle>>>,
    /// From now on none is kept.
    closed: AtomicBool,
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
    /// The connection used last that is younger than `limit`, and that the pod has neither closed nor spoken on.
    pub(super) fn take(&self, pod: &PodId, now: Instant, limit: Duration) -> Option<Live> {
        let entry = self.pods.get(pod)?;
        let mut idle = lock(&entry);
        while let Some(mut last) = idle.pop() {
            if last.is_good(now, limit) {
                return Some(last.live);
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
            let mut idle = lock(&entry);
            if idle.len() < MAX_IDLE {
                idle.push(Idle { live, since: now });
            }
        }
    }

    /// Closes what is idle longer than `limit`, and what the pod has closed. A pod without any has no entry: an answer
    /// that ended after its pod left may have made one.
    pub(super) fn prune(&self, now: Instant, limit: Duration) {
        self.pods.retain(|_, idle| {
            let idle = idle.get_mut().unwrap_or_else(PoisonError::into_inner);
            idle.retain_mut(|one| one.is_good(now, limit));
            !idle.is_empty()
        });
    }

    /// Forgets a pod.
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
        self.pods.iter().map(|entry| lock(entry.value()).len()).sum()
    }
}

fn lock(idle: &Mutex<Vec<Idle>>) -> MutexGuard<'_, Vec<Idle>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut live = idle.take(&pod, now + MINUTE, MINUTE).unwrap();
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
        let mut live = idle.take(&pod, now, MINUTE).unwrap();
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
    async fn after_the_stop_none_is_kept() {
        let (idle, pod, now) = (IdleConnections::default(), PodId::new("p", "h:1"), clock::now());
        let _one = kept(&idle, &pod, now).await;
        idle.close();
        let _other = kept(&idle, &pod, now).await;
        assert_eq!(idle.len(), 0);
    }
}
