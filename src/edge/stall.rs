//! Clients that ask and then do not read.
//!
//! hyper waits for them for ever. Here, who takes nothing for `write_stall` is let go: on HTTP/1.1 told by the socket
//! (`wire`), on HTTP/2 by each stream, because one full stream leaves the others alone. While it lasts, its pod waits
//! as well: nothing is read from the pod that the client has no room for.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::{Rejected, pulse::Open};
use crate::tasks::Tasks;

/// The word in metrics for a client that stopped reading.
pub(super) const WRITE_STALL: &str = "write_stall";

tokio::task_local! {
    /// The hand of the HTTP/2 stream whose task this is.
    static STREAM: Arc<Hand>;
}

/// What a stream's body handed to its connection.
#[derive(Debug, Default)]
struct Hand {
    frames: AtomicU32,
    /// Whether the last one was not yet followed by the question for the next.
    holds: AtomicBool,
}

impl Hand {
    /// Resolves when one frame was held for `limit`. To be polled after the stream itself, in its task: nothing else
    /// moves the hand. A stream that flows never arms the timer.
    async fn is_stuck(&self, limit: Duration) {
        let mut armed: Option<(u32, Pin<Box<Sleep>>)> = None;
        std::future::poll_fn(|cx| {
            if !self.holds.load(Relaxed) {
                armed = None;
                return Poll::Pending;
            }
            let frames = self.frames.load(Relaxed);
            if armed.as_ref().is_some_and(|(of, _)| *of != frames) {
                armed = None;
            }
            let (_, timer) = armed.get_or_insert_with(|| (frames, Box::pin(sleep(limit))));
            timer.as_mut().poll(cx)
        })
        .await;
    }
}

/// An answer's body on its way into a connection: open until it is dropped.
#[derive(Debug)]
pub(super) struct Watched<B> {
    body: B,
    open: Open,
    hand: Option<Arc<Hand>>,
}

impl<B: Body> Watched<B> {
    /// To be made in the task that will carry the body.
    pub(super) fn new(body: B, mut open: Open) -> Self {
        if body.is_end_stream() {
            open.complete();
        }
        Self { body, open, hand: STREAM.try_with(Arc::clone).ok() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if let Some(hand) = &self.hand {
            hand.holds.store(false, Relaxed);
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(hand) = &self.hand {
            hand.frames.fetch_add(1, Relaxed);
            hand.holds.store(true, Relaxed);
        }
        if !matches!(frame, Some(Ok(_))) || self.body.is_end_stream() {
            self.open.complete();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs the streams of HTTP/2 connections as tracked tasks, and drops those that are stuck: that resets the stream and
/// leaves its pod.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    pub(super) tasks: Tasks,
    pub(super) limit: Duration,
    pub(super) rejected: Rejected,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let hand = Arc::<Hand>::default();
        let stream = STREAM.scope(Arc::clone(&hand), stream);
        let (limit, rejected) = (self.limit, self.rejected.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                _ = stream => {}
                () = hand.is_stuck(limit) => rejected.count(WRITE_STALL),
            }
        });
    }
}
