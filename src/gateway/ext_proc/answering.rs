//! A conversation's second half: the answer comes back by Envoy, is read along as at the other door, and goes on.

use std::{mem, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use super::{
    dialog::{Dialog, Stage, UNSEEN},
    head::{AnswerHead, differ},
    session::{Noted, Session},
    wire::{HeaderMutation, HeaderValue as Field, HeaderValueOption, HttpBody, HttpHeaders},
};
use crate::{
    fleet::Pod,
    gateway::{
        decide::Pick,
        health::note_status,
        reading::{self, Asking, MadeBy, Reading},
        receipt::{Outcome, Receipt},
        rejection::{Rejection, STOPPING, shortened},
        telling::limits::tell_standing,
    },
    telemetry::{Name, labels::PoolReasonLabels},
    upstream::{Failure, FailureKind, Fault},
};

impl Dialog {
    pub(super) fn answer_begins(&mut self, said: HttpHeaders, noted: Noted) {
        let bodiless = said.end_of_stream;
        let head = AnswerHead::read(said, noted);
        let mut mutation = None;
        if let Stage::Sent(sent) = mem::replace(&mut self.stage, Stage::Over) {
            let (mut pick, asking, mut receipt) = *sent;
            let made_by = self.follow_to(&head, &mut pick, &asking, &mut receipt);
            receipt.status = Some(head.status.as_u16());
            if head.is_envoys_own() {
                let pod = (made_by == MadeBy::Ours).then_some(&pick.verdict.pod);
                self.not_reached(&head, pod, &mut receipt);
            } else {
                self.stage = self.reading(&head, (pick, made_by), asking, receipt);
                mutation = self.edits();
                if bodiless {
                    self.settle();
                }
            }
        }
        let replies = Session::head_read(mutation);
        self.say(replies);
    }

    /// An answer that is edited has another length than its head says, and one that counts against limits says what is
    /// left of them.
    fn edits(&self) -> Option<HeaderMutation> {
        let mut mutation = HeaderMutation::default();
        let receipt = match &self.stage {
            Stage::Reading(reading) => {
                if reading.rewrites() {
                    mutation.remove_headers.push("content-length".to_owned());
                }
                let mut told = HeaderMap::new();
                if let Some(spending) = &reading.receipt.spending {
                    tell_standing(&mut told, &spending.standing, reading.endpoint.dialect());
                }
                told
            }
            _ => return None,
        };
        for (name, value) in &receipt {
            let header = Some(Field {
                key: Bytes::copy_from_slice(name.as_str().as_bytes()),
                value: Bytes::new(),
                raw_value: Bytes::copy_from_slice(value.as_bytes()),
            });
            mutation.set_headers.push(HeaderValueOption { header, append_action: HeaderValueOption::OVERWRITE });
        }
        (!mutation.remove_headers.is_empty() || !mutation.set_headers.is_empty()).then_some(mutation)
    }

    /// Envoy may have gone to another pod than the first that we named: then the place is there, and the log says both.
    /// That it went to none that we named, an operator should know. Whose the answer is: what another
    /// shows is nobody's praise and nobody's blame.
    fn follow_to(&self, head: &AnswerHead, pick: &mut Pick, asking: &Asking, receipt: &mut Receipt) -> MadeBy {
        let chosen = Arc::clone(&pick.verdict.pod);
        let Some(served) = head.served().filter(|served| differ(served, chosen.address())) else { return MadeBy::Ours };
        let is_named = self.fallbacks.iter().any(|it| !differ(it, served));
        let labels =
            PoolReasonLabels { pool: Name::from(&chosen.pool), reason: if is_named { "fallback" } else { "unnamed" } };
        self.story.house.metrics.elsewhere.get_or_create(&labels).inc();
        if !is_named {
            self.mistakes.goes_elsewhere(&chosen, served);
        }
        if let Some(told) = &mut receipt.chosen {
            told.asked_pod = Some(mem::replace(&mut told.pod, served.into()));
        }
        let Some(matter) = &asking.matter else { return MadeBy::Stranger };
        if let Some(pod) = matter.pool.pods().iter().find(|pod| &**pod.address() == served) {
            matter.went_to(&self.story.house, pick, pod);
            MadeBy::Ours
        } else {
            MadeBy::Stranger
        }
    }

    /// Envoy answered for a pod that did not. Its words stand in the log as its client may have read them.
    fn not_reached(&self, head: &AnswerHead, pod: Option<&Arc<Pod>>, receipt: &mut Receipt) {
        let house = &self.story.house;
        if let Some(kind) = head.failure() {
            receipt.refused(&Rejection::Failed(Failure::new(kind, head.details())));
            if let Some(pod) = pod {
                let labels = PoolReasonLabels { pool: Name::from(&pod.pool), reason: kind.name() };
                house.metrics.failures.get_or_create(&labels).inc();
                house.pod_failed(pod);
            }
        } else {
            receipt.outcome = Outcome::Refused("not_sent");
            receipt.culprit = Some(Fault::Gateway.culprit());
        }
        receipt.error_code = Some(shortened(head.details()).into());
    }

    fn reading(
        &self,
        head: &AnswerHead,
        (pick, made_by): (Pick, MadeBy),
        asking: Asking,
        mut receipt: Receipt,
    ) -> Stage {
        if made_by == MadeBy::Ours
            && matches!(head.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
        {
            let kind = FailureKind::Status(head.status.as_u16());
            let after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            let sent = pick.course.sent_at();
            self.story.house.pod_refused(&pick.verdict.pod, kind.name(), after.map(Duration::from_secs), sent);
        }
        if self.session.hides_answers() {
            receipt.streamed |= reading::is_event_stream(&head.headers);
            if made_by == MadeBy::Ours {
                return Stage::Unread(Box::new((pick, asking.matter, receipt)));
            }
            receipt.outcome = Outcome::Complete;
            return Stage::Over;
        }
        let head = reading::AnswerHead { status: head.status, headers: &head.headers };
        let mut reading = Reading::new(&self.story, &head, pick, asking, receipt);
        reading.made_by = made_by;
        Stage::Reading(Box::new(reading))
    }

    pub(super) fn answer_goes_on(&mut self, piece: HttpBody) {
        let edited = if let Stage::Reading(reading) = &mut self.stage {
            let (mut out, _) = reading.pass(piece.body.clone());
            if piece.end_of_stream {
                let rest = reading.finish();
                if !rest.is_empty() {
                    out = [out, rest.freeze()].concat().into();
                }
            }
            reading.rewrites().then_some(out)
        } else {
            None
        };
        let end = piece.end_of_stream;
        let replies = self.session.piece_read(piece, edited);
        self.say(replies);
        if end {
            self.settle();
        }
    }

    pub(super) fn answer_ends(&mut self) {
        let rest = match &mut self.stage {
            Stage::Reading(reading) => reading.finish().freeze(),
            _ => Bytes::new(),
        };
        let replies = self.session.trailers_read(rest);
        self.say(replies);
        self.settle();
    }

    /// The answer is complete.
    fn settle(&mut self) {
        if let Stage::Reading(mut reading) = mem::replace(&mut self.stage, Stage::Over) {
            reading.settle(true);
        }
    }

    /// Envoy ends the conversation in the same way, frame by frame, when a client leaves and when a pod dies.
    fn broke_off(&self, receipt: &mut Receipt) {
        if receipt.outcome == Outcome::Open {
            receipt.outcome = if self.is_our_doing() { Outcome::Cut(STOPPING) } else { Outcome::BrokeOff };
        }
    }

    fn is_our_doing(&self) -> bool {
        self.story.house.cut.is_cancelled()
    }

    /// Envoy has said all.
    pub(super) fn left(&mut self) {
        match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Reading(mut reading) => {
                reading.settle(false);
                self.broke_off(&mut reading.receipt);
            }
            // A pod that fails before its answer is answered for: then it was the client, or we.
            Stage::Sent(mut sent) if self.is_our_doing() => self.broke_off(&mut sent.2),
            // Not even heads are shown to us: the conversation lasts as long as the request, and is over with it.
            Stage::Sent(mut sent) if self.session.hides_answers() => {
                sent.2.status = Some(UNSEEN);
                sent.2.outcome = Outcome::Complete;
            }
            Stage::Unread(unread) => {
                let (pick, matter, mut receipt) = *unread;
                let status = StatusCode::from_u16(receipt.code()).unwrap_or_default();
                note_status(&self.story.house, &pick.verdict.pod, status, pick.course.sent_at());
                receipt.outcome = Outcome::Complete;
                // A whole answer's head comes when it is made; a stream goes on unseen.
                if let Some(matter) = matter.filter(|_| receipt.streamed) {
                    self.following.follow(pick, &matter);
                }
            }
            _ => {}
        }
    }
}
