//! An answer read along, at whichever door it comes by: counted, learned from, changed only where the operator said.
//!
//! It holds the place on the pod and the receipt to the last byte. It neither waits nor writes; who does, hands it each
//! piece, and says at the end whether that was all.

use std::{sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};

use super::{
    House,
    body::Share,
    decide::{Matter, Pick},
    health::note_status,
    receipt::{Outcome, Receipt},
    rejection::{cut_error, is_our_doing},
    story::Story,
};
use crate::{
    clock,
    openai::{
        AnswerText, BodyWatch, Dialect, End, Endpoint, Framing, Lexicon, ModelRenamer, Seen, StreamWatch, Usage,
        UsageStripper,
    },
    telemetry::{Name, labels::PoolReasonLabels},
};

/// A pod's no that comes as the only event of a stream: SGLang's way when its queue is full.
const REFUSED: &str = "refused_in_stream";

/// An answer's head, as far as it matters to who reads it along.
pub(super) struct AnswerHead<'a> {
    pub(super) status: StatusCode,
    pub(super) headers: &'a HeaderMap,
}

/// What was asked, as far as it matters to who reads the answer along.
pub(super) struct Asking {
    pub(super) matter: Option<Matter>,
    pub(super) endpoint: Endpoint,
    /// Whether we asked for token usage, and take it out again.
    pub(super) inject_usage: bool,
}

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MadeBy {
    Ours,
    /// A pod that we do not know: it shows nothing of ours.
    Stranger,
}

/// An answer being read along.
pub(super) struct Reading {
    pub(super) house: Arc<House>,
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
    pub(super) between_events: bool,
    pub(super) made_by: MadeBy,
    /// Whether HTTP itself says where the body ends, and whether it said so before it began.
    framed: bool,
    sized: bool,
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

impl Reading {
    pub(super) fn new(story: &Story, head: &AnswerHead<'_>, pick: Pick, asking: Asking, mut receipt: Receipt) -> Self {
        let AnswerHead { status, headers } = *head;
        let Asking { matter, endpoint, inject_usage } = asking;
        let events = is_event_stream(headers);
        let goes_on = matter.as_ref().is_some_and(|matter| matter.goes_on);
        let text = goes_on && status.is_success() && story.policy.config.api.index_answers;
        let chunked = headers.contains_key(header::TRANSFER_ENCODING);
        let sized = !chunked && headers.contains_key(header::CONTENT_LENGTH);
        let framed = chunked || sized;
        let watch = if events {
            Watch::of_stream(endpoint, text, &story.house.lexicon)
        } else {
            Watch::of_whole(endpoint, text, !framed && is_json(headers), &story.house.lexicon)
        };
        let framing = if events { Framing::Events } else { Framing::Whole };
        let rename = matter
            .as_ref()
            .filter(|matter| matter.route.rewrite_response_model && status.is_success())
            .map(|matter| ModelRenamer::new(&matter.route.client_model, framing));
        receipt.relays_from(&pick.verdict.pod);
        receipt.streamed |= events;
        Self {
            house: Arc::clone(&story.house),
            watch,
            strip: (events && inject_usage).then(UsageStripper::new),
            rename,
            share: story.house.bodies.share(),
            pick,
            matter,
            receipt,
            endpoint,
            status,
            between_events: true,
            made_by: MadeBy::Ours,
            framed,
            sized,
        }
    }

    /// Whether the body's length may change on the way.
    pub(super) fn rewrites(&self) -> bool {
        self.strip.is_some() || self.rename.is_some()
    }

    pub(super) fn is_whole(&self) -> bool {
        matches!(self.watch, Watch::Whole(_))
    }

    /// Whether it is a stream whose first token is to come.
    pub(super) fn begins_with_a_token(&self) -> bool {
        !self.is_whole() && self.status.is_success() && self.matter.is_some() && self.endpoint.generates()
    }

    /// One piece of the pod's body: watched, edited, to be passed on.
    pub(super) fn pass(&mut self, data: Bytes) -> (Bytes, Seen) {
        let now = clock::now();
        if self.made_by == MadeBy::Ours {
            self.pick.course.heard();
        }
        let seen = match &mut self.watch {
            Watch::Stream(watch) => watch.feed(&data),
            Watch::Whole(watch) => {
                watch.feed(&data);
                Seen { moved: true, ..Seen::default() }
            }
        };
        self.read_along();
        self.saw(seen, now);
        self.between_events = data.ends_with(b"\n\n") || data.ends_with(b"\r\n\r\n");
        let out = self.edit(data);
        (self.keep_within_budget(out), seen)
    }

