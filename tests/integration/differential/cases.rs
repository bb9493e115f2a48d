//! Requests and answers as they are seen in the wild, and a little beyond: odd numbers, escapes, names and bytes, every
//! status, every framing, cut anywhere.

use std::fmt;

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::{changes::Row, wire::Field};

/// Paths with a model in their JSON, and one of the operator's own.
const PATHS: [&str; 11] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
    "/v1/audio/speech",
];

/// The operator's own path, open to any method.
pub(super) const EXTRA: &str = "/v1/extra";

/// Whatever is no model's name in its top level, numbers and strings above all that a careless reader would change.
const ODD: [&str; 22] = [
    "1e400",
    "-1E-400",
    "123456789012345678901234567890",
    "-0",
    "1.0",
    "0.10",
    "1E+2",
    "9007199254740993",
    "true",
    "null",
    "\"\"",
    r#""\u0000""#,
    r#""\u0041\/\b\f""#,
    r#""\ud83d\ude00 and 😀""#,
    r#""data: [DONE]\n\n""#,
    r#""\"model\":\"other\"""#,
    r#"{"a":1,"a":2}"#,
    r#"{"model":"inner","model":"twice"}"#,
    "[]",
    "{ }",
    "[ 1 ,\t2\n]",
    "\"ÿ é 漢\u{7f}\u{2028}\"",
];

/// A request.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) fields: Vec<Field>,
    pub(super) body: Option<Json>,
    /// Sent in chunks of these sizes, over and over; empty: with its length.
    chunks: Vec<usize>,
}

/// A JSON object around the value of its `model`.
#[derive(Clone, Debug)]
pub(super) struct Json {
    before: String,
    model: Option<&'static str>,
    after: String,
}

impl Json {
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.with_model(self.model)
    }

    /// As a pod shall have it: `served` stands for the model that it knows by another name.
    pub(super) fn served_as(&self, served: &'static str) -> Vec<u8> {
        self.with_model(self.model.map(|model| if model.ends_with("lias\"") { served } else { model }))
    }

    fn with_model(&self, model: Option<&str>) -> Vec<u8> {
        let model = model.map(|model| format!("\"model\":{model},")).unwrap_or_default();
        format!("{{{}{model}{}}}", self.before, self.after).into_bytes()
    }
}

impl Asked {
    /// Its bytes for this host.
    pub(super) fn wire(&self, host: &str) -> Vec<u8> {
        let mut wire = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.path).into_bytes();
        write_fields(&mut wire, &self.fields);
        let body = self.body.as_ref().map(Json::bytes).unwrap_or_default();
        if self.body.is_some() && !self.chunks.is_empty() {
            wire.extend(b"transfer-encoding: chunked\r\n\r\n");
            write_chunks(&mut wire, &body, &self.chunks);
            wire.extend(b"\r\n");
        } else if self.body.is_some() {
            wire.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
            wire.extend(body);
        } else {
            wire.extend(b"\r\n");
        }
        wire
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{}\n", legible(&self.wire("host")))
    }
}

/// An answer.
#[derive(Clone)]
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) fields: Vec<Field>,
    body: Vec<u8>,
    framing: Framing,
    trailers: Vec<Field>,
    /// Cut there on its way, in thousandths of the whole.
    cuts: Vec<usize>,
}

/// How an answer says where it ends.
#[derive(Clone, Debug)]
pub(super) enum Framing {
    Length,
    Chunks(Vec<usize>),
    Close,
}

impl Answered {
    pub(super) fn closes(&self) -> bool {
        matches!(self.framing, Framing::Close)
    }

    /// Its bytes, in the pieces in which they are written.
    pub(super) fn pieces(&self, method: &str) -> Vec<Vec<u8>> {
        let mut wire = format!("HTTP/1.1 {} Whatever\r\n", self.status).into_bytes();
        write_fields(&mut wire, &self.fields);
        let bodiless = method == "HEAD" || self.status == 204 || self.status == 304;
        match &self.framing {
            _ if self.status == 204 => wire.extend(b"\r\n"),
            Framing::Length => {
                wire.extend(format!("content-length: {}\r\n\r\n", self.body.len()).bytes());
                if !bodiless {
                    wire.extend(&self.body);
                }
            }
            Framing::Chunks(sizes) => {
                let names: Vec<_> =
                    self.trailers.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect();
                if !names.is_empty() && !bodiless {
                    wire.extend(format!("Trailer: {}\r\n", names.join(", ")).bytes());
                }
                wire.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                if !bodiless {
                    write_chunks(&mut wire, &self.body, sizes);
                    write_fields(&mut wire, &self.trailers);
                    wire.extend(b"\r\n");
                }
            }
            Framing::Close => {
                wire.extend(b"\r\n");
                if !bodiless {
                    wire.extend(&self.body);
                }
            }
        }
        let mut at: Vec<usize> = self.cuts.iter().map(|cut| wire.len() * cut / 1_000).collect();
        at.sort_unstable();
        let mut pieces = Vec::new();
        for cut in at.into_iter().rev() {
            pieces.push(wire.split_off(cut));
        }
        pieces.push(wire);
        pieces.reverse();
        pieces
    }
}

impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces = self.pieces("");
        write!(f, "\nin {} pieces:\n{}", pieces.len(), legible(&pieces.concat()))
    }
}

/// Bytes as a person can read them, cut short.
pub(super) fn legible(bytes: &[u8]) -> String {
    let shown = bytes.get(..1_000).unwrap_or(bytes);
    let lines = shown.escape_ascii().to_string().replace("\\r\\n", "\\r\\n\n");
    format!("{lines}\n({} bytes)", bytes.len())
}

fn write_fields(wire: &mut Vec<u8>, fields: &[Field]) {
    for (name, value) in fields {
        wire.extend(name);
        wire.extend(b": ");
        wire.extend(value);
        wire.extend(b"\r\n");
    }
}

/// All but the empty line after the trailers.
fn write_chunks(wire: &mut Vec<u8>, body: &[u8], sizes: &[usize]) {
    // Tiny chunks make their point long before a long body is over.
    let least = body.len() / 400 + 1;
    let (mut rest, mut sizes) = (body, sizes.iter().map(|size| size.max(&least)).cycle());
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
        wire.extend(format!("{:X}\r\n", chunk.len()).bytes());
        wire.extend(chunk);
        wire.extend(b"\r\n");
        rest = after;
    }
    wire.extend(b"0\r\n");
}

/// A request and its answer.
pub(super) fn case(request_rows: &[Row], answer_rows: &[Row]) -> impl Strategy<Value = (Asked, Answered)> + use<> {
    (asked(request_rows), answered(answer_rows))
}

fn asked(rows: &[Row]) -> impl Strategy<Value = Asked> + use<> {
    let query = option::weighted(0.3, "\\?[a-zA-Z0-9._~!$&'()*+,;=:@/?%-]{0,30}");
    let known = (Just("POST"), select(&PATHS[..]), json(true).prop_map(Some));
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
    let extra = (select(methods.to_vec()), Just(EXTRA), option::of(json(false)));
    let target = prop_oneof![4 => known.boxed(), 1 => extra.boxed()];
    let chunks = prop_oneof![2 => Just(Vec::new()), 1 => sizes()];
    (target, query, request_fields(rows), chunks).prop_map(|((method, path, body), query, fields, chunks)| Asked {
        method,
        path: format!("{path}{}", query.unwrap_or_default()),
        fields,
        // A body to GET or HEAD means nothing; what stands in the way of it is no matter of ours.
        body: body.filter(|_| method != "GET" && method != "HEAD"),
        chunks,
    })
}

fn json(with_model: bool) -> impl Strategy<Value = Json> {
    let keys =
        ["messages", "prompt", "input", "temperature", "vendor", "tools", "metadata", "x\\u0000", "é", "logit_bias"];
    let more = Just(keys.to_vec()).prop_shuffle();
    let pairs = (more, vec((value(), "[ \n\t]{0,2}"), 0..6)).prop_map(|(keys, values)| {
        let pairs = keys.into_iter().zip(values);
        pairs.map(|(key, (value, blank))| format!("{blank}\"{key}\"{blank}:{value}")).collect::<Vec<_>>()
    });
    let model = select(vec!["\"m\"", "\"\\u006d\"", "\"alias\"", "\"\\u0061lias\""]);
    let stream = select(vec!["", "\"stream\":true", "\"stream\": false", "\"stream\":true"]);
    (pairs, 0..6_usize, model, stream).prop_map(move |(mut pairs, at, model, stream)| {
        let after = pairs.split_off(at.min(pairs.len()));
        let before: String = pairs.iter().map(|pair| format!("{pair},")).collect();
        let after: Vec<String> = after.into_iter().chain((!stream.is_empty()).then(|| stream.to_owned())).collect();
        // Something must follow the comma after the model.
        let after = if after.is_empty() { "\"z\":0".to_owned() } else { after.join(",") };
        Json { before, model: with_model.then_some(model), after }
    })
}

