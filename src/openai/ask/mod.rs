//! From a request body to the facts that routing, admission and scheduling need.
//!
//! The top level is walked once and its values are left as they lie: a fact that is long (the prompt) is a span of
//! the body, never a copy. What two readers could take differently is refused: engines keep the *last* of two equal
//! keys, so a body with two models would be routed by one and run by the other. What only the engine needs to
//! understand (the shape of messages, sampling parameters, nesting) is left for the engine to judge.

mod measure;

use std::{borrow::Cow, fmt, ops::Range};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::{
    Dialect, Endpoint, Malformed, Part,
    error::{MAX_KEYS, MAX_MODEL},
    multipart,
    text::{self, Kind},
};

pub use measure::BesideText;

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
    pub prompt: SmallVec<[Part; 4]>,
    /// Whether one answer goes on where the prompt ends, so that a next turn can begin with both.
    pub goes_on: bool,
    /// The most tokens to generate, if the client said.
    pub max_tokens: Option<u32>,
    /// How many answers there will be (`n`, and each of several prompts), if the client said.
    pub choices: Option<u32>,
    /// The session that the body names: `session_id`, else `user`.
    pub session: Option<String>,
    /// What separates this caller's prefix cache from others'.
    pub cache_salt: Option<String>,
    /// Where the client's own stands, `null` included.
    pub(super) salt_span: Option<Range<usize>>,
    /// The one that the pod is to read instead, or besides.
    pub(super) salt_for_pod: Option<String>,
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
        let part = |(key, kind): &(&str, Kind)| Some(Part { kind: *kind, span: top.span(top.get(key)?) });
        ask.prompt = prompt_keys(endpoint).iter().filter_map(part).collect();
        ask.max_tokens = measure::most_tokens(endpoint, &top);
        ask.choices = measure::choices(endpoint, &top);
        ask.goes_on = goes_on(endpoint, &top);
        ask.session = top.word("session_id").or_else(|| top.word("user"));
        ask.cache_salt = top.word("cache_salt");
        ask.salt_span = top.raw("cache_salt").map(|raw| top.span(raw));
        ask.previous_response_id = top.word("previous_response_id");
        Ok(ask)
    }

    /// Gives the prompt to `take` in the form that answers and next turns have too, piece by piece, at least up to
    /// `most` bytes. Returns the length of all of it; images inside count as the bytes that they are, not as tokens.
    pub fn prompt_text(&self, body: &[u8], most: usize, mut take: impl FnMut(&[u8])) -> usize {
        text::prompt(&self.prompt, body, most, &mut take)
    }

    /// Where the conversation opens: the system prompt and the first user message, which stay the same from turn to
    /// turn. Where a prompt has no turns it is the whole prompt. Read on demand, since few routes ask.
    pub fn opening(&self, body: &[u8]) -> SmallVec<[Range<usize>; 2]> {
        let mut opening = SmallVec::new();
        for Part { span, .. } in &self.prompt {
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

    /// In which words to answer.
    pub fn dialect(&self) -> Dialect {
        self.endpoint.dialect()
    }

    /// Whether usage would have to be asked for on the client's behalf to be told at the end of this stream.
    pub fn lacks_usage(&self) -> bool {
        self.stream && !self.include_usage && self.endpoint.has_stream_options()
    }

    /// From now on its prefix cache is apart by `salt`, whatever the client wrote; what is made for the pod says so.
    pub fn put_salt(&mut self, salt: String) {
        self.cache_salt = Some(salt.clone());
        self.salt_for_pod = Some(salt);
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
            goes_on: false,
            max_tokens: None,
            choices: None,
            session: None,
            cache_salt: None,
            salt_span: None,
            salt_for_pod: None,
            previous_response_id: None,
        }
    }
}

