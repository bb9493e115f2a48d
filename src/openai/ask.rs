//! From a request body to the facts that routing, admission and scheduling need.
//!
//! The top level is walked once and its values are left as they lie: a fact that is long (the prompt) is a span of
//! the body, never a copy. What two readers could take differently is refused: engines keep the *last* of two equal
//! keys, so a body with two models would be routed by one and run by the other. What only the engine needs to
//! understand (the shape of messages, sampling parameters, nesting) is left for the engine to judge.

use std::{borrow::Cow, fmt, ops::Range};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::{
    Dialect, Endpoint, Malformed,
    error::{MAX_KEYS, MAX_MODEL},
    multipart,
};

/// Facts about one request. Every span points into the body that it was parsed from.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What is asked.
    pub endpoint: Endpoint,
    /// The model that the client names; empty only where none is needed (`Endpoint::Extra`).
    pub model: String,
    /// Where the name stands: the JSON value with its quotes, or the bytes of the form field.
    pub model_span: Range<usize>,
    /// Whether the answer shall come as a stream.
    pub stream: bool,
    /// Whether the client itself asked for `stream_options.include_usage`.
    pub include_usage: bool,
    /// Where the value of `stream_options` stands, `null` included.
    pub stream_options: Option<Range<usize>>,
    /// The values that make the prompt, in the order in which chat templates use them.
    pub prompt: SmallVec<[Range<usize>; 4]>,
    /// The length of all of them together.
    pub prompt_bytes: usize,
    /// The most tokens to generate, if the client said.
    pub max_tokens: Option<u32>,
    /// How many answers to one prompt (`n`), if the client said.
    pub choices: Option<u32>,
    /// The session that the body names: `session_id`, else `user`.
    pub session: Option<String>,
    /// What separates this caller's prefix cache from others'.
    pub cache_salt: Option<String>,
    /// The response that this one continues; its pod alone knows it.
    pub previous_response_id: Option<String>,
}

impl Ask {
    /// Reads one body. `content_type` matters for forms alone: engines read JSON whatever it is called.
    pub fn parse(endpoint: Endpoint, content_type: Option<&str>, body: &[u8]) -> Result<Self, Malformed> {
        if endpoint.is_multipart() {
            return Self::of_form(endpoint, content_type, body);
        }
        let needs_model = endpoint.has_model_in_json();
        if body.is_empty() && !needs_model {
            return Ok(Self::naming(endpoint, String::new(), 0..0));
        }
        let top = Top::read(body)?;
        let mut ask = match top.get("model") {
            Some(raw) => Self::naming(endpoint, model_name(raw)?, top.span(raw)),
            None if needs_model => return Err(Malformed::ModelMissing),
            None => Self::naming(endpoint, String::new(), 0..0),
        };
        ask.stream = match top.get("stream") {
            Some(raw) => serde_json::from_str(raw.get()).map_err(|_| Malformed::StreamInvalid)?,
            None => false,
        };
        ask.stream_options = top.raw("stream_options").map(|raw| top.span(raw));
        ask.include_usage = top.get("stream_options").map_or(Ok(false), asks_usage)?;
        ask.prompt = prompt_keys(endpoint).iter().filter_map(|key| top.get(key)).map(|raw| top.span(raw)).collect();
        ask.prompt_bytes = ask.prompt.iter().map(ExactSizeIterator::len).sum();
        let length_keys = ["max_completion_tokens", "max_tokens", "max_output_tokens"];
        ask.max_tokens = length_keys.iter().find_map(|key| top.count(key));
        ask.choices = top.count("n");
        ask.session = top.word("session_id").or_else(|| top.word("user"));
        ask.cache_salt = top.word("cache_salt");
        ask.previous_response_id = top.word("previous_response_id");
        Ok(ask)
    }

