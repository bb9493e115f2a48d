//! From a method and a path to what is asked.
//!
//! An allow-list over one canonical spelling. Engines decode percent signs before they route (`/v1%2fmodels` reaches
//! `/v1/models`), so a path that could mean two things to two readers is refused, never repaired. The one place where
//! escapes are welcome is the model's name in `GET /v1/models/{name}`: we answer that ourselves, SDKs write a
//! slash there as `%2F`, and no pod ever sees it. The query string is not looked at.

use std::borrow::Cow;

use http::Method;

/// What a client wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`.
    ChatCompletions,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `POST /v1/responses`.
    Responses,
    /// `GET /v1/responses/{id}`: only the pod that made it knows it.
    ResponseById,
    /// `POST /v1/responses/{id}/cancel`: likewise.
    ResponseCancel,
    /// `POST /v1/messages`, Anthropic's chat.
    Messages,
    /// `POST /v1/messages/count_tokens`.
    CountTokens,
    /// `POST /v1/rerank`, `/rerank` or `/v2/rerank`.
    Rerank,
    /// `POST /v1/score` or `/score`.
    Score,
    /// `POST /tokenize`.
    Tokenize,
    /// `POST /detokenize`.
    Detokenize,
    /// `POST /v1/audio/transcriptions`, a multipart form.
    AudioTranscriptions,
    /// `POST /v1/audio/translations`, a multipart form.
    AudioTranslations,
    /// `POST /v1/audio/speech`.
    AudioSpeech,
    /// `GET /v1/models`.
    Models,
    /// `GET /v1/models/{name}`; the name may contain slashes.
    ModelById,
    /// A path that only the configuration allows.
    Extra,
}

/// In which words answers and errors are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Chunks with `choices`, ended by `[DONE]`.
    OpenAi,
    /// Typed events, ended by `message_stop`.
    Anthropic,
    /// Typed `response.*` events, ended by `response.completed` and its like.
    Responses,
}

impl Endpoint {
    /// A short name for metrics and logs; one of a fixed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat_completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
            Self::ResponseById => "response_by_id",
            Self::ResponseCancel => "response_cancel",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::Rerank => "rerank",
            Self::Score => "score",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
            Self::AudioTranscriptions => "audio_transcriptions",
            Self::AudioTranslations => "audio_translations",
            Self::AudioSpeech => "audio_speech",
            Self::Models => "models",
            Self::ModelById => "model_by_id",
            Self::Extra => "extra",
        }
    }

    /// Whether the request is a JSON object that must name its model.
    pub fn has_model_in_json(self) -> bool {
        match self {
            Self::ChatCompletions
            | Self::Completions
            | Self::Embeddings
            | Self::Responses
            | Self::Messages
            | Self::CountTokens
            | Self::Rerank
            | Self::Score
            | Self::Tokenize
            | Self::Detokenize
            | Self::AudioSpeech => true,
            Self::ResponseById
            | Self::ResponseCancel
            | Self::AudioTranscriptions
            | Self::AudioTranslations
            | Self::Models
            | Self::ModelById
            | Self::Extra => false,
        }
    }

    /// Whether the request is a form with a file in it.
    pub fn is_multipart(self) -> bool {
        matches!(self, Self::AudioTranscriptions | Self::AudioTranslations)
    }

    /// In which words to answer.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Messages | Self::CountTokens => Dialect::Anthropic,
            Self::Responses | Self::ResponseById | Self::ResponseCancel => Dialect::Responses,
            _ => Dialect::OpenAi,
        }
    }

    /// Whether `stream_options.include_usage` means something here.
    pub fn has_stream_options(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions)
    }

    /// Whether the work is to generate, token by token, so that length and time to the first token mean something.
    pub fn generates(self) -> bool {
        matches!(self, Self::ChatCompletions | Self::Completions | Self::Responses | Self::Messages)
    }
}

/// What a method and a path ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// Which.
    pub endpoint: Endpoint,
    /// The response id or the model name in the path, as written there.
    pub id: Option<&'a str>,
}

impl<'a> Asked<'a> {
    /// The id with its percent escapes resolved; only a model's name can have any.
    pub fn decoded_id(&self) -> Option<Cow<'a, str>> {
        self.id.and_then(decode)
    }
}

/// Why a path is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// It contains a percent sign.
    #[error("percent-encoding is not accepted in this path; write the path plainly")]
    Encoded,
    /// Two readers could take it for two different paths.
    #[error("the path is ambiguous: no '//', '.' or '..' segments, backslashes, semicolons or control characters")]
    Ambiguous,
    /// It is spoken over a WebSocket, which is not offered.
    #[error("WebSocket endpoints are not served here")]
    WebSocket,
    /// Nothing is served there.
    #[error("no such endpoint")]
    NotServed,
    /// Something is, but by another method.
    #[error("this endpoint takes {allowed}")]
    WrongMethod {
        /// The method to use.
        allowed: &'static str,
        /// What is served there.
        endpoint: Endpoint,
    },
}