/// Which values make the prompt, in template order. Tools come first because templates put them into the system
/// turn, so that two conversations with other tools share no prefix.
fn prompt_keys(endpoint: Endpoint) -> &'static [(&'static str, Kind)] {
    use Kind::{Given, System, Text, Turns};
    match endpoint {
        Endpoint::ChatCompletions => &[("tools", Given), ("messages", Turns)],
        Endpoint::Completions => &[("prompt", Text)],
        Endpoint::Responses => &[("tools", Given), ("instructions", System), ("input", Turns)],
        Endpoint::Messages | Endpoint::CountTokens => &[("tools", Given), ("system", System), ("messages", Turns)],
        Endpoint::Embeddings => &[("messages", Turns), ("input", Text)],
        Endpoint::Rerank => &[("query", Text), ("documents", Given)],
        Endpoint::Score => &[("text_1", Text), ("queries", Given), ("text_2", Text), ("documents", Given)],
        Endpoint::Tokenize => &[("tools", Given), ("messages", Turns), ("prompt", Text)],
        Endpoint::Detokenize => &[("tokens", Given)],
        Endpoint::AudioSpeech => &[("instructions", Text), ("input", Text)],
        Endpoint::Extra => &[
            ("tools", Given),
            ("messages", Turns),
            ("prompt", Text),
            ("input", Text),
            ("query", Text),
            ("documents", Given),
        ],
        Endpoint::AudioTranscriptions
        | Endpoint::AudioTranslations
        | Endpoint::ResponseById
        | Endpoint::ResponseCancel
        | Endpoint::Models
        | Endpoint::ModelById => &[],
    }
}

