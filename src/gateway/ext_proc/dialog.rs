//! One conversation with Envoy about one request: messages in, replies out, and the desk between them.
//!
//! It holds the request's place on its pod and its receipt, as the relay of the other door does. When Envoy ends the
//! conversation, for whatever reason, it is dropped, and with it they are settled.

use std::time::Duration;

use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::{FutureExt as _, StreamExt as _, stream, stream::BoxStream};
use http::HeaderMap;
use tonic::{Code, Status, Streaming};

use super::{
    Mistakes,
    choosing::{Sent, Told, answer, choose, refusal},
    following::Following,
    inbound::SinceLast,
    patience::Patience,
    session::{Heard, Replies, Session, Terms, Whole},
    wire::{BodySendMode, ProcessingRequest, ProcessingResponse},
};
use crate::{
    clock,
    config::{BodyMode, ExtProc},
    gateway::{
        Peer,
        body::Share,
        decide::{Matter, Pick},
        reading::{Asking, Reading},
        receipt::{Outcome, Receipt},
        rejection::Rejection,
        story::{Story, request_id, said},
    },
    openai::Dialect,
};

/// How one listener serves, as far as it matters to one conversation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) terms: Terms,
    pub(super) observe: bool,
    pub(super) fallbacks: usize,
    pub(super) other_paths: bool,
    /// For how long a request may wait.
    pub(super) wait: Duration,
}

/// How much of the time that Envoy waits for a word of ours a request may wait in line: the rest is for reading it, and for
/// words on their way through a busy moment.
const WAIT_SHARE: f64 = 0.9;

fn share_of(message_timeout: Duration) -> Duration {
    message_timeout.mul_f64(WAIT_SHARE)
}

/// A status for requests whose answer is not shown to us.
pub(super) const UNSEEN: u16 = 0;

impl Rules {
    pub(super) fn new(story: &Story, how: &ExtProc) -> Self {
        let mode = |mode| match mode {
            BodyMode::Streamed => BodySendMode::FullDuplexStreamed,
            BodyMode::Buffered => BodySendMode::Buffered,
        };
        let limits = &story.policy.config.limits;
        let (body, head) = (limits.body.0, (limits.header_fields, limits.header_bytes.0));
        Self {
            terms: Terms { request: mode(how.request_body), response: mode(how.response_body), body, head },
            observe: how.observe_responses,
            fallbacks: how.fallbacks,
            other_paths: how.other_paths,
            wait: story.policy.config.waiting.timeout.min(how.message_timeout.map_or(Duration::MAX, share_of)),
        }
    }
}

pub(super) type Deciding = Pin<Box<dyn Future<Output = (Result<Told, Rejection>, Receipt, Dialect)> + Send>>;

/// How far the request is.
pub(super) enum Stage {
    /// Nothing came.
    Begun,
    /// It is being read.
    Open(Box<Receipt>),
    /// The desk decides; it may wait for a pod.
    Deciding(Deciding),
    /// It is on its way.
    Sent(Box<(Pick, Asking, Receipt)>),
    /// Its answer is being read along.
    Reading(Box<Reading>),
    /// Its answer's body is not shown to us.
    Unread(Box<(Pick, Option<Matter>, Receipt)>),
    /// All is told.
    Over,
}

/// One conversation.
pub(super) struct Dialog {
    pub(super) story: Story,
    rules: Rules,
    peer: Peer,
    inbound: Streaming<ProcessingRequest>,
    since_last: SinceLast,
    patience: Patience,
    pub(super) following: Following,
    pub(super) mistakes: Arc<Mistakes>,
    pub(super) session: Session,
    pub(super) stage: Stage,
    /// The pods that Envoy may go to if it cannot to the one chosen.
    pub(super) fallbacks: Box<[Arc<str>]>,
    /// What is held of the request's body, within the budget of all.
    share: Share,
    replies: VecDeque<ProcessingResponse>,
    /// What came while the desk decided.
    next: Option<ProcessingRequest>,
    over: bool,
}

impl Dialog {
    pub(super) fn new(
        (story, rules, peer): (Story, Rules, Peer),
        (inbound, since_last): (Streaming<ProcessingRequest>, SinceLast),
        (following, mistakes): (Following, Arc<Mistakes>),
    ) -> Self {
        Self {
            rules,
            peer,
            inbound,
            since_last,
            // As for a head at the other door: Envoy has one when it begins.
            patience: Patience::new(story.policy.config.timeouts.header_read),
            following,
            mistakes,
            session: Session::new(rules.terms),
            stage: Stage::Begun,
            fallbacks: Box::default(),
            share: story.house.bodies.share(),
            replies: VecDeque::new(),
            next: None,
            over: false,
            story,
        }
    }

