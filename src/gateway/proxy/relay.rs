//! A pod's answer on its way to the client: passed on as it comes, watched, and changed only where the operator said.
//!
//! It holds the reservation and the receipt to the last byte. Dropped before, because the client left, it drops the
//! pod's body, which closes the pod's connection, which makes the pod stop.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body::{Body as _, Frame, SizeHint};

use super::{Sent, Story, answer::BrokeOff, timer::Timer};
use crate::{
    clock,
    gateway::{
        House,
        decide::{Matter, Pick},
        receipt::{Outcome, Receipt, Step},
        rejection::{STOPPING, TOTAL_TIMEOUT, cut_event},
    },
    openai::{
        AnswerText, BodyWatch, Dialect, End, Endpoint, Framing, ModelRenamer, Seen, StreamWatch, Usage, UsageStripper,
    },
    telemetry::{Name, labels::PoolReasonLabels},
    upstream::PodBody,
};

/// An answer being relayed.
pub(super) struct Relay {
    house: Arc<House>,
    body: PodBody,
    watch: Watch,
    strip: Option<UsageStripper>,
    rename: Option<ModelRenamer>,
    pick: Pick,
    matter: Option<Matter>,
    receipt: Receipt,
    dialect: Dialect,
    status: StatusCode,
    timer: Timer,
    between_events: bool,
    /// Whether HTTP itself says where the body ends.
    framed: bool,
    trailers: Option<HeaderMap>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The pod's body goes on.
    Flowing,
    /// All was said; trailers, if there are any, and the end are next.
    Said,
    /// Over.
    Over,
}

/// What reads along.
enum Watch {
    Stream(Box<StreamWatch>),
    Whole(Box<BodyWatch>),
}

impl Watch {
    /// `text`: whether that is to be read as well.
    fn new(events: bool, endpoint: Endpoint, text: bool) -> Self {
        if events {
            let watch = StreamWatch::new(endpoint.dialect());
            Self::Stream(Box::new(if text { watch.with_text(endpoint) } else { watch }))
        } else {
            Self::Whole(Box::new(if text { BodyWatch::new().with_text(endpoint) } else { BodyWatch::new() }))
        }
    }

    fn text(&self) -> Option<&AnswerText> {
        match self {
            Self::Stream(watch) => watch.text(),
            Self::Whole(watch) => watch.text(),
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
        story: &Story<'_>,
        answer: (PodBody, StatusCode, &HeaderMap),
        pick: Pick,
        sent: Sent,
        mut receipt: Receipt,
    ) -> Self {
        let (body, status, headers) = answer;
        let events = is_event_stream(headers);
        let dialect = sent.endpoint.dialect();
        let goes_on = sent.matter.as_ref().is_some_and(|matter| matter.goes_on);
        let text = goes_on && status.is_success() && story.policy.config.api.index_answers;
        let watch = Watch::new(events, sent.endpoint, text);
        let framing = if events { Framing::Events } else { Framing::Whole };
        let rename = sent
            .matter
            .as_ref()
            .filter(|matter| matter.route.rewrite_response_model && status.is_success())
            .map(|matter| ModelRenamer::new(&matter.route.client_model, framing));
        receipt.step = Step::Relaying;
        receipt.streamed |= events;
        let timer = Timer::new(&story.timeouts(), receipt.received, clock::now(), &story.house.cut);
        let strip = (events && sent.inject_usage).then(UsageStripper::new);
        Self {
            house: Arc::clone(story.house),
            body,
            watch,
            strip,
            rename,
            pick,
            matter: sent.matter,
            receipt,
            dialect,
            status,
            timer,
            between_events: true,
            framed: headers.contains_key(header::TRANSFER_ENCODING) || headers.contains_key(header::CONTENT_LENGTH),
            trailers: None,
            state: State::Flowing,
        }
    }

    /// Whether the body's length may change on the way.
    pub(super) fn rewrites(&self) -> bool {
        self.strip.is_some() || self.rename.is_some()
    }

    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        loop {
            match self.state {
                State::Flowing => {}
                State::Said => {
                    self.state = State::Over;
                    return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
                }
                State::Over => return Poll::Ready(None),
            }
            let out = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Pending => {
                    let why = ready!(self.timer.poll(cx));
                    return Poll::Ready(Some(self.cut(why).map(Frame::data)));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.pass(data),
                    // The body's end, and what the edits still hold goes before them.
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.end()
                    }
                },
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Some(self.cut("connection_died").map(Frame::data))),
                Poll::Ready(None) => self.end(),
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        // With edits pending or an end to be judged, the last word comes from poll_frame.
        self.state == State::Over || (!self.rewrites() && self.is_whole() && self.body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.rewrites() || !self.is_whole() { SizeHint::default() } else { self.body.size_hint() }
    }

    fn is_whole(&self) -> bool {
        matches!(self.watch, Watch::Whole(_))
    }