    /// The body is complete: what the edits still hold.
    pub(super) fn finish(&mut self) -> BytesMut {
        if let Watch::Stream(watch) = &mut self.watch {
            let seen = watch.finish();
            self.read_along();
            self.saw(seen, clock::now());
        }
        self.release()
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
        if self.matter.is_some() && self.made_by == MadeBy::Ours {
            self.pick.tokens(seen.tokens, now);
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

    pub(super) fn is_half(&self) -> bool {
        matches!(&self.watch, Watch::Whole(watch) if watch.is_half())
    }

    /// Why a stream counts as broken off that stopped before it had said that it is whole. One that HTTP itself ends may
    /// leave it unsaid, as some engines do; unless other streams of that pod say it, and then something between us and
    /// its engine cut this one short. A reason to finish says it without `[DONE]`: nothing of the answer is missing then.
    /// Where a length was promised there is no room to say anything behind it.
    pub(super) fn ended_without_end(&self) -> Option<&'static str> {
        let Watch::Stream(watch) = &self.watch else {
            return None;
        };
        let unsaid = self.status.is_success() && *watch.end() == End::Running;
        let should_say = || {
            let says_ends = self.pick.verdict.pod.says_ends(self.endpoint.dialect());
            self.generates() && !self.sized && says_ends && !watch.told_its_end()
        };
        let why = if self.receipt.tokens == 0 { "empty_answer" } else { "no_end" };
        (unsaid && (!self.framed || should_say())).then_some(why)
    }

    /// Whether nothing can be said behind what came: its length was promised.
    pub(super) fn has_no_room(&self) -> bool {
        self.sized && !self.rewrites()
    }

    pub(super) fn last_words(&self, why: &'static str) -> Bytes {
        let error = cut_error(why);
        let event = match &self.watch {
            Watch::Stream(watch) => watch.last_event(&error),
            Watch::Whole(_) => Bytes::new(),
        };
        // Half an event is ended first. A client makes nothing of it, or an error, but never a clean end.
        if self.between_events { event } else { [b"\n\n", event.as_ref()].concat().into() }
    }

    pub(super) fn broke_off(&mut self, why: &'static str) {
        self.receipt.outcome = Outcome::Cut(why);
        let pod = &self.pick.verdict.pod;
        let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: why };
        self.house.metrics.cuts.get_or_create(&labels).inc();
        if self.made_by == MadeBy::Stranger {
            return;
        }
        if why == REFUSED {
            self.house.pod_refused(pod, why, None, self.pick.course.sent_at());
        } else if !is_our_doing(why) {
            self.house.pod_failed(pod);
        }
    }

    fn generates(&self) -> bool {
        self.matter.as_ref().is_some_and(|matter| matter.generates)
    }

    /// Judges how it ended, and teaches what it showed; `over`: whether its last byte came. Runs once.
    pub(super) fn settle(&mut self, over: bool) {
        if let Watch::Whole(watch) = &mut self.watch {
            watch.finish();
            self.read_along();
        }
        let (usage, end, response_id) = match &self.watch {
            Watch::Stream(watch) => (watch.usage(), watch.end(), watch.response_id()),
            Watch::Whole(watch) => (watch.usage(), watch.end(), watch.response_id()),
        };
        let came_to_its_end = over || (!self.is_whole() && *end == End::Done);
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
        if let (Some(id), Dialect::Responses) =
            (response_id.filter(|_| self.made_by == MadeBy::Ours), self.endpoint.dialect())
        {
            self.house.homes.remember(self.receipt.tenant(), id, &self.pick.verdict.pod.id);
        }
        self.receipt.took(usage, told_its_end, &self.pick.verdict.pod);
        if self.receipt.outcome == Outcome::Open && came_to_its_end {
            match bad_end {
                Some(why) => self.broke_off(why),
                None => self.receipt.outcome = Outcome::Complete,
            }
        }
        if self.made_by == MadeBy::Stranger {
            return;
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