    /// Its replies, as they become due.
    pub(super) fn replies(self) -> BoxStream<'static, Result<ProcessingResponse, Status>> {
        let replies = stream::unfold(Box::new(self), |mut dialog| async move {
            let next = AssertUnwindSafe(dialog.next()).catch_unwind().await;
            let next = next.unwrap_or_else(|panic| dialog.panicked(&said(&*panic)));
            next.map(|next| (next, dialog))
        });
        replies.boxed()
    }

    async fn next(&mut self) -> Option<Result<ProcessingResponse, Status>> {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return Some(Ok(reply));
            }
            if self.over {
                return None;
            }
            if let Stage::Deciding(deciding) = &mut self.stage {
                let deciding = &mut *deciding;
                tokio::select! {
                    biased;
                    (told, receipt, dialect) = deciding => self.decided(told, receipt, dialect),
                    // One message may be early; whoever sends more does not wait for us.
                    came = self.inbound.message(), if self.next.is_none() => self.meanwhile(came),
                }
                continue;
            }
            let message = match self.next.take() {
                Some(message) => message,
                None => match self.heard().await {
                    Ok(Some(message)) => message,
                    Ok(None) => {
                        self.left();
                        return None;
                    }
                    Err(status) => match self.misheard(status) {
                        Some(status) => return Some(Err(status)),
                        None => continue,
                    },
                },
            };
            if let Err(status) = self.hear(message) {
                self.over = true;
                return Some(Err(status));
            }
        }
    }

    /// The next message; none once Envoy, or the gateway at the end of its grace, has had enough.
    async fn heard(&mut self) -> Result<Option<ProcessingRequest>, Status> {
        let came = tokio::select! {
            biased;
            came = self.inbound.message() => came,
            () = self.story.house.cut.cancelled() => Ok(None),
            () = self.patience.is_over() => Err(Status::deadline_exceeded("nothing was said for too long")),
        };
        self.since_last.store(0, Relaxed);
        came
    }

    /// What no message came of. A request that is being read is refused in its client's words; Envoy is told the rest.
    fn misheard(&mut self, status: Status) -> Option<Status> {
        let reading = matches!(self.stage, Stage::Open(_));
        match status.code() {
            Code::OutOfRange if reading => self.refuse(&Rejection::TooLarge { limit: self.rules.terms.body }),
            Code::ResourceExhausted if reading => self.refuse(&Rejection::BuffersFull),
            Code::DeadlineExceeded if reading => self.refuse(&Rejection::BodyTimeout),
            // The request is on its way, and Envoy can go on without us.
            Code::DeadlineExceeded if !matches!(self.stage, Stage::Begun) => {
                self.over = true;
                self.left();
            }
            _ => {
                self.over = true;
                return Some(status);
            }
        }
        None
    }

    /// For how long nothing need be said, now that something was: as long as clients and pods may take at the other door.
    fn waits_again(&mut self) {
        let timeouts = &self.story.policy.config.timeouts;
        match self.stage {
            Stage::Sent(_) => self.patience.again(timeouts.first_byte),
            Stage::Reading(_) | Stage::Unread(_) => self.patience.again(timeouts.first_token.max(timeouts.idle)),
            // All of a body has so long, not each piece of it.
            _ => {}
        }
    }

    /// What came while the desk decided: an end, or an answer from elsewhere, makes the decision needless.
    fn meanwhile(&mut self, came: Result<Option<ProcessingRequest>, Status>) {
        match came {
            Ok(Some(message)) => {
                if Session::overtakes(&message) {
                    self.stage = Stage::Over;
                }
                self.next = Some(message);
            }
            Ok(None) | Err(_) => self.over = true,
        }
    }

    fn hear(&mut self, message: ProcessingRequest) -> Result<(), Status> {
        if matches!(self.stage, Stage::Begun) {
            self.stage = Stage::Open(Box::new(self.receipt()));
            self.patience.again(self.story.policy.config.timeouts.body_read);
        }
        match self.session.hear(message) {
            Heard::Replies(replies) => {
                if !self.share.hold(self.session.held() as u64) {
                    self.refuse(&Rejection::BuffersFull);
                }
                self.say(replies);
            }
            Heard::Request(whole) => self.decide(*whole),
            Heard::AnswerHead(told) => self.answer_begins(told.0, told.1),
            Heard::AnswerPiece(piece) => self.answer_goes_on(piece),
            Heard::AnswerTrailers => self.answer_ends(),
            Heard::TooLarge => self.refuse(&Rejection::TooLarge { limit: self.rules.terms.body }),
            Heard::HeadTooLarge => self.refuse(&Rejection::HeadTooLarge),
            Heard::Unreadable(mode) => self.refuse(&Rejection::Unreadable(mode.name())),
            Heard::Broken(why) => return Err(Status::invalid_argument(why)),
        }
        self.waits_again();
        Ok(())
    }

    fn receipt(&self) -> Receipt {
        let story = &self.story;
        let mut receipt =
            Receipt::open(Arc::clone(&story.house), story.listener.name.clone(), request_id(&HeaderMap::new()));
        receipt.client = Some(self.peer.clone());
        receipt
    }

    pub(super) fn say(&mut self, replies: Replies) {
        self.replies.extend(replies);
        if self.session.is_over() {
            self.over = true;
        }
    }

    fn decide(&mut self, whole: Whole) {
        let Stage::Open(receipt) = std::mem::replace(&mut self.stage, Stage::Over) else { return };
        // From here on the body counts for itself.
        self.share.hold(0);
        let (story, rules) = (self.story.clone(), self.rules);
        self.stage = Stage::Deciding(Box::pin(async move {
            let (mut receipt, mut dialect) = (*receipt, Dialect::OpenAi);
            let told = story.guarded(pin!(choose(&story, rules, whole, &mut receipt, &mut dialect))).await;
            (told, receipt, dialect)
        }));
    }

    fn decided(&mut self, told: Result<Told, Rejection>, mut receipt: Receipt, dialect: Dialect) {
        self.stage = Stage::Over;
        match told {
            Ok(Told::ByPod(sent)) => self.send(*sent, receipt),
            Ok(Told::ByUs(body)) => {
                receipt.status = Some(200);
                receipt.outcome = Outcome::Complete;
                let replies = self.session.refused(answer(body, &receipt));
                self.say(replies);
            }
            Err(rejection) => self.tell(&rejection, receipt, dialect),
        }
    }

    fn send(&mut self, sent: Sent, mut receipt: Receipt) {
        let Sent { decided, mut pick, fallbacks, asking } = sent;
        self.fallbacks = fallbacks;
        let now = clock::now();
        pick.course.sent(now);
        receipt.sent = Some(now);
        let replies = self.session.decided(decided);
        if self.rules.observe {
            self.stage = Stage::Sent(Box::new((pick, asking, receipt)));
            self.waits_again();
        } else {
            self.session.leave();
            receipt.status = Some(UNSEEN);
            receipt.outcome = Outcome::Complete;
            if let Some(matter) = &asking.matter {
                self.following.follow(pick, matter);
            }
        }
        self.say(replies);
    }

    /// We say no.
    fn refuse(&mut self, rejection: &Rejection) {
        if let Stage::Open(receipt) = std::mem::replace(&mut self.stage, Stage::Over) {
            self.tell(rejection, *receipt, Dialect::OpenAi);
        }
    }

    fn tell(&mut self, rejection: &Rejection, mut receipt: Receipt, dialect: Dialect) {
        self.share.hold(0);
        receipt.status = Some(rejection.status().as_u16());
        receipt.refused(rejection);
        self.mistakes.is_set_so(rejection);
        let replies = self.session.refused(refusal(rejection, dialect, &receipt));
        self.say(replies);
    }

    /// This gateway failed on it. Nothing else is lost: the conversation ends with an answer that says so.
    fn panicked(&mut self, what: &str) -> Option<Result<ProcessingResponse, Status>> {
        if self.over {
            return None;
        }
        self.over = true;
        let rejection = Rejection::Panicked(what.to_owned());
        let mut receipt = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Open(receipt) => *receipt,
            Stage::Sent(sent) => sent.2,
            Stage::Unread(unread) => unread.2,
            // Their receipts end with them.
            _ => {
                tracing::error!(what, "a conversation panicked");
                return Some(Err(Status::internal("the picker failed on this request")));
            }
        };
        receipt.status = Some(rejection.status().as_u16());
        receipt.refused(&rejection);
        self.session.refused(refusal(&rejection, Dialect::OpenAi, &receipt)).into_iter().next().map(Ok)
    }
}

impl Drop for Dialog {
    fn drop(&mut self) {
        self.left();
    }
}
