//! A pod's answer on its way to the client: passed on as it comes, watched, and changed only where the operator said.
//!
//! It holds the reservation and the receipt to the last byte. Dropped before, because the client left, it drops the
//! pod's body, which closes the pod's connection, which makes the pod stop. How it ends is in `ending`.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::{
    Sent, Story,
    answer::BrokeOff,
    heartbeat::Beat,
    timer::{Patience, Timer},
};
use crate::{
    clock,
    config::Timeouts,
    gateway::{
        decide::Pick,
        reading::{AnswerHead, Reading},
        receipt::Receipt,
        waiting::Evictable,
    },
    upstream::PodBody,
};

/// An answer being relayed.
pub(super) struct Relay {
    pub(super) body: PodBody,
    pub(super) reading: Reading,
    timer: Timer,
    /// That it may be ended for who matters more, if it may.
    _evictable: Option<Evictable>,
    /// The time was up when the last piece came: it went on, and nothing more does.
    late: Option<&'static str>,
    /// Until the pod's first byte, if the operator wants that.
    beat: Option<Beat>,
    trailers: Option<HeaderMap>,
    pub(super) state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The pod's body goes on.
    Flowing,
    /// All was said; trailers, if there are any, and the end are next.
    Said,
    /// Over.
    Over,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Relay {
    pub(super) fn new(
        story: &Story,
        (body, head): (PodBody, &AnswerHead<'_>),
        pick: Pick,
        sent: Box<Sent>,
        receipt: Receipt,
    ) -> Box<Self> {
        let Sent { asking, timeouts, heartbeat } = *sent;
        let reading = Reading::new(story, head, pick, asking, receipt);
        let patience = patience(&timeouts, &reading.receipt, reading.begins_with_a_token());
        let mut timer = Timer::new(patience, &story.house.cut);
        let evictable = story.policy.config.waiting.evict_sheddable.then(|| reading.evictable()).flatten();
        if let Some(evictable) = &evictable {
            timer.ends_by(&evictable.token);
        }
        Box::new(Self {
            body,
            timer,
            _evictable: evictable,
            late: None,
            beat: heartbeat.filter(|_| !reading.is_whole()).map(Beat::new),
            reading,
            trailers: None,
            state: State::Flowing,
        })
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        loop {
            match self.state {
                State::Flowing => {
                    if let Some(why) = self.late.take() {
                        return Poll::Ready(Some(self.cut(why).map(Frame::data)));
                    }
                }
                State::Said => {
                    self.state = State::Over;
                    return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
                }
                State::Over => return Poll::Ready(None),
            }
            let out = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => return self.wait(cx),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Ok(self.pass(data)),
                    // The body's end, and what the edits still hold goes before them.
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.end()
                    }
                },
                Poll::Ready(Some(Err(_))) => self.cut("connection_died"),
                Poll::Ready(None) => self.end(),
            };
            match out {
                Ok(nothing) if nothing.is_empty() => {}
                out => return Poll::Ready(Some(out.map(Frame::data))),
            }
        }
    }

    /// The pod has nothing to say yet.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        if let Poll::Ready(why) = self.timer.poll(cx) {
            return Poll::Ready(Some(self.cut(why).map(Frame::data)));
        }
        let Some(beat) = &mut self.beat else { return Poll::Pending };
        beat.poll(cx).map(|comment| Some(Ok(Frame::data(comment))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        // With edits pending or an end to be judged, the last word comes from poll_frame.
        let reading = &self.reading;
        self.state == State::Over || (!reading.rewrites() && reading.is_whole() && self.body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let reading = &self.reading;
        if reading.rewrites() || !reading.is_whole() { SizeHint::default() } else { self.body.size_hint() }
    }

    /// One piece of the pod's body: watched, edited, passed on.
    fn pass(&mut self, data: Bytes) -> Bytes {
        self.beat = None;
        let (out, seen) = self.reading.pass(data);
        if seen.moved {
            self.timer.moved(seen.tokens > 0);
        }
        self.late = self.timer.is_up(clock::now());
        out
    }
}

fn patience(timeouts: &Timeouts, receipt: &Receipt, first_token: bool) -> Patience {
    let now = clock::now();
    Patience {
        first_token: first_token.then(|| receipt.sent.unwrap_or(now) + timeouts.first_token),
        first_piece: now + timeouts.first_byte,
        idle: timeouts.idle,
        total: timeouts.total.map(|limit| receipt.received + limit),
    }
}
