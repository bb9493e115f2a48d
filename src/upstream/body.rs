//! The body of a pod's answer, and what becomes of its connection afterwards.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{connect::Live, idle::IdleConnections};
use crate::{clock, fleet::PodId};

/// Where a connection goes when its answer is over.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) live: Live,
    pub(super) pod: PodId,
    pub(super) idle: Arc<IdleConnections>,
}

/// The body of an answer. Read to its end, its connection is kept; dropped before, its connection is closed.
#[derive(Debug)]
pub struct PodBody {
    incoming: Incoming,
    home: Option<Home>,
    /// What was read ahead, and comes first.
    ahead: VecDeque<Result<Frame<Bytes>, hyper::Error>>,
}

impl PodBody {
    pub(super) fn new(incoming: Incoming, home: Home) -> Self {
        let mut body = Self { incoming, home: Some(home), ahead: VecDeque::new() };
        body.go_home_if_over();
        body
    }

    /// Reads on until the end, `most` bytes or the time is up, and returns what there is. It will all come again,
    /// frame for frame.
    pub(super) async fn read_ahead(&mut self, most: usize, within: Duration) -> Vec<u8> {
        let mut read = Vec::new();
        let reading = async {
            while read.len() < most
                && let Some(frame) = std::future::poll_fn(|cx| self.poll_incoming(cx)).await
            {
                let over = frame.is_err();
                if let Some(data) = frame.as_ref().ok().and_then(Frame::data_ref) {
                    read.extend_from_slice(data);
                }
                self.ahead.push_back(frame);
                if over {
                    break;
                }
            }
        };
        // Out of time is no error: what came is looked at, and the rest will come.
        _ = tokio::time::timeout(within, reading).await;
        read.truncate(most);
        read
    }

    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            // Nothing comes after trailers.
            Some(Ok(frame)) if frame.is_trailers() => self.go_home(),
            Some(Ok(_)) => self.go_home_if_over(),
            Some(Err(_)) => self.home = None,
            None => self.go_home(),
        }
        Poll::Ready(frame)
    }

    fn go_home_if_over(&mut self) {
        if self.incoming.is_end_stream() {
            self.go_home();
        }
    }

    fn go_home(&mut self) {
        if let Some(home) = self.home.take() {
            home.idle.keep(&home.pod, home.live, clock::now());
        }
    }
}

impl Body for PodBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.poll_incoming(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead =
            self.ahead.iter().filter_map(|frame| frame.as_ref().ok()?.data_ref()).map(Bytes::len).sum::<usize>();
        let rest = self.incoming.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + ahead as u64);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead as u64);
        }
        hint
    }
}
