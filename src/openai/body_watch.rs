//! What the desk needs to know of a whole answer: usage, its id, and whether the engine gave up on it.
//!
//! It keeps both ends of the body and nothing between, so that a large answer costs no more than a small one, and
//! understands them when the body is over. It searches for JSON's own words as the watch over streams does.

use memchr::memchr2;

use super::{
    AnswerText, End, Endpoint, Lexicon, Reported, Usage,
    text::{Cursor, has_content},
    watch::Facts,
};

/// How much of a whole answer is kept at its head and again at its tail. Engines put the id first and usage last;
/// 64 KiB hold nearly every generated answer whole, and for a list of embeddings the two ends are enough.
const KEPT_END: usize = 64 * 1024;

/// Watches a whole answer, of which it keeps no more than both ends.
#[derive(Debug)]
pub struct BodyWatch {
    lexicon: Lexicon,
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Whether bytes between the two were let go.
    gap: bool,
    /// Whether nothing is kept any more.
    blind: bool,
    /// Whether somebody wants the answer's id.
    wants_id: bool,
    facts: Facts,
    text: Option<AnswerText>,
    balance: Option<Balance>,
}

impl BodyWatch {
    /// A watch at the start of a body.
    pub fn new(lexicon: &Lexicon) -> Self {
        let lexicon = lexicon.clone();
        Self {
            lexicon,
            head: Vec::new(),
            tail: Vec::new(),
            gap: false,
            facts: Facts::default(),
            text: None,
            balance: None,
            blind: false,
            wants_id: true,
        }
    }

    /// The same, reading the text too, of an answer of `endpoint` that is kept whole.
    #[must_use]
    pub fn with_text(self, endpoint: Endpoint) -> Self {
        Self { text: Some(AnswerText::new(endpoint, &self.lexicon)), ..self }
    }

    /// The same, also following whether the JSON that passes is complete: for bodies of which nothing else says so.
    #[must_use]
    pub fn with_balance(self) -> Self {
        Self { balance: Some(Balance::default()), ..self }
    }

    /// The same for an answer whose id nobody asks for: then most need not be walked through to find it.
    #[must_use]
    pub fn without_id(self) -> Self {
        Self { wants_id: false, ..self }
    }

    /// Whether the body, if it ended here, would be half a JSON value. Known only if it was to be followed.
    pub fn is_half(&self) -> bool {
        self.balance.as_ref().is_some_and(|balance| !balance.is_complete())
    }

    /// The bytes held of the body.
    pub fn held(&self) -> usize {
        self.head.capacity() + self.tail.capacity()
    }

    /// Gives up understanding the body, and with it the bytes held of it.
    pub fn let_go(&mut self) {
        (self.head, self.tail, self.blind) = (Vec::new(), Vec::new(), true);
    }

    /// The text, if it is read at all; after `finish`.
    pub fn text(&self) -> Option<&AnswerText> {
        self.text.as_ref()
    }

    /// Reads the next bytes along.
    pub fn feed(&mut self, chunk: &[u8]) {
        if let Some(balance) = &mut self.balance {
            balance.feed(chunk);
        }
        if self.blind {
            return;
        }
        let room = KEPT_END.saturating_sub(self.head.len()).min(chunk.len());
        let (head, rest) = chunk.split_at_checked(room).unwrap_or((chunk, &[]));
        self.head.extend_from_slice(head);
        let skipped = rest.len().saturating_sub(KEPT_END);
        self.tail.extend_from_slice(rest.get(skipped..).unwrap_or_default());
        // Trimmed only at twice the size, so that small chunks do not shift it each time.
        let surplus = self.tail.len().saturating_sub(KEPT_END);
        if surplus > KEPT_END || skipped > 0 {
            self.tail.drain(..surplus);
            self.gap = true;
        }
    }