    /// One piece of the pod's body: watched, edited, passed on.
    fn pass(&mut self, data: Bytes) -> Bytes {
        let now = clock::now();
        self.timer.moved(now);
        self.pick.course.heard();
        let seen = match &mut self.watch {
            Watch::Stream(watch) => watch.feed(&data),
            Watch::Whole(watch) => {
                watch.feed(&data);
                Seen::default()
            }
        };
        self.read_along();
        self.saw(seen, now);
        self.between_events = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
        self.edit(data)
    }

    /// Puts what was just read of the answer behind its prompt.
    fn read_along(&mut self) {
        if let (Some(matter), Some(text)) = (&mut self.matter, self.watch.text())
            && !matter.chain.is_full()
        {
            matter.chain.push(text.text());
        }
    }

    fn saw(&mut self, seen: Seen, now: Instant) {
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

    /// The pod's body is complete: what the edits still hold, and the verdict on how it ended.
    fn end(&mut self) -> Bytes {
        let now = clock::now();
        if let Watch::Stream(watch) = &mut self.watch {
            let seen = watch.finish();
            self.read_along();
            self.saw(seen, now);
        }
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
        self.state = State::Said;
        if self.ended_without_end() {
            // A pod that dies behind a connection without framing looks like one that is done.
            rest.extend_from_slice(&self.last_words("no_end"));
            self.broke_off("no_end");
        }
        rest.freeze()
    }

    fn ended_without_end(&self) -> bool {
        let Watch::Stream(watch) = &self.watch else {
            return false;
        };
        !self.framed && self.status.is_success() && *watch.end() == End::Running
    }

    /// The answer broke off: a stream is told so in its own words and then ended; a whole answer must not look
    /// complete, so its connection is cut.
    fn cut(&mut self, why: &'static str) -> Result<Bytes, BrokeOff> {
        self.broke_off(why);
        if self.is_whole() {
            self.state = State::Over;
            return Err(BrokeOff);
        }
        self.state = State::Said;
        Ok(self.last_words(why))
    }

    fn last_words(&self, why: &'static str) -> Bytes {
        let event = cut_event(self.dialect, why);
        if self.between_events { event } else { Bytes::from([b"\n\n", event.as_ref()].concat()) }
    }

    fn broke_off(&mut self, why: &'static str) {
        self.receipt.outcome = Outcome::Cut(why);
        let pod = &self.pick.verdict.pod;
        let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: why };
        self.house.metrics.cuts.get_or_create(&labels).inc();
        // What we cut ourselves is not the pod's fault.
        if why != STOPPING && why != TOTAL_TIMEOUT {
            self.house.pod_failed(pod);
        }
    }

    /// Judges how it ended, and teaches what it showed. Runs once, when the relay is dropped.
    fn settle(&mut self) {
        if let Watch::Whole(watch) = &mut self.watch {
            watch.finish();
            self.read_along();
        }
        let (usage, end, response_id) = match &self.watch {
            Watch::Stream(watch) => (watch.usage(), watch.end(), watch.response_id()),
            Watch::Whole(watch) => (watch.usage(), watch.end(), watch.response_id()),
        };
        let came_to_its_end =
            self.state != State::Flowing || self.body.is_end_stream() || (!self.is_whole() && *end == End::Done);
        let bad_end = match end {
            End::Error { .. } if self.status.is_success() => Some("error_event"),
            End::Cut { .. } => Some("aborted_by_pod"),
            _ => None,
        };
        if let (Some(id), Dialect::Responses) = (response_id, self.dialect) {
            self.house.homes.remember(id, &self.pick.verdict.pod.id);
        }
        self.receipt.usage = usage;
        if self.receipt.outcome == Outcome::Open && came_to_its_end {
            match bad_end {
                Some(why) => self.broke_off(why),
                None => self.receipt.outcome = Outcome::Complete,
            }
        }
        self.note_health();
        self.teach(usage);
    }

    /// What the status says of the pod. 429 and 503 are load; every other 5xx is its fault; the rest is an answer.
    fn note_health(&self) {
        if self.receipt.outcome != Outcome::Complete {
            return;
        }
        let pod = &self.pick.verdict.pod;
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {}
            status if status.is_server_error() => self.house.pod_failed(pod),
            _ => self.house.pod_answered(pod),
        }
    }

    fn teach(&mut self, usage: Option<Usage>) {
        let whole = self.matter.is_some() && self.receipt.outcome == Outcome::Complete;
        if !whole || !self.status.is_success() {
            return;
        }
        let Some(matter) = &self.matter else { return };
        let (prompt, output) = (usage.and_then(|it| it.prompt_tokens), usage.and_then(|it| it.completion_tokens));
        self.pick.course.complete(matter.prompt_bytes, prompt, output, clock::now());
        let pod = &self.pick.verdict.pod;
        if let Some(sent) = self.receipt.sent {
            matter.compare(&self.house, pod, usage, sent);
        }
        // A pod that has left meanwhile is forgotten.
        let comes_back = self.watch.text().is_some_and(AnswerText::comes_back);
        if comes_back && self.house.fleet.lists(pod) {
            self.house.prefix.insert(pod.slot, matter.chain.blocks());
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.settle();
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
    kind.get(..17).is_some_and(|start| start.eq_ignore_ascii_case(b"text/event-stream"))
}
