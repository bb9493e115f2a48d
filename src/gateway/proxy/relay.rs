//! A pod's answer on its way to the client: passed on as it comes, watched, and changed only where the operator said.
//!
//! It holds the reservation and the receipt to the last byte. Dropped before, because the client left, it drops the
//! pod's body, which closes the pod's connection, which makes the pod stop. How it ends is in `ending`.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
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
        House,
        body::Share,
        decide::{Matter, Pick},
        receipt::{Receipt, Step},
    },
    openai::{
        AnswerText, BodyWatch, Dialect, Endpoint, Framing, Lexicon, ModelRenamer, Seen, StreamWatch, UsageStripper,
    },
    upstream::PodBody,
};

/// An answer being relayed.
pub(super) struct Relay {
    pub(super) house: Arc<House>,
    pub(super) body: PodBody,
    pub(super) watch: Watch,
    strip: Option<UsageStripper>,
    rename: Option<ModelRenamer>,
    /// What the watch and the edits hold, within the budget of all.
    share: Share,
    pub(super) pick: Pick,
    pub(super) matter: Option<Matter>,
    pub(super) receipt: Receipt,
    pub(super) endpoint: Endpoint,
    pub(super) status: StatusCode,
    timer: Timer,
    /// The time was up when the last piece came: it went on, and nothing more does.
    late: Option<&'static str>,
    /// Until the pod's first byte, if the operator wants that.
    beat: Option<Beat>,
    pub(super) between_events: bool,
    /// Whether HTTP itself says where the body ends, and whether it said so before it began.
    pub(super) framed: bool,
    pub(super) sized: bool,
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

/// What reads along.
pub(super) enum Watch {
    Stream(Box<StreamWatch>),
    Whole(Box<BodyWatch>),
}

impl Watch {
    /// `text`: whether that is to be read as well.
    fn of_stream(endpoint: Endpoint, text: bool, lexicon: &Lexicon) -> Self {
        let watch = StreamWatch::new(endpoint.dialect(), lexicon);
        Self::Stream(Box::new(if text { watch.with_text(endpoint) } else { watch }))
    }

    /// `ends_unsaid`: whether only the body itself can tell that it is complete.
    fn of_whole(endpoint: Endpoint, text: bool, ends_unsaid: bool, lexicon: &Lexicon) -> Self {
        let watch = BodyWatch::new(lexicon);
        let watch = if text { watch.with_text(endpoint) } else { watch };
        let watch = if endpoint.dialect() == Dialect::Responses { watch } else { watch.without_id() };
        Self::Whole(Box::new(if ends_unsaid { watch.with_balance() } else { watch }))
    }

    pub(super) fn text(&self) -> Option<&AnswerText> {
        match self {
            Self::Stream(watch) => watch.text(),
            Self::Whole(watch) => watch.text(),
        }
    }

    fn held(&self) -> usize {
        match self {
            Self::Stream(watch) => watch.held(),
            Self::Whole(watch) => watch.held(),
        }
    }

