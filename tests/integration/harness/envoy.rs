//! Envoy's part of the conversation with a picker, message by message, over real gRPC.

use std::{net::SocketAddr, sync::Arc};

use futures_util::stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate::{
    gateway::wire::{
        HeaderMap, HeaderValue, HealthCheckRequest, HealthCheckResponse, HttpBody, HttpHeaders, Kind, ListValue,
        Metadata, Mutation, ProcessingRequest, ProcessingResponse, Reply, Said, Struct, Value,
    },
    tasks::Tasks,
};
use tokio::{
    net::TcpStream,
    sync::{Mutex, mpsc},
};
use tonic::{Streaming, client::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::within;

const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

type Sender = hyper::client::conn::http2::SendRequest<tonic::body::Body>;

/// One connection of an Envoy's.
#[derive(Clone)]
pub(crate) struct Envoy {
    sender: Sender,
    to: SocketAddr,
    _tasks: Arc<Closing>,
}

struct Closing(Tasks);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// One conversation.
pub(crate) struct Talk {
    say: Option<mpsc::UnboundedSender<ProcessingRequest>>,
    hear: Streaming<ProcessingResponse>,
}

impl Envoy {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(to)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        let tasks = Tasks::new();
        tasks.spawn_until_stop(async { _ = connection.await });
        Self { sender, to, _tasks: Arc::new(Closing(tasks)) }
    }

    /// A conversation that has not begun.
    pub(crate) async fn talk(&self) -> Talk {
        let (say, said) = mpsc::unbounded_channel();
        let messages = stream::unfold(said, |mut said| async move { said.recv().await.map(|it| (it, said)) });
        let sender = Mutex::new(self.sender.clone());
        let sender = Arc::new(sender);
        let call = service_fn(move |request: http::Request<tonic::body::Body>| {
            let sender = Arc::clone(&sender);
            async move { sender.lock().await.send_request(request).await }
        });
        let origin = format!("http://{}", self.to).parse().unwrap();
        let mut grpc = Grpc::with_origin(call, origin);
        let codec = ProstCodec::<ProcessingRequest, ProcessingResponse>::default();
        let path = PROCESS.parse().unwrap();
        let begun = grpc.streaming(tonic::Request::new(messages), path, codec);
        let hear = within("a conversation", begun).await.unwrap().into_inner();
        Talk { say: Some(say), hear }
    }
}

impl Envoy {
    /// How `service` is, by its health's number; or that there is none.
    pub(crate) async fn health(&self, service: &str) -> Result<i32, tonic::Code> {
        let sender = Arc::new(Mutex::new(self.sender.clone()));
        let call = service_fn(move |request: http::Request<tonic::body::Body>| {
            let sender = Arc::clone(&sender);
            async move { sender.lock().await.send_request(request).await }
        });
        let mut grpc = Grpc::with_origin(call, format!("http://{}", self.to).parse().unwrap());
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let asked = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
        let told = grpc.unary(asked, "/grpc.health.v1.Health/Check".parse().unwrap(), codec).await;
        told.map(|told| told.into_inner().status).map_err(|status| status.code())
    }
}

impl Envoy {
    /// How `service` is, and how it becomes; until the other side has no more to say.
    pub(crate) async fn watch(&self, service: &str) -> Streaming<HealthCheckResponse> {
        let sender = Arc::new(Mutex::new(self.sender.clone()));
        let call = service_fn(move |request: http::Request<tonic::body::Body>| {
            let sender = Arc::clone(&sender);
            async move { sender.lock().await.send_request(request).await }
        });
        let mut grpc = Grpc::with_origin(call, format!("http://{}", self.to).parse().unwrap());
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let asked = tonic::Request::new(HealthCheckRequest { service: service.to_owned() });
        let path = "/grpc.health.v1.Health/Watch".parse().unwrap();
        within("a watch", grpc.server_streaming(asked, path, codec)).await.unwrap().into_inner()
    }
}

impl Talk {
    /// Why the conversation fails.
    pub(crate) async fn fails(&mut self) -> tonic::Code {
        within("a failure", self.hear.message()).await.unwrap_err().code()
    }

    pub(crate) fn say(&self, message: ProcessingRequest) {
        self.say.as_ref().unwrap().send(message).unwrap();
    }

    /// Nothing more will be said.
    pub(crate) fn done(&mut self) {
        self.say = None;
    }

    /// The next reply; `None` at the end.
    pub(crate) async fn hear(&mut self) -> Option<ProcessingResponse> {
        within("a reply", self.hear.message()).await.unwrap()
    }

    /// The replies to a whole request: to its head, and to its body as one.
    pub(crate) async fn choice(&mut self) -> Choice {
        let mut choice = Choice::default();
        let first = self.hear().await.unwrap();
        choice.metadata = first.dynamic_metadata.as_ref().and_then(endpoint);
        match first.reply.unwrap() {
            Reply::RequestHeaders(head) => choice.note(head.response),
            Reply::Immediate(answer) => {
                choice.status = answer.status.unwrap().code;
                choice.body = answer.body.to_vec();
                for set in answer.headers.unwrap_or_default().set_headers {
                    let field = set.header.unwrap();
                    choice.set.push((text(&field.key), text(field.bytes())));
                }
                return choice;
            }
            other => panic!("{other:?}"),
        }
        choice
    }

