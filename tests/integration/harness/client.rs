//! Clients: one that speaks HTTP properly, over HTTP/1.1 or HTTP/2, and one that writes bytes as it likes.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use super::within;

/// A chat request for `m`.
pub(crate) fn chat(prompt: &str, max_tokens: u32) -> Call {
    Call::post("/v1/chat/completions", chat_body(prompt, max_tokens, false).to_string())
}

/// The same, to be answered as a stream.
pub(crate) fn chat_stream(prompt: &str, max_tokens: u32) -> Call {
    Call::post("/v1/chat/completions", chat_body(prompt, max_tokens, true).to_string())
}

fn chat_body(prompt: &str, max_tokens: u32, stream: bool) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "stream": stream})
}

/// The `data:` of every event in a stream, `[DONE]` too.
pub(crate) fn events(stream: &str) -> Vec<&str> {
    stream.lines().filter_map(|line| line.strip_prefix("data: ")).collect()
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Call {
    pub(crate) fn new(method: Method, path: &str, body: impl Into<Bytes>) -> Self {
        Self {
            method,
            path: path.to_owned(),
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.into(),
        }
    }

    pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, path, body)
    }

    pub(crate) fn get(path: &str) -> Self {
        Self { headers: Vec::new(), ..Self::new(Method::GET, path, "") }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(it, _)| it != name || name != "content-type");
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn options(path: &str) -> Self {
        Self { headers: Vec::new(), ..Self::new(Method::OPTIONS, path, "") }
    }

    /// Sends it over a connection of its own.
    pub(crate) async fn send(self, to: SocketAddr) -> Reply {
        Client::h1(to).await.send(self).await
    }

    /// Sends it from a task of its own, for tests that play the pod meanwhile.
    pub(crate) fn begin(self, to: SocketAddr) -> JoinHandle<Reply> {
        tokio::spawn(self.send(to))
    }

    fn request(self, to: SocketAddr, h2: bool) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(self.method);
        request = if h2 {
            request.uri(format!("http://{to}{}", self.path))
        } else {
            request.uri(self.path).header("host", to.to_string())
        };
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body)).unwrap()
    }
}

/// A connection to a gateway. When it and its replies are dropped, it closes.
pub(crate) struct Client {
    to: SocketAddr,
    sender: Sender,
    connection: Connection,
}

enum Sender {
    H1(hyper::client::conn::http1::SendRequest<Full<Bytes>>),
    H2(hyper::client::conn::http2::SendRequest<Full<Bytes>>),
}

/// Closes the socket when dropped.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    pub(crate) async fn h1(to: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(to)).await.unwrap();
        Self::over(stream).await.unwrap()
    }

    /// HTTP/1.1 over a connection that is there.
    pub(crate) async fn over(stream: TcpStream) -> Result<Self, hyper::Error> {
        stream.set_nodelay(true).unwrap();
        let to = stream.peer_addr().unwrap();
        Self::speaking(stream, to, false).await
    }

    pub(crate) async fn h2(to: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(to)).await.unwrap();
        Self::speaking(stream, to, true).await.unwrap()
    }

    /// HTTP over whatever carries it.
    pub(crate) async fn speaking<S>(stream: S, to: SocketAddr, h2: bool) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TokioIo::new(stream);
        if h2 {
            let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            let connection = Connection(tokio::spawn(async { _ = connection.await }));
            return Ok(Self { to, sender: Sender::H2(sender), connection });
        }
        let (sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        let connection = Connection(tokio::spawn(async { _ = connection.await }));
        Ok(Self { to, sender: Sender::H1(sender), connection })
    }

    /// Sends over this connection, which then belongs to the reply.
    pub(crate) async fn send(mut self, call: Call) -> Reply {
        let mut reply = self.ask(call).await.unwrap();
        reply.connection = Some(self.connection);
        reply
    }

    /// Sends over this HTTP/2 connection; the answer may come later, or be given up by dropping what this returns.
    pub(crate) fn ask_later(&self, call: Call) -> impl Future<Output = ()> + use<> {
        let Sender::H2(sender) = &self.sender else { panic!("HTTP/1.1 has one answer at a time") };
        let (mut sender, request) = (sender.clone(), call.request(self.to, true));
        async move {
            if let Ok(answer) = sender.send_request(request).await {
                _ = answer.into_body().collect().await;
            }
        }
    }

    /// Sends over this HTTP/2 connection, which stays; the answer comes when its head does.
    pub(crate) fn begin_stream(&self, call: Call) -> JoinHandle<Reply> {
        let Sender::H2(sender) = &self.sender else { panic!("HTTP/1.1 has one answer at a time") };
        let (mut sender, request) = (sender.clone(), call.request(self.to, true));
        tokio::spawn(async move {
            let (head, body) = sender.send_request(request).await.unwrap().into_parts();
            Reply { head, body, connection: None }
        })
    }

    /// Waits until the other side closed the connection.
    pub(crate) async fn closed(&mut self) {
        _ = (&mut self.connection.0).await;
    }

    /// Sends over this connection and keeps it.
    pub(crate) async fn ask(&mut self, call: Call) -> Result<Reply, hyper::Error> {
        let answer = async {
            match &mut self.sender {
                Sender::H1(sender) => {
                    sender.ready().await?;
                    sender.send_request(call.request(self.to, false)).await
                }
                Sender::H2(sender) => sender.send_request(call.request(self.to, true)).await,
            }
        };
        let (head, body) = within("an answer", answer).await?.into_parts();
        Ok(Reply { head, body, connection: None })
    }
}

