//! When each request for work left the pod, and whether it had its whole answer by then: so that a test can say how
//! long after its client it went.
//!
//! A visit lasts from the request's last byte to the answer's last byte, or until hyper drops either.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    Error,
    body::{Body, Bytes, HttpBody},
    http::Response,
};
use http_body::{Frame, SizeHint};

use crate::clock;

/// How many visits are remembered: more than a test asks of one pod.
const KEPT: usize = 8_192;

/// A visit that is over.
#[derive(Clone, Debug)]
pub struct Visit {
    /// The request's `x-request-id`.
    pub request_id: String,
    /// When it ended.
    pub ended: Instant,
    /// Whether the whole answer had been taken by then.
    pub complete: bool,
}

/// The visits of one pod, oldest forgotten first.
#[derive(Debug, Default)]
pub(in crate::sim) struct Visits(Mutex<VecDeque<Visit>>);

impl Visits {
    /// Those that are over.
    pub(in crate::sim) fn over(&self) -> Vec<Visit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn note(&self, visit: Visit) {
        let mut over = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if over.len() == KEPT {
            over.pop_front();
        }
        over.push_back(visit);
    }
}

/// A visit that goes on while this lives.
#[derive(Debug)]
pub(super) struct Visiting {
    visits: Arc<Visits>,
    request_id: String,
    complete: bool,
}

impl Visiting {
    pub(super) fn begin(visits: Arc<Visits>, request_id: String) -> Self {
        Self { visits, request_id, complete: false }
    }

    /// The visit lasts as long as the answer.
    pub(super) fn until_told(self, answer: Response<Body>) -> Response<Body> {
        answer.map(|body| Body::new(Watched { body, visiting: self }))
    }
}

impl Drop for Visiting {
    fn drop(&mut self) {
        let request_id = std::mem::take(&mut self.request_id);
        self.visits.note(Visit { request_id, ended: clock::now(), complete: self.complete });
    }
}

struct Watched {
    body: Body,
    visiting: Visiting,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.visiting.complete = frame.is_none() || self.body.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
