//! The body of a pod's answer, and what becomes of its connection afterwards.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{Broken, connect::Live, idle::IdleConnections};
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
    /// While there is something to be read of it.
    home: Option<Home>,
    /// What is left of it, where the head said how much there is.
    left: Option<u64>,
    /// What was read ahead, and comes first.
    ahead: VecDeque<Result<Frame<Bytes>, Broken>>,
}

impl PodBody {
    pub(super) fn new(home: Home) -> Self {
        let mut body = Self { left: home.live.left(), home: Some(home), ahead: VecDeque::new() };
        body.go_home_if_done();
        body
    }

    /// Reads on until the end, `most` bytes or the time is up, and returns what there is. It will all come again,
    /// frame for frame.
    pub(super) async fn read_ahead(&mut self, most: usize, within: Duration) -> Vec<u8> {
        let mut read = Vec::new();
        let reading = async {
            while read.len() < most
                && let Some(frame) = std::future::poll_fn(|cx| self.poll_pod(cx)).await
            {
                read.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
                self.ahead.push_back(Ok(frame));
            }
        };
        // Out of time is no error: what came is looked at, and the rest will come.
        _ = tokio::time::timeout(within, reading).await;
        read.truncate(most);
        read
    }

    /// What the pod says next. That it breaks off, the next poll tells: what came before is written only if whoever
    /// writes it has a turn in between.
    fn poll_pod(&mut self, cx: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        let Some(Home { live, .. }) = &mut self.home else { return Poll::Ready(None) };
        let frame = match ready!(live.poll_frame(cx)).transpose() {
            Ok(frame) => frame,
            Err(broken) => {
                self.home = None;
                self.ahead.push_back(Err(broken));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        };
        self.left = live.left();
        self.go_home_if_done();
        Poll::Ready(frame)
    }

    fn go_home_if_done(&mut self) {
        if let Some(home) = self.home.take_if(|home| home.live.is_done()) {
            home.idle.keep(&home.pod, home.live, clock::now());
        }
    }
}

impl Body for PodBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.poll_pod(cx).map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.home.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead =
            self.ahead.iter().filter_map(|frame| frame.as_ref().ok()?.data_ref()).map(Bytes::len).sum::<usize>();
        self.left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + ahead as u64))
    }
}