/// Says what `method` and `path` (without query) ask for, or why they ask for nothing.
///
/// `extra_paths` are the operator's own, compared byte for byte and open to any method.
pub fn classify<'a>(method: &Method, path: &'a str, extra_paths: &[String]) -> Result<Asked<'a>, PathProblem> {
    if let Some(name) = path.strip_prefix("/v1/models/") {
        return model_by_id(method, name);
    }
    refuse_unclear(path)?;
    let (endpoint, id) = match known(path) {
        Some(endpoint) => (endpoint, None),
        None => match by_response_id(path) {
            Some((endpoint, id)) => (endpoint, Some(id)),
            None if extra_paths.iter().any(|extra| extra == path) => (Endpoint::Extra, None),
            None if path == "/v1/realtime" => return Err(PathProblem::WebSocket),
            None => return Err(PathProblem::NotServed),
        },
    };
    let allowed = match endpoint {
        Endpoint::Extra => return Ok(Asked { endpoint, id }),
        Endpoint::Models | Endpoint::ResponseById => Method::GET,
        _ => Method::POST,
    };
    if *method != allowed {
        let allowed = if allowed == Method::GET { "GET" } else { "POST" };
        return Err(PathProblem::WrongMethod { allowed, endpoint });
    }
    Ok(Asked { endpoint, id })
}

fn known(path: &str) -> Option<Endpoint> {
    Some(match path {
        "/v1/chat/completions" => Endpoint::ChatCompletions,
        "/v1/completions" => Endpoint::Completions,
        "/v1/embeddings" => Endpoint::Embeddings,
        "/v1/responses" => Endpoint::Responses,
        "/v1/messages" => Endpoint::Messages,
        "/v1/messages/count_tokens" => Endpoint::CountTokens,
        "/v1/rerank" | "/v2/rerank" | "/rerank" => Endpoint::Rerank,
        "/v1/score" | "/score" => Endpoint::Score,
        "/tokenize" => Endpoint::Tokenize,
        "/detokenize" => Endpoint::Detokenize,
        "/v1/audio/transcriptions" => Endpoint::AudioTranscriptions,
        "/v1/audio/translations" => Endpoint::AudioTranslations,
        "/v1/audio/speech" => Endpoint::AudioSpeech,
        "/v1/models" => Endpoint::Models,
        _ => return None,
    })
}

fn by_response_id(path: &str) -> Option<(Endpoint, &str)> {
    let rest = path.strip_prefix("/v1/responses/")?;
    let (endpoint, id) = match rest.strip_suffix("/cancel") {
        Some(id) => (Endpoint::ResponseCancel, id),
        None => (Endpoint::ResponseById, rest),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'~' | b':');
    (!id.is_empty() && id.bytes().all(plain)).then_some((endpoint, id))
}

fn model_by_id<'a>(method: &Method, name: &'a str) -> Result<Asked<'a>, PathProblem> {
    let decoded = decode(name).ok_or(PathProblem::Encoded)?;
    refuse_segments(name)?;
    if decoded.is_empty() {
        return Err(PathProblem::NotServed);
    }
    let dots = |segment: &str| segment == "." || segment == "..";
    if decoded.chars().any(|it| it.is_control() || it == '\\') || decoded.split('/').any(dots) {
        return Err(PathProblem::Ambiguous);
    }
    if *method != Method::GET {
        return Err(PathProblem::WrongMethod { allowed: "GET", endpoint: Endpoint::ModelById });
    }
    Ok(Asked { endpoint: Endpoint::ModelById, id: Some(name) })
}

fn refuse_unclear(path: &str) -> Result<(), PathProblem> {
    if path.contains('%') {
        return Err(PathProblem::Encoded);
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Err(PathProblem::Ambiguous);
    };
    refuse_segments(rest)
}

/// `rest` is a path after one of its slashes.
fn refuse_segments(rest: &str) -> Result<(), PathProblem> {
    let odd = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'\\' | b';');
    let segment = |segment: &str| segment == "." || segment == "..";
    if rest.bytes().any(odd) || rest.split('/').any(segment) || rest.starts_with('/') || rest.contains("//") {
        return Err(PathProblem::Ambiguous);
    }
    Ok(())
}

