//! Puts the client's name for the model back into what a pod answers, while it passes.
//!
//! Only the JSON field is touched: `model` at the top of a whole answer or of an event's data, and one level down in
//! the `response` or `message` that a typed event carries. Text that a model wrote is inside strings and deeper, so
//! it is never touched. Nothing is held back, in any chunking: the old value is dropped byte by byte and the new one
//! written where it began.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
use smallvec::SmallVec;

use super::splice::quoted;

/// The fields whose object may hold the model's name in a typed event.
const CARRIERS: [&[u8]; 2] = [b"response", b"message"];

/// Longest key that is told apart from others, in bytes: the longest that matters is `response`.
const KEPT_KEY: usize = 8;

/// How an answer is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// One JSON value.
    Whole,
    /// Server-sent events with JSON in their data.
    Events,
}

/// Renames the model in one answer.
#[derive(Debug)]
pub struct ModelRenamer {
    name: Vec<u8>,
    framing: Framing,
    line: Line,
    json: Json,
}

/// Where we are in a line of an event stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// So many bytes of `data:` have come.
    Prefix(usize),
    Data,
    Other,
    /// Behind a CR, to which a LF may still belong.
    AfterCr,
}

impl ModelRenamer {
    /// How many bytes of an answer it holds back at most.
    pub const HELD_BACK: usize = 0;

    /// A renamer for an answer so framed, which shall carry `client_name`.
    pub fn new(client_name: &str, framing: Framing) -> Self {
        Self { name: quoted(client_name).into_bytes(), framing, line: Line::Prefix(0), json: Json::new(framing) }
    }

    /// Takes the next bytes and gives what to send for them; the same `Bytes` if there is nothing to change.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let mut edits = Edits { chunk: &chunk, copied: 0, out: BytesMut::new(), name: &self.name };
        match self.framing {
            Framing::Whole => self.json.feed(0..chunk.len(), &mut edits),
            Framing::Events => feed_lines(&mut self.line, &mut self.json, &mut edits),
        }
        if edits.copied == 0 && edits.out.is_empty() {
            return chunk;
        }
        edits.keep_until(chunk.len());
        edits.out.freeze()
    }

    /// The answer is over: what was held back, which is nothing.
    pub fn finish(&mut self) -> Bytes {
        Bytes::new()
    }
}

/// What is sent instead of one chunk.
struct Edits<'a> {
    chunk: &'a [u8],
    /// How much of the chunk is dealt with.
    copied: usize,
    out: BytesMut,
    name: &'a [u8],
}

impl Edits<'_> {
    fn keep_until(&mut self, at: usize) {
        self.out.extend_from_slice(self.chunk.get(self.copied..at).unwrap_or_default());
        self.copied = at;
    }

    fn drop_until(&mut self, at: usize) {
        self.copied = at;
    }

    fn write_name(&mut self) {
        self.out.extend_from_slice(self.name);
    }
}

/// Hands the data of each line to `json`, which begins anew behind an empty line.
fn feed_lines(line: &mut Line, json: &mut Json, edits: &mut Edits<'_>) {
    const FIELD: &[u8] = b"data:";
    let chunk = edits.chunk;
    let mut at = 0;
    while let Some(byte) = chunk.get(at).copied() {
        match (*line, byte) {
            (Line::AfterCr, _) => {
                *line = Line::Prefix(0);
                at += usize::from(byte == b'\n');
            }
            (_, b'\n' | b'\r') => {
                if *line == Line::Prefix(0) {
                    json.begin();
                }
                *line = if byte == b'\r' { Line::AfterCr } else { Line::Prefix(0) };
                at += 1;
            }
            (Line::Prefix(matched), _) if FIELD.get(matched) == Some(&byte) => {
                *line = if matched + 1 == FIELD.len() { Line::Data } else { Line::Prefix(matched + 1) };
                at += 1;
            }
            (Line::Prefix(_), _) => *line = Line::Other,
            (Line::Data | Line::Other, _) => {
                let rest = chunk.get(at..).unwrap_or_default();
                let end = memchr2(b'\n', b'\r', rest).map_or(chunk.len(), |length| at + length);
                if *line == Line::Data {
                    json.feed(at..end, edits);
                }
                at = end;
            }
        }
    }
}

