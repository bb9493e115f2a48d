//! The conversation about one request, as a state machine: what Envoy says, in the order in which it says it, against what
//! must be replied. No I/O, no clock, no desk: whoever drives it takes the request to the desk when it is whole, and hands
//! the answer's pieces to whoever reads along.
//!
//! How bodies come decides the order. As they come (`FULL_DUPLEX_STREAMED`, which the endpoint-picker protocol demands):
//! nothing is replied before the request is whole, and then all at once, because the pod is named in the head. Whole
//! (`BUFFERED`): the head is replied to before the body comes, and the pod is named with the body. Piece by piece
//! (`STREAMED`) or not at all, the request is on its way before anybody has read its model: that is refused in words.

use bytes::{Bytes, BytesMut};

use super::wire::{
    BodyMutation, BodySendMode, CommonResponse, HeaderMutation, HttpBody, HttpHeaders, ImmediateResponse, Metadata,
    Mutation, PieceResponse, ProcessingRequest, ProcessingResponse, ProtocolConfiguration, Reply, Said, Struct,
    TrailersResponse,
};

/// The largest piece of a body in one reply, bytes: what the reference sends, below 64 KiB with its frame.
pub(super) const LARGEST_PIECE: usize = 62_000;

/// What is said, in this order.
pub(super) type Replies = Vec<ProcessingResponse>;

/// How bodies come where Envoy does not say it, and how much of one is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) request: BodySendMode,
    pub(super) response: BodySendMode,
    /// The largest request body.
    pub(super) body: u64,
    /// The largest head: its fields, and their names and values together.
    pub(super) head: (usize, u64),
}

/// What follows from a message.
#[derive(Debug)]
pub(super) enum Heard {
    /// This is replied; nothing, if more has to come first.
    Replies(Replies),
    /// All of a request: the desk decides, and [`Session::decided`] or [`Session::refused`] follows.
    Request(Box<Whole>),
    /// The answer's head: [`Session::head_read`] follows.
    AnswerHead(Box<(HttpHeaders, Noted)>),
    /// A piece of the answer: [`Session::piece_read`] follows.
    AnswerPiece(HttpBody),
    /// The answer's trailers: [`Session::trailers_read`] follows.
    AnswerTrailers,
    /// The request's body is too large.
    TooLarge,
    /// Its head is.
    HeadTooLarge,
    /// No pod can be chosen by what comes this way.
    Unreadable(BodySendMode),
    /// No Envoy says this.
    Broken(&'static str),
}

/// All of a request.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) head: HttpHeaders,
    pub(super) body: Bytes,
    pub(super) noted: Noted,
}

/// What was noted beside the headers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Noted {
    pub(super) metadata: Metadata,
    pub(super) attributes: std::collections::HashMap<String, Struct>,
}

impl Noted {
    /// Adds what a message notes. Gateways need not repeat with the body what they said with the head.
    fn add(&mut self, metadata: Metadata, attributes: std::collections::HashMap<String, Struct>) {
        self.metadata.filter_metadata.extend(metadata.filter_metadata);
        self.attributes.extend(attributes);
    }
}

/// What the desk decided.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) mutation: HeaderMutation,
    pub(super) metadata: Struct,
    /// The body that the pod shall read.
    pub(super) body: Bytes,
    /// Whether that is another than the client's.
    pub(super) changed: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing came yet.
    Start,
    /// A head came, and its body is awaited.
    Body,
    /// The desk decides.
    Asked,
    /// The request is on its way.
    Sent,
    /// Its answer comes.
    Answer,
    /// An answer comes that no pod of our choice has made.
    Foreign,
    /// All was said.
    Over,
}

/// One request's conversation.
#[derive(Debug)]
pub(super) struct Session {
    terms: Terms,
    stage: Stage,
    head: HttpHeaders,
    noted: Noted,
    first: Bytes,
    more: BytesMut,
    /// How the request comes: without a body, with trailers.
    bodiless: bool,
    trailers: bool,
}

