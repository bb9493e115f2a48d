//! Pods: simulated ones, and raw ones whose every byte a test decides.

use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::Deref,
    sync::Arc,
    time::Duration,
};

use tidegate::{
    sim::{Pod, PodConfig, RunningPod},
    tasks::Tasks,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
};

use super::within;

/// How much faster than a real pod the simulated ones live: a token takes about a millisecond.
const SPEED_UP: f64 = 0.1;

/// A simulated pod.
pub(crate) struct SimPod {
    pod: RunningPod,
    tasks: Tasks,
}

impl SimPod {
    /// A pod that serves `m` and the adapters `a` and `b`.
    pub(crate) async fn start() -> Self {
        Self::like(PodConfig::new("m").adapters(&["a", "b"]).time_scale(SPEED_UP)).await
    }

    /// A pod so slow that whatever it does is still being done when a test looks.
    pub(crate) async fn slow() -> Self {
        let pod = Self::start().await;
        pod.faults().change(|faults| faults.slow = 50.0);
        pod
    }

    pub(crate) async fn like(config: PodConfig) -> Self {
        let tasks = Tasks::new();
        let pod = Pod::start(config, (Ipv4Addr::LOCALHOST, 0).into(), &tasks).await.unwrap();
        Self { pod, tasks }
    }

    /// How a pool names it.
    pub(crate) fn endpoint(&self) -> String {
        format!("{{ url: \"{}\" }}", self.url())
    }

    /// Requests for inference that came to it.
    pub(crate) fn asked(&self) -> usize {
        self.state().last.len()
    }
}

impl Deref for SimPod {
    type Target = RunningPod;

    fn deref(&self) -> &RunningPod {
        &self.pod
    }
}

impl Drop for SimPod {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// An endpoint whose metrics can be read (at `witness`) but where nobody listens. The socket keeps the port reserved.
pub(crate) fn refusing_endpoint(witness: &RawPod) -> (String, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    let endpoint = format!("{{ url: \"http://{address}\", metrics_url: \"http://{}/metrics\" }}", witness.addr);
    (endpoint, socket)
}

/// A pod that reads requests and leaves every answer to the test.
pub(crate) struct RawPod {
    pub(crate) addr: SocketAddr,
    asked: mpsc::UnboundedReceiver<Exchange>,
    tasks: Tasks,
}

impl RawPod {
    pub(crate) async fn start() -> Self {
        Self::over(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap())
    }

    fn over(listener: TcpListener) -> Self {
        let addr = listener.local_addr().unwrap();
        let (told, asked) = mpsc::unbounded_channel();
        let tasks = Tasks::new();
        let spawner = tasks.clone();
        tasks.spawn_until_stop(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                spawner.spawn_until_stop(read_requests(stream, told.clone()));
            }
        });
        Self { addr, asked, tasks }
    }

    /// A pod that answers every request with the same bytes, over connections that it keeps open.
    pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        Self::start().await.always_saying(answer.into())
    }

    /// The same, at the address of one that is gone.
    pub(crate) async fn answering_at(addr: SocketAddr, answer: impl Into<Vec<u8>>) -> Self {
        let bound = async {
            loop {
                // Its last connections may hold the port for a moment.
                if let Ok(listener) = TcpListener::bind(addr).await {
                    return listener;
                }
                tokio::task::yield_now().await;
            }
        };
        Self::over(within("the port of a pod that is gone", bound).await).always_saying(answer.into())
    }

    fn always_saying(mut self, answer: Vec<u8>) -> Self {
        let answer = Arc::<[u8]>::from(answer);
        let pod = &mut self;
        let (_, none) = mpsc::unbounded_channel();
        let mut asked = std::mem::replace(&mut pod.asked, none);
        pod.tasks.spawn_until_stop(async move {
            while let Some(mut exchange) = asked.recv().await {
                let answer = Arc::clone(&answer);
                // Each by itself: one that is not read holds up no other.
                tokio::spawn(async move {
                    exchange.say(&answer).await;
                    exchange.keep_alive();
                });
            }
        });
        self
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{{ url: \"http://{}\" }}", self.addr)
    }

    /// The next request for inference.
    pub(crate) async fn asked(&mut self) -> Exchange {
        within("a request at the pod", self.asked.recv()).await.unwrap()
    }

    /// Whether another request came meanwhile.
    pub(crate) fn asked_again(&mut self) -> bool {
        self.asked.try_recv().is_ok()
    }
}

