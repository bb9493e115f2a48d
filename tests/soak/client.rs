//! One caller of a soak: asks, reads at its own pace or leaves, and judges every answer to the last word.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::{RngExt as _, rngs::StdRng};
use serde_json::{Value, json};
use tidegate::sim::{
    asked::Dialect,
    proof::{self, Ending, Proof},
};
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::soak::Tally;

/// Longer than every deadline of the gateway's configuration: who waits longer waits for nothing.
const HUNG: Duration = Duration::from_secs(40);

/// Who has asked nothing for longer makes a new connection, as clients do: the gateway closes idle ones after 75 s, and
/// a request that crosses with that would have to be asked again.
const REST: Duration = Duration::from_secs(45);

/// What is asked and how the answer is read.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// `None`: an embedding.
    dialect: Option<Dialect>,
    body: Bytes,
    h2: bool,
    /// Leaves after this.
    patience: Option<Duration>,
    /// Waits so long before each piece.
    pace: Option<Duration>,
}

impl Ask {
    pub(crate) fn draw(rng: &mut StdRng) -> Self {
        let dialects = [Dialect::Chat, Dialect::Chat, Dialect::Completions, Dialect::Responses, Dialect::Messages];
        let dialect = rng.random_bool(0.95).then(|| dialects[rng.random_range(0..dialects.len())]);
        // Some share a beginning, as conversations do; a few are as long as a book's chapter.
        let shared = format!("You are guest {}. ", rng.random_range(0..20)).repeat(rng.random_range(1..30));
        let long = if rng.random_bool(0.02) { "tide and gate ".repeat(1_500) } else { String::new() };
        let prompt = format!("{shared}{long}{}", rng.random::<u64>());
        let tokens = rng.random_range(1..80);
        let body = json!({
            "model": "m", "prompt": prompt, "input": prompt, "messages": [{"role": "user", "content": prompt}],
            "stream": dialect.is_some() && rng.random_bool(0.85),
            "max_tokens": tokens, "max_output_tokens": tokens,
        });
        Self {
            dialect,
            body: body.to_string().into(),
            h2: rng.random_bool(0.4),
            patience: rng.random_bool(0.1).then(|| Duration::from_millis(rng.random_range(0..2_000))),
            pace: rng.random_bool(0.1).then(|| Duration::from_millis(rng.random_range(10..100))),
        }
    }

    fn path(&self) -> &'static str {
        match self.dialect {
            Some(Dialect::Chat) => "/v1/chat/completions",
            Some(Dialect::Completions) => "/v1/completions",
            Some(Dialect::Responses) => "/v1/responses",
            Some(Dialect::Messages) => "/v1/messages",
            None => "/v1/embeddings",
        }
    }

    fn streamed(&self) -> bool {
        serde_json::from_slice::<Value>(&self.body).is_ok_and(|body| body["stream"] == true)
    }
}

type H2 = http2::SendRequest<Full<Bytes>>;

/// A caller and the connection that it keeps.
pub(crate) struct Caller {
    to: SocketAddr,
    nth: usize,
    asked: u64,
    kept: Option<(H2, Connection, Lived)>,
    tally: Arc<Tally>,
}

/// Since when a kept connection is there, when it was last used, and how many requests it has carried.
#[derive(Clone, Copy, Debug)]
struct Lived {
    since: Instant,
    asked: Instant,
    requests: u32,
}

/// Closes when dropped.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Caller {
    pub(crate) fn new(to: SocketAddr, nth: usize, tally: Arc<Tally>) -> Self {
        Self { to, nth, asked: 0, kept: None, tally }
    }

    /// One request from its first byte to its end, whatever it is.
    pub(crate) async fn call(&mut self, ask: Ask, rng: &mut StdRng) {
        self.asked += 1;
        let id = format!("{}-{}", self.nth, self.asked);
        let tally = Arc::clone(&self.tally);
        tally.open.fetch_add(1, Relaxed);
        let told = match ask.patience {
            // Leaving is dropping everything as it is.
            Some(patience) => timeout(patience, self.answered(&ask, &id)).await.ok(),
            None => Some(self.answered(&ask, &id).await),
        };
        tally.open.fetch_sub(1, Relaxed);
        match told {
            None => {
                tally.ended("left");
                // Who left before a word was sent has a connection on which nobody asked anything, which is closed soon.
                self.kept.take_if(|(_, _, lived)| ask.h2 && lived.requests <= 1);
            }
            Some(Ok(how)) => {
                tally.ended(&how);
                if how != "complete" {
                    // Whoever is refused comes back later, not at once.
                    sleep(Duration::from_millis(rng.random_range(100..500))).await;
                }
            }
            Some(Err(why)) => tally.wrong(format!("{id} {} {}: {why}", ask.path(), if ask.h2 { "h2" } else { "h1" })),
        }
    }

    async fn answered(&mut self, ask: &Ask, id: &str) -> Result<String, String> {
        let request = Request::post(format!("http://{}{}", self.to, ask.path()))
            .header("host", self.to.to_string())
            .header("content-type", "application/json")
            .header("x-request-id", id)
            .body(Full::new(ask.body.clone()))
            .unwrap();
        let (answer, _open) = if ask.h2 {
            (timeout(HUNG, self.over_h2(request)).await, None)
        } else {
            let (mut sender, connection) = self.http1().await?;
            (timeout(HUNG, async { sender.send_request(request).await.map_err(told) }).await, Some(connection))
        };
        match answer.map_err(|_| format!("no answer within {HUNG:?}"))? {
            Ok(answer) => judge(ask, id, answer).await,
            // The stream is reset to break a whole answer off, and its head may not have left before.
            Err(why) if ask.h2 && !ask.streamed() && why.contains("INTERNAL_ERROR") => {
                Ok("whole answer broken off".to_owned())
            }
            Err(why) => Err(why),
        }
    }

    async fn http1(&self) -> Result<(http1::SendRequest<Full<Bytes>>, Connection), String> {
        let stream = TcpStream::connect(self.to).await.map_err(told)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(told)?;
        Ok((sender, Connection(tokio::spawn(async { _ = connection.await }))))
    }

    async fn over_h2(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
        if self.kept.as_ref().is_none_or(|(sender, _, lived)| sender.is_closed() || lived.asked.elapsed() > REST) {
            let stream = TcpStream::connect(self.to).await.map_err(told)?;
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (sender, connection) = handshake.await.map_err(told)?;
            let now = Instant::now();
            let lived = Lived { since: now, asked: now, requests: 0 };
            self.kept = Some((sender, Connection(tokio::spawn(async { _ = connection.await })), lived));
        }
        let (sender, _, lived) = self.kept.as_mut().unwrap();
        let now = Instant::now();
        (lived.requests, lived.asked) = (lived.requests + 1, now);
        let (mut sender, lived) = (sender.clone(), *lived);
        let answer = sender.send_request(request).await;
        if answer.is_err() {
            self.kept = None;
        }
        answer.map_err(|error| {
            format!("{}, request {} of a connection {:?} old", told(error), lived.requests, now - lived.since)
        })
    }
}

