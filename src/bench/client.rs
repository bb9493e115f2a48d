//! One user's hands: sends a request over a kept connection, reads the stream as it comes, and notes when.
//!
//! Its own few lines over hyper and not the gateway's own client, so that what is measured does not measure itself.
//! It does not retry: a failure is what the user would have seen.

use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::{
    clock,
    openai::{Dialect, End, Frames, Lexicon, Seen, StreamWatch, Usage},
    tasks::Tasks,
};

/// Gaps noted for one answer: longer than any answer that a benchmark asks for.
const MOST_GAPS: usize = 65_536;

/// How much of an answer's text is kept, to be said again in the next turn; the bound of a sane context.
const MOST_TEXT: usize = 8 << 20;

/// How much of an error's body is kept for people.
const MOST_ERROR: usize = 500;

type Sender = http1::SendRequest<Full<Bytes>>;

/// A user's end of the connections to one address.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    tasks: Tasks,
    /// As many as were ever busy at once.
    idle: Mutex<Vec<Sender>>,
}

/// When what came.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// The request left.
    pub sent: Instant,
    /// The first token came.
    pub first: Option<Instant>,
    /// From each token to the next.
    pub gaps: Vec<Duration>,
    /// The last byte came, or the failure.
    pub ended: Instant,
    /// What the answer said it took.
    pub usage: Option<Usage>,
    last: Option<Instant>,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the whole answer.
    Complete,
    /// Without; in words.
    Failed(String),
}

/// All about one request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When what came.
    pub timeline: Timeline,
    /// How it ended.
    pub outcome: Outcome,
    /// The text, as far as it came.
    pub text: String,
}

impl Timeline {
    /// Of a request that leaves now.
    pub fn sent(now: Instant) -> Self {
        Self { sent: now, first: None, gaps: Vec::new(), ended: now, usage: None, last: None }
    }

    fn note(&mut self, seen: Seen, now: Instant) {
        for _ in 0..seen.tokens {
            self.first.get_or_insert(now);
            // Tokens that came in one piece have no gap between them.
            if let Some(last) = self.last.replace(now)
                && self.gaps.len() < MOST_GAPS
            {
                self.gaps.push(now.saturating_duration_since(last));
            }
        }
    }
}

impl Client {
    /// A client of the gateway at `address`, whose connections run on `tasks`.
    pub fn new(address: SocketAddr, tasks: Tasks) -> Self {
        Self { address, tasks, idle: Mutex::default() }
    }

    /// Sends a streamed chat request and reads its answer to the end; `each` hears of tokens as they come.
    pub async fn chat(&self, body: Bytes, mut each: impl FnMut(Seen, Instant)) -> Answer {
        let mut timeline = Timeline::sent(clock::now());
        let mut raw = Vec::new();
        let mut note = |chunk: &[u8], seen: Seen| {
            let now = clock::now();
            timeline.note(seen, now);
            each(seen, now);
            if raw.len() + chunk.len() <= MOST_TEXT {
                raw.extend_from_slice(chunk);
            }
        };
        let (outcome, usage) = match self.exchange(body, &mut note).await {
            Ok(usage) => (Outcome::Complete, usage),
            Err(why) => (Outcome::Failed(why), None),
        };
        timeline.ended = clock::now();
        timeline.usage = usage;
        Answer { timeline, outcome, text: text_of(&raw) }
    }

    async fn exchange(&self, body: Bytes, each: &mut impl FnMut(&[u8], Seen)) -> Result<Option<Usage>, String> {
        let request = Request::post("/v1/chat/completions")
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let (response, sender) = self.send(request).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(refusal(status, response.into_body()).await);
        }
        let watch = read(response.into_body(), each).await?;
        self.keep(sender);
        match watch.end() {
            End::Done => Ok(watch.usage()),
            End::Running => Err("the stream ended in the middle".to_owned()),
            End::Cut { reason } => Err(format!("the engine gave up: {reason}")),
            End::Error { message, .. } => Err(message.clone()),
        }
    }

    /// Sends over a kept connection if one is alive, else over a new one.
    async fn send(&self, mut request: Request<Full<Bytes>>) -> Result<(Response<Incoming>, Sender), String> {
        loop {
            let kept = self.idle().pop();
            let fresh = kept.is_none();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.connect().await.map_err(|error| error.to_string())?,
            };
            if sender.ready().await.is_err() && !fresh {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut error) => match error.take_message() {
                    // It never left: the connection had been closed while it was kept.
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(error.into_error().to_string()),
                },
            }
        }
    }

    async fn connect(&self) -> io::Result<Sender> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        // How it ends is seen by whoever holds the sender.
        self.tasks.spawn_until_stop(async move { drop(connection.await) });
        Ok(sender)
    }

    fn keep(&self, sender: Sender) {
        self.idle().push(sender);
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn read(mut body: Incoming, each: &mut impl FnMut(&[u8], Seen)) -> Result<StreamWatch, String> {
    let mut watch = StreamWatch::new(Dialect::OpenAi, &Lexicon::default());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the connection broke: {error}"))?;
        if let Some(chunk) = frame.data_ref() {
            let seen = watch.feed(chunk);
            each(chunk, seen);
        }
    }
    let seen = watch.finish();
    each(&[], seen);
    Ok(watch)
}

