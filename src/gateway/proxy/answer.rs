//! What we answer with: bytes of our own, or a pod's answer as it comes.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};

use super::{headers::X_REQUEST_ID, relay::Relay};
use crate::{gateway::rejection::Rejection, openai::Dialect};

/// The body of an answer.
#[derive(Debug)]
pub struct Answer(Kind);

#[derive(Debug)]
enum Kind {
    Own(Option<Bytes>),
    Relay(Box<Relay>),
}

/// The pod's answer broke off, and the client must not take it for complete: its connection is cut.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the answer broke off")]
pub struct BrokeOff;

impl Answer {
    pub(super) fn relay(relay: Relay) -> Self {
        Self(Kind::Relay(Box::new(relay)))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BrokeOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokeOff>>> {
        match &mut self.0 {
            Kind::Own(bytes) => Poll::Ready(bytes.take().filter(|it| !it.is_empty()).map(|it| Ok(Frame::data(it)))),
            Kind::Relay(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::Relay(relay) => relay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |it| it.len() as u64)),
            Kind::Relay(relay) => relay.size_hint(),
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
    let request_id = super::request_id(&HeaderMap::new());
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
    (Bytes::from(bytes), rejection.reason())
}

/// JSON of our own.
pub(super) fn json(body: Bytes, request_id: &HeaderValue) -> Response<Answer> {
    let mut response = Response::new(Answer(Kind::Own(Some(body))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(X_REQUEST_ID, request_id.clone());
    response
}
