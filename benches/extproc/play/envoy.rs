//! Envoy's part of many conversations over one connection, without Envoy: the messages that a real one was recorded
//! saying, and the next as soon as it was replied to.
//!
//! In clear text, because what TLS costs is known and the same for every picker.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, time::Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use serde_json::json;
use tidegate::{
    bench::Samples,
    clock,
    gateway::wire::{HeaderValue, HttpBody, Mutation, ProcessingRequest, ProcessingResponse, Reply, Said},
    tasks::Tasks,
};
use tokio::{net::TcpStream, sync::mpsc, task::LocalSet};
use tonic::{Status, Streaming, client::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/// What a real Envoy said of a chat, and of its answer.
const HEAD: &[u8] = include_bytes!("../../../tests/fixtures/ext_proc/chat-request-head.bin");
const BODY: &[u8] = include_bytes!("../../../tests/fixtures/ext_proc/chat-request-body.bin");
const END: &[u8] = include_bytes!("../../../tests/fixtures/ext_proc/chat-request-end.bin");
const ANSWER: &[u8] = include_bytes!("../../../tests/fixtures/ext_proc/chat-answer-head.bin");

/// The largest piece of a body that Envoy says at once: what it reads from a client at once.
const PIECE: usize = 16 << 10;

type Sender = hyper::client::conn::http2::SendRequest<tonic::body::Body>;

#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// The picker
    #[arg(long)]
    to: SocketAddr,
    /// How many in all
    #[arg(long, default_value_t = 1_000)]
    conversations: usize,
    /// How many at once
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// Length of each body, about
    #[arg(long, default_value_t = 2_048)]
    bytes: usize,
    /// Events of each answer; 0: an answer in one piece
    #[arg(long, default_value_t = 0)]
    events: usize,
}

/// What all conversations share.
struct Load {
    args: Args,
    sender: Sender,
    script: Script,
    felt: RefCell<Felt>,
}

#[derive(Default)]
struct Felt {
    begun: usize,
    done: usize,
    pieces: usize,
    failure: Option<String>,
    decided: Samples,
}

/// What is said in each conversation.
struct Script {
    head: ProcessingRequest,
    body: ProcessingRequest,
    end: ProcessingRequest,
    answer: ProcessingRequest,
    event: Bytes,
    half: String,
}

impl Script {
    fn new(args: &Args) -> anyhow::Result<Self> {
        const LINE: &str = "The gate keeps the harbour while ferries and cranes wait for the tide.\\n";
        let mut answer = recorded(ANSWER)?;
        if let Some(Said::ResponseHeaders(head)) = &mut answer.said
            && args.events > 0
        {
            let fields = &mut head.headers.get_or_insert_default().headers;
            fields.retain(|field| field.key != "content-type" && field.key != "content-length");
            fields.push(HeaderValue::new("content-type", "text/event-stream; charset=utf-8"));
        }
        let event = match args.events {
            0 => {
                r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"The gate rises with the tide."},"finish_reason":"stop"}],"usage":{"prompt_tokens":250,"completion_tokens":8,"total_tokens":258}}"#
            }
            _ => {
                "data: {\"id\":\"chatcmpl-00000000000000000001\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" tide\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n"
            }
        };
        Ok(Self {
            head: recorded(HEAD)?,
            body: recorded(BODY)?,
            end: recorded(END)?,
            answer,
            event: Bytes::from_static(event.as_bytes()),
            half: LINE.repeat(args.bytes / 2 / LINE.len()),
        })
    }

    /// The request's body: its first half is the same for all.
    fn asked(&self, nth: usize, stream: bool) -> Bytes {
        let half = &self.half;
        format!(
            r#"{{"model":"tiny","stream":{stream},"max_tokens":8,"messages":[{{"role":"user","content":"{half}{nth:016}{half}"}}]}}"#
        )
        .into()
    }

    fn piece(&self, of: fn(HttpBody) -> Said, body: Bytes, end_of_stream: bool) -> ProcessingRequest {
        ProcessingRequest { said: Some(of(HttpBody { body, end_of_stream })), ..self.body.clone() }
    }
}

/// A recorded message, without what names the only pods to choose from: those are not ours.
fn recorded(bytes: &[u8]) -> Result<ProcessingRequest, prost::DecodeError> {
    Ok(ProcessingRequest { metadata_context: None, ..ProcessingRequest::decode(bytes)? })
}

/// Holds all conversations, and prints what came of them.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stream = TcpStream::connect(args.to).await?;
    stream.set_nodelay(true)?;
    let handshake = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(16 << 20)
        .initial_connection_window_size(64 << 20)
        .handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await?;
    let tasks = Tasks::new();
    tasks.spawn(async { _ = connection.await });
    let load = Rc::new(Load { script: Script::new(&args)?, sender, args, felt: RefCell::default() });
    let began = clock::now();
    LocalSet::new().run_until(all(&load)).await;
    let seconds = clock::now().saturating_duration_since(began).as_secs_f64();
    let felt = load.felt.borrow();
    let [half, most] = felt.decided.quantiles([0.5, 0.99]);
    println!(
        "{}",
        json!({
            "done": felt.done, "pieces": felt.pieces, "failure": felt.failure, "seconds": seconds,
            "decided": {"p50": half, "p99": most},
        })
    );
    Ok(())
}