    /// The body is over: now it can be understood.
    pub fn finish(&mut self) {
        let (mut head, tail) = (std::mem::take(&mut self.head), std::mem::take(&mut self.tail));
        if self.gap {
            let id = self
                .lexicon
                .id
                .find(&head, has_content)
                .and_then(|raw| serde_json::Deserializer::from_slice(raw).into_iter::<String>().next()?.ok());
            self.facts.response_id = id;
            self.read(&tail);
        } else {
            head.extend_from_slice(&tail);
            if self.wants_id || self.lexicon.status.any(&head, |value| value.starts_with(b"\"")) {
                self.read_shape(&head);
            }
            self.read_error(&head);
            self.read(&head);
            if let Some(text) = &mut self.text {
                text.whole(&head);
            }
        }
        self.facts.close(End::Done);
    }

    /// What the answer says it took; after `finish`.
    pub fn usage(&self) -> Option<Usage> {
        self.facts.usage
    }

    /// How it ended; `Running` before `finish`.
    pub fn end(&self) -> &End {
        &self.facts.end
    }

    /// Whether it said why it ended; after `finish`.
    pub fn told_its_end(&self) -> bool {
        self.facts.told_its_end
    }

    /// The answer's id; after `finish`.
    pub fn response_id(&self) -> Option<&str> {
        self.facts.response_id.as_deref()
    }

    /// What only a body known from its beginning to its end can tell.
    fn read_shape(&mut self, body: &[u8]) {
        let mut at = Cursor::new(body);
        at.eat(b'{');
        while let Some(key) = at.key() {
            let value = at.value();
            match key {
                b"id" => self.facts.response_id = serde_json::from_slice(value).ok(),
                b"status" => {
                    self.facts.told_its_end |= value.starts_with(b"\"");
                    if value == b"\"cancelled\"" {
                        self.facts.cut("cancelled");
                    }
                }
                _ => {}
            }
        }
    }

    fn read_error(&mut self, body: &[u8]) {
        let words = [&self.lexicon.error, &self.lexicon.detail];
        if words.iter().any(|word| word.any(body, |value| !value.starts_with(b"null")))
            && let Some(reported) = Reported::read(body)
        {
            self.facts.fail(reported);
        }
    }

    fn read(&mut self, part: &[u8]) {
        if let Some(raw) = self.lexicon.usage.find(part, |value| value.starts_with(b"{")) {
            self.facts.take_usage(raw);
        }
        for key in [&self.lexicon.finish_reason, &self.lexicon.stop_reason] {
            self.facts.take_reason(key, part);
        }
        // An engine of few words may say neither; what it wrote is there all the same.
        if !self.facts.told_its_end && self.facts.usage.is_none() {
            self.facts.told_its_end = self.lexicon.openai_content().iter().any(|word| word.any(part, has_content));
        }
    }
}

/// Whether every bracket that was opened is closed again. It follows well-formed JSON and judges nothing else of it.
#[derive(Debug, Default)]
struct Balance {
    depth: usize,
    in_string: bool,
    /// Whether the next byte belongs to a backslash before it.
    escaped: bool,
    begun: bool,
}

impl Balance {
    fn feed(&mut self, chunk: &[u8]) {
        let mut rest = chunk;
        while let Some((byte, behind)) = rest.split_first() {
            if std::mem::take(&mut self.escaped) {
                rest = behind;
            } else if self.in_string {
                let Some(at) = memchr2(b'"', b'\\', rest) else { return };
                self.escaped = rest.get(at) == Some(&b'\\');
                self.in_string = self.escaped;
                rest = rest.get(at + 1..).unwrap_or_default();
            } else {
                self.between(*byte);
                rest = behind;
            }
        }
    }

    fn between(&mut self, byte: u8) {
        self.begun |= !byte.is_ascii_whitespace();
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
    }

