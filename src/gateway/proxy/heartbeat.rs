//! Streams that say they are alive before their pod says anything, for clients and proxies that give up on silence.
//!
//! Only if the operator wants it, because the first comment gives away the status: 200 is committed, and whatever fails
//! after it, an attempt or the pod's own refusal, can only be told as an event in the stream. Attempts go on behind the
//! comments as without them. With the pod's first byte the comments end, and from there on the client reads exactly what
//! the pod writes.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Collected, Limited};
use tokio::time::{Interval, MissedTickBehavior, interval_at, sleep, timeout};

use super::{Brought, Errand, Story, answer::Answer, relay::Relay};
use crate::{
    clock,
    gateway::{
        health::note_status,
        reading::is_event_stream,
        receipt::{Outcome, Receipt},
        rejection::Rejection,
        story::X_REQUEST_ID,
        telling::limits::tell_standing,
    },
    openai::{Dialect, ErrorBody, Reported},
    upstream::Fault,
};

/// What is sent: a comment, which every reader of events passes over. The same words as vLLM's.
const COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// How much of a pod's refusal is read to tell of it in an event: errors are a few hundred bytes.
const KEPT_ERROR: usize = 64 << 10;

/// A rhythm of comments.
pub(super) struct Beat(Box<Interval>);

impl Beat {
    /// The first comment is due after `every`, and each time it was silent so long again.
    pub(super) fn new(every: Duration) -> Self {
        Self::from(clock::now() + every, every)
    }

    /// The first one is due at `first`.
    fn from(first: Instant, every: Duration) -> Self {
        let mut interval = interval_at(first.into(), every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(Box::new(interval))
    }

    /// The comment that is due.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        self.0.poll_tick(cx).map(|_| COMMENT)
    }
}

/// A stream whose pod has not answered yet.
pub(super) struct Early {
    beat: Beat,
    work: Pin<Box<dyn Future<Output = Late> + Send>>,
    pub(super) dialect: Dialect,
    pub(super) request_id: HeaderValue,
}

/// What comes of it.
pub(super) enum Late {
    /// The pod's stream.
    Relay(Box<Relay>),
    /// An error event.
    Event(Bytes),
}

/// What is sent next.
pub(super) enum Next {
    Comment(Bytes),
    Late(Late),
}

impl std::fmt::Debug for Early {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Early").finish_non_exhaustive()
    }
}

impl Early {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Poll::Ready(late) = self.work.as_mut().poll(cx) {
            return Poll::Ready(Next::Late(late));
        }
        let comment = ready!(self.beat.poll(cx));
        Poll::Ready(Next::Comment(comment))
    }
}

impl Story {
    /// Runs the errand. If its pod does not begin to answer within `every`, the answer begins without it.
    pub(super) async fn alive(
        self,
        errand: Errand,
        mut receipt: Receipt,
        dialect: Dialect,
        every: Duration,
    ) -> Response<Answer> {
        let (request_id, story) = (receipt.request_id.clone(), self.clone());
        let standing = receipt.spending.as_ref().map(|it| it.standing);
        let mut work = Box::pin(async move {
            let brought = story.guarded(pin!(story.run(errand, &mut receipt))).await;
            (brought, receipt)
        });
        let done = tokio::select! {
            biased;
            done = &mut work => Some(done),
            () = sleep(every) => None,
        };
        if let Some((brought, receipt)) = done {
            return self.answer(brought, receipt, dialect);
        }
        let late = async move {
            let (brought, receipt) = work.await;
            self.late(brought, receipt, dialect).await
        };
        let beat = Beat::from(clock::now(), every);
        let early = Early { beat, work: Box::pin(late), dialect, request_id: request_id.clone() };
        let mut response = Response::new(Answer::early(early));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(X_REQUEST_ID, request_id);
        if let Some(standing) = standing {
            tell_standing(headers, &standing, dialect);
        }
        response
    }

    /// An answer that comes after its status was given away.
    async fn late(&self, brought: Result<Box<Brought>, Rejection>, mut receipt: Receipt, dialect: Dialect) -> Late {
        receipt.status = Some(200);
        let brought = match brought {
            Ok(brought) => *brought,
            Err(rejection) => {
                receipt.refused(&rejection);
                return Late::Event(rejection.to_event(dialect));
            }
        };
        let status = brought.answer.head.status;
        if status.is_success() && is_event_stream(&brought.answer.head.headers) {
            return Late::Relay(self.relay(brought, receipt).1);
        }
        receipt.outcome = Outcome::Refused("late_error");
        let fault = if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
            Fault::Client
        } else {
            Fault::Pod
        };
        receipt.culprit = Some(fault.culprit());
        let Brought { answer, pick, sent } = brought;
        note_status(&self.house, &pick.verdict.pod, status, answer.sent);
        let body = timeout(sent.timeouts.idle, Limited::new(answer.body, KEPT_ERROR).collect()).await;
        let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
        let told = Reported::read(&body).unwrap_or_default();
        let message = match told.message.as_str() {
            "" => format!("the model server answered with status {status} instead of a stream"),
            message => message.to_owned(),
        };
        let kind = if status.is_client_error() { "invalid_request_error" } else { "server_error" };
        let code = told.code.unwrap_or_else(|| status.as_str().to_owned());
        let error = ErrorBody { message: &message, kind, param: None, code: Some(&code) };
        Late::Event(error.to_sse_event(dialect))
    }
}