/// Of several answers, or of one to several prompts or with a prompt repeated in it, nobody knows what comes back.
fn goes_on(endpoint: Endpoint, top: &Top<'_>) -> bool {
    let one_prompt = match endpoint {
        Endpoint::ChatCompletions | Endpoint::Messages | Endpoint::Responses => true,
        Endpoint::Completions => {
            let echoes = top.get("echo").is_some_and(|echo| echo.get() != "false") || top.get("suffix").is_some();
            !echoes && top.get("prompt").is_some_and(|prompt| prompt.get().starts_with('"'))
        }
        _ => false,
    };
    one_prompt && top.count("n").is_none_or(|n| n <= 1)
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
        if text.trim_ascii().is_empty() {
            return Err(Malformed::Empty);
        }
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
        measure::count(self.get(key)?.get())
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

#[cfg(test)]
#[expect(clippy::string_slice, reason = "spans are looked at through it")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chat(body: impl AsRef<[u8]>) -> Result<Ask, Malformed> {
        Ask::parse(Endpoint::ChatCompletions, None, body.as_ref())
    }

    fn refusal(body: impl AsRef<[u8]>) -> Malformed {
        chat(body).unwrap_err()
    }

    fn texts<'a>(body: &'a str, spans: &[Range<usize>]) -> Vec<&'a str> {
        spans.iter().map(|span| &body[span.clone()]).collect()
    }

    fn prompts<'a>(body: &'a str, ask: &Ask) -> Vec<&'a str> {
        ask.prompt.iter().map(|part| &body[part.span.clone()]).collect()
    }

    #[test]
    fn a_post_without_a_body_is_told_so_and_not_where_in_it_json_ends() {
        for body in ["", " \n"] {
            assert_eq!(refusal(body).to_string(), "the request body is empty");
            assert_eq!(refusal(body).code(), "invalid_json");
        }
    }

    #[test]
    fn a_chat_is_read_with_spans_into_its_own_body() {
        let body = r#" { "messages" : [{"role":"user","content":"é"}], "model":"m\u0061", "stream": true,
            "tools":[{"x":1}], "stream_options": {"include_usage":true}, "max_tokens": 5, "max_completion_tokens": 9,
            "n":2, "user":"u", "session_id":"s", "cache_salt":"c", "future":{"model":"deep","model":"deep"} } "#;
        let ask = chat(body).unwrap();
        assert_eq!((ask.model.as_str(), &body[ask.model_span.clone()]), ("ma", r#""m\u0061""#));
        assert!(ask.stream && ask.include_usage && !ask.lacks_usage());
        assert_eq!(&body[ask.stream_options.clone().unwrap()], r#"{"include_usage":true}"#);
        assert_eq!(prompts(body, &ask), [r#"[{"x":1}]"#, r#"[{"role":"user","content":"é"}]"#]);
        let mut text = Vec::new();
        let length = ask.prompt_text(body.as_bytes(), usize::MAX, |piece| text.extend_from_slice(piece));
        assert_eq!(text, b"\xfd[{\"x\":1}]\xffuser\xfe\xc3\xa9");
        assert_eq!((length, ask.goes_on), (text.len(), false), "two answers");
        assert_eq!((ask.max_tokens, ask.choices), (Some(9), Some(2)));
        assert_eq!((ask.session.as_deref(), ask.cache_salt.as_deref()), (Some("s"), Some("c")));
    }

    #[test]
    fn each_endpoint_has_its_own_prompt() {
        let body = r#"{"model":"m","input":"I","instructions":"S","system":"Y","messages":"M","prompt":"P","query":"Q",
            "documents":"D","text_1":"1","text_2":"2","tokens":"T","tools":"O","max_output_tokens":99999999999,"max_tokens":99999999999,
            "previous_response_id":"resp_1"}"#;
        for (endpoint, expected) in [
            (Endpoint::ChatCompletions, "OM"),
            (Endpoint::Completions, "P"),
            (Endpoint::Responses, "OSI"),
            (Endpoint::Messages, "OYM"),
            (Endpoint::CountTokens, "OYM"),
            (Endpoint::Rerank, "QD"),
            (Endpoint::Score, "12D"),
            (Endpoint::Detokenize, "T"),
        ] {
            let ask = Ask::parse(endpoint, None, body.as_bytes()).unwrap();
            let prompt: String = prompts(body, &ask).concat().replace('"', "");
            assert_eq!(prompt, expected, "{endpoint:?}");
            assert_eq!(ask.max_tokens, Some(u32::MAX));
            assert_eq!(ask.previous_response_id.as_deref(), Some("resp_1"));
        }
    }

    #[test]
    fn null_means_absent() {
        let body =
            r#"{"model":"m","stream":null,"stream_options":null,"messages":null,"n":null,"session_id":null,"user":""}"#;
        let ask = chat(body).unwrap();
        assert!(!ask.stream && !ask.include_usage && ask.prompt.is_empty());
        assert_eq!((ask.choices, ask.session), (None, None));
        assert_eq!(&body[ask.stream_options.unwrap()], "null");
        assert_eq!(refusal(r#"{"model":null}"#), Malformed::ModelMissing);
    }

    #[test]
    fn a_missing_or_odd_model_is_refused() {
        assert_eq!(refusal("{}"), Malformed::ModelMissing);
        for model in [r#""""#, "1", "[]", "true", r#"{"a":1}"#, r#""a\u0000b""#, r#""a\nb""#] {
            assert_eq!(refusal(format!(r#"{{"model":{model}}}"#)), Malformed::ModelInvalid, "{model}");
        }
        let long = "x".repeat(MAX_MODEL + 1);
        assert_eq!(refusal(format!(r#"{{"model":"{long}"}}"#)), Malformed::ModelInvalid);
        assert!(chat(format!(r#"{{"model":"{}"}}"#, &long[1..])).is_ok());
    }

    #[test]
    fn what_two_readers_could_take_differently_is_refused() {
        assert_eq!(refusal(r#"{"model":"a","mod\u0065l":"b"}"#), Malformed::DuplicateKey("model".to_owned()));
        assert_eq!(refusal(r#"{"model":"a","x":1,"x":1}"#), Malformed::DuplicateKey("x".to_owned()));
        assert_eq!(refusal(b"\xef\xbb\xbf{\"model\":\"m\"}"), Malformed::Bom);
        assert_eq!(refusal(b"{\"model\":\"m\",\"x\":\"\xff\"}"), Malformed::NotUtf8);
        assert_eq!(refusal(b"\xff\xfe{\x00}\x00"), Malformed::NotUtf8);
        for options in ["1", "[true]", r#"{"include_usage":1}"#, r#"{"include_usage":true,"include_usage":false}"#] {
            let body = format!(r#"{{"model":"m","stream_options":{options}}}"#);
            assert_eq!(refusal(body), Malformed::StreamOptionsInvalid, "{options}");
        }
        for stream in ["1", r#""true""#, "[]"] {
            assert_eq!(refusal(format!(r#"{{"model":"m","stream":{stream}}}"#)), Malformed::StreamInvalid);
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for body in ["[]", "null", "1", r#""model""#, " [ {} ] "] {
            assert_eq!(refusal(body), Malformed::NotObject, "{body}");
        }
        for body in ["{", r#"{"model":"m"} x"#, r#"{"model":"m"}{}"#, r#"{"model":"m",}"#, "{'a':1}", "nul"] {
            assert!(matches!(refusal(body), Malformed::NotJson(_)), "{body}");
        }
        for number in ["NaN", "Infinity", "-", "01", "1.", "0x1"] {
            let body = format!(r#"{{"model":"m","temperature":{number}}}"#);
            assert!(matches!(refusal(body), Malformed::NotJson(_)), "{number}");
        }
    }

    #[test]
    fn deep_nesting_does_not_overflow() {
        let deep = format!(r#"{{"model":"m","messages":{}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        let ask = chat(&deep).unwrap();
        assert!(ask.opening(deep.as_bytes()).is_empty());
        assert!(matches!(refusal("[".repeat(1_000_000)), Malformed::NotJson(_)));
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let keys = |count: usize| (0..count).map(|key| format!(r#","{key}":0"#)).collect::<Vec<_>>().concat();
        assert!(chat(format!(r#"{{"model":"m"{}}}"#, keys(MAX_KEYS - 1))).is_ok());
        assert_eq!(refusal(format!(r#"{{"model":"m"{}}}"#, keys(MAX_KEYS))), Malformed::TooManyKeys);
    }

    #[test]
    fn the_operators_own_paths_need_no_model() {
        let extra = |body: &str| Ask::parse(Endpoint::Extra, None, body.as_bytes());
        assert_eq!(extra("").unwrap().model, "");
        assert_eq!(extra(r#"{"prompt":"x"}"#).unwrap().prompt.len(), 1);
        assert_eq!(extra(r#"{"model":"m"}"#).unwrap().model, "m");
        assert!(extra(r#"{"model":"m","model":"n"}"#).is_err());
    }

    #[test]
    fn the_opening_stays_the_same_from_turn_to_turn() {
        let first = r#"{"model":"m","messages":[{"role":"system","content":"S"},{"role":"user","content":["U"]}]}"#;
        let later = r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":["U"]},
            {"role":"assistant","content":"A"},{"role":"user","content":"V"}],"model":"m"}"#;
        for body in [first, later] {
            let ask = chat(body).unwrap();
            assert_eq!(texts(body, &ask.opening(body.as_bytes())), [r#""S""#, r#"["U"]"#]);
        }
        let body = r#"{"model":"m","input":[{"role":"user","content":"U"},{"x":1}],"instructions":"I"}"#;
        let ask = Ask::parse(Endpoint::Responses, None, body.as_bytes()).unwrap();
        assert_eq!(texts(body, &ask.opening(body.as_bytes())), [r#""I""#, r#""U""#]);
        let body = r#"{"model":"m","prompt":"P"}"#;
        let ask = Ask::parse(Endpoint::Completions, None, body.as_bytes()).unwrap();
        assert_eq!(texts(body, &ask.opening(body.as_bytes())), [r#""P""#]);
    }

    proptest! {
        #[test]
        fn noise_is_refused_or_read_but_never_upsets(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            for endpoint in [Endpoint::ChatCompletions, Endpoint::Extra, Endpoint::AudioTranscriptions] {
                Ask::parse(endpoint, Some("multipart/form-data; boundary=b"), &noise).ok();
            }
        }

        #[test]
        fn noise_that_looks_like_an_ask_never_upsets(
            noise in r#"\{("(model|stream|messages|stream_options)":("m"|true|\[\{"role":"user"\}\]|\{\}|null|[^"]{0,3}),?){0,5}\}?"#
        ) {
            if let Ok(ask) = chat(&noise) {
                ask.opening(noise.as_bytes());
                let mut given = 0;
                let length = ask.prompt_text(noise.as_bytes(), usize::MAX, |piece| given += piece.len());
                prop_assert_eq!(length, given);
            }
        }

        #[test]
        fn a_second_model_is_refused_however_it_is_spelt(escaped in any::<[bool; 5]>(), upper: bool, first: bool) {
            let spelt: String = "model".chars().zip(escaped).map(|(letter, escape)| match (escape, upper) {
                (true, true) => format!("\\u{:04X}", u32::from(letter)),
                (true, false) => format!("\\u{:04x}", u32::from(letter)),
                (false, _) => letter.to_string(),
            }).collect();
            let (one, two) = if first { (spelt.as_str(), "model") } else { ("model", spelt.as_str()) };
            let body = format!(r#"{{"{one}":"a","x":[1],"{two}":"b"}}"#);
            prop_assert_eq!(refusal(body), Malformed::DuplicateKey("model".to_owned()));
            prop_assert_eq!(chat(format!(r#"{{"{spelt}":"a"}}"#)).unwrap().model, "a");
        }
    }
}