/// Walks one JSON value as it comes and replaces the model's name in it. It follows well-formed JSON; of anything
/// else it may make nothing, but never holds or loses more than one string.
#[derive(Debug)]
struct Json {
    framing: Framing,
    depth: u32,
    /// Whether the object at depth two may hold the name.
    carrier: bool,
    /// Whether the next string of a watched object is a key.
    expects_key: bool,
    key: SmallVec<[u8; 16]>,
    place: Place,
    escaped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Between,
    Key,
    Text,
    OldName,
    /// The name was replaced or there is none: the rest passes unseen.
    Done,
}

impl Json {
    fn new(framing: Framing) -> Self {
        Self {
            framing,
            depth: 0,
            carrier: false,
            expects_key: false,
            key: SmallVec::new(),
            place: Place::Between,
            escaped: false,
        }
    }

    fn begin(&mut self) {
        (self.depth, self.carrier, self.expects_key) = (0, false, false);
        (self.place, self.escaped) = (Place::Between, false);
        self.key.clear();
    }

    fn feed(&mut self, range: Range<usize>, edits: &mut Edits<'_>) {
        let mut at = range.start;
        while at < range.end && self.place != Place::Done {
            at = if self.place == Place::Between { self.between(at, edits) } else { self.string(at..range.end, edits) };
        }
    }

    /// One byte outside strings.
    fn between(&mut self, at: usize, edits: &mut Edits<'_>) -> usize {
        let watched = self.depth == 1 || (self.depth == 2 && self.carrier);
        match edits.chunk.get(at) {
            Some(b'"') if watched && self.expects_key => {
                self.key.clear();
                self.place = Place::Key;
            }
            Some(b'"') if watched && *self.key == *b"model" => {
                edits.keep_until(at);
                edits.write_name();
                edits.drop_until(at + 1);
                self.place = Place::OldName;
            }
            Some(b'"') => self.place = Place::Text,
            Some(b'{') => self.open(watched),
            Some(b'[') => {
                self.depth = self.depth.saturating_add(1);
                self.done_if(self.depth == 1);
            }
            Some(b'}' | b']') => self.close(),
            Some(b':') if watched => self.expects_key = false,
            Some(b',') if watched => {
                self.expects_key = true;
                self.key.clear();
            }
            _ => (),
        }
        at + 1
    }

    fn open(&mut self, watched: bool) {
        if self.depth == 0 {
            self.expects_key = true;
        } else if self.depth == 1 {
            self.carrier = self.framing == Framing::Events && watched && CARRIERS.contains(&self.key.as_slice());
            self.expects_key = self.carrier;
        }
        self.depth = self.depth.saturating_add(1);
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        if self.depth == 1 {
            self.carrier = false;
            self.expects_key = false;
            self.key.clear();
        }
        self.done_if(self.depth == 0);
    }

    fn done_if(&mut self, over: bool) {
        if over {
            self.place = Place::Done;
        }
    }

    /// The rest of a string, or as much of it as is here.
    fn string(&mut self, range: Range<usize>, edits: &mut Edits<'_>) -> usize {
        if std::mem::take(&mut self.escaped) {
            return self.pass(range.start..range.start + 1, edits);
        }
        let rest = edits.chunk.get(range.clone()).unwrap_or_default();
        let Some(length) = memchr2(b'"', b'\\', rest) else {
            return self.pass(range, edits);
        };
        let end = range.start + length;
        if rest.get(length) == Some(&b'\\') {
            self.escaped = true;
            return self.pass(range.start..end + 1, edits);
        }
        self.pass(range.start..end, edits);
        self.place = if self.place == Place::OldName {
            edits.drop_until(end + 1);
            Place::Done
        } else {
            Place::Between
        };
        end + 1
    }