/// An answer as it comes. Dropping it is leaving.
pub(crate) struct Reply {
    pub(crate) head: response::Parts,
    body: Incoming,
    connection: Option<Connection>,
}

impl Reply {
    pub(crate) fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The next piece; `None` at a clean end.
    pub(crate) async fn piece(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            let frame = within("a piece of an answer", self.body.frame()).await?;
            let piece = frame.map(|frame| frame.into_data().unwrap_or_default());
            // HTTP/2 may end a stream with an empty frame.
            if !piece.as_ref().is_ok_and(Bytes::is_empty) {
                return Some(piece);
            }
        }
    }

    /// The whole body, and its trailers; an error if it broke off.
    pub(crate) async fn collected(self) -> Result<(Bytes, Option<http::HeaderMap>), hyper::Error> {
        let _open = self.connection;
        let body = within("the end of an answer", self.body.collect()).await?;
        let trailers = body.trailers().cloned();
        Ok((body.to_bytes(), trailers))
    }

    pub(crate) async fn bytes(self) -> Bytes {
        self.collected().await.unwrap().0
    }

    pub(crate) async fn text(self) -> String {
        String::from_utf8(self.bytes().await.to_vec()).unwrap()
    }

    pub(crate) async fn json(self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Asserts the status and gives the error object.
    pub(crate) async fn error(self, status: u16) -> Value {
        assert!(self.header("x-request-id").is_some_and(|id| !id.is_empty()));
        let got = self.status();
        let body = self.json().await;
        assert_eq!(got, status, "{body}");
        body["error"].clone()
    }
}

/// Bytes over TCP, as they are.
pub(crate) struct RawClient(TcpStream);

impl RawClient {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self(TcpStream::connect(to).await.unwrap())
    }

    pub(crate) async fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The same, if the other side still listens.
    pub(crate) async fn try_say(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Both directions, to be used at once.
    pub(crate) fn split(self) -> (tokio::net::tcp::OwnedReadHalf, tokio::net::tcp::OwnedWriteHalf) {
        self.0.into_split()
    }

    /// Everything until the other side closes.
    pub(crate) async fn rest(&mut self) -> String {
        let mut all = Vec::new();
        // A reset is an end as well; what came before is what counts.
        _ = within("the other side to close", self.0.read_to_end(&mut all)).await;
        String::from_utf8_lossy(&all).into_owned()
    }

    /// The head of the next answer, with its blank line.
    pub(crate) async fn head(&mut self) -> String {
        let mut all = Vec::new();
        while !all.ends_with(b"\r\n\r\n") {
            match within("the head of an answer", self.0.read_u8()).await {
                Ok(byte) => all.push(byte),
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }
}