impl Drop for RawPod {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// A request, and the connection to answer it on. Dropped, it closes. The gateway keeps an answered connection for its
/// next request, which this pod reads only after [`Exchange::keep_alive`].
pub(crate) struct Exchange {
    /// The request's head as it came.
    pub(crate) head: String,
    /// The request's body as it came.
    pub(crate) body: Vec<u8>,
    stream: TcpStream,
    told: mpsc::UnboundedSender<Self>,
}

impl Exchange {
    /// The value of a header of the request, if it stands there once; `None` if not at all.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let value = |line: &'_ str| -> Option<(String, usize)> {
            let (key, _) = line.split_once(':')?;
            Some((key.to_ascii_lowercase(), key.len() + 1))
        };
        let mut found = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| value(line).filter(|(key, _)| key == name).map(|(_, at)| line[at..].trim()));
        let first = found.next();
        assert!(found.next().is_none(), "{name} twice in {}", self.head);
        first
    }

    /// Writes bytes of the answer.
    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        // A client that left is what some tests are about.
        _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// The same; false if it was not taken within `limit`, or nobody is there any more.
    pub(crate) async fn try_say(&mut self, bytes: impl AsRef<[u8]>, limit: Duration) -> bool {
        matches!(tokio::time::timeout(limit, self.stream.write_all(bytes.as_ref())).await, Ok(Ok(())))
    }

    /// One chunk of a chunked answer.
    pub(crate) async fn chunk(&mut self, text: &str) {
        self.say(format!("{:x}\r\n{text}\r\n", text.len())).await;
    }

    /// The connection can take the next request.
    pub(crate) fn keep_alive(self) {
        tokio::spawn(read_requests(self.stream, self.told));
    }

    /// Breaks the connection so that the other side sees a reset.
    pub(crate) fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Waits until the other side closed the connection.
    pub(crate) async fn abandoned(&mut self) {
        let gone = async { while !matches!(self.stream.read(&mut [0; 1024]).await, Ok(0) | Err(_)) {} };
        within("the gateway to leave the pod", gone).await;
    }
}

/// Reads requests off a connection: those that ask how the pod is are answered here, the first other one is handed on.
async fn read_requests(mut stream: TcpStream, told: mpsc::UnboundedSender<Exchange>) {
    let mut read = Vec::new();
    loop {
        let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read_buf(&mut read).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            }
        };
        let rest = read.split_off(end + 4);
        let head = String::from_utf8(std::mem::replace(&mut read, rest)).unwrap();
        if let Some(answer) = how_it_is(&head) {
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            continue;
        }
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned))
            .map_or(0, |value| value.trim().parse().unwrap());
        while read.len() < length {
            if matches!(stream.read_buf(&mut read).await, Ok(0) | Err(_)) {
                return;
            }
        }
        let handed_on = Exchange { head, body: read, stream, told: told.clone() };
        _ = told.send(handed_on);
        return;
    }
}

/// What an idle vLLM says of itself; it lists no models, so that tests may call them as they like.
pub(crate) fn how_it_is(head: &str) -> Option<String> {
    let page = "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 0.0\n\
                vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 0.0\n\
                vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.0\n";
    let text = |status: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let path = head.strip_prefix("GET ")?.split(' ').next()?;
    match path {
        "/metrics" => Some(text("200 OK", page)),
        "/health" => Some(text("200 OK", "")),
        "/v1/models" => Some(text("404 Not Found", "")),
        _ => None,
    }
}

/// The bytes of a whole JSON answer.
pub(crate) fn whole_json(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The head of a chunked event stream.
pub(crate) fn sse_head() -> &'static str {
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
}