    /// Bytes of the string that we are in.
    fn pass(&mut self, range: Range<usize>, edits: &mut Edits<'_>) -> usize {
        match self.place {
            Place::OldName => edits.drop_until(range.end),
            Place::Key => {
                let text = edits.chunk.get(range.clone()).unwrap_or_default();
                let room = (KEPT_KEY + 1).saturating_sub(self.key.len());
                self.key.extend(text.iter().copied().take(room));
            }
            Place::Between | Place::Text | Place::Done => (),
        }
        range.end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::openai::pieces;

    fn renamed(framing: Framing, chunks: Vec<Bytes>) -> String {
        let mut renamer = ModelRenamer::new("my \"m\"", framing);
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend_from_slice(&renamer.push(chunk));
        }
        out.extend_from_slice(&renamer.finish());
        String::from_utf8(out).unwrap()
    }

    fn whole(body: &'static str) -> String {
        renamed(Framing::Whole, vec![Bytes::from(body)])
    }

    fn events(body: &'static str) -> String {
        renamed(Framing::Events, vec![Bytes::from(body)])
    }

    const CHAT: &str = concat!(
        ": keep-alive\n\n",
        "data: {\"id\":\"c\",\"model\":\"ser\\\"ved\\\\\",\"choices\":[{\"delta\":{\"content\":\"\\\"model\\\":\\\"x\\\"\"}}]}\n\n",
        "data: {\"choices\":[{\"model\":\"deep\",\"x\":[{\"model\":\"deeper\"}]}], \"model\" : \"served\" }\r\n\r\n",
        "event: response.created\rdata: {\"response\":{\"id\":\"r\",\"tools\":{\"model\":\"t\"},\"model\":\"served\"}}\r\r",
        "event: message_start\ndata:{\"message\":\ndata:{\"model\":\"served\",\"usage\":{}}}\n\n",
        "data: {\"note\":{\"model\":\"other\"},\"model\":null,\"models\":\"no\"}\n\n",
        "model: \"model\":\"x\"\ndata: [DONE]\n\n",
    );

    #[test]
    fn a_whole_answer_gets_the_clients_name_at_its_top_only() {
        let body = r#"{"id":"1","choices":[{"model":"a","text":"{\"model\":\"b\"}"}],"model":"served","usage":{}}"#;
        assert_eq!(whole(body), body.replace(r#""served""#, r#""my \"m\"""#));
        let nested = r#"{"response":{"model":"kept"},"message":{"model":"kept"}}"#;
        assert_eq!(whole(nested), nested);
    }

    #[test]
    fn what_has_no_name_passes_as_it_is() {
        for body in
            [r#"{"error":{"message":"m","model":"x"}}"#, r#"["model","model"]"#, r#""model""#, "", "oops", "{{{"]
        {
            let chunk = Bytes::from(body);
            let sent = ModelRenamer::new("m", Framing::Whole).push(chunk.clone());
            assert_eq!(sent.as_ptr(), chunk.as_ptr(), "{body} was copied");
            assert_eq!(sent, chunk);
        }
    }

    #[test]
    fn events_get_the_clients_name_where_their_dialect_has_it() {
        let expected = CHAT
            .replace(r#""model":"ser\"ved\\""#, r#""model":"my \"m\"""#)
            .replace(r#""model" : "served""#, r#""model" : "my \"m\"""#)
            .replace(r#""model":"served""#, r#""model":"my \"m\"""#);
        assert_eq!(events(CHAT), expected);
        assert_eq!(expected.matches("my ").count(), 4);
    }

    #[test]
    fn an_answer_that_breaks_off_inside_the_name_is_sent_as_far_as_it_came() {
        assert_eq!(events("data: {\"model\":\"serv"), "data: {\"model\":\"my \\\"m\\\"\"");
    }

    proptest! {
        #[test]
        fn chunking_makes_no_difference(cuts in pieces::cuts()) {
            prop_assert_eq!(renamed(Framing::Events, pieces::cut(CHAT.as_bytes(), &cuts)), events(CHAT));
        }

        #[test]
        fn noise_is_never_lengthened_by_more_than_names(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let sent = ModelRenamer::new("m", Framing::Events).push(Bytes::from(noise.clone()));
            prop_assert!(sent.len() <= noise.len() * 2);
        }
    }
}