impl Session {
    pub(super) fn new(terms: Terms) -> Self {
        Self {
            terms,
            stage: Stage::Start,
            head: HttpHeaders::default(),
            noted: Noted::default(),
            first: Bytes::new(),
            more: BytesMut::new(),
            bodiless: false,
            trailers: false,
        }
    }

    /// Bytes of a request's body that are held.
    pub(super) fn held(&self) -> usize {
        self.first.len() + self.more.len()
    }

    /// Whether nothing more is expected.
    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether answers' bodies do not come by here.
    pub(super) fn hides_answers(&self) -> bool {
        self.terms.response == BodySendMode::None
    }

    /// Whether this message ends a wait for the desk: an answer comes from somewhere else.
    pub(super) fn overtakes(message: &ProcessingRequest) -> bool {
        !matches!(message.said, Some(Said::RequestTrailers(_)) | None)
    }

    /// One message of Envoy's.
    pub(super) fn hear(&mut self, message: ProcessingRequest) -> Heard {
        if self.stage == Stage::Over {
            return Heard::Replies(Replies::new());
        }
        if message.observability_mode {
            return Heard::Broken("in observability mode nobody waits for the pod that would be chosen");
        }
        if let Some(told) = message.protocol_config.filter(|_| self.stage == Stage::Start) {
            self.follow(told);
        }
        self.noted.add(message.metadata_context.unwrap_or_default(), message.attributes);
        // What we do not know is skipped, as the rest of such messages is.
        let Some(said) = message.said else { return Heard::Replies(Replies::new()) };
        match (said, self.stage) {
            (Said::RequestHeaders(head), Stage::Start) => self.begin(head),
            (Said::RequestHeaders(_), _) => Heard::Broken("a request has one head"),
            (Said::RequestBody(piece), Stage::Body) => self.body(piece),
            (Said::RequestTrailers(_), Stage::Body) => self.end_with_trailers(),
            (Said::RequestTrailers(_), Stage::Asked) if !self.trailers => {
                self.trailers = true;
                Heard::Replies(Replies::new())
            }
            (Said::RequestTrailers(_), Stage::Sent | Stage::Foreign) => {
                Heard::Replies(Replies::from_iter([plain(Reply::RequestTrailers)]))
            }
            (Said::RequestBody(piece), Stage::Foreign) => {
                Heard::Replies(echo(piece, self.terms.request, Reply::RequestBody))
            }
            (Said::RequestBody(_) | Said::RequestTrailers(_), _) => Heard::Broken("the request was over"),
            (said, _) => self.answer(said),
        }
    }

    fn follow(&mut self, told: ProtocolConfiguration) {
        self.terms.request = BodySendMode::try_from(told.request_body_mode).unwrap_or(self.terms.request);
        self.terms.response = BodySendMode::try_from(told.response_body_mode).unwrap_or(self.terms.response);
    }

    fn begin(&mut self, head: HttpHeaders) -> Heard {
        self.bodiless = head.end_of_stream;
        self.stage = Stage::Body;
        let fields = head.headers.as_ref().map(|it| it.headers.as_slice()).unwrap_or_default();
        let bytes: usize = fields.iter().map(|field| field.key.len() + field.bytes().len()).sum();
        if fields.len() > self.terms.head.0 || bytes as u64 > self.terms.head.1 {
            return Heard::HeadTooLarge;
        }
        self.head = head;
        if self.bodiless {
            return self.whole();
        }
        match self.terms.request {
            BodySendMode::FullDuplexStreamed => Heard::Replies(Replies::new()),
            BodySendMode::Buffered | BodySendMode::BufferedPartial => {
                Heard::Replies(Replies::from_iter([reply(Reply::RequestHeaders(PieceResponse::default()))]))
            }
            mode => Heard::Unreadable(mode),
        }
    }

