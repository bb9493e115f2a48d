//! What the desk needs to know of an answer that passes: tokens as they come, usage, and how it ended.
//!
//! It reads along and changes nothing. An ordinary event costs a few searches for fixed words: inside generated text
//! a quote is always escaped, so `"usage"` with bare quotes can only be JSON's own. An event is parsed only when such
//! a word is followed by something that matters.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::{
    AnswerText, Dialect, Endpoint, ErrorBody, Event, Frames, Lexicon, Reported, Usage,
    text::{Word, has_content},
};

/// The largest response of a first Responses event that is kept, to be shown again if the stream fails. It repeats the
/// request's instructions and tools, which seldom take more.
const KEPT_RESPONSE: usize = 64 * 1024;

/// How an answer ended, as far as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum End {
    /// It has not.
    #[default]
    Running,
    /// As it should.
    Done,
    /// The engine gave up on it without calling that an error.
    Cut {
        /// The engine's word for it.
        reason: String,
    },
    /// With an error inside the stream or body.
    Error {
        /// The engine's message.
        message: String,
        /// The engine's code, a number in digits.
        code: Option<String>,
    },
}

/// What one chunk brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Seen {
    /// Events that carry generated content; engines usually send one a token.
    pub tokens: u32,
    /// Whether the first of the answer is among them.
    pub first: bool,
    /// Whether anything of the answer came: an event or a part of one, but not a comment or a ping, by which a server
    /// says no more than that it is there.
    pub moved: bool,
}

/// What was learnt of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) usage: Option<Usage>,
    pub(super) end: End,
    pub(super) response_id: Option<String>,
    /// A reason to finish was given, or the end was said to be one.
    pub(super) told_its_end: bool,
    /// The response as a Responses stream showed it first.
    shown: Option<Box<[u8]>>,
    /// The number that its next event would have.
    next_number: u64,
}

impl Facts {
    /// The first end that is told is the true one: engines send `[DONE]` after an error too.
    pub(super) fn close(&mut self, end: End) {
        if self.end == End::Running {
            self.end = end;
        }
    }

    /// Takes the reasons to finish that `part` gives under this key; null is none.
    pub(super) fn take_reason(&mut self, key: &Word, part: &[u8]) {
        if let Some(told) = key.find(part, |value| value.starts_with(b"\"")) {
            self.told_its_end = true;
            let is_abort = |value: &[u8]| value.starts_with(b"\"abort\"");
            // Several answers in one have a reason each.
            if is_abort(told) || key.any(told, is_abort) {
                self.cut("abort");
            }
        }
    }

    pub(super) fn cut(&mut self, reason: &str) {
        self.close(End::Cut { reason: reason.to_owned() });
    }

    pub(super) fn fail(&mut self, reported: Reported) {
        self.close(End::Error { message: reported.message, code: reported.code });
    }

    /// `raw` begins with a usage object.
    pub(super) fn take_usage(&mut self, raw: &[u8]) {
        if let Some(usage) = Usage::read(raw) {
            self.usage = Some(self.usage.unwrap_or_default().updated_by(usage));
        }
    }
}

/// Watches a streamed answer.
#[derive(Debug)]
pub struct StreamWatch {
    frames: Frames,
    reader: Reader,
    text: Option<Box<AnswerText>>,
    generated: bool,
}

impl StreamWatch {
    /// A watch at the start of a stream in this dialect.
    pub fn new(dialect: Dialect, lexicon: &Lexicon) -> Self {
        let reader = Reader { dialect, lexicon: lexicon.clone(), facts: Facts::default() };
        Self { frames: Frames::new(), reader, text: None, generated: false }
    }

    /// The same, reading the text too, of an answer of `endpoint`.
    #[must_use]
    pub fn with_text(self, endpoint: Endpoint) -> Self {
        Self { text: Some(Box::new(AnswerText::new(endpoint, &self.reader.lexicon))), ..self }
    }

    /// Reads the next bytes along.
    pub fn feed(&mut self, chunk: &[u8]) -> Seen {
        let mut seen = Seen::default();
        let Self { frames, reader, text, .. } = self;
        if let Some(text) = text {
            text.clear();
        }
        frames.feed(chunk, |event| seen.count(&event, reader.heed(&event, text.as_deref_mut())));
        seen.moved |= frames.in_event() && !chunk.is_empty();
        self.seen(seen)
    }