    /// The bytes of the prompt, piece by piece.
    pub fn prompt_pieces<'a>(&'a self, body: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.prompt.iter().filter_map(|span| body.get(span.clone()))
    }

    /// Where the conversation opens: the system prompt and the first user message, which stay the same from turn to
    /// turn. Where a prompt has no turns it is the whole prompt. Read on demand, since few routes ask.
    pub fn opening(&self, body: &[u8]) -> SmallVec<[Range<usize>; 2]> {
        let mut opening = SmallVec::new();
        for span in &self.prompt {
            let Some(text) = body.get(span.clone()).and_then(|bytes| str::from_utf8(bytes).ok()) else {
                continue;
            };
            if text.starts_with('[') && self.endpoint.generates() {
                let mut turns = Turns { body, opening: SmallVec::new() };
                // It stops by an error once it has seen enough, so that a long conversation is not read to its end.
                serde_json::Deserializer::from_str(text).deserialize_seq(&mut turns).ok();
                opening.extend(turns.opening);
            } else {
                opening.push(span.clone());
            }
        }
        opening
    }

    /// Whether usage would have to be asked for on the client's behalf to be told at the end of this stream.
    pub fn lacks_usage(&self) -> bool {
        self.stream && !self.include_usage && self.endpoint.has_stream_options()
    }

    fn of_form(endpoint: Endpoint, content_type: Option<&str>, body: &[u8]) -> Result<Self, Malformed> {
        let form = multipart::read(content_type, body)?;
        let model = valid_model(form.model_name.to_owned())?;
        Ok(Self { stream: form.stream, ..Self::naming(endpoint, model, form.model_span) })
    }

    fn naming(endpoint: Endpoint, model: String, model_span: Range<usize>) -> Self {
        Self {
            endpoint,
            model,
            model_span,
            stream: false,
            include_usage: false,
            stream_options: None,
            prompt: SmallVec::new(),
            prompt_bytes: 0,
            max_tokens: None,
            choices: None,
            session: None,
            cache_salt: None,
            previous_response_id: None,
        }
    }
}

/// Which values make the prompt, in template order. Tools come first because templates put them into the system
/// turn, so that two conversations with other tools share no prefix.
fn prompt_keys(endpoint: Endpoint) -> &'static [&'static str] {
    match endpoint {
        Endpoint::ChatCompletions => &["tools", "messages"],
        Endpoint::Completions => &["prompt"],
        Endpoint::Responses => &["tools", "instructions", "input"],
        Endpoint::Messages | Endpoint::CountTokens => &["tools", "system", "messages"],
        Endpoint::Embeddings => &["messages", "input"],
        Endpoint::Rerank => &["query", "documents"],
        Endpoint::Score => &["text_1", "queries", "text_2", "documents"],
        Endpoint::Tokenize => &["tools", "messages", "prompt"],
        Endpoint::Detokenize => &["tokens"],
        Endpoint::AudioSpeech => &["instructions", "input"],
        Endpoint::Extra => &["tools", "messages", "prompt", "input", "query", "documents"],
        Endpoint::AudioTranscriptions
        | Endpoint::AudioTranslations
        | Endpoint::ResponseById
        | Endpoint::ResponseCancel
        | Endpoint::Models
        | Endpoint::ModelById => &[],
    }
}

fn model_name(raw: &RawValue) -> Result<String, Malformed> {
    serde_json::from_str(raw.get()).map_err(|_| Malformed::ModelInvalid).and_then(valid_model)
}

fn valid_model(name: String) -> Result<String, Malformed> {
    if name.is_empty() || name.len() > MAX_MODEL || name.chars().any(char::is_control) {
        return Err(Malformed::ModelInvalid);
    }
    Ok(name)
}

fn asks_usage(raw: &RawValue) -> Result<bool, Malformed> {
    #[derive(serde::Deserialize)]
    struct Options {
        include_usage: Option<bool>,
    }
    // An array would do for a struct, if serde were asked.
    if !raw.get().starts_with('{') {
        return Err(Malformed::StreamOptionsInvalid);
    }
    let options: Options = serde_json::from_str(raw.get()).map_err(|_| Malformed::StreamOptionsInvalid)?;
    Ok(options.include_usage.unwrap_or(false))
}

/// The top level of a JSON object: each key once, each value as it lies in the body.
pub(super) struct Top<'a> {
    body: &'a [u8],
    entries: Entries<'a>,
}