    fn body(&mut self, piece: HttpBody) -> Heard {
        if (self.held() + piece.body.len()) as u64 > self.terms.body {
            return Heard::TooLarge;
        }
        // Most bodies come in one piece, with or before an empty end.
        if self.held() == 0 {
            self.first = piece.body;
        } else if !piece.body.is_empty() {
            if self.more.is_empty() {
                self.more.extend_from_slice(&std::mem::take(&mut self.first));
            }
            self.more.extend_from_slice(&piece.body);
        }
        match self.terms.request {
            // The one message has all of it, whatever follows.
            BodySendMode::Buffered => self.whole(),
            // More than Envoy holds: the rest would go by unread.
            BodySendMode::BufferedPartial if !piece.end_of_stream => Heard::TooLarge,
            _ if piece.end_of_stream => self.whole(),
            _ => Heard::Replies(Replies::new()),
        }
    }

    fn end_with_trailers(&mut self) -> Heard {
        self.trailers = true;
        if self.terms.request == BodySendMode::FullDuplexStreamed {
            return self.whole();
        }
        Heard::Broken("the body comes before the trailers")
    }

    fn whole(&mut self) -> Heard {
        self.stage = Stage::Asked;
        let body = if self.more.is_empty() { std::mem::take(&mut self.first) } else { self.more.split().freeze() };
        let (head, noted) = (std::mem::take(&mut self.head), std::mem::take(&mut self.noted));
        Heard::Request(Box::new(Whole { head, body, noted }))
    }

    /// The desk has chosen.
    pub(super) fn decided(&mut self, decided: Decided) -> Replies {
        self.stage = Stage::Sent;
        let Decided { mutation, metadata, body, changed } = decided;
        let mut common =
            CommonResponse { header_mutation: Some(mutation), clear_route_cache: true, body_mutation: None };
        let mut replies = Replies::new();
        let duplex = self.terms.request == BodySendMode::FullDuplexStreamed;
        if self.bodiless || duplex {
            let head = PieceResponse { response: Some(common) };
            replies.push(reply(Reply::RequestHeaders(head)));
            if !self.bodiless {
                stream(body, !self.trailers, Reply::RequestBody, &mut replies);
            }
        } else {
            common.body_mutation = changed.then(|| becomes(body));
            replies.push(reply(Reply::RequestBody(PieceResponse { response: Some(common) })));
        }
        if let Some(first) = replies.first_mut() {
            first.dynamic_metadata = Some(metadata);
        }
        if self.trailers {
            replies.push(plain(Reply::RequestTrailers));
        }
        replies
    }

    /// The client gets an answer of our own, and that is all.
    pub(super) fn refused(&mut self, answer: ImmediateResponse) -> Replies {
        self.stage = Stage::Over;
        self.first = Bytes::new();
        self.more = BytesMut::new();
        Replies::from_iter([reply(Reply::Immediate(answer))])
    }

    /// The conversation ends here, whatever follows.
    pub(super) fn leave(&mut self) {
        self.stage = Stage::Over;
    }

    fn answer(&mut self, said: Said) -> Heard {
        match said {
            Said::ResponseHeaders(head) if self.stage == Stage::Sent => {
                self.stage = Stage::Answer;
                Heard::AnswerHead(Box::new((head, std::mem::take(&mut self.noted))))
            }
            Said::ResponseBody(piece) if self.stage == Stage::Answer => Heard::AnswerPiece(piece),
            Said::ResponseTrailers(_) if self.stage == Stage::Answer => Heard::AnswerTrailers,
            said => {
                self.stage = Stage::Foreign;
                Heard::Replies(match said {
                    Said::ResponseBody(piece) => echo(piece, self.terms.response, Reply::ResponseBody),
                    Said::ResponseTrailers(_) => Replies::from_iter([plain(Reply::ResponseTrailers)]),
                    _ => Replies::from_iter([reply(Reply::ResponseHeaders(PieceResponse::default()))]),
                })
            }
        }
    }

    /// The answer's head was read; `mutation` is what changes in it.
    pub(super) fn head_read(mutation: Option<HeaderMutation>) -> Replies {
        let common =
            mutation.map(|mutation| CommonResponse { header_mutation: Some(mutation), ..CommonResponse::default() });
        Replies::from_iter([reply(Reply::ResponseHeaders(PieceResponse { response: common }))])
    }

