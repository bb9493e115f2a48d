//! What we answer with: bytes of our own, or a pod's answer as it comes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};

use super::{
    heartbeat::{Early, Late, Next},
    relay::Relay,
};
use crate::{
    gateway::{
        receipt::{Outcome, Receipt},
        rejection::Rejection,
        story::{X_REQUEST_ID, request_id, said},
    },
    openai::Dialect,
};

/// The body of an answer.
#[derive(Debug)]
pub struct Answer(Kind);

#[derive(Debug)]
enum Kind {
    Own(Option<Bytes>),
    Relay(Box<Relay>),
    Early(Early),
}

/// The pod's answer broke off, and the client must not take it for complete: its connection is cut.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer broke off")]
pub struct BrokeOff;

impl Answer {
    pub(super) fn relay(relay: Box<Relay>) -> Self {
        Self(Kind::Relay(relay))
    }

    pub(super) fn early(early: Early) -> Self {
        Self(Kind::Early(early))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        loop {
            match &mut self.0 {
                Kind::Own(bytes) => {
                    return Poll::Ready(bytes.take().filter(|it| !it.is_empty()).map(|it| Ok(Frame::data(it))));
                }
                Kind::Relay(relay) => return relay.poll_frame(cx),
                Kind::Early(early) => match ready!(early.poll(cx)) {
                    Next::Comment(comment) => return Poll::Ready(Some(Ok(Frame::data(comment)))),
                    Next::Late(Late::Event(event)) => self.0 = Kind::Own(Some(event)),
                    Next::Late(Late::Relay(relay)) => self.0 = Kind::Relay(relay),
                },
            }
        }
    }

    /// This gateway failed while it answered: what the client is told instead of the rest.
    fn panicked(&mut self, what: &str) -> Result<Bytes, BrokeOff> {
        match &mut self.0 {
            Kind::Own(_) => Err(BrokeOff),
            Kind::Relay(relay) => relay.panicked(what),
            Kind::Early(early) => {
                let request_id = early.request_id.to_str().unwrap_or_default();
                tracing::error!(request_id, what, "a request panicked");
                let event = Rejection::Panicked(what.to_owned()).to_event(early.dialect);
                self.0 = Kind::Own(None);
                Ok(event)
            }
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        // A panic would take the connection with it, in HTTP/2 everybody's on it.
        catch_unwind(AssertUnwindSafe(|| self.poll(cx)))
            .unwrap_or_else(|panic| Poll::Ready(Some(self.panicked(&said(&*panic)).map(Frame::data))))
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::Relay(relay) => relay.is_end_stream(),
            Kind::Early(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |it| it.len() as u64)),
            Kind::Relay(relay) => relay.size_hint(),
            Kind::Early(_) => SizeHint::default(),
        }
    }
}

/// A refusal.
pub(super) fn refusal(rejection: &Rejection, dialect: Dialect, request_id: &HeaderValue) -> Response<Answer> {
    let mut response = rejection.to_response(dialect).map(|body| Answer(Kind::Own(Some(body))));
    response.headers_mut().insert(X_REQUEST_ID, request_id.clone());
    response
}

/// The whole answer to a head that could not be parsed, with `status` as the parser has it, and the word for metrics.
/// There is no request to tell of, so it is told here, at `debug`.
pub fn refuse_unparsed(status: u16) -> (Bytes, &'static str) {
    let rejection = match status {
        414 => Rejection::TargetTooLong,
        431 => Rejection::HeadTooLarge,
        _ => Rejection::NotHttp,
    };
    (as_bytes(&rejection), rejection.reason())
}

/// The whole answer to who speaks clear text where TLS is spoken.
pub fn refuse_clear_text() -> Bytes {
    as_bytes(&Rejection::ClearText)
}

fn as_bytes(rejection: &Rejection) -> Bytes {
    let request_id = request_id(&HeaderMap::new());
    tracing::debug!(request_id = request_id.to_str().unwrap_or_default(), "refused: {rejection}");
    let mut response = rejection.to_response(Dialect::OpenAi);
    let length = response.body().len();
    response.headers_mut().insert(X_REQUEST_ID, request_id);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(piece);
        }
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(response.body());
    Bytes::from(bytes)
}

/// What a browser is told that asks for a page.
pub(super) fn preflight(headers: HeaderMap, mut receipt: Receipt) -> Response<Answer> {
    let mut response = Response::new(Answer(Kind::Own(None)));
    *response.status_mut() = StatusCode::NO_CONTENT;
    *response.headers_mut() = headers;
    response.headers_mut().insert(X_REQUEST_ID, receipt.request_id.clone());
    receipt.endpoint = "preflight";
    receipt.status = Some(StatusCode::NO_CONTENT.as_u16());
    receipt.outcome = Outcome::Complete;
    response
}

/// JSON of our own.
pub(super) fn json(body: Bytes, request_id: &HeaderValue) -> Response<Answer> {
    let mut response = Response::new(Answer(Kind::Own(Some(body))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(X_REQUEST_ID, request_id.clone());
    response
}
