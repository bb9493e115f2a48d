//! One connection from its first byte to its last: who drives it, and what may end it.

use std::{error::Error, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::sleep,
};

use super::{
    Phase, Rejected,
    accept::KEEPALIVE_AFTER,
    drain,
    gather::Gather,
    pulse::{Pulse, Why},
    stall::{Streams, Watched},
    wire::Wire,
};
use crate::{gateway::Peer, tasks::Tasks};

/// HTTP/2 frames of one stream that may wait for its client to read: one window's worth, so that a client that stops
/// reading stops its pod (hyper's default is 1 MiB over 64 KiB windows; a token event is 200 bytes).
const HTTP2_SEND_BUFFER: usize = 64 << 10;

/// Envoy's conversations that may be given up before we have looked at them: as many as clients may well leave while one
/// turn of the loop lasts (h2's default is 20); each costs h2 a few hundred bytes until then.
const GIVEN_UP_UNHEARD: usize = 10_000;

/// Bytes of all conversations of an Envoy's connection that may wait for us to read them. Of half as many h2 takes frames
/// below 256 bytes, at 256 bytes each, and ends the connection at one more: with its default of 1 MiB that is a tenth of a
/// second of 500 streams' tokens, which any pause of ours lets pile up; with this it is three tokens of each of 10,000.
const UNREAD: u32 = 16 << 20;

/// What one connection may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time for the request's headers.
    pub header_read: Duration,
    /// Time between two requests.
    pub client_idle: Duration,
    /// Time without any progress in writing to it.
    pub write_stall: Duration,
    /// Header fields.
    pub header_fields: usize,
    /// Bytes of the header list.
    pub header_bytes: usize,
    /// Concurrent HTTP/2 streams.
    pub http2_streams: u32,
    /// Whether requests given up at once are ordinary, as Envoy's conversations are when they have served.
    pub may_give_up: bool,
}

/// Serves connections that share their limits.
#[derive(Clone)]
pub(super) struct Host {
    limits: Limits,
    rejected: Rejected,
    builders: Arc<(http1::Builder, http2::Builder<Streams>)>,
}

/// One client's stay: what may end it.
struct Visit {
    limits: Limits,
    pulse: Arc<Pulse>,
    phase: watch::Receiver<Phase>,
}