    fn let_go(&mut self) {
        match self {
            Self::Stream(watch) => watch.let_go(),
            Self::Whole(watch) => watch.let_go(),
        }
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Relay {
    pub(super) fn new(
        story: &Story,
        answer: (PodBody, StatusCode, &HeaderMap),
        pick: Pick,
        sent: Box<Sent>,
        mut receipt: Receipt,
    ) -> Box<Self> {
        let (body, status, headers) = answer;
        let events = is_event_stream(headers);
        let goes_on = sent.matter.as_ref().is_some_and(|matter| matter.goes_on);
        let text = goes_on && status.is_success() && story.policy.config.api.index_answers;
        let chunked = headers.contains_key(header::TRANSFER_ENCODING);
        let sized = !chunked && headers.contains_key(header::CONTENT_LENGTH);
        let framed = chunked || sized;
        let watch = if events {
            Watch::of_stream(sent.endpoint, text, &story.house.lexicon)
        } else {
            Watch::of_whole(sent.endpoint, text, !framed && is_json(headers), &story.house.lexicon)
        };
        let framing = if events { Framing::Events } else { Framing::Whole };
        let rename = sent
            .matter
            .as_ref()
            .filter(|matter| matter.route.rewrite_response_model && status.is_success())
            .map(|matter| ModelRenamer::new(&matter.route.client_model, framing));
        receipt.step = Step::Relaying;
        receipt.streamed |= events;
        let first_token = events && status.is_success() && sent.matter.is_some() && sent.endpoint.generates();
        let timer = Timer::new(patience(&sent.timeouts, &receipt, first_token), &story.house.cut);
        Box::new(Self {
            house: Arc::clone(&story.house),
            body,
            watch,
            strip: (events && sent.inject_usage).then(UsageStripper::new),
            rename,
            share: story.house.bodies.share(),
            pick,
            matter: sent.matter,
            receipt,
            endpoint: sent.endpoint,
            status,
            timer,
            late: None,
            beat: sent.heartbeat.filter(|_| events).map(Beat::new),
            between_events: true,
            framed,
            sized,
            trailers: None,
            state: State::Flowing,
        })
    }

    /// Whether the body's length may change on the way.
    pub(super) fn rewrites(&self) -> bool {
        self.strip.is_some() || self.rename.is_some()
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
        self.state == State::Over || (!self.rewrites() && self.is_whole() && self.body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.rewrites() || !self.is_whole() { SizeHint::default() } else { self.body.size_hint() }
    }

    pub(super) fn is_whole(&self) -> bool {
        matches!(self.watch, Watch::Whole(_))
    }

    /// One piece of the pod's body: watched, edited, passed on.
    fn pass(&mut self, data: Bytes) -> Bytes {
        let now = clock::now();
        self.beat = None;
        self.pick.course.heard();
        let seen = match &mut self.watch {
            Watch::Stream(watch) => watch.feed(&data),
            Watch::Whole(watch) => {
                watch.feed(&data);
                Seen { moved: true, ..Seen::default() }
            }
        };
        if seen.moved {
            self.timer.moved(seen.tokens > 0);
        }
        self.late = self.timer.is_up(now);
        self.read_along();
        self.saw(seen, now);
        self.between_events = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
        let out = self.edit(data);
        self.keep_within_budget(out)
    }

    /// Puts what was just read of the answer behind its prompt, and stops reading once nothing more counts there.
    pub(super) fn read_along(&mut self) {
        let (Some(matter), Some(text)) = (&mut self.matter, self.watch.text()) else { return };
        if !matter.chain.is_full() {
            matter.chain.push(text.text());
        } else if let Watch::Stream(watch) = &mut self.watch {
            watch.stop_reading_text();
        }
    }

    pub(super) fn saw(&mut self, seen: Seen, now: Instant) {
        if seen.tokens == 0 {
            return;
        }
        if self.matter.is_some() {
            self.pick.course.tokens(seen.tokens, now);
        }
        self.receipt.saw_tokens(seen.tokens, now);
    }

    fn edit(&mut self, data: Bytes) -> Bytes {
        let data = match &mut self.strip {
            Some(strip) => strip.push(data),
            None => data,
        };
        match &mut self.rename {
            Some(rename) => rename.push(data),
            None => data,
        }
    }

    /// What the watch and the edits hold counts in the budget of all. If there is no room, they hold nothing: less is
    /// learned of the answer, and an event that would have been taken out goes on, but the answer does.
    fn keep_within_budget(&mut self, out: Bytes) -> Bytes {
        let held = self.watch.held() + self.strip.as_ref().map_or(0, UsageStripper::held);
        if self.share.hold(held as u64) {
            return out;
        }
        self.watch.let_go();
        let held = self.strip.as_mut().map(UsageStripper::let_go).filter(|held| !held.is_empty());
        self.share.hold(0);
        let Some(mut held) = held else { return out };
        if let Some(rename) = &mut self.rename {
            held = rename.push(held);
        }
        [out, held].concat().into()
    }

    /// What the edits still hold at the end.
    pub(super) fn release(&mut self) -> BytesMut {
        let mut rest = BytesMut::new();
        if let Some(strip) = &mut self.strip {
            let held = strip.finish();
            rest.extend_from_slice(&match &mut self.rename {
                Some(rename) => rename.push(held),
                None => held,
            });
        }
        if let Some(rename) = &mut self.rename {
            rest.extend_from_slice(&rename.finish());
        }
        rest
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

/// Whether a stream of events was promised.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    kind.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    kind.ends_with(b"/json") || kind.ends_with(b"+json")
}
