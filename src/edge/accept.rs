//! The accept loop: one task a connection, each with a share of the connection bound.

use std::{future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use prometheus_client::metrics::gauge::Gauge;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::sleep,
};

use super::{
    Limits, Phase, Rejected, Rules,
    connection::Host,
    drain,
    entering::{Entered, First, Porch, at_the_door},
    tls::Tls,
};
use crate::{gateway::Peer, tasks::Tasks};

/// After a failed accept (no file descriptors left), wait this long: the next try would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a client's socket may hold of its answer: Linux doubles it, and by itself would let it grow to 4 MiB, which a
/// slow client does not drain within `write_stall` and thousands of stuck ones hold in the kernel. Half a MiB in
/// flight carries 5 MB/s over 100 ms.
const SEND_BUFFER: usize = 256 << 10;

/// A client that vanished without a word while its prompt is computed is noticed after a minute and a half.
pub(super) const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// Time after which a client that acknowledges nothing of what was sent to it is gone; Linux by itself repeats for a
/// quarter of an hour. Never sooner than who does not read is let go, because a full window counts as well.
#[cfg(target_os = "linux")]
fn unacknowledged(limits: &Limits) -> Duration {
    limits.write_stall.max(KEEPALIVE_AFTER + KEEPALIVE_EVERY * KEEPALIVE_TRIES)
}

/// One bound listener.
#[derive(Debug)]
pub struct Door {
    /// Its name in logs.
    pub name: Arc<str>,
    /// The bound socket.
    pub socket: TcpListener,
    /// What one connection may do.
    pub limits: Limits,
    /// Bounds the open connections of all doors together.
    pub room: Arc<Semaphore>,
    /// Counts them.
    pub open: Gauge,
    /// Whether a successor may listen on the same address.
    pub shared: bool,
    /// Counts what was turned away before it was a request.
    pub rejected: Rejected,
    /// How it speaks TLS, if it does.
    pub tls: Option<Tls>,
    /// From where clients may come.
    pub rules: Rules,
}

/// Counts a connection while it lives.
struct Guest {
    _room: OwnedSemaphorePermit,
    open: Gauge,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Accepts until the stage says so. Its connections go on as tasks of `tasks`, and end by the same stage.
pub async fn run<S, F, B, E>(door: Door, service: S, phase: watch::Receiver<Phase>, tasks: Tasks)
where
    S: Fn(Peer, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let host = Host::new(door.limits, door.rejected.clone(), &tasks);
    let porch = Porch { tls: door.tls.clone(), rejected: door.rejected.clone(), limit: door.limits.header_read };
    let mut closing = pin!(drain::may_close(&door.socket, phase.clone(), door.shared));
    loop {
        let (stream, peer, guest) = tokio::select! {
            // Whoever came before the door closes gets in: what is left in the backlog would be reset.
            biased;
            next = accept(&door) => next,
            () = &mut closing => break,
        };
        let network = door.rules.now();
        let first = match at_the_door(&network, peer.ip()) {
            Ok(first) => first,
            Err(reason) => {
                let cause = "it is not in `trusted_proxies`, and here all connections come from those";
                door.rejected.turned_away(reason, &peer.to_string(), &cause);
                continue;
            }
        };
        let peer = Peer::from(peer);
        if door.tls.is_some() || first != First::Nothing {
            let (porch, host, service, phase) = (porch.clone(), host.clone(), service.clone(), phase.clone());
            tasks.spawn(async move {
                match porch.lead(stream, peer, (network, first)).await {
                    Some((Entered::Plain(stream), peer)) => host.serve((stream, peer), service, phase).await,
                    Some((Entered::Tls(stream), peer)) => host.serve((*stream, peer), service, phase).await,
                    None => {}
                }
                drop(guest);
            });
            continue;
        }
        let connection = host.serve((stream, peer), service.clone(), phase.clone());
        tasks.spawn(async move {
            connection.await;
            drop(guest);
        });
    }
}

/// The next connection and its place. Waits while the house is full: the kernel's backlog is the queue then.
async fn accept(door: &Door) -> (TcpStream, SocketAddr, Guest) {
    let mut told = false;
    loop {
        // The semaphore is never closed.
        let Ok(room) = Arc::clone(&door.room).acquire_owned().await else {
            continue;
        };
        match door.socket.accept().await.and_then(|(stream, peer)| stream.set_nodelay(true).map(|()| (stream, peer))) {
            Ok((stream, peer)) => {
                bound(&stream, door);
                door.open.inc();
                return (stream, peer, Guest { _room: room, open: door.open.clone() });
            }
            Err(error) if is_about_one_client(&error) => {}
            Err(error) => {
                // Once until somebody comes in again: it fails twenty times a second.
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(listener = %door.name, %error, "cannot accept connections: raise the file descriptor limit?");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Bounds what the system holds for a client, and for how long. What it refuses costs nobody an answer.
fn bound(stream: &TcpStream, door: &Door) {
    if let Err(error) = set_bounds(stream, &door.limits) {
        tracing::debug!(listener = %door.name, %error, "the system keeps its own socket options");
    }
}

fn set_bounds(stream: &TcpStream, limits: &Limits) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_TRIES))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(unacknowledged(limits)))?;
    Ok(())
}

fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | NotConnected | InvalidInput)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_vanished_is_noticed_whether_or_not_something_is_on_its_way_to_it() {
        let limits = |stall: u64| Limits {
            header_read: Duration::from_secs(10),
            client_idle: Duration::from_secs(75),
            write_stall: Duration::from_secs(stall),
            header_fields: 64,
            header_bytes: 32 << 10,
            http2_streams: 100,
            may_give_up: false,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        for (stall, gone_after) in [(60, 90), (5, 90), (300, 300)] {
            set_bounds(&stream, &limits(stall)).unwrap();
            let socket = SockRef::from(&stream);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(gone_after)));
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
        }
    }
}