    /// The stream is over: reads a last event that lacks its blank line.
    pub fn finish(&mut self) -> Seen {
        let mut seen = Seen::default();
        let Self { frames, reader, text, .. } = self;
        if let Some(text) = text {
            text.clear();
        }
        frames.finish(|event| seen.count(&event, reader.heed(&event, text.as_deref_mut())));
        self.seen(seen)
    }

    /// The bytes held of an event that is not complete, and of text that was not taken yet.
    pub fn held(&self) -> usize {
        self.frames.held() + self.text.as_ref().map_or(0, |text| text.held())
    }

    /// Gives up looking into the present event, and with it the bytes held of it.
    pub fn let_go(&mut self) {
        self.frames.let_go();
        if let Some(text) = &mut self.text {
            text.let_go();
        }
    }

    /// No more of the text is wanted.
    pub fn stop_reading_text(&mut self) {
        if let Some(text) = &mut self.text {
            text.stop();
        }
    }

    /// The event that tells the stream's client of this error and ends it, in its dialect. It must begin where an event
    /// may begin.
    pub fn last_event(&self, error: &ErrorBody<'_>) -> Bytes {
        match self.reader.dialect {
            Dialect::Responses => {
                let facts = &self.reader.facts;
                error.to_response_failed(facts.shown.as_deref(), facts.next_number)
            }
            dialect => error.to_sse_event(dialect),
        }
    }

    /// The text, of which [`AnswerText::text`] is what the last bytes brought; if it is read at all.
    pub fn text(&self) -> Option<&AnswerText> {
        self.text.as_deref()
    }

    /// What the answer says it took, once it did.
    pub fn usage(&self) -> Option<Usage> {
        self.reader.facts.usage
    }

    /// How it ended; `Running` at the end of the bytes means that it was cut.
    pub fn end(&self) -> &End {
        &self.reader.facts.end
    }

    /// Whether it said why it ended. An answer that has no token and does not say so is none.
    pub fn told_its_end(&self) -> bool {
        self.reader.facts.told_its_end
    }

    /// The id under which a Responses answer is known, so that a later request can go to the pod that made it.
    pub fn response_id(&self) -> Option<&str> {
        self.reader.facts.response_id.as_deref()
    }

    /// Events too large to look into.
    pub fn skipped(&self) -> u64 {
        self.frames.skipped()
    }

    fn seen(&mut self, mut seen: Seen) -> Seen {
        seen.first = seen.tokens > 0 && !self.generated;
        self.generated |= seen.first;
        seen
    }
}

impl Seen {
    fn count(&mut self, event: &Event<'_>, generated: bool) {
        self.tokens += u32::from(generated);
        self.moved |= event.event != Some("ping");
    }
}

/// Reads one event at a time.
#[derive(Debug)]
struct Reader {
    dialect: Dialect,
    lexicon: Lexicon,
    facts: Facts,
}

impl Reader {
    /// Reads an event, and its `text` if that is wanted and there is any.
    fn heed(&mut self, event: &Event<'_>, text: Option<&mut AnswerText>) -> bool {
        let generated = self.read(event);
        if let Some(text) = text.filter(|_| generated) {
            text.event(event);
        }
        generated
    }

    /// Takes note of an event; true if it carries generated content.
    fn read(&mut self, event: &Event<'_>) -> bool {
        if event.data.starts_with(b"[DONE]") {
            self.facts.close(End::Done);
            return false;
        }
        if self.dialect == Dialect::OpenAi {
            return self.chunk(event);
        }
        let name = match event.event {
            Some(name) => Cow::Borrowed(name),
            None => type_of(event.data),
        };
        match self.dialect {
            Dialect::Anthropic => self.anthropic(&name, event.data),
            _ => self.responses(&name, event.data),
        }
    }

    fn chunk(&mut self, event: &Event<'_>) -> bool {
        let data = event.data;
        if event.event == Some("error") || self.lexicon.error.any(data, |value| !value.starts_with(b"null")) {
            self.fail_if_told(data, event.event.is_some());
        }
        self.usage(data);
        self.facts.take_reason(&self.lexicon.finish_reason, data);
        self.lexicon.openai_content().iter().any(|word| word.any(data, has_content))
    }

    fn anthropic(&mut self, name: &str, data: &[u8]) -> bool {
        match name {
            "content_block_delta" => {
                return self.lexicon.anthropic_content().iter().any(|word| word.any(data, has_content));
            }
            "message_start" => self.usage(data),
            "message_delta" => {
                self.usage(data);
                self.facts.take_reason(&self.lexicon.stop_reason, data);
            }
            "message_stop" => self.facts.close(End::Done),
            "error" => self.fail_if_told(data, true),
            _ => (),
        }
        false
    }

