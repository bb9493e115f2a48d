//! Errors: told in the client's dialect, read from an engine's, and what can be wrong with a request body.
//!
//! Only the shape is decided here; status, wording and kind belong to whoever refuses. Reading is lenient, because
//! engines tell errors in many ways: an object with a number or a string for a code, a bare string, `{"detail": ..}`.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Dialect;

/// Longest message that is kept of an engine's error, in characters: enough for a log line, little to hold.
const KEPT_MESSAGE: usize = 500;

/// Most keys at the top level of a body. vLLM's largest request type has about a hundred; the bound keeps the search
/// for duplicates, which compares each with each, below a millisecond.
pub(super) const MAX_KEYS: usize = 512;

/// Longest model name in bytes: several times the longest seen (a path on disk), short enough to echo and to log.
pub(super) const MAX_MODEL: usize = 1024;

/// How much of an offending key a message repeats, in characters.
const SHOWN_KEY: usize = 64;

/// Codes that Anthropic's clients know as `not_found_error`.
const NOT_FOUND: [&str; 3] = ["model_not_found", "unknown_url", "response_not_found"];

/// An error as a client shall read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorBody<'a> {
    /// What happened, for a person.
    pub message: &'a str,
    /// OpenAI's `type`, such as `invalid_request_error`.
    pub kind: &'a str,
    /// The request parameter to blame.
    pub param: Option<&'a str>,
    /// What happened, for a program.
    pub code: Option<&'a str>,
}

#[derive(Serialize)]
struct OpenAi<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ErrorBody<'_> {
    /// The body of an error answer.
    pub fn to_json(&self, dialect: Dialect) -> Bytes {
        let body = match dialect {
            Dialect::OpenAi | Dialect::Responses => json!({ "error": self.openai() }),
            Dialect::Anthropic => self.anthropic(),
        };
        Bytes::from(body.to_string())
    }

    /// The event that ends a stream with this error. It must begin where an event may begin. No `[DONE]` follows: the
    /// clients that look for it take it for a clean end, and those that know errors stop at the error.
    pub fn to_sse_event(&self, dialect: Dialect) -> Bytes {
        Bytes::from(match dialect {
            Dialect::OpenAi => format!("data: {}\n\n", json!({ "error": self.openai() })),
            Dialect::Anthropic => format!("event: error\ndata: {}\n\n", self.anthropic()),
            Dialect::Responses => return self.to_response_failed(None, 0),
        })
    }

    /// The same of the Responses dialect, for a stream that had told so much: its response, as it was first shown,
    /// and how many events it had numbered. A typed client finds every field that it asks of a response.
    pub fn to_response_failed(&self, shown: Option<&[u8]>, sequence_number: u64) -> Bytes {
        let shown = shown.and_then(|shown| serde_json::from_slice::<Map<String, Value>>(shown).ok());
        let mut response = shown.unwrap_or_else(unseen_response);
        // The codes that a response may name are few; the message says the rest.
        response.insert("error".to_owned(), json!({ "code": "server_error", "message": self.message }));
        response.insert("status".to_owned(), json!("failed"));
        let event = json!({ "type": "response.failed", "sequence_number": sequence_number, "response": response });
        Bytes::from(format!("event: response.failed\ndata: {event}\n\n"))
    }

    fn openai(&self) -> OpenAi<'_> {
        OpenAi { message: self.message, kind: self.kind, param: self.param, code: self.code }
    }

    fn anthropic(&self) -> Value {
        let kind = match self.kind {
            "server_error" => "api_error",
            "insufficient_quota" => "rate_limit_error",
            _ if self.code.is_some_and(|code| NOT_FOUND.contains(&code)) => "not_found_error",
            same => same,
        };
        json!({ "type": "error", "error": { "type": kind, "message": self.message } })
    }
}

/// What the Responses dialect requires of every response, for one of which nothing was shown.
fn unseen_response() -> Map<String, Value> {
    let fields = [
        ("id", json!("")),
        ("object", json!("response")),
        ("created_at", json!(0)),
        ("incomplete_details", Value::Null),
        ("instructions", Value::Null),
        ("metadata", json!({})),
        ("model", json!("")),
        ("output", json!([])),
        ("parallel_tool_calls", json!(true)),
        ("temperature", Value::Null),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_p", Value::Null),
        ("usage", Value::Null),
    ];
    fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// What an engine said of an error.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Reported {
    /// Its message, shortened; empty if it gave none.
    pub message: String,
    /// Its `type`.
    pub kind: Option<String>,
    /// Its code; a number in digits.
    pub code: Option<String>,
}