async fn refusal(status: StatusCode, body: Incoming) -> String {
    let bytes = body.collect().await.map(http_body_util::Collected::to_bytes);
    let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text: String = text.unwrap_or_default().chars().take(MOST_ERROR).collect();
    format!("{status}: {}", text.trim())
}

/// What a chat stream says, all pieces together.
fn text_of(stream: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Chunk {
        #[serde(default)]
        choices: Vec<Choice>,
    }
    #[derive(Deserialize)]
    struct Choice {
        #[serde(default)]
        delta: Delta,
    }
    #[derive(Default, Deserialize)]
    struct Delta {
        content: Option<String>,
    }
    let mut text = String::new();
    let mut frames = Frames::new();
    let mut each = |event: crate::openai::Event<'_>| {
        let chunk: Option<Chunk> = serde_json::from_slice(event.data).ok();
        for choice in chunk.into_iter().flat_map(|chunk| chunk.choices) {
            text.push_str(choice.delta.content.as_deref().unwrap_or_default());
        }
    };
    frames.feed(stream, &mut each);
    frames.finish(&mut each);
    text
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::json;

    use super::*;
    use crate::sim::{Pod, PodConfig, RunningPod};

    async fn pod(tasks: &Tasks) -> RunningPod {
        let config = PodConfig::new("m").time_scale(0.01);
        Pod::start(config, (Ipv4Addr::LOCALHOST, 0).into(), tasks).await.unwrap()
    }

    fn question(model: &str) -> Bytes {
        let body = json!({"model": model, "stream": true, "max_tokens": 6, "stream_options": {"include_usage": true},
                          "messages": [{"role": "user", "content": "how high is the tide?"}]});
        body.to_string().into()
    }

    #[tokio::test]
    async fn a_stream_is_read_token_by_token_and_its_connection_is_used_again() {
        let tasks = Tasks::new();
        let pod = pod(&tasks).await;
        let client = Client::new(pod.addr(), tasks.clone());
        let mut tokens = 0;
        for _ in 0..3 {
            let answer = client.chat(question("m"), |seen, _| tokens += seen.tokens).await;
            assert_eq!(answer.outcome, Outcome::Complete);
            assert_eq!(answer.text.len(), 6 * 4, "six words of four bytes: {:?}", answer.text);
            let timeline = &answer.timeline;
            assert_eq!(timeline.gaps.len(), 5);
            let usage = timeline.usage.unwrap();
            assert_eq!(usage.completion_tokens, Some(6));
            let first = timeline.first.unwrap();
            assert!(timeline.sent <= first && first <= timeline.ended);
            let gaps: Duration = timeline.gaps.iter().sum();
            assert!(first + gaps <= timeline.ended);
            assert_eq!(client.idle().len(), 1);
        }
        assert_eq!(tokens, 18);
        tasks.stop();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_refusal_is_a_failure_that_says_why() {
        let tasks = Tasks::new();
        let pod = pod(&tasks).await;
        let client = Client::new(pod.addr(), tasks.clone());
        let answer = client.chat(question("nobody"), |_, _| {}).await;
        let Outcome::Failed(why) = answer.outcome else { panic!("{answer:?}") };
        assert!(why.starts_with("404 Not Found: {"), "{why}");
        assert_eq!(answer.timeline.first, None);
    }

    #[tokio::test]
    async fn a_kept_connection_that_died_is_replaced_and_a_dead_server_is_a_failure() {
        let tasks = Tasks::new();
        let pod = pod(&tasks).await;
        let address = pod.addr();
        let client = Client::new(address, tasks.clone());
        client.chat(question("m"), |_, _| {}).await;
        pod.stop().await;
        let again = Pod::start(PodConfig::new("m").time_scale(0.01), address, &tasks).await.unwrap();
        let answer = client.chat(question("m"), |_, _| {}).await;
        assert_eq!(answer.outcome, Outcome::Complete);
        again.stop().await;
        let answer = client.chat(question("m"), |_, _| {}).await;
        assert!(matches!(answer.outcome, Outcome::Failed(_)), "{answer:?}");
    }

    #[test]
    fn text_is_put_together_from_the_deltas() {
        let stream = b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"low \"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"tide\"}}]}\n\n\
            data: {\"choices\":[],\"usage\":{}}\n\ndata: [DONE]\n\n";
        assert_eq!(text_of(stream), "low tide");
    }
}