/// Resolves percent escapes; `None` for a broken escape or if the result is not UTF-8.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            plain.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            plain.push(byte);
        }
    }
    String::from_utf8(plain).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Result<Asked<'_>, PathProblem> {
        classify(&Method::GET, path, &["/v1/extra".to_owned()])
    }

    fn post(path: &str) -> Result<Asked<'_>, PathProblem> {
        classify(&Method::POST, path, &["/v1/extra".to_owned()])
    }

    fn wrong(allowed: &'static str, endpoint: Endpoint) -> Result<Asked<'static>, PathProblem> {
        Err(PathProblem::WrongMethod { allowed, endpoint })
    }

    #[test]
    fn every_alias_is_found() {
        for (path, endpoint) in [
            ("/v1/chat/completions", Endpoint::ChatCompletions),
            ("/v1/completions", Endpoint::Completions),
            ("/v1/embeddings", Endpoint::Embeddings),
            ("/v1/responses", Endpoint::Responses),
            ("/v1/messages", Endpoint::Messages),
            ("/v1/messages/count_tokens", Endpoint::CountTokens),
            ("/rerank", Endpoint::Rerank),
            ("/v1/rerank", Endpoint::Rerank),
            ("/v2/rerank", Endpoint::Rerank),
            ("/score", Endpoint::Score),
            ("/v1/score", Endpoint::Score),
            ("/tokenize", Endpoint::Tokenize),
            ("/detokenize", Endpoint::Detokenize),
            ("/v1/audio/transcriptions", Endpoint::AudioTranscriptions),
            ("/v1/audio/translations", Endpoint::AudioTranslations),
            ("/v1/audio/speech", Endpoint::AudioSpeech),
            ("/v1/extra", Endpoint::Extra),
        ] {
            assert_eq!(post(path), Ok(Asked { endpoint, id: None }), "{path}");
        }
        assert_eq!(get("/v1/models"), Ok(Asked { endpoint: Endpoint::Models, id: None }));
    }

    #[test]
    fn ids_are_taken_from_the_path() {
        let by_id = Asked { endpoint: Endpoint::ResponseById, id: Some("resp_1a-b") };
        assert_eq!(get("/v1/responses/resp_1a-b"), Ok(by_id));
        let cancel = Asked { endpoint: Endpoint::ResponseCancel, id: Some("resp_1") };
        assert_eq!(post("/v1/responses/resp_1/cancel"), Ok(cancel));
        assert_eq!(get("/v1/responses/resp_1/input_items"), Err(PathProblem::NotServed));
        assert_eq!(get("/v1/responses/"), Err(PathProblem::NotServed));
        assert_eq!(post("/v1/responses//cancel"), Err(PathProblem::Ambiguous));
    }

    #[test]
    fn a_model_name_may_hold_slashes_written_either_way() {
        for path in ["/v1/models/meta/llama-3", "/v1/models/meta%2Fllama-3", "/v1/models/meta%2fllama-3"] {
            assert_eq!(get(path).unwrap().decoded_id().unwrap(), "meta/llama-3");
        }
        assert_eq!(get("/v1/models/%2Fmodel%2Fllama2").unwrap().decoded_id().unwrap(), "/model/llama2");
        assert_eq!(get("/v1/models/a%00"), Err(PathProblem::Ambiguous));
        assert_eq!(get("/v1/models/a%2"), Err(PathProblem::Encoded));
        assert_eq!(get("/v1/models/a%ff"), Err(PathProblem::Encoded));
        for name in ["../metrics", "%2e%2e/metrics", "%2E%2e%2Fmetrics", "a%5cb", "a/%2e", "a;b"] {
            assert_eq!(get(&format!("/v1/models/{name}")), Err(PathProblem::Ambiguous), "{name}");
        }
        assert_eq!(get("/v1/models//x"), Err(PathProblem::Ambiguous));
        assert_eq!(get("/v1/models/"), Err(PathProblem::NotServed));
        assert_eq!(post("/v1/models/x"), wrong("GET", Endpoint::ModelById));
    }

    #[test]
    fn unclear_paths_are_refused_and_not_repaired() {
        for path in ["/v1/%63ompletions", "/v1%2fcompletions", "/v1/completions%00", "/v1/completions%5c"] {
            assert_eq!(post(path), Err(PathProblem::Encoded), "{path}");
        }
        for path in [
            "//v1/completions",
            "/v1//completions",
            "/v1/./completions",
            "/v1/../v1/completions",
            "/v1/completions/..",
            "/v1\\completions",
            "/v1/completions;x=1",
            "/v1/;/completions",
            "/v1/completions\u{7f}",
            "/v1/complétions",
            "v1/completions",
            "",
            "*",
        ] {
            assert_eq!(post(path), Err(PathProblem::Ambiguous), "{path}");
        }
    }

    #[test]
    fn what_is_not_listed_is_not_served() {
        for path in ["/", "/metrics", "/v1/completions/", "/V1/completions", "/v1/load_lora_adapter", "/pause"] {
            assert_eq!(post(path), Err(PathProblem::NotServed), "{path}");
        }
        assert_eq!(get("/v1/realtime"), Err(PathProblem::WebSocket));
        assert_eq!(get("/v1/completions"), wrong("POST", Endpoint::Completions));
        assert_eq!(post("/v1/models"), wrong("GET", Endpoint::Models));
        let deleted = classify(&Method::DELETE, "/v1/responses/resp_1", &[]);
        assert_eq!(deleted, wrong("GET", Endpoint::ResponseById));
    }
}