    fn responses(&mut self, name: &str, data: &[u8]) -> bool {
        if let Some(number) = self.number(data) {
            self.facts.next_number = number.saturating_add(1);
        }
        match name {
            "response.created" | "response.queued" | "response.in_progress" => self.response(data),
            "response.completed" | "response.incomplete" => {
                self.response(data);
                self.usage(data);
                self.facts.told_its_end = true;
                self.facts.close(End::Done);
            }
            "response.failed" | "error" => {
                self.usage(data);
                self.fail_if_told(data, true);
            }
            "response.cancelled" => self.facts.cut("cancelled"),
            _ if name.strip_suffix(".delta").is_some() => return self.lexicon.delta.any(data, has_content),
            _ => (),
        }
        false
    }

    fn usage(&mut self, data: &[u8]) {
        if let Some(raw) = self.lexicon.usage.find(data, |value| value.starts_with(b"{")) {
            self.facts.take_usage(raw);
        }
    }

    /// The event's own number.
    fn number(&self, data: &[u8]) -> Option<u64> {
        let raw = self.lexicon.number.find(data, |value| value.first().is_some_and(u8::is_ascii_digit))?;
        let digits = raw.iter().take_while(|byte| byte.is_ascii_digit()).count();
        str::from_utf8(raw.get(..digits)?).ok()?.parse().ok()
    }

    fn response(&mut self, data: &[u8]) {
        #[derive(Deserialize)]
        struct Carrier<'a> {
            #[serde(borrow)]
            response: &'a RawValue,
        }
        if self.facts.response_id.is_some() {
            return;
        }
        let Ok(carrier) = serde_json::from_slice::<Carrier<'_>>(data) else { return };
        let response = carrier.response.get();
        if let Ok(identified) = serde_json::from_str::<Identified<'_>>(response) {
            self.facts.response_id = identified.id.map(Cow::into_owned);
            self.facts.shown = (response.len() <= KEPT_RESPONSE).then(|| response.as_bytes().into());
        }
    }

    /// Takes the error that the event tells. One that is `sure` to be an error needs no words that we understand.
    fn fail_if_told(&mut self, data: &[u8], sure: bool) {
        let told = serde_json::from_slice::<Value>(data).ok().and_then(|value| Reported::within(&value));
        if let Some(told) = told {
            self.facts.fail(told);
        } else if sure {
            self.facts.fail(Reported::default());
        }
    }
}

#[derive(Deserialize)]
struct Identified<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
}

