//! HTTP/1.1 read by hand, so that nothing between the test and the bytes can smooth a difference over; and a pod that
//! answers as it is told and keeps what it was asked.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use bytes::BytesMut;
use tidegate::tasks::Tasks;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::harness::within;

/// A field as it came: name and value.
pub(super) type Field = (Vec<u8>, Vec<u8>);

/// A request or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) start: String,
    /// In order; blanks around values are not part of them.
    pub(super) fields: Vec<Field>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<Field>,
}

impl Message {
    /// The values of a field, in order.
    pub(super) fn values(&self, name: &str) -> Vec<&[u8]> {
        let named = self.fields.iter().filter(|(it, _)| it.eq_ignore_ascii_case(name.as_bytes()));
        named.map(|(_, value)| value.as_slice()).collect()
    }

    pub(super) fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }
}

/// A connection and what was read of it and not yet taken.
pub(super) struct Wire {
    stream: TcpStream,
    read: BytesMut,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: BytesMut::new() }
    }

    pub(super) async fn say(&mut self, bytes: &[u8]) {
        // Who answers early may have closed already; what it said is still to be read.
        _ = self.stream.write_all(bytes).await;
    }

    /// The next request; `None` when there is none.
    async fn request(&mut self) -> Option<Message> {
        let mut message = self.head().await?;
        if !message.values("transfer-encoding").is_empty() {
            self.chunks(&mut message).await?;
        } else if let Some(length) = length(&message) {
            message.body = self.exactly(length).await?;
        }
        Some(message)
    }

    /// The final answer to a request with this method, whole.
    pub(super) async fn answer(&mut self, method: &str) -> Option<Message> {
        let mut message = self.head().await?;
        while message.status() < 200 {
            message = self.head().await?;
        }
        if method == "HEAD" || message.status() == 204 || message.status() == 304 {
            return Some(message);
        }
        if !message.values("transfer-encoding").is_empty() {
            self.chunks(&mut message).await?;
        } else if let Some(length) = length(&message) {
            message.body = self.exactly(length).await?;
        } else {
            while self.more().await {}
            message.body = std::mem::take(&mut self.read).to_vec();
        }
        Some(message)
    }

    async fn head(&mut self) -> Option<Message> {
        let start = self.line().await?;
        let start = String::from_utf8(start).unwrap();
        Some(Message { start, fields: self.fields().await?, ..Message::default() })
    }

    async fn fields(&mut self) -> Option<Vec<Field>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Some(fields);
            }
            let colon = line.iter().position(|byte| *byte == b':').unwrap();
            fields.push((line[..colon].to_vec(), line[colon + 1..].trim_ascii().to_vec()));
        }
    }

    async fn chunks(&mut self, message: &mut Message) -> Option<()> {
        loop {
            let line = self.line().await?;
            let size = line.split(|byte| *byte == b';').next().unwrap().trim_ascii();
            let size = usize::from_str_radix(std::str::from_utf8(size).unwrap(), 16).unwrap();
            if size == 0 {
                message.trailers = self.fields().await?;
                return Some(());
            }
            message.body.extend(self.exactly(size).await?);
            assert!(self.line().await?.is_empty(), "a chunk longer than it says");
        }
    }

    async fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.read.split_to(end + 2);
                return Some(line[..end].to_vec());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            if !self.more().await {
                return None;
            }
        }
        Some(self.read.split_to(length).to_vec())
    }

    async fn more(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.read).await, Ok(read) if read > 0)
    }
}

fn length(message: &Message) -> Option<usize> {
    let value = *message.values("content-length").first()?;
    Some(std::str::from_utf8(value).unwrap().parse().unwrap())
}

/// What the pod says next.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    /// Written one after the other, each flushed.
    pub(super) pieces: Vec<Vec<u8>>,
    /// The connection's end is the answer's.
    pub(super) closes: bool,
}

#[derive(Debug, Default)]
struct Stage {
    script: Script,
    asked: Vec<Message>,
}

/// A pod that answers as it is told.
pub(super) struct ScriptedPod {
    pub(super) addr: SocketAddr,
    stage: Arc<Mutex<Stage>>,
    tasks: Tasks,
}

impl Drop for ScriptedPod {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

impl ScriptedPod {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stage, tasks) = (Arc::<Mutex<Stage>>::default(), Tasks::new());
        let (shared, spawner) = (Arc::clone(&stage), tasks.clone());
        tasks.spawn_until_stop(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawner.spawn_until_stop(serve(Wire::new(stream), Arc::clone(&shared)));
            }
        });
        Self { addr, stage, tasks }
    }

    /// From now on it answers like this.
    pub(super) fn will_say(&self, script: Script) {
        self.stage.lock().unwrap().script = script;
    }

    /// What it was asked since it was last looked at.
    pub(super) fn asked(&self) -> Vec<Message> {
        std::mem::take(&mut self.stage.lock().unwrap().asked)
    }
}

async fn serve(mut wire: Wire, stage: Arc<Mutex<Stage>>) {
    while let Some(request) = wire.request().await {
        if let Some(answer) = how_it_is(&request.start) {
            wire.say(answer.as_bytes()).await;
            continue;
        }
        let script = {
            let mut stage = stage.lock().unwrap();
            stage.asked.push(request);
            stage.script.clone()
        };
        for piece in &script.pieces {
            wire.say(piece).await;
            tokio::task::yield_now().await;
        }
        if script.closes {
            return;
        }
    }
}

fn how_it_is(start: &str) -> Option<String> {
    let page = "vllm:num_requests_running 0.0\nvllm:num_requests_waiting 0.0\nvllm:kv_cache_usage_perc 0.0\n";
    let (status, body) = match start {
        "GET /metrics HTTP/1.1" => ("200 OK", page),
        "GET /health HTTP/1.1" => ("200 OK", ""),
        "GET /v1/models HTTP/1.1" => ("404 Not Found", ""),
        _ => return None,
    };
    Some(format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

/// Sends these bytes over a connection of their own and reads the answer.
pub(super) async fn exchange(to: SocketAddr, method: &str, bytes: &[u8]) -> Message {
    let mut wire = Wire::new(within("a connection", TcpStream::connect(to)).await.unwrap());
    wire.say(bytes).await;
    within("an answer", wire.answer(method)).await.unwrap_or_else(|| panic!("no whole answer from {to}"))
}