    /// A piece was read, and this is what goes on; `None` if it does unchanged.
    pub(super) fn piece_read(&mut self, piece: HttpBody, edited: Option<Bytes>) -> Replies {
        let HttpBody { body, end_of_stream } = piece;
        let mut replies = Replies::new();
        if self.terms.response == BodySendMode::FullDuplexStreamed {
            stream(edited.unwrap_or(body), end_of_stream, Reply::ResponseBody, &mut replies);
        } else {
            let common = edited
                .map(|edited| CommonResponse { body_mutation: Some(becomes(edited)), ..CommonResponse::default() });
            replies.push(reply(Reply::ResponseBody(PieceResponse { response: common })));
        }
        replies
    }

    /// The trailers were read; `rest` is what of the body was held back.
    pub(super) fn trailers_read(&mut self, rest: Bytes) -> Replies {
        let mut replies = Replies::new();
        if self.terms.response == BodySendMode::FullDuplexStreamed && !rest.is_empty() {
            stream(rest, false, Reply::ResponseBody, &mut replies);
        }
        replies.push(plain(Reply::ResponseTrailers));
        replies
    }
}

fn reply(reply: Reply) -> ProcessingResponse {
    ProcessingResponse { reply: Some(reply), dynamic_metadata: None }
}

/// Trailers as they are.
fn plain(to: fn(TrailersResponse) -> Reply) -> ProcessingResponse {
    reply(to(TrailersResponse::default()))
}

/// A piece as it is.
fn echo(piece: HttpBody, mode: BodySendMode, to: fn(PieceResponse) -> Reply) -> Replies {
    let mut replies = Replies::new();
    if mode == BodySendMode::FullDuplexStreamed {
        stream(piece.body, piece.end_of_stream, to, &mut replies);
    } else {
        replies.push(reply(to(PieceResponse::default())));
    }
    replies
}

/// `body` in pieces that fit; an end needs one even if it is empty.
fn stream(mut body: Bytes, end: bool, to: fn(PieceResponse) -> Reply, replies: &mut Replies) {
    while !body.is_empty() || end {
        let piece = body.split_to(body.len().min(LARGEST_PIECE));
        let last = body.is_empty();
        let streamed = HttpBody { body: piece, end_of_stream: end && last };
        let mutation = BodyMutation { mutation: Some(Mutation::Streamed(streamed)) };
        let common = CommonResponse { body_mutation: Some(mutation), ..CommonResponse::default() };
        replies.push(reply(to(PieceResponse { response: Some(common) })));
        if last {
            break;
        }
    }
}