impl Host {
    pub(super) fn new(limits: Limits, rejected: Rejected, tasks: &Tasks) -> Self {
        let streams = Streams { tasks: tasks.clone(), limit: limits.write_stall, rejected: rejected.clone() };
        let (mut http1, mut http2) = (http1::Builder::new(), http2::Builder::new(streams));
        http1
            // `Pulse` has the deadlines. hyper's own covers the pause between two requests as well, which is longer.
            .header_read_timeout(None)
            .max_headers(limits.header_fields)
            // The buffer's bound alone is none: what a read brings beyond it is still parsed.
            .max_header_size(limits.header_bytes)
            .max_buf_size(limits.header_bytes.max(8 << 10));
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.http2_streams)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_send_buf_size(HTTP2_SEND_BUFFER)
            // A remembered field keeps all that was read along with it: 4 KiB of them kept half a MiB a connection.
            .header_table_size(0)
            // A balancer between us keeps its connection to us when its client vanishes: TCP's own probes tell nothing then.
            .keep_alive_interval(KEEPALIVE_AFTER)
            // A client that is too busy to read may be too busy to answer.
            .keep_alive_timeout(limits.write_stall);
        if limits.may_give_up {
            // All that an Envoy has under way is on one connection, and its clients' doings must not end it: many that
            // leave in one moment; many whose bodies go on while they are refused, which h2 counts for as long as a
            // connection lives; and tokens of many answers that come while we are held up.
            http2
                .max_pending_accept_reset_streams(GIVEN_UP_UNHEARD)
                .max_local_error_reset_streams(None)
                .initial_connection_window_size(UNREAD);
        }
        Self { limits, rejected, builders: Arc::new((http1, http2)) }
    }

    /// Serves one client until it leaves or has to.
    pub(super) fn serve<W, S, F, B, E>(
        &self,
        (stream, peer): (W, Peer),
        service: S,
        phase: watch::Receiver<Phase>,
    ) -> impl Future<Output = ()> + Send + use<W, S, F, B, E>
    where
        W: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Fn(Peer, Request<Incoming>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let (limits, pulse) = (self.limits, Arc::new(Pulse::new(self.rejected.clone())));
        let heard = Arc::clone(&pulse);
        let serve = move |request: Request<Incoming>| {
            let version = request.version();
            let mut open = heard.asked(version);
            if limits.may_give_up {
                open.complete();
            }
            let answer = service(peer.clone(), request);
            async move {
                answer.await.map(|mut answer| {
                    if version == Version::HTTP_2 {
                        stand_alone(answer.headers_mut());
                    }
                    answer.map(|body| Watched::new(body, open))
                })
            }
        };
        let mut wire = Wire::new(stream, Arc::clone(&pulse), limits.write_stall);
        let builders = Arc::clone(&self.builders);
        let visit = Visit { limits, pulse, phase };
        async move {
            let greeted = tokio::select! {
                biased;
                greeted = wire.greets_in_http2() => greeted.ok(),
                () = visit.last_call() => None,
                why = visit.pulse.runs_out(&visit.limits) => {
                    if let Some(reason) = why.reason() {
                        visit.pulse.rejected.count(reason);
                    }
                    None
                }
            };
            let Some(speaks_http2) = greeted else { return };
            let service = service_fn(serve);
            // Boxed, so that neither has to make room for the other.
            if speaks_http2 {
                let wire = TokioIo::new(Gather::new(wire));
                visit.drive(Box::pin(builders.1.serve_connection(wire, service)).as_mut()).await;
            } else {
                let wire = TokioIo::new(wire);
                visit.drive(Box::pin(builders.0.serve_connection(wire, service)).as_mut()).await;
            }
        }
    }
}

/// Copies values out of the 8 KiB that a pod's head was read into. An HTTP/2 connection remembers what it has sent, for
/// the table of fields that both sides keep, and would hold all of that for each.
fn stand_alone(headers: &mut HeaderMap) {
    for value in headers.values_mut() {
        // What is a value stays one.
        if let Ok(copy) = HeaderValue::from_bytes(value.as_bytes()) {
            *value = copy;
        }
    }
}

impl Visit {
    /// Serves until the client leaves or has to.
    async fn drive<C>(&self, mut connection: Pin<&mut C>)
    where
        C: GracefulConnection,
        C::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        // What may end it besides its client. Looked at when one of them wakes, not with every piece that comes or goes.
        let mut ends = FuturesUnordered::from_iter([
            self.last_call().map(|()| None).boxed(),
            self.pulse.runs_out(&self.limits).map(Some).boxed(),
        ]);
        let why = tokio::select! {
            // What has arrived is read before anything is closed.
            biased;
            // How a connection ends is told request by request, by their receipts.
            ended = connection.as_mut() => return self.pulse.ended(ended.err().map(Into::into)),
            Some(why) = ends.next() => why,
        };
        if let Some(reason) = why.and_then(Why::reason) {
            return self.pulse.rejected.count(reason);
        }
        connection.as_mut().graceful_shutdown();
        let over = async {
            match why {
                // Nothing is open. What still waits for windows to open had its time.
                Some(_) => sleep(self.limits.header_read).await,
                None => _ = self.phase.clone().wait_for(|phase| *phase >= Phase::Cutting).await,
            }
        };
        tokio::select! {
            _ = connection => {}
            () = over => {}
        }
    }

    async fn last_call(&self) {
        drain::last_call(self.phase.clone(), || self.pulse.is_http2()).await;
    }
}
