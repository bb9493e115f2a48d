//! Why we said no, and how the client reads it: status, `type`, `code`, message, `Retry-After`, and a header that says
//! who refused. The only place that decides what a client may learn of a failure; no pod's address is among it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};

use super::busy::Busy;
pub(in crate::gateway) use super::cuts::{
    CUTS, EVICTED, FIRST_TOKEN_TIMEOUT, IDLE_TIMEOUT, PANIC, STOPPING, TOTAL_TIMEOUT, cut_error, is_our_doing,
};
pub(in crate::gateway) use super::words::shortened;
use super::{
    limits,
    words::{shown, told},
};
use crate::{
    admission::{Refusal, Stranger},
    openai::{self, Dialect, ErrorBody, Malformed, PathProblem},
    routing::UnknownModel,
    scheduler::NoPod,
    upstream::{Failure, FailureKind, Fault},
};

/// Says that Tidegate, not a pod, refused, and why.
pub const X_TIDEGATE_REFUSED: HeaderName = HeaderName::from_static("x-tidegate-refused");

/// After how long a client may try again when no pod can be used: pods are read again within two seconds at most.
const NO_POD_PAUSE: Duration = Duration::from_secs(2);

/// ... when bodies fill the buffers: they drain as fast as pods take them.
const BUFFERS_PAUSE: Duration = Duration::from_secs(1);

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// The path or method.
    #[error(transparent)]
    Path(#[from] PathProblem),
    /// A path at which nothing is served.
    #[error("no such endpoint: {0}")]
    NoSuchPath(String),
    /// A path that lacks its `/v1`.
    #[error("no such endpoint; did you mean {0}? The base URL ends in /v1")]
    LacksV1(String),
    /// The body's content.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Clear text at a door that speaks TLS.
    #[error("this port speaks https; write https:// in place of http:// in the base URL")]
    ClearText,
    /// Its client comes from where none may.
    #[error("requests are not taken from your address")]
    Denied,
    /// Nobody knows who asks.
    #[error("{}", .0.told())]
    Stranger(Stranger),
    /// Whoever asks may not ask for this model.
    #[error("this API key may not ask for the model `{0}`")]
    ModelNotAllowed(String),
    /// A head that could be read in two ways.
    #[error("{0}")]
    Unclear(&'static str),
    /// A head that is no HTTP.
    #[error("the request is not well-formed HTTP")]
    NotHttp,
    /// A head with too many fields or bytes.
    #[error("the request has too many header fields, or too long ones")]
    HeadTooLarge,
    /// A target that is too long.
    #[error("the request's URL is too long")]
    TargetTooLong,
    /// An expectation other than `100-continue`.
    #[error("the only expectation that can be met is 100-continue")]
    Expectation,
    /// The body's encoding.
    #[error("content-encoding '{0}' is not accepted; send the body as it is")]
    Encoded(String),
    /// It has come through too many gateways.
    #[error("the request goes round: an endpoint of a gateway leads back to it")]
    Loop,
    /// An upgrade to another protocol.
    #[error("upgrades are not served; WebSocket endpoints such as /v1/realtime have no counterpart here")]
    Upgrade,
    /// The body's size.
    #[error("the request body is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The configured bound.
        limit: u64,
    },
    /// The body did not come in time.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The body broke off.
    #[error("the request body ended early")]
    BodyBroken,
    /// All buffers are in use.
    #[error("too many large requests at once; try again shortly")]
    BuffersFull,
    /// The model.
    #[error("the model `{}` does not exist; served here: {}", .0.asked, shown(&.0.served))]
    UnknownModel(UnknownModel),
    /// A response id.
    #[error("no response with id '{0}' is known here")]
    UnknownResponse(String),
    /// No pod can be used.
    #[error("{0}")]
    NoPod(NoPod),
    /// None could be used for as long as a request may wait for one.
    #[error("no model server became ready within {waited:?}")]
    NoPodInTime {
        /// How long it may wait.
        waited: Duration,
        /// When one is likely ready.
        pause: Duration,
    },
    /// None can be used, and as many wait for one as may.
    #[error("no model server is ready, and too many requests already wait for one")]
    LineFull {
        /// When the line is likely shorter.
        pause: Duration,
    },
    /// All pods are full, and it may be refused then.
    #[error("the model servers are busy, and this request may be refused while they are; try again later")]
    Saturated {
        /// When they have likely done what is waiting there.
        pause: Duration,
    },
    /// A limit of its callers.
    #[error("{0}")]
    Quota(Box<Refusal>),
    /// All pods are full, and it could not wait until one is not, or did so in vain.
    #[error("the model servers are busy, and {}; try again later", .why.told())]
    Busy {
        /// Why it was no use to wait.
        why: Busy,
        /// When those who were before it are likely served.
        pause: Duration,
    },
    /// Every attempt failed.
    #[error("{}", told(.0.kind))]
    Failed(#[source] Failure),
    /// The gateway stops, and its grace is over.
    #[error("the gateway is stopping; try again")]
    Stopping,
    /// This gateway failed. What it said is for the log alone.
    #[error("the gateway failed on this request")]
    Panicked(String),
    /// Envoy's filter is set so that a request's body does not come before the request is on its way.
    #[error(
        "the ext_proc filter sends bodies as {0}, in which no pod can be chosen by them: set request_body_mode to \
             FULL_DUPLEX_STREAMED or BUFFERED"
    )]
    Unreadable(&'static str),
    /// The whole request took too long.
    #[error("the request took longer than the {0:?} it may")]
    TotalTimeout(Duration),
}

