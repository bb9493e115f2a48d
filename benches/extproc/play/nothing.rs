//! A picker that does nothing: each message is replied to at once, bodies go back as they came, pods are named in turn.
//!
//! It reads no body and no answer, keeps no count and writes no log. TLS and gRPC are the same libraries as the gateway's.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, stream::BoxStream};
use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
};
use tidegate::{
    gateway::wire::{
        BodyMutation, CommonResponse, HeaderMutation, HeaderValue, HeaderValueOption, HttpBody, Mutation,
        PieceResponse, ProcessingRequest, ProcessingResponse, Reply, Said, TrailersResponse,
    },
    tasks::Tasks,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tonic::{Status, Streaming, server::Grpc};
use tonic_prost::ProstCodec;
use tower::Service;

const DESTINATION: &str = "x-gateway-destination-endpoint";

/// More than 500 conversations at once; the gateway allows 10,000 as well.
const CONVERSATIONS: u32 = 10_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    port: u16,
    /// Where pods are, `ip:port`
    #[arg(long, value_delimiter = ',')]
    pods: Vec<String>,
    /// Without TLS
    #[arg(long)]
    clear: bool,
}

/// The pods, and whose turn it is.
#[derive(Clone)]
struct Turns {
    pods: Arc<Vec<String>>,
    next: Arc<AtomicUsize>,
}

/// Serves until it is killed.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port)).await.with_context(|| args.port.to_string())?;
    let tls = if args.clear { None } else { Some(tls()?) };
    let turns = Turns { pods: Arc::new(args.pods), next: Arc::default() };
    let tasks = Tasks::new();
    println!("ready");
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (turns, tls) = (turns.clone(), tls.clone());
        tasks.spawn(async move {
            match tls {
                None => serve(stream, turns).await,
                Some(tls) => {
                    // Whoever does not speak TLS goes.
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, turns).await;
                    }
                }
            }
        });
    }
}

fn tls() -> anyhow::Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, turns: Turns) {
    let call = service_fn(move |request: Request<Incoming>| {
        let talk = Talk(turns.clone());
        async move {
            let codec = ProstCodec::<ProcessingResponse, ProcessingRequest>::default();
            Ok::<_, Infallible>(Grpc::new(codec).streaming(talk, request).await)
        }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let connection = builder.max_concurrent_streams(CONVERSATIONS).serve_connection(TokioIo::new(stream), call);
    // Whoever goes, goes.
    connection.await.ok();
}

/// One conversation.
struct Talk(Turns);

impl Service<tonic::Request<Streaming<ProcessingRequest>>> for Talk {
    type Response = tonic::Response<BoxStream<'static, Result<ProcessingResponse, Status>>>;
    type Error = Status;
    type Future = Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Status>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Streaming<ProcessingRequest>>) -> Self::Future {
        let turns = self.0.clone();
        let replies = request.into_inner().map(move |message| Ok(reply(message?, &turns)));
        ready(Ok(tonic::Response::new(replies.boxed())))
    }
}

fn reply(message: ProcessingRequest, turns: &Turns) -> ProcessingResponse {
    let reply = message.said.map(|said| match said {
        Said::RequestHeaders(_) => Reply::RequestHeaders(turns.to_a_pod()),
        Said::RequestBody(piece) => Reply::RequestBody(as_it_came(piece)),
        Said::RequestTrailers(_) => Reply::RequestTrailers(TrailersResponse::default()),
        Said::ResponseHeaders(_) => Reply::ResponseHeaders(PieceResponse::default()),
        Said::ResponseBody(piece) => Reply::ResponseBody(as_it_came(piece)),
        Said::ResponseTrailers(_) => Reply::ResponseTrailers(TrailersResponse::default()),
    });
    ProcessingResponse { reply, dynamic_metadata: None }
}

impl Turns {
    fn to_a_pod(&self) -> PieceResponse {
        let turn = self.next.fetch_add(1, Relaxed);
        let pod = self.pods.get(turn % self.pods.len().max(1)).cloned().unwrap_or_default();
        let header = Some(HeaderValue::new(DESTINATION, pod));
        let set = HeaderValueOption { header, append_action: HeaderValueOption::OVERWRITE };
        let mutation = HeaderMutation { set_headers: vec![set], remove_headers: Vec::new() };
        PieceResponse {
            response: Some(CommonResponse { header_mutation: Some(mutation), ..CommonResponse::default() }),
        }
    }
}

fn as_it_came(piece: HttpBody) -> PieceResponse {
    let mutation = BodyMutation { mutation: Some(Mutation::Streamed(piece)) };
    PieceResponse { response: Some(CommonResponse { body_mutation: Some(mutation), ..CommonResponse::default() }) }
}

#[cfg(test)]
mod tests {
    use tidegate::gateway::wire::HttpHeaders;

    use super::*;

    #[test]
    fn pods_are_named_in_turn_and_bodies_go_back_as_they_came() {
        let pods = Arc::new(vec!["1.1.1.1:1".to_owned(), "2.2.2.2:2".to_owned()]);
        let turns = Turns { pods, next: Arc::default() };
        let say = |said| reply(ProcessingRequest { said: Some(said), ..ProcessingRequest::default() }, &turns).reply;
        for pod in ["1.1.1.1:1", "2.2.2.2:2", "1.1.1.1:1"] {
            let Some(Reply::RequestHeaders(told)) = say(Said::RequestHeaders(HttpHeaders::default())) else {
                panic!("a head")
            };
            let set = &told.response.unwrap().header_mutation.unwrap().set_headers[0];
            assert_eq!(set.header.as_ref().unwrap().bytes(), pod);
        }
        let piece = HttpBody { body: "abc".into(), end_of_stream: true };
        let Some(Reply::ResponseBody(told)) = say(Said::ResponseBody(piece.clone())) else { panic!("a piece") };
        assert_eq!(told.response.unwrap().body_mutation.unwrap().mutation, Some(Mutation::Streamed(piece)));
    }
}