fn becomes(body: Bytes) -> BodyMutation {
    let mutation = if body.is_empty() { Mutation::Clear(true) } else { Mutation::Body(body) };
    BodyMutation { mutation: Some(mutation) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::wire, *};

    fn terms(request: BodySendMode, response: BodySendMode) -> Terms {
        Terms { request, response, body: 1_000_000, head: (100, 10_000) }
    }

    fn say(said: Said) -> ProcessingRequest {
        ProcessingRequest { said: Some(said), ..ProcessingRequest::default() }
    }

    fn head(end_of_stream: bool) -> ProcessingRequest {
        say(Said::RequestHeaders(HttpHeaders { headers: None, end_of_stream }))
    }

    fn body(bytes: &[u8], end_of_stream: bool) -> ProcessingRequest {
        say(Said::RequestBody(HttpBody { body: Bytes::copy_from_slice(bytes), end_of_stream }))
    }

    fn trailers() -> ProcessingRequest {
        say(Said::RequestTrailers(wire::HttpTrailers::default()))
    }

    fn decided(body: Bytes, changed: bool) -> Decided {
        let metadata = Struct::of_text("k", "v".to_owned());
        Decided { mutation: HeaderMutation::default(), metadata, body, changed }
    }

    /// The kind of a reply, with an `!` where it is the last of a body, and how many bytes it passes on.
    fn told(replies: &[ProcessingResponse]) -> Vec<String> {
        let piece = |kind: &str, response: &PieceResponse| {
            let mutation = response.response.as_ref().and_then(|it| it.body_mutation.as_ref()?.mutation.clone());
            match mutation {
                None => kind.to_owned(),
                Some(Mutation::Body(body)) => format!("{kind}={}", body.len()),
                Some(Mutation::Clear(_)) => format!("{kind}=0"),
                Some(Mutation::Streamed(it)) => {
                    format!("{kind}+{}{}", it.body.len(), if it.end_of_stream { "!" } else { "" })
                }
            }
        };
        let one = |reply: &ProcessingResponse| match reply.reply.as_ref().unwrap() {
            Reply::RequestHeaders(_) => "head".to_owned(),
            Reply::ResponseHeaders(_) => "answer head".to_owned(),
            Reply::RequestBody(it) => piece("body", it),
            Reply::ResponseBody(it) => piece("answer", it),
            Reply::RequestTrailers(_) => "trailers".to_owned(),
            Reply::ResponseTrailers(_) => "answer trailers".to_owned(),
            Reply::Immediate(_) => "immediate".to_owned(),
        };
        replies.iter().map(one).collect()
    }

    fn replies(heard: Heard) -> Vec<String> {
        match heard {
            Heard::Replies(replies) => told(&replies),
            other => panic!("{other:?}"),
        }
    }

    fn whole(heard: Heard) -> Bytes {
        match heard {
            Heard::Request(whole) => whole.body,
            other => panic!("{other:?}"),
        }
    }

    const DUPLEX: BodySendMode = BodySendMode::FullDuplexStreamed;

    #[test]
    fn streamed_nothing_is_said_before_the_request_is_whole_and_then_everything_at_once() {
        let mut session = Session::new(terms(DUPLEX, DUPLEX));
        assert_eq!(replies(session.hear(head(false))), [""; 0]);
        assert_eq!(replies(session.hear(body(b"one ", false))), [""; 0]);
        assert_eq!(replies(session.hear(body(b"two", false))), [""; 0]);
        assert_eq!(whole(session.hear(body(b"", true))), "one two");
        let said = session.decided(decided(Bytes::from(vec![b'x'; 130_000]), true));
        assert_eq!(told(&said), ["head", "body+62000", "body+62000", "body+6000!"]);
        assert!(said[0].dynamic_metadata.is_some() && said[1].dynamic_metadata.is_none());
    }

    #[test]
    fn trailers_end_a_streamed_body_and_are_replied_to_behind_it() {
        let mut session = Session::new(terms(DUPLEX, DUPLEX));
        replies(session.hear(head(false)));
        replies(session.hear(body(b"abc", false)));
        assert_eq!(whole(session.hear(trailers())), "abc");
        assert_eq!(told(&session.decided(decided("abc".into(), false))), ["head", "body+3", "trailers"]);
    }

    #[test]
    fn buffered_the_head_is_replied_to_first_and_the_pod_is_named_with_the_body() {
        let mut session = Session::new(terms(DUPLEX, DUPLEX));
        let mut first = head(false);
        // What Envoy says of itself counts more than what we were told of it.
        first.protocol_config =
            Some(ProtocolConfiguration { request_body_mode: 2, response_body_mode: 2, ..Default::default() });
        assert_eq!(replies(session.hear(first)), ["head"]);
        assert_eq!(whole(session.hear(body(b"abc", true))), "abc");
        let mut same = Session::new(terms(BodySendMode::Buffered, DUPLEX));
        replies(same.hear(head(false)));
        whole(same.hear(body(b"abc", false)));
        assert_eq!(replies(same.hear(trailers())), [""; 0], "the desk has not decided yet");
        assert_eq!(told(&same.decided(decided("abc".into(), false))), ["body", "trailers"]);
        let said = session.decided(decided("abcd".into(), true));
        assert_eq!(told(&said), ["body=4"]);
        assert!(said[0].dynamic_metadata.is_some());
    }

    #[test]
    fn a_request_without_a_body_is_decided_by_its_head_however_bodies_come() {
        for mode in [DUPLEX, BodySendMode::Buffered, BodySendMode::Streamed, BodySendMode::None] {
            let mut session = Session::new(terms(mode, mode));
            assert_eq!(whole(session.hear(head(true))), "");
            assert_eq!(told(&session.decided(decided(Bytes::new(), false))), ["head"]);
        }
    }

    #[test]
    fn where_the_body_comes_too_late_the_filters_setting_is_named() {
        for mode in [BodySendMode::Streamed, BodySendMode::None, BodySendMode::Grpc] {
            let mut session = Session::new(terms(mode, DUPLEX));
            assert!(matches!(session.hear(head(false)), Heard::Unreadable(it) if it == mode));
        }
    }

    #[test]
    fn what_was_noted_with_the_head_holds_though_the_body_notes_something_else() {
        let noted = |mut message: ProcessingRequest, space: &str| {
            let metadata = message.metadata_context.get_or_insert_with(Metadata::default);
            metadata.filter_metadata.insert(space.to_owned(), Struct::of_text("key", "value".to_owned()));
            message
        };
        let mut session = Session::new(terms(DUPLEX, DUPLEX));
        replies(session.hear(noted(head(false), "envoy.lb.subset_hint")));
        let Heard::Request(whole) = session.hear(noted(body(b"x", true), "envoy.lb")) else { panic!("a request") };
        let spaces: std::collections::BTreeSet<_> = whole.noted.metadata.filter_metadata.into_keys().collect();
        assert_eq!(Vec::from_iter(spaces), ["envoy.lb", "envoy.lb.subset_hint"]);
    }

    #[test]
    fn a_head_of_too_many_fields_or_bytes_is_refused() {
        let head = |fields: usize, value: &str| {
            let headers = vec![wire::HeaderValue::new("name", value.to_owned()); fields];
            say(Said::RequestHeaders(HttpHeaders { headers: Some(wire::HeaderMap { headers }), end_of_stream: false }))
        };
        let said = |message| Session::new(Terms { head: (2, 20), ..terms(DUPLEX, DUPLEX) }).hear(message);
        assert!(matches!(said(head(2, "123456")), Heard::Replies(_)));
        assert!(matches!(said(head(3, "1")), Heard::HeadTooLarge));
        assert!(matches!(said(head(2, "1234567")), Heard::HeadTooLarge));
    }

    #[test]
    fn a_body_beyond_the_limit_is_refused_as_soon_as_it_is() {
        let mut session = Session::new(Terms { body: 5, ..terms(DUPLEX, DUPLEX) });
        replies(session.hear(head(false)));
        replies(session.hear(body(b"12345", false)));
        assert!(matches!(session.hear(body(b"6", false)), Heard::TooLarge));
        assert_eq!(told(&session.refused(ImmediateResponse::default())), ["immediate"]);
        assert!(session.is_over() && session.held() == 0);
        assert_eq!(replies(session.hear(body(b"7", true))), [""; 0]);
    }

    #[test]
    fn an_answer_that_comes_before_the_choice_is_passed_on() {
        let mut session = Session::new(terms(DUPLEX, DUPLEX));
        replies(session.hear(head(false)));
        let answer = say(Said::ResponseHeaders(HttpHeaders::default()));
        assert_eq!(replies(session.hear(answer)), ["answer head"]);
        let piece = HttpBody { body: "no".into(), end_of_stream: true };
        assert_eq!(replies(session.hear(say(Said::ResponseBody(piece)))), ["answer+2!"]);
    }

    #[test]
    fn an_edited_answer_goes_on_as_its_mode_wants_it() {
        let piece = || HttpBody { body: "abc".into(), end_of_stream: false };
        let mut streamed = Session::new(terms(DUPLEX, BodySendMode::Streamed));
        assert_eq!(told(&streamed.piece_read(piece(), None)), ["answer"]);
        assert_eq!(told(&streamed.piece_read(piece(), Some("ab".into()))), ["answer=2"]);
        assert_eq!(told(&streamed.piece_read(piece(), Some(Bytes::new()))), ["answer=0"]);
        let mut duplex = Session::new(terms(DUPLEX, DUPLEX));
        assert_eq!(told(&duplex.piece_read(piece(), None)), ["answer+3"]);
        assert_eq!(told(&duplex.piece_read(piece(), Some(Bytes::new()))), [""; 0], "held back");
        let last = HttpBody { body: Bytes::new(), end_of_stream: true };
        assert_eq!(told(&duplex.piece_read(last, None)), ["answer+0!"]);
        assert_eq!(told(&duplex.trailers_read("rest".into())), ["answer+4", "answer trailers"]);
    }

    fn any_message() -> impl Strategy<Value = ProcessingRequest> {
        let headers = any::<bool>().prop_map(|end_of_stream| HttpHeaders { headers: None, end_of_stream });
        let piece = (0_usize..70_000, any::<bool>())
            .prop_map(|(many, end_of_stream)| HttpBody { body: vec![b'x'; many].into(), end_of_stream });
        let said = prop_oneof![
            headers.clone().prop_map(Said::RequestHeaders),
            headers.prop_map(Said::ResponseHeaders),
            piece.clone().prop_map(Said::RequestBody),
            piece.prop_map(Said::ResponseBody),
            Just(Said::RequestTrailers(wire::HttpTrailers::default())),
            Just(Said::ResponseTrailers(wire::HttpTrailers::default())),
        ];
        let config = proptest::option::of((-1..7, -1..7).prop_map(|(request_body_mode, response_body_mode)| {
            ProtocolConfiguration { request_body_mode, response_body_mode, ..Default::default() }
        }));
        (proptest::option::weighted(0.95, said), config, proptest::bool::weighted(0.02)).prop_map(
            |(said, protocol_config, observability_mode)| ProcessingRequest {
                said,
                observability_mode,
                protocol_config,
                ..ProcessingRequest::default()
            },
        )
    }

    proptest! {
        #[test]
        fn any_order_of_messages_is_replied_to_in_order_and_decided_at_most_once(
            messages in proptest::collection::vec(any_message(), 0..30),
            refuse: bool,
        ) {
            let mut session = Session::new(terms(DUPLEX, DUPLEX));
            let (mut said, mut verdicts) = (Vec::new(), 0);
            for message in messages {
                let kind = message.said.clone();
                let replies = match session.hear(message) {
                    Heard::Replies(replies) => replies,
                    Heard::Request(whole) => {
                        verdicts += 1;
                        if refuse {
                            session.refused(ImmediateResponse::default())
                        } else {
                            session.decided(decided(whole.body, false))
                        }
                    }
                    Heard::AnswerHead(_) => Session::head_read(None),
                    Heard::AnswerPiece(piece) => session.piece_read(piece, None),
                    Heard::AnswerTrailers => session.trailers_read(Bytes::new()),
                    Heard::TooLarge | Heard::HeadTooLarge | Heard::Unreadable(_) => session.refused(ImmediateResponse::default()),
                    Heard::Broken(_) => break,
                };
                // An answer's pieces are replied to as they come, one for one or as many as it takes.
                if let Some(Said::ResponseHeaders(_) | Said::ResponseTrailers(_)) = kind
                    && !session.is_over()
                {
                    prop_assert_eq!(replies.len(), 1);
                }
                said.extend(told(&replies));
            }
            prop_assert!(verdicts <= 1);
            let heads = said.iter().filter(|it| *it == "head").count();
            let immediates = said.iter().position(|it| it == "immediate");
            prop_assert!(heads <= 1, "{said:?}");
            prop_assert!(immediates.is_none_or(|at| at + 1 == said.len()), "{said:?}");
            let first_body = said.iter().position(|it| it.starts_with("body"));
            let head = said.iter().position(|it| it == "head");
            if let (Some(body), Some(head)) = (first_body, head) {
                prop_assert!(head < body, "{said:?}");
            }
        }
    }
}
