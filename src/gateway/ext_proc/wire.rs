//! Envoy's messages, as much of them as is read or said here: `envoy.service.ext_proc.v3` and what it is made of.
//!
//! Written by hand, because these twenty messages are all there is and their fields do not move; what we do not know is
//! skipped. Header names and values are bytes: Envoy passes on what clients send, and that need not be UTF-8.
//! The only place that knows protobuf. Public for tests and benches, which play Envoy.

use std::collections::HashMap;

use bytes::Bytes;

/// What Envoy says: one piece of a request or of its answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessingRequest {
    /// Which piece.
    #[prost(oneof = "Said", tags = "2, 3, 4, 5, 6, 7")]
    pub said: Option<Said>,
    /// What other filters and the balancer noted.
    #[prost(message, optional, tag = "8")]
    pub metadata_context: Option<Metadata>,
    /// What the filter was told to send of the request's attributes.
    #[prost(map = "string, message", tag = "9")]
    pub attributes: HashMap<String, Struct>,
    /// Whether nobody waits for a reply.
    #[prost(bool, tag = "10")]
    pub observability_mode: bool,
    /// How the filter is set; with a stream's first message, from filters that say it.
    #[prost(message, optional, tag = "11")]
    pub protocol_config: Option<ProtocolConfiguration>,
}

/// The pieces.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Said {
    /// A request's head.
    #[prost(message, tag = "2")]
    RequestHeaders(HttpHeaders),
    /// Its answer's.
    #[prost(message, tag = "3")]
    ResponseHeaders(HttpHeaders),
    /// A piece of its body, or all of it.
    #[prost(message, tag = "4")]
    RequestBody(HttpBody),
    /// Of its answer's.
    #[prost(message, tag = "5")]
    ResponseBody(HttpBody),
    /// What follows its body.
    #[prost(message, tag = "6")]
    RequestTrailers(HttpTrailers),
    /// What follows its answer's.
    #[prost(message, tag = "7")]
    ResponseTrailers(HttpTrailers),
}

/// A head.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HttpHeaders {
    /// The fields, pseudo headers among them.
    #[prost(message, optional, tag = "1")]
    pub headers: Option<HeaderMap>,
    /// Whether no body follows.
    #[prost(bool, tag = "3")]
    pub end_of_stream: bool,
}

/// A piece of a body.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HttpBody {
    /// The bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub body: Bytes,
    /// Whether it is the last, and no trailers follow.
    #[prost(bool, tag = "2")]
    pub end_of_stream: bool,
}

/// What follows a body.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HttpTrailers {
    /// The fields.
    #[prost(message, optional, tag = "1")]
    pub trailers: Option<HeaderMap>,
}

/// Header fields, in their order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderMap {
    /// Each.
    #[prost(message, repeated, tag = "1")]
    pub headers: Vec<HeaderValue>,
}

/// One header field. Its value is in one of the two.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderValue {
    /// Its name, in lower case.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Its value, from senders of before Envoy 1.30 and from tests.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
    /// Its value.
    #[prost(bytes = "bytes", tag = "3")]
    pub raw_value: Bytes,
}

/// What filters note, by their namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Metadata {
    /// Each namespace.
    #[prost(map = "string, message", tag = "1")]
    pub filter_metadata: HashMap<String, Struct>,
}

/// protobuf's own idea of a JSON object.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Struct {
    /// The members.
    #[prost(map = "string, message", tag = "1")]
    pub fields: HashMap<String, Value>,
}

/// protobuf's own idea of a JSON value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Value {
    /// Which.
    #[prost(oneof = "Kind", tags = "3, 5, 6")]
    pub kind: Option<Kind>,
}

/// The kinds of values that are looked at.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// Text.
    #[prost(string, tag = "3")]
    String(String),
    /// An object.
    #[prost(message, tag = "5")]
    Struct(Struct),
    /// A list.
    #[prost(message, tag = "6")]
    List(ListValue),
}

/// protobuf's own idea of a JSON array.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListValue {
    /// The items.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Value>,
}

/// How the filter is set.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ProtocolConfiguration {
    /// How requests' bodies come.
    #[prost(enumeration = "BodySendMode", tag = "1")]
    pub request_body_mode: i32,
    /// How answers' bodies come.
    #[prost(enumeration = "BodySendMode", tag = "2")]
    pub response_body_mode: i32,
    /// Whether a body comes although its head was not replied to.
    #[prost(bool, tag = "3")]
    pub send_body_without_waiting_for_header_response: bool,
}

/// How bodies come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum BodySendMode {
    /// Not at all.
    None = 0,
    /// Each piece is replied to, behind a head that was.
    Streamed = 1,
    /// Whole, behind a head that was replied to.
    Buffered = 2,
    /// As much as Envoy's buffer holds.
    BufferedPartial = 3,
    /// As they come, and what is replied is what goes on.
    FullDuplexStreamed = 4,
    /// Framed as gRPC messages.
    Grpc = 5,
}

impl BodySendMode {
    /// Its name in Envoy's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Streamed => "STREAMED",
            Self::Buffered => "BUFFERED",
            Self::BufferedPartial => "BUFFERED_PARTIAL",
            Self::FullDuplexStreamed => "FULL_DUPLEX_STREAMED",
            Self::Grpc => "GRPC",
        }
    }
}