/// Some JSON, as text.
fn value() -> impl Strategy<Value = String> {
    let plain = prop_oneof![
        3 => select(&ODD[..]).prop_map(str::to_owned),
        1 => "[^\"\\\\\\x00-\\x1f]{0,12}".prop_map(|text| format!("\"{text}\"")),
        // Longer than a read.
        1 => prop_oneof![9 => 1..2_000_usize, 1 => 1..40_000_usize].prop_map(|length| format!("\"{}\"", "tide ".repeat(length / 5))),
    ];
    plain.prop_recursive(2, 8, 4, |inner| {
        let pairs = vec(("[a-c]", inner.clone()), 0..4);
        let object = pairs.prop_map(|pairs| {
            let pairs: Vec<_> = pairs.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            format!("{{{}}}", pairs.join(","))
        });
        let array = vec(inner, 0..4).prop_map(|values| format!("[{}]", values.join(" ,")));
        prop_oneof![object, array]
    })
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![vec(1..4_usize, 1..4), vec(1..200_usize, 1..6), vec(1_000..70_000_usize, 1..3)]
}

/// A value: empty, plain, with blanks and tabs inside, or with bytes that are no ASCII.
fn field_value() -> impl Strategy<Value = Vec<u8>> {
    let visible = prop_oneof![8 => 0x21..0x7f_u8, 1 => 0x80..=0xff_u8];
    let inner = prop_oneof![8 => 0x21..0x7f_u8, 2 => Just(b' '), 1 => Just(b'\t'), 2 => 0x80..=0xff_u8];
    prop_oneof![
        1 => Just(Vec::new()),
        6 => (visible.clone(), vec(inner, 0..20), visible).prop_map(|(first, mut middle, last)| {
            middle.insert(0, first);
            middle.push(last);
            middle
        }),
    ]
}

/// A name written as few clients write it.
fn odd_case(name: &str, odd: bool) -> Vec<u8> {
    let upper = |(at, byte): (usize, u8)| if at % 2 == 0 { byte.to_ascii_uppercase() } else { byte };
    if odd { name.bytes().enumerate().map(upper).collect() } else { name.as_bytes().to_vec() }
}

/// Names that a table speaks of, those with `*` with some end.
fn names(rows: &[Row], without: &[&str]) -> Vec<String> {
    let names = rows.iter().map(|row| row.name.replace('*', "thing"));
    names.filter(|name| !without.contains(&name.as_str())).collect()
}

fn fields(mut pool: Vec<String>, passing: &[&str]) -> impl Strategy<Value = Vec<Field>> + use<> {
    // As many that pass as not.
    for nth in 0..pool.len().max(passing.len()) {
        pool.push(passing[nth % passing.len()].to_owned());
    }
    let field = (select(pool), any::<bool>(), field_value());
    vec(field.prop_map(|(name, odd, value)| (odd_case(&name, odd), value)), 0..14)
}

/// One field that is always the same.
fn fixed(name: &'static str, value: &'static str) -> Just<Field> {
    Just((name.as_bytes().to_vec(), value.as_bytes().to_vec()))
}

/// Requests' fields; those that mean something to HTTP itself come with values that they may have.
fn request_fields(rows: &[Row]) -> impl Strategy<Value = Vec<Field>> + use<> {
    let special = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "expect",
        "x-request-id",
        "x-tidegate-hops",
    ];
    let passing = [
        "user-agent",
        "accept",
        "traceparent",
        "x-custom",
        "cookie",
        "idempotency-key",
        "openai-organization",
        "anthropic-version",
        "x-stainless-retry-count",
        "!#$%&'*+-.^_`|~",
        "content-language",
        "content-type",
    ];
    let of_http = prop_oneof![
        fixed("TE", "trailers"),
        fixed("Expect", "100-continue"),
        fixed("Upgrade", "h2c"),
        fixed("X-Request-Id", "the-clients-own"),
        fixed("X-Tidegate-Hops", "4"),
        fixed("Connection", "keep-alive, X-Hop"),
        fixed("x-hop", "1"),
    ];
    (fields(names(rows, &special), &passing), vec(of_http, 0..3)).prop_map(|(mut fields, of_http)| {
        for field in of_http {
            let again = |(name, _): &Field| name.eq_ignore_ascii_case(&field.0);
            if !fields.iter().any(again) {
                fields.push(field);
            }
        }
        fields
    })
}

