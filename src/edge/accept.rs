//! The accept loop: one task a connection, each with a deadline for its headers and a share of the connection bound.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};

use super::{
    Phase,
    drain::{self, Manners},
};
use crate::{gateway::Peer, tasks::Tasks};

/// After a failed accept (no file descriptors left), wait this long: the next try would fail as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// HTTP/2 frames of one stream that may wait for its client to read: one window's worth, so that a client that stops
/// reading stops its pod (hyper's default is 1 MiB over 64 KiB windows; a token event is 200 bytes).
const HTTP2_SEND_BUFFER: usize = 64 << 10;

/// What one connection may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for the request's headers.
    pub header_read: Duration,
    /// Header fields.
    pub header_fields: usize,
    /// Bytes of the header list.
    pub header_bytes: usize,
    /// Concurrent HTTP/2 streams.
    pub http2_streams: u32,
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
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let builder = builder(door.limits, &tasks);
    let mut closing = pin!(drain::may_close(&door.socket, phase.clone(), door.shared));
    loop {
        let (stream, peer, guest) = tokio::select! {
            // Whoever came before the door closes gets in: what is left in the backlog would be reset.
            biased;
            next = accept(&door) => next,
            () = &mut closing => break,
        };
        let (asked, service, manners) = (Arc::new(Notify::new()), service.clone(), Manners::default());
        let (heard, seen) = (Arc::clone(&asked), manners.clone());
        let serve = move |mut request: Request<Incoming>| {
            heard.notify_one();
            seen.speaks(request.version());
            request.extensions_mut().insert(Peer(peer));
            service(request)
        };
        let connection = builder.serve_connection(TokioIo::new(stream), service_fn(serve)).into_owned();
        let served = drain::serve_out(connection, phase.clone(), manners);
        let mut cut = phase.clone();
        tasks.spawn(async move {
            let _guest = guest;
            tokio::select! {
                // How a connection ends is told request by request, by their receipts.
                () = served => {}
                _ = cut.wait_for(|phase| *phase >= Phase::Cutting) => {}
                () = stays_silent(&asked, door.limits.header_read) => {}
            }
        });
    }
}

/// Resolves if nothing was asked within `limit`. hyper's deadline begins with the first byte of an HTTP/1.1 head: it
/// misses who says nothing at all, a part of HTTP/2's preface, or that preface and nothing more.
async fn stays_silent(asked: &Notify, limit: Duration) {
    if timeout(limit, asked.notified()).await.is_ok() {
        pending::<()>().await;
    }
}

/// The next connection and its place. Waits while the house is full: the kernel's backlog is the queue then.
async fn accept(door: &Door) -> (TcpStream, SocketAddr, Guest) {
    loop {
        // The semaphore is never closed.
        let Ok(room) = Arc::clone(&door.room).acquire_owned().await else {
            continue;
        };
        match door.socket.accept().await.and_then(|(stream, peer)| stream.set_nodelay(true).map(|()| (stream, peer))) {
            Ok((stream, peer)) => {
                door.open.inc();
                return (stream, peer, Guest { _room: room, open: door.open.clone() });
            }
            Err(error) if is_about_one_client(&error) => {}
            Err(error) => {
                tracing::warn!(listener = %door.name, %error, "cannot accept connections: raise the file descriptor limit?");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_about_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, InvalidInput, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | NotConnected | InvalidInput)
}

fn builder(limits: Limits, tasks: &Tasks) -> auto::Builder<OnTasks> {
    let mut builder = auto::Builder::new(OnTasks(tasks.clone()));
    // hyper reads no deadline without a timer.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read)
        .max_headers(limits.header_fields)
        .max_buf_size(limits.header_bytes.max(8 << 10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(HTTP2_SEND_BUFFER);
    builder
}

/// Runs the streams of an HTTP/2 connection as tracked tasks.
#[derive(Clone)]
struct OnTasks(Tasks);

impl<F> hyper::rt::Executor<F> for OnTasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}