async fn all(load: &Rc<Load>) {
    let talkers = (0..load.args.at_once).map(|_| {
        let load = Rc::clone(load);
        tokio::task::spawn_local(async move {
            while let Some(nth) = load.next() {
                match load.conversation(nth).await {
                    Ok(()) => load.felt.borrow_mut().done += 1,
                    Err(error) => _ = load.felt.borrow_mut().failure.get_or_insert(error.to_string()),
                }
            }
        })
    });
    for talker in talkers.collect::<Vec<_>>() {
        talker.await.ok();
    }
}

impl Load {
    fn next(&self) -> Option<usize> {
        let mut felt = self.felt.borrow_mut();
        felt.begun += 1;
        (felt.begun <= self.args.conversations).then_some(felt.begun)
    }

    async fn conversation(&self, nth: usize) -> anyhow::Result<()> {
        let (say, said) = mpsc::unbounded_channel();
        let script = &self.script;
        say.send(script.head.clone())?;
        let mut body = script.asked(nth, self.args.events > 0);
        while !body.is_empty() {
            let piece = body.split_to(body.len().min(PIECE));
            say.send(script.piece(Said::RequestBody, piece, false))?;
        }
        say.send(script.end.clone())?;
        let asked = clock::now();
        let mut replies = self.begin(said).await?;
        self.chosen(&mut replies, asked).await?;
        say.send(script.answer.clone())?;
        one(&mut replies).await?;
        for _ in 0..self.args.events.max(1) {
            say.send(script.piece(Said::ResponseBody, script.event.clone(), false))?;
            one(&mut replies).await?;
        }
        let done = if self.args.events > 0 { Bytes::from_static(b"data: [DONE]\n\n") } else { Bytes::new() };
        say.send(script.piece(Said::ResponseBody, done, true))?;
        one(&mut replies).await?;
        self.felt.borrow_mut().pieces += self.args.events.max(1);
        drop(say);
        while replies.message().await?.is_some() {}
        Ok(())
    }

    async fn begin(
        &self,
        said: mpsc::UnboundedReceiver<ProcessingRequest>,
    ) -> Result<Streaming<ProcessingResponse>, Status> {
        let messages = stream::unfold(said, |mut said| async move { said.recv().await.map(|it| (it, said)) });
        let call = service_fn(|request: http::Request<tonic::body::Body>| self.sender.clone().send_request(request));
        let origin = http::Uri::from_static("http://picker");
        let codec = ProstCodec::<ProcessingRequest, ProcessingResponse>::default();
        let path = http::uri::PathAndQuery::from_static(PROCESS);
        let mut grpc = Grpc::with_origin(call, origin);
        Ok(grpc.streaming(tonic::Request::new(messages), path, codec).await?.into_inner())
    }

    /// Waits for all that a request is replied to.
    async fn chosen(&self, replies: &mut Streaming<ProcessingResponse>, asked: Instant) -> anyhow::Result<()> {
        let mut first = true;
        loop {
            let reply = one(replies).await?;
            if std::mem::take(&mut first) {
                let took = clock::now().saturating_duration_since(asked);
                self.felt.borrow_mut().decided.add(took.as_secs_f64() * 1e6);
            }
            match reply {
                Reply::RequestHeaders(_) => {}
                Reply::RequestBody(told) => {
                    let mutation = told.response.and_then(|it| it.body_mutation?.mutation);
                    if matches!(mutation, Some(Mutation::Streamed(piece)) if piece.end_of_stream) {
                        return Ok(());
                    }
                }
                other => anyhow::bail!("{other:?}"),
            }
        }
    }
}

async fn one(replies: &mut Streaming<ProcessingResponse>) -> anyhow::Result<Reply> {
    let reply = replies.message().await?.context("it stopped talking")?;
    reply.reply.context("it said nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_a_chat_of_the_length_that_was_wanted() {
        let args = Args { to: "127.0.0.1:1".parse().unwrap(), conversations: 1, at_once: 1, bytes: 2_048, events: 3 };
        let script = Script::new(&args).unwrap();
        let body = script.asked(42, true);
        assert!(body.len().abs_diff(2_048) < 200, "{}", body.len());
        let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&asked["model"], &asked["stream"]), (&json!("tiny"), &json!(true)));
        let Some(Said::ResponseHeaders(head)) = script.answer.said else { panic!("a head") };
        let kinds = head.headers.unwrap().headers;
        let kinds: Vec<_> = kinds.iter().filter(|field| field.key == "content-type").collect();
        assert_eq!(kinds.len(), 1);
        assert!(kinds[0].bytes().starts_with(b"text/event-stream"));
    }
}