    /// The rest of a choice: the body's pieces up to their end.
    pub(crate) async fn body(&mut self) -> Vec<u8> {
        let mut whole = Vec::new();
        loop {
            let Some(Reply::RequestBody(body)) = self.hear().await.unwrap().reply else { panic!("no piece of a body") };
            let Some(Mutation::Streamed(piece)) = body.response.unwrap().body_mutation.unwrap().mutation else {
                panic!("no streamed piece")
            };
            assert!(piece.body.len() <= 62_000, "{}", piece.body.len());
            whole.extend_from_slice(&piece.body);
            if piece.end_of_stream {
                return whole;
            }
        }
    }
}

/// What a picker said of a request.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) set: Vec<(String, String)>,
    pub(crate) removed: Vec<String>,
    pub(crate) metadata: Option<String>,
    /// Of an answer of its own; else 0.
    pub(crate) status: i32,
    pub(crate) body: Vec<u8>,
}

impl Choice {
    fn note(&mut self, response: Option<tidegate::gateway::wire::CommonResponse>) {
        let mutation = response.unwrap_or_default().header_mutation.unwrap_or_default();
        for set in mutation.set_headers {
            assert_eq!(set.append_action, 2, "a field that is there is replaced");
            let field = set.header.unwrap();
            self.set.push((text(&field.key), text(field.bytes())));
        }
        self.removed = mutation.remove_headers;
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.set.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn pod(&self) -> &str {
        let pod = self.header("x-gateway-destination-endpoint").unwrap_or_else(|| panic!("no pod: {self:?}"));
        assert_eq!(self.metadata.as_deref(), Some(pod), "both say the same");
        pod
    }

    pub(crate) fn error(&self) -> serde_json::Value {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body["error"].clone()
    }
}

fn endpoint(metadata: &Struct) -> Option<String> {
    let Kind::Struct(balancer) = metadata.get("envoy.lb")? else { return None };
    match balancer.get("x-gateway-destination-endpoint")? {
        Kind::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn text(bytes: &bytes::Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn said(said: Said) -> ProcessingRequest {
    ProcessingRequest { said: Some(said), ..ProcessingRequest::default() }
}

/// A head; `value` and not `raw_value` is what older senders use, and tests of the reference.
pub(crate) fn head(fields: &[(&str, &str)], end_of_stream: bool) -> ProcessingRequest {
    let field = |(name, value): &(&str, &str)| HeaderValue {
        key: (*name).to_owned().into(),
        value: (*value).to_owned().into(),
        raw_value: bytes::Bytes::new(),
    };
    let headers = Some(HeaderMap { headers: fields.iter().map(field).collect() });
    said(Said::RequestHeaders(HttpHeaders { headers, end_of_stream }))
}

/// The head of a request for a chat.
pub(crate) fn chat_head() -> ProcessingRequest {
    head(&[(":method", "POST"), (":path", "/v1/chat/completions"), ("content-type", "application/json")], false)
}

pub(crate) fn body(bytes: impl Into<bytes::Bytes>, end_of_stream: bool) -> ProcessingRequest {
    said(Said::RequestBody(HttpBody { body: bytes.into(), end_of_stream }))
}

pub(crate) fn answer_head(status: &'static str, kind: &'static str, end_of_stream: bool) -> ProcessingRequest {
    let headers = vec![HeaderValue::new(":status", status), HeaderValue::new("content-type", kind)];
    said(Said::ResponseHeaders(HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream }))
}

pub(crate) fn answer_body(bytes: impl Into<bytes::Bytes>, end_of_stream: bool) -> ProcessingRequest {
    said(Said::ResponseBody(HttpBody { body: bytes.into(), end_of_stream }))
}

/// The same message, with only these pods to choose from.
pub(crate) fn among(mut message: ProcessingRequest, pods: &[&str]) -> ProcessingRequest {
    let values = pods.iter().map(|pod| Value { kind: Some(Kind::String((*pod).to_owned())) }).collect();
    noted(
        &mut message,
        "envoy.lb.subset_hint",
        "x-gateway-destination-endpoint-subset",
        Kind::List(ListValue { values }),
    );
    message
}

/// The same message, with the pod that answered.
pub(crate) fn served_by(mut message: ProcessingRequest, pod: &str) -> ProcessingRequest {
    noted(&mut message, "envoy.lb", "x-gateway-destination-endpoint-served", Kind::String(pod.to_owned()));
    message
}

/// The same message, of an answer that Envoy made itself.
pub(crate) fn envoys_own(mut message: ProcessingRequest, details: &str) -> ProcessingRequest {
    let told = Struct::of_text("response.code_details", details.to_owned());
    message.attributes.insert("envoy.filters.http.ext_proc".to_owned(), told);
    message
}

fn noted(message: &mut ProcessingRequest, space: &str, name: &str, kind: Kind) {
    let metadata = message.metadata_context.get_or_insert_with(Metadata::default);
    metadata.filter_metadata.insert(space.to_owned(), Struct::of(name, kind));
}