/// What we reply.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessingResponse {
    /// To which piece, and what.
    #[prost(oneof = "Reply", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub reply: Option<Reply>,
    /// What the balancer and other filters shall know.
    #[prost(message, optional, tag = "8")]
    pub dynamic_metadata: Option<Struct>,
}

/// The replies.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Reply {
    /// To a request's head.
    #[prost(message, tag = "1")]
    RequestHeaders(PieceResponse),
    /// To an answer's.
    #[prost(message, tag = "2")]
    ResponseHeaders(PieceResponse),
    /// To a request's body, or a piece of it.
    #[prost(message, tag = "3")]
    RequestBody(PieceResponse),
    /// To an answer's.
    #[prost(message, tag = "4")]
    ResponseBody(PieceResponse),
    /// To a request's trailers.
    #[prost(message, tag = "5")]
    RequestTrailers(TrailersResponse),
    /// To an answer's.
    #[prost(message, tag = "6")]
    ResponseTrailers(TrailersResponse),
    /// An answer of our own.
    #[prost(message, tag = "7")]
    Immediate(ImmediateResponse),
}

/// To a head, or to a piece of a body.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PieceResponse {
    /// What changes.
    #[prost(message, optional, tag = "1")]
    pub response: Option<CommonResponse>,
}

/// To trailers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TrailersResponse {
    /// What changes.
    #[prost(message, optional, tag = "1")]
    pub header_mutation: Option<HeaderMutation>,
}

/// What changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CommonResponse {
    /// In the head.
    #[prost(message, optional, tag = "2")]
    pub header_mutation: Option<HeaderMutation>,
    /// In the body.
    #[prost(message, optional, tag = "3")]
    pub body_mutation: Option<BodyMutation>,
    /// Whether routes are to be looked up again with the new head.
    #[prost(bool, tag = "5")]
    pub clear_route_cache: bool,
}

/// An answer that the client gets from us instead of a pod's.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ImmediateResponse {
    /// Its status.
    #[prost(message, optional, tag = "1")]
    pub status: Option<HttpStatus>,
    /// Its head.
    #[prost(message, optional, tag = "2")]
    pub headers: Option<HeaderMutation>,
    /// Its body.
    #[prost(bytes = "bytes", tag = "3")]
    pub body: Bytes,
    /// What Envoy's log shall say.
    #[prost(string, tag = "5")]
    pub details: String,
}

/// A status.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HttpStatus {
    /// Its number.
    #[prost(int32, tag = "1")]
    pub code: i32,
}

/// What changes in a head.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderMutation {
    /// What is set.
    #[prost(message, repeated, tag = "1")]
    pub set_headers: Vec<HeaderValueOption>,
    /// What goes.
    #[prost(string, repeated, tag = "2")]
    pub remove_headers: Vec<String>,
}

/// A field that is set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HeaderValueOption {
    /// Name and value.
    #[prost(message, optional, tag = "1")]
    pub header: Option<HeaderValue>,
    /// What happens to fields of that name that are there: [`HeaderValueOption::OVERWRITE`].
    #[prost(int32, tag = "3")]
    pub append_action: i32,
}

impl HeaderValueOption {
    /// They go.
    pub const OVERWRITE: i32 = 2;
}

/// What changes in a body.
#[derive(Clone, PartialEq, prost::Message)]
pub struct BodyMutation {
    /// To what.
    #[prost(oneof = "Mutation", tags = "1, 2, 3")]
    pub mutation: Option<Mutation>,
}

/// What a body, or a piece of it, becomes.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Mutation {
    /// This.
    #[prost(bytes = "bytes", tag = "1")]
    Body(Bytes),
    /// Nothing.
    #[prost(bool, tag = "2")]
    Clear(bool),
    /// What goes on where bodies come as they come.
    #[prost(message, tag = "3")]
    Streamed(HttpBody),
}

/// `grpc.health.v1`: whose health is asked for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HealthCheckRequest {
    /// The service's name; empty for all of it.
    #[prost(string, tag = "1")]
    pub service: String,
}

/// `grpc.health.v1`: how it is.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct HealthCheckResponse {
    /// In a word.
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub status: i32,
}

/// `grpc.health.v1`: the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ServingStatus {
    /// Nobody said.
    Unknown = 0,
    /// It serves.
    Serving = 1,
    /// It does not.
    NotServing = 2,
    /// There is no such service; in streams only.
    ServiceUnknown = 3,
}

impl HeaderValue {
    /// A field as we set it.
    pub fn new(name: &'static str, value: impl Into<Bytes>) -> Self {
        Self { key: Bytes::from_static(name.as_bytes()), value: Bytes::new(), raw_value: value.into() }
    }

    /// Its value, wherever it is.
    pub fn bytes(&self) -> &Bytes {
        if self.raw_value.is_empty() { &self.value } else { &self.raw_value }
    }
}

impl Struct {
    /// The member of that name.
    pub fn get(&self, name: &str) -> Option<&Kind> {
        self.fields.get(name)?.kind.as_ref()
    }

    /// One member, whose value is text.
    pub fn of_text(name: &str, value: String) -> Self {
        Self::of(name, Kind::String(value))
    }

    /// One member.
    pub fn of(name: &str, kind: Kind) -> Self {
        Self { fields: HashMap::from([(name.to_owned(), Value { kind: Some(kind) })]) }
    }
}