fn answered(rows: &[Row]) -> impl Strategy<Value = Answered> + use<> {
    let statuses = vec![
        200, 200, 200, 200, 201, 202, 204, 302, 304, 400, 401, 403, 404, 409, 413, 418, 422, 429, 500, 501, 502, 503,
        529,
    ];
    let trailers = prop_oneof![
        3 => Just(Vec::new()),
        1 => Just(vec![(b"x-cost".to_vec(), b"12".to_vec()), (b"x-sum".to_vec(), b"\xe9".to_vec())]),
    ];
    let framing = prop_oneof![
        3 => Just(Framing::Length),
        5 => sizes().prop_map(Framing::Chunks),
        1 => Just(Framing::Close),
    ];
    let said = prop_oneof![whole().boxed(), events().boxed()];
    let cuts = prop_oneof![2 => Just(Vec::new()), 2 => vec(0..1_000_usize, 1..6), 1 => vec(0..1_000_usize, 40..60)];
    (select(statuses), answer_fields(rows), said, framing, trailers, cuts).prop_map(
        |(status, mut fields, (kind, body), framing, trailers, cuts)| {
            fields.extend(kind.map(|kind| (b"Content-Type".to_vec(), kind.as_bytes().to_vec())));
            let kind = kind.map(str::to_ascii_lowercase).unwrap_or_default();
            let has_an_end = kind.starts_with("text/event-stream") || kind.starts_with("application/json");
            // A stream or JSON that comes without framing and without its own end is told of as broken, and rightly.
            let framing = if has_an_end && matches!(framing, Framing::Close) { Framing::Length } else { framing };
            Answered { status, fields, body, framing, trailers, cuts }
        },
    )
}

fn answer_fields(rows: &[Row]) -> impl Strategy<Value = Vec<Field>> + use<> {
    let special = ["content-length", "transfer-encoding", "connection", "upgrade", "date", "te"];
    let passing = [
        "x-ratelimit-remaining-tokens",
        "set-cookie",
        "x-custom",
        "etag",
        "retry-after",
        "openai-processing-ms",
        "x-should-retry",
        "location",
        "vary",
        "www-authenticate",
        "request-id",
        "!#$%&'*+-.^_`|~",
    ];
    let of_http = prop_oneof![
        fixed("Date", "Sat, 01 Jan 2000 00:00:00 GMT"),
        fixed("Connection", "close"),
        fixed("Connection", "X-Hop"),
        fixed("x-hop", "1"),
        fixed("Keep-Alive", "timeout=5"),
        fixed("Server", "uvicorn"),
    ];
    (fields(names(rows, &special), &passing), option::of(of_http)).prop_map(|(mut fields, of_http)| {
        fields.extend(of_http);
        fields
    })
}

type Said = (Option<&'static str>, Vec<u8>);

fn whole() -> impl Strategy<Value = Said> {
    let kinds = vec![Some("application/json"), Some("Application/JSON; charset=utf-8"), Some("audio/mpeg"), None];
    let body = prop_oneof![
        3 => value().prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..300),
        1 => prop_oneof![9 => 1..20_000_usize, 1 => 1..300_000_usize].prop_map(|length| vec![b'x'; length]),
    ];
    (select(kinds), body)
}

fn events() -> impl Strategy<Value = Said> {
    let kinds = vec![Some("text/event-stream"), Some("Text/Event-Stream; charset=utf-8")];
    let event = prop_oneof![
        4 => value().prop_map(|value| format!("data: {{\"choices\":[{{\"delta\":{{\"content\":{value}}}}}]}}\n\n")),
        1 => value().prop_map(|value| format!("event: message\r\nid: 7\r\ndata: {value}\r\n\r\n")),
        1 => Just(": keep-alive\n\n".to_owned()),
        1 => Just("data: {\"error\":{\"message\":\"x\",\"code\":500}}\n\n".to_owned()),
        1 => Just("data: one\ndata: two\n\n".to_owned()),
        1 => Just("data: [DONE]\n\n".to_owned()),
        1 => Just("\n\n\r\ndata:no blank\n".to_owned()),
    ];
    (select(kinds), vec(event, 0..8)).prop_map(|(kind, events)| (kind, events.concat().into_bytes()))
}