fn told(error: impl std::error::Error) -> String {
    format!("the gateway hung up: {error:?}")
}

/// How it ended; an error if it ended as none may.
async fn judge(ask: &Ask, id: &str, answer: Response<Incoming>) -> Result<String, String> {
    let (head, body) = answer.into_parts();
    if head.headers.get("x-request-id").is_none_or(|it| it != id) {
        return Err(format!("the answer to another: {:?}", head.headers));
    }
    let (bytes, ended) = read(body, ask.pace).await?;
    if head.status != 200 {
        return refused(&head, &bytes, ended);
    }
    let Some(dialect) = ask.dialect else {
        if !ended {
            return Ok("whole answer broken off".to_owned());
        }
        let sum = head.headers.get(proof::CHECKSUM).and_then(|sum| sum.to_str().ok());
        let right = sum == Some(&proof::of_whole(&ask.body, id, &bytes));
        return if right { Ok("complete".to_owned()) } else { Err(format!("the checksum is {sum:?}")) };
    };
    let proof = Proof::of(dialect, &ask.body, id).unwrap();
    let ending =
        proof.judge(&bytes, ended).map_err(|wrong| format!("{wrong} ({} bytes, ended {ended})", bytes.len()))?;
    match ending {
        Ending::Complete => Ok("complete".to_owned()),
        Ending::Aborted => Ok("aborted by its pod".to_owned()),
        Ending::Error(told) if told.contains("did not begin its answer") => Ok("told that no token came".to_owned()),
        Ending::Error(told) if told.contains("stream_cut") => Ok("told that its stream was cut".to_owned()),
        Ending::Error(_) => Ok("a pod's error in its stream".to_owned()),
        Ending::BrokenOff if ask.streamed() => Err("a stream that broke off without a word".to_owned()),
        Ending::BrokenOff => Ok("whole answer broken off".to_owned()),
    }
}

/// All bytes of an answer, and whether its end was a clean one.
async fn read(mut body: Incoming, pace: Option<Duration>) -> Result<(Vec<u8>, bool), String> {
    let mut bytes = Vec::new();
    loop {
        if let Some(pace) = pace {
            sleep(pace).await;
        }
        match timeout(HUNG, body.frame()).await {
            Err(_) => return Err(format!("nothing for {HUNG:?}, {} bytes in", bytes.len())),
            Ok(None) => return Ok((bytes, true)),
            Ok(Some(Err(_))) => return Ok((bytes, false)),
            Ok(Some(Ok(frame))) => bytes.extend(frame.into_data().unwrap_or_default()),
        }
    }
}

/// A refusal must have one of the statuses that mean trouble behind us, and an error object that says so.
fn refused(head: &http::response::Parts, body: &[u8], ended: bool) -> Result<String, String> {
    let status = head.status.as_u16();
    let by_us = head.headers.get("x-tidegate-refused").and_then(|reason| reason.to_str().ok());
    let text = String::from_utf8_lossy(body);
    let known = if by_us.is_some() { [429, 502, 503, 504] } else { [429, 500, 503, 503] };
    let message = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|body| body.pointer("/error/message").and_then(Value::as_str).map(str::to_owned));
    if !known.contains(&status) || message.is_none_or(|message| message.is_empty()) || !ended {
        return Err(format!("{status} {by_us:?}: {text:.300}"));
    }
    if text.contains("127.0.0.1") {
        return Err(format!("a pod's address has left: {text:.300}"));
    }
    Ok(by_us.map_or_else(|| format!("{status} from a pod"), |reason| format!("{status} {reason}")))
}