impl Reported {
    /// Reads the body of an error answer; `None` if it is none.
    pub fn read(body: &[u8]) -> Option<Self> {
        Self::within(&serde_json::from_slice(body).ok()?)
    }

    /// The error in an answer or an event: under `error`, under `response.error`, or as FastAPI's `detail`.
    pub(super) fn within(answer: &Value) -> Option<Self> {
        let truthy = |value: &&Value| !matches!(value, Value::Null | Value::Bool(false)) && **value != json!("");
        let places = ["/error", "/response/error", "/detail"];
        if let Some(error) = places.into_iter().filter_map(|place| answer.pointer(place)).find(truthy) {
            return Some(Self::of(error));
        }
        let is_error = |key: &str| answer.get(key).and_then(Value::as_str) == Some("error");
        (is_error("object") || is_error("type")).then(|| Self::of(answer))
    }

    fn of(error: &Value) -> Self {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let field = |key: &str| error.get(key).filter(|value| !value.is_null()).map(text);
        let message = field("message").unwrap_or_else(|| text(error));
        Self { message: message.chars().take(KEPT_MESSAGE).collect(), kind: field("type"), code: field("code") }
    }
}

/// Why a body cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It begins with a byte order mark.
    #[error("the request body starts with a byte order mark; send plain UTF-8")]
    Bom,
    /// It is not UTF-8.
    #[error("the request body is not valid UTF-8")]
    NotUtf8,
    /// There is none.
    #[error("the request body is empty")]
    Empty,
    /// It is not JSON.
    #[error("the request body is not valid JSON: {0}")]
    NotJson(String),
    /// It is JSON, but no object.
    #[error("the request body must be a JSON object")]
    NotObject,
    /// A top-level key stands there twice.
    #[error("the request body contains '{0}' more than once")]
    DuplicateKey(String),
    /// More top-level keys than any request has.
    #[error("the request body has more than {MAX_KEYS} top-level keys")]
    TooManyKeys,
    /// No model is named.
    #[error("you must provide a model parameter")]
    ModelMissing,
    /// The model's name is not a string that can be one.
    #[error("'model' must be a non-empty string of at most {MAX_MODEL} bytes without control characters")]
    ModelInvalid,
    /// `stream` is not a boolean.
    #[error("'stream' must be true or false")]
    StreamInvalid,
    /// `stream_options` is not what it should be.
    #[error("'stream_options' must be an object in which 'include_usage' is true or false")]
    StreamOptionsInvalid,
    /// The form cannot be read.
    #[error("the multipart form is malformed: {0}")]
    Form(&'static str),
}

