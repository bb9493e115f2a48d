//! How an answer ends, and what follows from it: a clean end, a cut that the client is told of, what the pod showed.
//!
//! An answer that breaks off never ends as if it were complete: a stream is told so in an event of its own dialect, and
//! a whole answer's connection is cut. A stream that has said its own end is complete whatever happens after it.

use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use http_body::Body as _;

use super::{
    answer::BrokeOff,
    relay::{Relay, State, Watch},
};
use crate::{
    clock,
    fleet::Pod,
    gateway::{
        House,
        receipt::Outcome,
        rejection::{PANIC, cut_error, is_our_doing},
    },
    openai::{AnswerText, Dialect, End, Usage},
    telemetry::{Name, labels::PoolReasonLabels},
};

/// A pod's no that comes as the only event of a stream: SGLang's way when its queue is full.
const REFUSED: &str = "refused_in_stream";

impl Relay {
    /// The pod's body is complete: what the edits still hold, and the verdict on how it ended.
    pub(super) fn end(&mut self) -> Result<Bytes, BrokeOff> {
        if self.is_half() {
            // A pod that dies behind a connection without framing looks like one that is done.
            return self.cut("no_end");
        }
        let now = clock::now();
        if let Watch::Stream(watch) = &mut self.watch {
            let seen = watch.finish();
            self.read_along();
            self.saw(seen, now);
        }
        let mut rest = self.release();
        self.state = State::Said;
        if self.ended_without_end() {
            let why = if self.receipt.tokens == 0 { "empty_answer" } else { "no_end" };
            rest.extend_from_slice(&self.last_words(why));
            self.broke_off(why);
        }
        Ok(rest.freeze())
    }

    fn is_half(&self) -> bool {
        matches!(&self.watch, Watch::Whole(watch) if watch.is_half())
    }

    /// Whether a stream stopped before it had said that it is whole. One that HTTP itself ends may leave it unsaid, as
    /// some engines do; unless other streams of that pod say it, and then something between us and its engine cut this
    /// one short. A reason to finish says it without `[DONE]`: nothing of the answer is missing then. Where a length was
    /// promised there is no room to say anything behind it.
    fn ended_without_end(&self) -> bool {
        let Watch::Stream(watch) = &self.watch else {
            return false;
        };
        let unsaid = self.status.is_success() && *watch.end() == End::Running;
        let should_say = || {
            let says_ends = self.pick.verdict.pod.says_ends(self.endpoint.dialect());
            self.generates() && !self.sized && says_ends && !watch.told_its_end()
        };
        unsaid && (!self.framed || should_say())
    }

    /// The answer broke off: a stream is told so in its own words and then ended; a whole answer must not look
    /// complete, so its connection is cut.
    pub(super) fn cut(&mut self, why: &'static str) -> Result<Bytes, BrokeOff> {
        let Watch::Stream(watch) = &self.watch else {
            self.broke_off(why);
            self.state = State::Over;
            return Err(BrokeOff);
        };
        if *watch.end() != End::Running {
            // It said its end, good or bad, and that was passed on; what it did then is nobody's business.
            let rest = self.release().freeze();
            self.state = State::Said;
            return Ok(rest);
        }
        self.broke_off(why);
        if self.sized && !self.rewrites() {
            // The length that was promised leaves no room for an error; that it is not reached is one.
            self.state = State::Over;
            return Err(BrokeOff);
        }
        self.state = State::Said;
        Ok(self.last_words(why))
    }

    /// This gateway failed on it.
    pub(super) fn panicked(&mut self, what: &str) -> Result<Bytes, BrokeOff> {
        tracing::error!(request_id = self.receipt.request_id.to_str().unwrap_or_default(), what, "a relay panicked");
        self.broke_off(PANIC);
        if self.is_whole() || self.state != State::Flowing {
            self.state = State::Over;
            return Err(BrokeOff);
        }
        self.state = State::Said;
        Ok(self.last_words(PANIC))
    }

    fn last_words(&self, why: &'static str) -> Bytes {
        let error = cut_error(why);
        let event = match &self.watch {
            Watch::Stream(watch) => watch.last_event(&error),
            Watch::Whole(_) => Bytes::new(),
        };
        // Half an event is ended first. A client makes nothing of it, or an error, but never a clean end.
        if self.between_events { event } else { [b"\n\n", event.as_ref()].concat().into() }
    }

    fn broke_off(&mut self, why: &'static str) {
        self.receipt.outcome = Outcome::Cut(why);
        let pod = &self.pick.verdict.pod;
        let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: why };
        self.house.metrics.cuts.get_or_create(&labels).inc();
        if why == REFUSED {
            self.house.pod_refused(pod, why, None, self.pick.course.sent_at());
        } else if !is_our_doing(why) {
            self.house.pod_failed(pod);
        }
    }

    fn generates(&self) -> bool {
        self.matter.as_ref().is_some_and(|matter| matter.generates)
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
        let told_its_end = match &self.watch {
            Watch::Stream(watch) => watch.told_its_end(),
            Watch::Whole(watch) => watch.told_its_end(),
        };
        let says_end = told_its_end || *end == End::Done;
        let nothing_came = self.receipt.tokens == 0 && self.status.is_success();
        let bad_end = match end {
            End::Error { code: Some(code), .. } if nothing_came && (code == "503" || code == "429") => Some(REFUSED),
            End::Error { .. } if self.status.is_success() => Some("error_event"),
            End::Running | End::Done if nothing_came && usage.is_none() && !told_its_end && self.generates() => {
                Some("empty_answer")
            }
            End::Cut { .. } => Some("aborted_by_pod"),
            _ => None,
        };
        if let (Some(id), Dialect::Responses) = (response_id, self.endpoint.dialect()) {
            self.house.homes.remember(id, &self.pick.verdict.pod.id);
        }
        self.receipt.usage = usage;
        if self.receipt.outcome == Outcome::Open && came_to_its_end {
            match bad_end {
                Some(why) => self.broke_off(why),
                None => self.receipt.outcome = Outcome::Complete,
            }
        }
        if self.receipt.outcome == Outcome::Complete {
            if says_end && self.generates() && !self.is_whole() {
                self.pick.verdict.pod.said_its_end(self.endpoint.dialect());
            }
            note_status(&self.house, &self.pick.verdict.pod, self.status, self.pick.course.sent_at());
        }
        self.teach(usage);
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

/// What the status of an answer, to what was sent at `sent`, says of its pod. 429 and 503 are load, noted when the head
/// came; every other 5xx is its fault; the rest is an answer.
pub(super) fn note_status(house: &House, pod: &Pod, status: StatusCode, sent: Instant) {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {}
        status if status.is_server_error() => house.pod_failed(pod),
        _ => house.pod_answered(pod, sent),
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // What failed once is not asked again while it is being given up.
        if self.receipt.outcome != Outcome::Cut(PANIC) {
            self.settle();
        }
    }
}
