//! What Envoy sends, before it is a message: a part of one that has come counts in the budget of all bodies, as the rest
//! of it is awaited.
//!
//! A message may be as large as the largest body, and whoever reads it keeps it to itself until it is whole. Without this,
//! many conversations that each begin a large message and never end it would hold more than all bodies together may.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;

use crate::gateway::body::Share;

/// So much of a message is not counted: a stream's window of the default size, and more than a head or a piece of an
/// answer has. It keeps small messages off the counter that all share.
const UNCOUNTED: usize = 64 << 10;

/// Bytes that came since the last message was whole.
pub(super) type SinceLast = Arc<AtomicUsize>;

/// What Envoy sends in one conversation.
pub(super) struct Inbound {
    bytes: Incoming,
    since_last: SinceLast,
    share: Share,
}

impl Inbound {
    pub(super) fn new(bytes: Incoming, since_last: SinceLast, share: Share) -> Self {
        Self { bytes, since_last, share }
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match ready!(Pin::new(&mut self.bytes).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(Box::new(error))))),
            None => return Poll::Ready(None),
        };
        let new = frame.data_ref().map_or(0, Bytes::len);
        let held = self.since_last.fetch_add(new, Relaxed) + new;
        let counted = if held > UNCOUNTED { held } else { 0 };
        if !self.share.hold(counted as u64) {
            return Poll::Ready(Some(Err(Status::resource_exhausted("too many large requests at once"))));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.bytes.size_hint()
    }
}