type Entries<'a> = SmallVec<[(Cow<'a, str>, &'a RawValue); 16]>;

impl<'a> Top<'a> {
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        if body.starts_with(b"\xef\xbb\xbf") {
            return Err(Malformed::Bom);
        }
        let text = str::from_utf8(body).map_err(|_| Malformed::NotUtf8)?;
        let not_json = |problem: serde_json::Error| Malformed::NotJson(problem.to_string());
        if !text.trim_ascii_start().starts_with('{') {
            return match serde_json::from_str::<IgnoredAny>(text) {
                Ok(_) => Err(Malformed::NotObject),
                Err(problem) => Err(not_json(problem)),
            };
        }
        let mut walk = Walk { entries: Entries::new(), refused: None };
        let mut json = serde_json::Deserializer::from_str(text);
        let outcome = json.deserialize_map(&mut walk).and_then(|()| json.end());
        match (walk.refused, outcome) {
            (Some(refused), _) => Err(refused),
            (None, Err(problem)) => Err(not_json(problem)),
            (None, Ok(())) => Ok(Self { body, entries: walk.entries }),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value as it lies, `null` included.
    pub(super) fn raw(&self, key: &str) -> Option<&'a RawValue> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, raw)| *raw)
    }

    /// The value, unless it is `null`, which means the same as absent.
    fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.raw(key).filter(|raw| raw.get() != "null")
    }

    /// A non-empty string; of any other value the engine may complain.
    fn word(&self, key: &str) -> Option<String> {
        let word: String = serde_json::from_str(self.get(key)?.get()).ok()?;
        (!word.is_empty()).then_some(word)
    }

    /// A count; one too large to matter is the largest.
    fn count(&self, key: &str) -> Option<u32> {
        let count: u64 = self.get(key)?.get().parse().ok()?;
        Some(u32::try_from(count).unwrap_or(u32::MAX))
    }

    pub(super) fn span(&self, raw: &RawValue) -> Range<usize> {
        span_in(self.body, raw)
    }
}

/// Where a value that was read from `body` stands in it.
fn span_in(body: &[u8], raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr().addr().saturating_sub(body.as_ptr().addr());
    start..start + raw.get().len()
}

struct Walk<'a> {
    entries: Entries<'a>,
    refused: Option<Malformed>,
}

impl<'a> Visitor<'a> for &mut Walk<'a> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(Key(key)) = map.next_key()? {
            if self.entries.iter().any(|(name, _)| *name == key) {
                self.refused = Some(Malformed::duplicate(&key));
            } else if self.entries.len() == MAX_KEYS {
                self.refused = Some(Malformed::TooManyKeys);
            }
            if self.refused.is_some() {
                return Err(serde::de::Error::custom("refused"));
            }
            self.entries.push((key, map.next_value()?));
        }
        Ok(())
    }
}

/// A key after unescaping, borrowed if it has no escapes.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Borrowed(key)))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Owned(key.to_owned())))
    }
}

/// Takes the turns of a conversation up to its first user message.
struct Turns<'a> {
    body: &'a [u8],
    opening: SmallVec<[Range<usize>; 2]>,
}

impl<'a> Visitor<'a> for &mut Turns<'a> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list of turns")
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut turns: S) -> Result<(), S::Error> {
        #[derive(serde::Deserialize)]
        struct Turn<'a> {
            #[serde(borrow)]
            role: Option<Cow<'a, str>>,
            #[serde(borrow)]
            content: Option<&'a RawValue>,
        }
        while let Some(turn) = turns.next_element::<Turn<'a>>()? {
            let role = turn.role.as_deref().unwrap_or_default();
            if let (Some(content), "system" | "developer" | "user") = (turn.content, role) {
                self.opening.push(span_in(self.body, content));
            }
            if role == "user" {
                return Err(serde::de::Error::custom("enough"));
            }
        }
        Ok(())
    }
}

impl Ask {
    /// In which words to answer.
    pub fn dialect(&self) -> Dialect {
        self.endpoint.dialect()
    }
}