    fn is_complete(&self) -> bool {
        self.begun && self.depth == 0 && !self.in_string
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(body: &[u8], length: usize) -> BodyWatch {
        let mut watch = BodyWatch::new(&Lexicon::default());
        for chunk in body.chunks(length) {
            watch.feed(chunk);
            assert!(watch.head.len() + watch.tail.len() <= 4 * KEPT_END);
        }
        watch.finish();
        watch
    }

    fn end_of(body: &str) -> End {
        watch(body.as_bytes(), 64).end().clone()
    }

    #[test]
    fn without_its_id_all_else_is_read() {
        for body in [
            r#"{"id":"1","choices":[{"finish_reason":"abort"}],"usage":{"prompt_tokens":7}}"#,
            r#"{"id":"1","status":"cancelled"}"#,
            r#"{"id":"1","status":"completed"}"#,
            r#"{"id":"1","error":{"message":"no"}}"#,
        ] {
            let mut without = BodyWatch::new(&Lexicon::default()).without_id();
            without.feed(body.as_bytes());
            without.finish();
            let with = watch(body.as_bytes(), 64);
            assert_eq!((without.end(), without.usage()), (with.end(), with.usage()), "{body}");
            assert_eq!(without.told_its_end(), with.told_its_end(), "{body}");
        }
    }

    #[test]
    fn an_answer_with_words_in_it_is_not_empty_though_it_gives_no_reason_to_finish_and_no_usage() {
        for (body, told) in
            [(r#"{"choices":[{"message":{"content":"hi"}}]}"#, true), ("{}", false), (r#"{"content":""}"#, false)]
        {
            let mut watch = BodyWatch::new(&Lexicon::default());
            watch.feed(body.as_bytes());
            watch.finish();
            assert_eq!(watch.told_its_end(), told, "{body}");
        }
    }

    #[test]
    fn a_small_answer_is_read_in_any_chunking() {
        let body = br#"{"id":"resp_1","error":null,"output":[],"usage":{"input_tokens":7,"output_tokens":2}}"#;
        for length in 1..body.len() {
            let watch = watch(body, length);
            let expected = Usage { prompt_tokens: Some(7), completion_tokens: Some(2), cached_tokens: None };
            assert_eq!(watch.usage(), Some(expected));
            assert_eq!((watch.end(), watch.response_id()), (&End::Done, Some("resp_1")));
        }
    }

    #[test]
    fn of_a_large_answer_both_ends_are_enough() {
        for middle in [KEPT_END - 60, KEPT_END, 2 * KEPT_END, 3 * KEPT_END, 20 * KEPT_END] {
            let body = format!(
                r#"{{"id":"big","data":"{}","usage":{{"prompt_tokens":7}},"finish_reason":"abort"}}"#,
                "1,".repeat(middle / 2)
            );
            for length in [700, 16 * 1024, body.len()] {
                let watch = watch(body.as_bytes(), length);
                assert_eq!(watch.usage().unwrap().prompt_tokens, Some(7), "{middle} {length}");
                assert_eq!(watch.response_id(), Some("big"));
                assert_eq!(watch.end(), &End::Cut { reason: "abort".to_owned() });
            }
        }
    }

    #[test]
    fn half_a_body_is_told_from_a_whole_one_at_every_byte_and_in_any_chunking() {
        let body = r#" {"a":["}\"]\\",{"b":[]}],"c":"é\\\""} "#.as_bytes();
        let end = body.len() - 1;
        for length in [1, 2, 3, 7, body.len()] {
            for cut in 0..=body.len() {
                let mut watch = BodyWatch::new(&Lexicon::default()).with_balance();
                body[..cut].chunks(length).for_each(|chunk| watch.feed(chunk));
                assert_eq!(watch.is_half(), cut < end, "{:?}", String::from_utf8_lossy(&body[..cut]));
            }
        }
        let mut unfollowed = BodyWatch::new(&Lexicon::default());
        unfollowed.feed(b"{");
        assert!(!unfollowed.is_half(), "where HTTP says the end, nobody else needs to");
    }

    #[test]
    fn errors_and_aborts_are_told_from_text_about_them() {
        let code = Some("404".to_owned());
        let error = End::Error { message: "no".to_owned(), code };
        assert_eq!(end_of(r#"{"error":{"message":"no","code":404}}"#), error);
        assert_eq!(end_of(r#"{"detail":"Not Found"}"#), End::Error { message: "Not Found".to_owned(), code: None });
        assert_eq!(end_of(r#"{"choices":[{"text":"\"error\":1,\"finish_reason\":\"abort\""}]}"#), End::Done);
        let cancelled = End::Cut { reason: "cancelled".to_owned() };
        assert_eq!(end_of(r#"{"id":"resp_1","status":"cancelled"}"#), cancelled);
        assert_eq!(end_of("not json"), End::Done);
        assert_eq!(BodyWatch::new(&Lexicon::default()).end(), &End::Running);
    }
}