impl Malformed {
    /// The parameter to blame, for the error's `param`.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::ModelMissing | Self::ModelInvalid => Some("model"),
            Self::StreamInvalid => Some("stream"),
            Self::StreamOptionsInvalid => Some("stream_options"),
            Self::DuplicateKey(key) => ["model", "stream", "stream_options"].into_iter().find(|it| it == key),
            _ => None,
        }
    }

    /// The error's `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bom | Self::NotUtf8 => "invalid_encoding",
            Self::Empty | Self::NotJson(_) | Self::NotObject => "invalid_json",
            Self::DuplicateKey(_) => "duplicate_parameter",
            Self::TooManyKeys => "too_many_parameters",
            Self::ModelMissing => "missing_required_parameter",
            Self::ModelInvalid | Self::StreamInvalid | Self::StreamOptionsInvalid => "invalid_type",
            Self::Form(_) => "invalid_form",
        }
    }

    pub(super) fn duplicate(key: &str) -> Self {
        Self::DuplicateKey(key.chars().take(SHOWN_KEY).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: ErrorBody<'_> = ErrorBody {
        message: "No \"x\"\n",
        kind: "not_found_error",
        param: Some("model"),
        code: Some("model_not_found"),
    };

    fn text(bytes: &Bytes) -> &str {
        str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_openai_shape_has_all_four_fields_even_when_null() {
        let body: Value = serde_json::from_slice(&FULL.to_json(Dialect::OpenAi)).unwrap();
        let expected = json!({"error": {
            "message": "No \"x\"\n", "type": "not_found_error", "param": "model", "code": "model_not_found"
        }});
        assert_eq!(body, expected);
        let bare = ErrorBody { message: "m", kind: "server_error", param: None, code: None };
        let expected = r#"{"error":{"code":null,"message":"m","param":null,"type":"server_error"}}"#;
        assert_eq!(text(&bare.to_json(Dialect::Responses)), expected);
    }

    #[test]
    fn the_anthropic_shape_uses_its_own_kinds() {
        let bare = ErrorBody { message: "m", kind: "server_error", param: None, code: None };
        let body: Value = serde_json::from_slice(&bare.to_json(Dialect::Anthropic)).unwrap();
        assert_eq!(body, json!({"type": "error", "error": {"type": "api_error", "message": "m"}}));
    }

    /// The data of the one event that `stream` is, and its name.
    fn only_event(stream: &Bytes) -> (Option<String>, Value) {
        let (mut frames, mut seen) = (crate::openai::Frames::new(), Vec::new());
        frames.feed(stream, |event| {
            seen.push((event.event.map(str::to_owned), serde_json::from_slice(event.data).unwrap()));
        });
        assert!(stream.ends_with(b"\n\n"), "nothing is left open");
        assert_eq!(seen.len(), 1, "{}", text(stream));
        seen.remove(0)
    }

    #[test]
    fn each_stream_ends_in_its_own_way_and_never_as_if_it_were_done() {
        let (name, data) = only_event(&FULL.to_sse_event(Dialect::OpenAi));
        assert_eq!((name, &data["error"]["code"]), (None, &json!("model_not_found")));
        let (name, data) = only_event(&FULL.to_sse_event(Dialect::Anthropic));
        assert_eq!((name.as_deref(), &data["type"]), (Some("error"), &json!("error")));
        let (name, data) = only_event(&FULL.to_sse_event(Dialect::Responses));
        assert_eq!((name.as_deref(), &data["type"]), (Some("response.failed"), &json!("response.failed")));
        assert_eq!((&data["sequence_number"], &data["response"]["status"]), (&json!(0), &json!("failed")));
    }

    #[test]
    fn a_failed_response_is_the_one_that_was_shown() {
        let shown = br#"{"id":"resp_1","status":"in_progress","error":null,"model":"m","tools":[{"type":"x"}]}"#;
        let (_, data) = only_event(&FULL.to_response_failed(Some(shown), 7));
        let expected = json!({
            "id": "resp_1", "status": "failed", "model": "m", "tools": [{"type": "x"}],
            "error": {"code": "server_error", "message": "No \"x\"\n"},
        });
        assert_eq!((&data["sequence_number"], &data["response"]), (&json!(7), &expected));
        let (_, data) = only_event(&FULL.to_response_failed(Some(b"oops"), 1));
        assert_eq!(data["response"]["object"], "response", "what cannot be read was not shown");
    }

    #[test]
    fn every_engines_way_of_telling_an_error_is_read() {
        let read = |body: &str| Reported::read(body.as_bytes());
        let vllm = r#"{"error":{"message":"no model","type":"NotFoundError","param":"model","code":404}}"#;
        let expected = Reported {
            message: "no model".to_owned(),
            kind: Some("NotFoundError".to_owned()),
            code: Some("404".to_owned()),
        };
        assert_eq!(read(vllm), Some(expected));
        assert_eq!(read(r#"{"error":"Unauthorized"}"#).unwrap().message, "Unauthorized");
        assert_eq!(read(r#"{"detail":"Not Found"}"#).unwrap().message, "Not Found");
        assert_eq!(read(r#"{"detail":[{"msg":"bad"}]}"#).unwrap().message, r#"[{"msg":"bad"}]"#);
        let old = r#"{"object":"error","message":"old","type":"BadRequestError","code":400}"#;
        assert_eq!(read(old).unwrap().message, "old");
        assert_eq!(read(r#"{"id":"x","error":null}"#), None);
        assert_eq!(read("Internal Server Error"), None);
    }
}