/// Status, `type`, `code`, and the word in metrics.
pub(super) struct Told {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    reason: &'static str,
}

pub(super) const fn told_as(status: StatusCode, kind: &'static str, code: &'static str, reason: &'static str) -> Told {
    Told { status, kind, code, reason }
}

impl Rejection {
    /// Why nothing is served at `path`; the most common slip, a base URL without `/v1`, is told as such.
    pub fn of_path(problem: PathProblem, method: &Method, path: &str, extra_paths: &[String]) -> Self {
        let with_v1 = format!("/v1{path}");
        match problem {
            PathProblem::NotServed if openai::classify(method, &with_v1, extra_paths).is_ok() => {
                Self::LacksV1(shortened(&with_v1))
            }
            PathProblem::NotServed => Self::NoSuchPath(shortened(path)),
            problem => Self::Path(problem),
        }
    }

    fn told(&self) -> Told {
        use StatusCode as S;
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        match self {
            Self::Path(PathProblem::WrongMethod { .. }) => {
                told_as(S::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", "method")
            }
            Self::Path(PathProblem::NotServed) | Self::NoSuchPath(_) | Self::LacksV1(_) => {
                told_as(S::NOT_FOUND, INVALID, "unknown_url", "path")
            }
            Self::Path(PathProblem::WebSocket) | Self::Upgrade => {
                told_as(S::NOT_IMPLEMENTED, INVALID, "upgrade_not_supported", "upgrade")
            }
            Self::Path(_) => told_as(S::BAD_REQUEST, INVALID, "invalid_url", "path"),
            Self::Stranger(Stranger::Conflicting) => {
                told_as(S::BAD_REQUEST, INVALID, "conflicting_credentials", "conflicting_credentials")
            }
            Self::Stranger(_) => told_as(S::UNAUTHORIZED, "authentication_error", "invalid_api_key", "unauthorized"),
            Self::ModelNotAllowed(_) => {
                told_as(S::FORBIDDEN, "permission_error", "model_not_allowed", "model_not_allowed")
            }
            Self::Unclear(_) => told_as(S::BAD_REQUEST, INVALID, "ambiguous_request", "unclear"),
            Self::ClearText => told_as(S::BAD_REQUEST, INVALID, "tls_required", "clear_text"),
            Self::Denied => told_as(S::FORBIDDEN, "permission_error", "address_not_allowed", "denied_address"),
            Self::NotHttp => told_as(S::BAD_REQUEST, INVALID, "malformed_http", "not_http"),
            Self::HeadTooLarge => {
                told_as(S::REQUEST_HEADER_FIELDS_TOO_LARGE, INVALID, "headers_too_large", "headers_too_large")
            }
            Self::TargetTooLong => told_as(S::URI_TOO_LONG, INVALID, "url_too_long", "url_too_long"),
            Self::Expectation => told_as(S::EXPECTATION_FAILED, INVALID, "expectation_failed", "expectation"),
            Self::Loop => told_as(S::LOOP_DETECTED, SERVER, "loop", "loop"),
            Self::Malformed(_) => told_as(S::BAD_REQUEST, INVALID, "invalid_request", "malformed"),
            Self::Encoded(_) => told_as(S::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_encoding", "encoding"),
            Self::TooLarge { .. } => told_as(S::PAYLOAD_TOO_LARGE, INVALID, "request_too_large", "too_large"),
            Self::BodyTimeout => told_as(S::REQUEST_TIMEOUT, INVALID, "request_timeout", "body_timeout"),
            Self::BodyBroken => told_as(S::BAD_REQUEST, INVALID, "incomplete_request", "body_broken"),
            Self::BuffersFull => told_as(S::SERVICE_UNAVAILABLE, SERVER, "overloaded", "buffers_full"),
            Self::UnknownModel(_) => told_as(S::NOT_FOUND, INVALID, "model_not_found", "unknown_model"),
            Self::UnknownResponse(_) => told_as(S::NOT_FOUND, INVALID, "response_not_found", "unknown_response"),
            Self::NoPod(_) => told_as(S::SERVICE_UNAVAILABLE, SERVER, "no_ready_pod", "no_pod"),
            Self::NoPodInTime { .. } => told_as(S::SERVICE_UNAVAILABLE, SERVER, "no_ready_pod", "no_pod_in_time"),
            Self::LineFull { .. } => told_as(S::SERVICE_UNAVAILABLE, SERVER, "no_ready_pod", "line_full"),
            Self::Saturated { .. } => told_as(S::TOO_MANY_REQUESTS, "rate_limit_error", "overloaded", "saturated"),
            Self::Quota(refusal) => limits::told(refusal),
            Self::Busy { why, .. } => told_as(S::TOO_MANY_REQUESTS, "rate_limit_error", "overloaded", why.reason()),
            Self::Failed(failure) => match failure.kind {
                FailureKind::FirstByteTimeout => told_as(S::GATEWAY_TIMEOUT, SERVER, "upstream_timeout", "timeout"),
                FailureKind::Unbuildable => told_as(S::INTERNAL_SERVER_ERROR, SERVER, "gateway_error", "unbuildable"),
                FailureKind::OutOfFiles => told_as(S::SERVICE_UNAVAILABLE, SERVER, "overloaded", "out_of_files"),
                // Something had left for the pod.
                _ if failure.bytes_left() => told_as(S::BAD_GATEWAY, SERVER, "upstream_failed", "upstream_failed"),
                _ => told_as(S::SERVICE_UNAVAILABLE, SERVER, "upstream_unreachable", "upstream_unreachable"),
            },
            Self::Stopping => told_as(S::SERVICE_UNAVAILABLE, SERVER, "stopping", "stopping"),
            Self::Panicked(_) => told_as(S::INTERNAL_SERVER_ERROR, SERVER, "internal_error", PANIC),
            Self::Unreadable(_) => told_as(S::INTERNAL_SERVER_ERROR, SERVER, "misconfigured_gateway", "unreadable"),
            Self::TotalTimeout(_) => told_as(S::GATEWAY_TIMEOUT, SERVER, "request_timeout", "total_timeout"),
        }
    }

    /// The status to answer with.
    pub fn status(&self) -> StatusCode {
        self.told().status
    }

    /// The word in metrics and in the header.
    pub fn reason(&self) -> &'static str {
        self.told().reason
    }

    /// The error's `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(malformed) => malformed.code(),
            _ => self.told().code,
        }
    }

    /// The bound that a pod did not begin its answer within: the first token's, if that is what a stream's head had to
    /// come `before_the_token` for.
    ///
    /// And why nobody knew who asked.
    pub(in crate::gateway) fn exactly(&self, before_the_token: bool) -> Option<&'static str> {
        if let Self::Stranger(stranger) = self {
            return Some(stranger.word());
        }
        let Self::Failed(Failure { kind: kind @ FailureKind::FirstByteTimeout, .. }) = self else { return None };
        Some(if before_the_token { FIRST_TOKEN_TIMEOUT } else { kind.name() })
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Path(_)
            | Self::NoSuchPath(_)
            | Self::LacksV1(_)
            | Self::Malformed(_)
            | Self::Encoded(_)
            | Self::Upgrade
            | Self::TooLarge { .. }
            | Self::BodyTimeout
            | Self::BodyBroken
            | Self::UnknownModel(_)
            | Self::UnknownResponse(_)
            | Self::Stranger(_)
            | Self::ModelNotAllowed(_)
            | Self::Unclear(_)
            | Self::NotHttp
            | Self::ClearText
            | Self::Denied
            | Self::HeadTooLarge
            | Self::TargetTooLong
            | Self::Expectation
            | Self::Quota(_) => Fault::Client,
            // The operator's bounds on the whole, whatever the pods did meanwhile; and whom he named a pod.
            Self::BuffersFull
            | Self::LineFull { .. }
            | Self::Saturated { .. }
            | Self::Busy { .. }
            | Self::Stopping
            | Self::Panicked(_)
            | Self::Unreadable(_)
            | Self::TotalTimeout(_)
            | Self::Loop => Fault::Gateway,
            Self::NoPod(_) | Self::NoPodInTime { .. } => Fault::Pod,
            Self::Failed(failure) => failure.fault(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Quota(refusal) => limits::pause(refusal),
            Self::BuffersFull => Some(BUFFERS_PAUSE),
            Self::NoPodInTime { pause, .. }
            | Self::LineFull { pause }
            | Self::Saturated { pause }
            | Self::Busy { pause, .. } => Some(*pause),
            _ if self.status() == StatusCode::SERVICE_UNAVAILABLE => Some(NO_POD_PAUSE),
            _ => None,
        }
    }

    /// The event that ends a stream of which nothing but comments was sent, in the client's dialect.
    pub fn to_event(&self, dialect: Dialect) -> Bytes {
        let message = self.to_string();
        ErrorBody { message: &message, kind: self.told().kind, param: None, code: Some(self.code()) }
            .to_sse_event(dialect)
    }

    /// What is left of the body will not be read, or nobody can say for sure where the next request begins.
    fn ends_the_connection(&self) -> bool {
        matches!(
            self,
            Self::TooLarge { .. }
                | Self::BodyTimeout
                | Self::BodyBroken
                | Self::Unclear(_)
                | Self::NotHttp
                | Self::ClearText
                | Self::HeadTooLarge
                | Self::TargetTooLong
                | Self::Expectation
                | Self::Upgrade
        )
    }

    /// The answer, in the client's dialect.
    pub fn to_response(&self, dialect: Dialect) -> Response<Bytes> {
        let Told { status, kind, reason, .. } = self.told();
        let param = match self {
            Self::Malformed(malformed) => malformed.param(),
            Self::UnknownModel(_) | Self::ModelNotAllowed(_) => Some("model"),
            _ => None,
        };
        let message = self.to_string();
        let body = ErrorBody { message: &message, kind, param, code: Some(self.code()) }.to_json(dialect);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(X_TIDEGATE_REFUSED, HeaderValue::from_static(reason));
        if let Some(pause) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(pause.as_secs().max(1)));
        }
        if let Self::Quota(refusal) = self {
            limits::tell_refusal(headers, refusal, dialect);
        }
        if let Self::Path(PathProblem::WrongMethod { allowed, .. }) = self {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.ends_the_connection() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_model_is_told_what_there_is() {
        let unknown = UnknownModel { asked: "gpt-9".into(), served: vec!["llama2".into()] };
        let response = Rejection::UnknownModel(unknown).to_response(Dialect::OpenAi);
        assert_eq!(response.status(), 404);
        let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"error": {
                "message": "the model `gpt-9` does not exist; served here: `llama2`",
                "type": "invalid_request_error", "param": "model", "code": "model_not_found",
            }})
        );
        assert_eq!(response.headers()[X_TIDEGATE_REFUSED], "unknown_model");
    }

    #[test]
    fn what_may_pass_says_when_to_come_again() {
        let failed = Rejection::Failed(Failure::new(FailureKind::Refused, "10.0.0.1:8000 refused"));
        let response = failed.to_response(Dialect::OpenAi);
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &HeaderValue::from(2)));
        let text = std::str::from_utf8(response.body()).unwrap();
        assert!(!text.contains("10.0.0.1"), "no pod's address may leave: {text}");
    }
}