/// The `type` of an event that has no `event` line.
fn type_of(data: &[u8]) -> Cow<'_, str> {
    #[derive(Deserialize)]
    struct Typed<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
    }
    serde_json::from_slice::<Typed<'_>>(data).map(|typed| typed.kind).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::openai::pieces;

    const CHAT: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"a \\\"error\\\": \\\"usage\\\":{\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":null,\"reasoning_content\":\"b\"}}],\"usage\":null,\"error\":null}\n\n",
        "data: {\"choices\": [{\"delta\": {\"tool_calls\": [{\"index\": 0}]}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}\n\n",
        "data: [DONE]\n\n",
    );

    const MESSAGES: &str = concat!(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":",
        "{\"input_tokens\":7,\"output_tokens\":1,\"cache_read_input_tokens\":4}}}\n\n",
        "event: ping\ndata: {\"type\":\"ping\"}\n\n",
        "event: content_block_delta\ndata: {\"delta\":{\"type\":\"text_delta\",\"text\":\"hi\"}}\n\n",
        "data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"thinking_delta\",\"thinking\":\"x\"}}\n\n",
        "event: content_block_delta\ndata: {\"delta\":{\"type\":\"signature_delta\",\"signature\":\"s\"}}\n\n",
        "event: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":9}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );

    const RESPONSES: &str = concat!(
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"error\":null}}\n\n",
        "event: response.output_text.delta\ndata: {\"delta\":\"hi\"}\n\n",
        "data: {\"item\":{\"type\":\"x\"},\"type\":\"response.reasoning_text.delta\",\"delta\":\"y\"}\n\n",
        "event: response.completed\ndata: {\"response\":{\"id\":\"resp_1\",\"error\":null,\"usage\":{\"input_tokens\":7,",
        "\"input_tokens_details\":{\"cached_tokens\":2},\"output_tokens\":2}}}\n\n",
    );

    /// Tokens, how often one was the first, usage, end and id.
    type Told = (u32, u32, Option<Usage>, End, Option<String>);

    fn watch(dialect: Dialect, chunks: &[&[u8]]) -> Told {
        let mut watch = StreamWatch::new(dialect, &Lexicon::default());
        let mut seen: Vec<Seen> = chunks.iter().map(|chunk| watch.feed(chunk)).collect();
        seen.push(watch.finish());
        let tokens = seen.iter().map(|seen| seen.tokens).sum();
        let firsts = seen.iter().map(|seen| u32::from(seen.first)).sum();
        (tokens, firsts, watch.usage(), watch.end().clone(), watch.response_id().map(str::to_owned))
    }

    fn usage(prompt: u32, completion: u32, cached: Option<u32>) -> Usage {
        Usage { prompt_tokens: Some(prompt), completion_tokens: Some(completion), cached_tokens: cached }
    }

    fn end_of(dialect: Dialect, stream: &str) -> End {
        watch(dialect, &[stream.as_bytes()]).3
    }

    fn error(message: &str, code: Option<&str>) -> End {
        End::Error { message: message.to_owned(), code: code.map(str::to_owned) }
    }

    fn cut(reason: &str) -> End {
        End::Cut { reason: reason.to_owned() }
    }

    #[test]
    fn each_dialect_tells_its_tokens_usage_and_clean_end() {
        let chat = watch(Dialect::OpenAi, &[CHAT.as_bytes()]);
        assert_eq!(chat, (3, 1, Some(usage(7, 3, None)), End::Done, None));
        let messages = watch(Dialect::Anthropic, &[MESSAGES.as_bytes()]);
        assert_eq!(messages, (2, 1, Some(usage(11, 9, Some(4))), End::Done, None));
        let responses = watch(Dialect::Responses, &[RESPONSES.as_bytes()]);
        assert_eq!(responses, (2, 1, Some(usage(7, 2, Some(2))), End::Done, Some("resp_1".to_owned())));
    }

    #[test]
    fn completions_carry_text() {
        let stream = "data: {\"choices\":[{\"text\":\"\"}]}\n\ndata: {\"choices\":[{\"text\":\"x\"}]}\n\n";
        assert_eq!(watch(Dialect::OpenAi, &[stream.as_bytes()]), (1, 1, None, End::Running, None));
    }

    #[test]
    fn a_keep_alive_is_no_token_and_moves_nothing() {
        assert_eq!(
            StreamWatch::new(Dialect::OpenAi, &Lexicon::default()).feed(b": keep-alive\n\n: keep-alive\n\n"),
            Seen::default()
        );
        let mut watch = StreamWatch::new(Dialect::OpenAi, &Lexicon::default());
        for piece in [": kee", "p-al", "ive\n", "\n", ""] {
            assert_eq!(watch.feed(piece.as_bytes()), Seen::default(), "{piece:?}");
        }
        let ping = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";
        assert_eq!(StreamWatch::new(Dialect::Anthropic, &Lexicon::default()).feed(ping), Seen::default());
    }

    #[test]
    fn an_event_moves_the_stream_from_its_first_byte_on_without_being_a_token() {
        let mut watch = StreamWatch::new(Dialect::OpenAi, &Lexicon::default());
        for piece in ["d", "ata: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}", "\n\n"] {
            assert_eq!(watch.feed(piece.as_bytes()), Seen { moved: true, ..Seen::default() }, "{piece:?}");
        }
    }

    const ERROR: ErrorBody<'_> = ErrorBody { message: "gone", kind: "server_error", param: None, code: Some("x") };

    #[test]
    fn a_cut_responses_stream_fails_the_response_that_it_showed_with_the_next_number() {
        let failed = |stream: &str| -> Value {
            let mut watch = StreamWatch::new(Dialect::Responses, &Lexicon::default());
            watch.feed(stream.as_bytes());
            let event = watch.last_event(&ERROR);
            let data = str::from_utf8(&event).unwrap().strip_prefix("event: response.failed\ndata: ").unwrap();
            serde_json::from_str(data).unwrap()
        };
        let created = "data: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"r\",\"model\":\"m\"}}\n\n";
        let delta = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"x\",\"sequence_number\":41}\n\n";
        let event = failed(&[created, delta].concat());
        assert_eq!((&event["sequence_number"], &event["response"]["id"]), (&Value::from(42), &Value::from("r")));
        assert_eq!(event["response"]["status"], "failed");
        let half = failed(&[created, "data: {\"sequence_number\":7,"].concat());
        assert_eq!(half["sequence_number"], 1, "half an event has no number");
        let nothing = failed("");
        assert_eq!((&nothing["sequence_number"], &nothing["response"]["id"]), (&Value::from(0), &Value::from("")));
        let large = created.replace("\"m\"", &format!("\"{}\"", "m".repeat(KEPT_RESPONSE)));
        assert_eq!(failed(&large)["response"]["id"], "", "too large to be kept");
    }

    #[test]
    fn an_error_inside_is_no_clean_end_even_if_done_follows() {
        let vllm = "data: {\"error\": {\"message\": \"EngineCore died\", \"type\": \"InternalServerError\", \
                    \"param\": null, \"code\": 500}}\n\ndata: [DONE]\n\n";
        assert_eq!(end_of(Dialect::OpenAi, vllm), error("EngineCore died", Some("500")));
        assert_eq!(end_of(Dialect::OpenAi, "data: {\"error\":\"broken\"}\n\n"), error("broken", None));
        assert_eq!(end_of(Dialect::OpenAi, "event: error\ndata: oops\n\n"), error("", None));
        let anthropic =
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"m\"}}\n\n";
        assert_eq!(end_of(Dialect::Anthropic, anthropic), error("m", None));
        let responses = "event: response.failed\ndata: {\"response\":{\"error\":{\"code\":\"server_error\",\"message\":\"m\"}}}\n\n";
        assert_eq!(end_of(Dialect::Responses, responses), error("m", Some("server_error")));
        let typed = "data: {\"type\":\"error\",\"code\":\"c\",\"message\":\"m\"}\n\n";
        assert_eq!(end_of(Dialect::Responses, typed), error("m", Some("c")));
    }

    #[test]
    fn text_that_nobody_wants_is_not_read_and_what_was_read_still_counts() {
        let mut watch = StreamWatch::new(Dialect::OpenAi, &Lexicon::default()).with_text(Endpoint::ChatCompletions);
        let event = b"data: {\"choices\":[{\"delta\":{\"content\":\"abc\"}}]}\n\n";
        watch.feed(event);
        assert!(watch.text().unwrap().text().ends_with(b"abc"));
        watch.stop_reading_text();
        assert_eq!(watch.feed(event).tokens, 1);
        let text = watch.text().unwrap();
        assert!(text.text().is_empty() && text.comes_back());
    }

    #[test]
    fn an_aborted_answer_is_cut_even_if_done_follows() {
        let chat = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"abort\"}]}\n\ndata: [DONE]\n\n";
        assert_eq!(end_of(Dialect::OpenAi, chat), cut("abort"));
        let text = "data: {\"choices\":[{\"text\":\"\\\"finish_reason\\\":\\\"abort\\\"\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        assert_eq!(end_of(Dialect::OpenAi, text), End::Done);
        assert_eq!(end_of(Dialect::Responses, "event: response.cancelled\ndata: {}\n\n"), cut("cancelled"));
    }

    #[test]
    fn our_own_error_events_are_understood() {
        for dialect in [Dialect::OpenAi, Dialect::Anthropic, Dialect::Responses] {
            let event = ERROR.to_sse_event(dialect);
            let End::Error { message, .. } = watch(dialect, &[&event]).3 else { panic!("{dialect:?}") };
            assert_eq!(message, "gone");
        }
    }

    #[test]
    fn a_nested_error_field_is_no_error() {
        let stream = "data: {\"choices\":[{\"timings\":{\"error\":0.5}}]}\n\ndata: [DONE]\n\n";
        assert_eq!(end_of(Dialect::OpenAi, stream), End::Done);
    }

    proptest! {
        #[test]
        fn chunking_makes_no_difference(cuts in pieces::cuts()) {
            for (dialect, stream) in
                [(Dialect::OpenAi, CHAT), (Dialect::Anthropic, MESSAGES), (Dialect::Responses, RESPONSES)]
            {
                let pieces = pieces::cut(stream.as_bytes(), &cuts);
                let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &piece[..]).collect();
                prop_assert_eq!(watch(dialect, &pieces), watch(dialect, &[stream.as_bytes()]));
            }
        }

        #[test]
        fn noise_does_not_upset_it(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            for dialect in [Dialect::OpenAi, Dialect::Anthropic, Dialect::Responses] {
                watch(dialect, &[b"data: ", &noise, b"\n\n"]);
            }
        }
    }
}
