//! HTTP/1.1 to a pod, as its client: one request and its answer at a time on a socket.
//!
//! Own code, because a gateway that holds thousands of streams must not hold a task and three buffers for each: whoever
//! polls for the answer reads it from the socket, and between two reads nothing is held. The parser is httparse. It says
//! for certain whether a byte of the request left and whether one of an answer came, which a retry must know. It speaks
//! no HTTP/2, sends no chunks and no trailers, follows nothing and repeats nothing.

mod chunked;
mod framing;
mod head;
mod outgoing;
mod read;

use std::{
    io, mem,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http::response;
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::framing::Nonsense;
pub(super) use self::outgoing::{Outgoing, RequestHead};
use self::{
    framing::Framing,
    head::{Head, HeadReader},
    read::Reader,
};

/// An answer that broke off, or was none.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// What came is not HTTP.
    #[error(transparent)]
    NotHttp(#[from] Nonsense),
    /// The pod closed the connection before the answer's end.
    #[error("the pod closed the connection")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Failed(#[from] io::Error),
}

/// A request to which no head of an answer came.
#[derive(Debug)]
pub(super) struct Lost {
    /// Whether the system took any byte of the request.
    pub(super) sent: bool,
    /// Whether any byte of an answer came.
    pub(super) heard: bool,
    /// How.
    pub(super) broken: Broken,
}

/// A connection to a pod. Dropping it closes the socket at once, which is how an abandoned request reaches the pod.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    reader: Reader,
    sending: Sending,
    /// What came behind the head, and was not yet looked at.
    rest: BytesMut,
    framing: Framing,
    /// Whether the answer allows another request, as far as it has come.
    reusable: bool,
}

/// What of the request is on its way.
#[derive(Debug)]
enum Sending {
    /// All of it has left.
    Done,
    /// A large body may take longer than the pod takes to answer, for instance that it is too large.
    Going(Outgoing),
    /// The pod takes no more. It may have said why.
    Failed(io::Error),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// A connection that was just made.
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            reader: Reader::default(),
            sending: Sending::Done,
            rest: BytesMut::new(),
            framing: Framing::Length(0),
            reusable: true,
        }
    }

    /// The socket.
    pub(super) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends a request and reads the head of its answer; [`Connection::poll_frame`] has the body. Fails for good.
    pub(super) async fn ask(&mut self, request: Outgoing) -> Result<response::Parts, Lost> {
        let mut reader = HeadReader::new(request.is_for_head_only());
        let mut sent = false;
        self.reusable = false;
        self.sending = Sending::Going(request);
        let answered = std::future::poll_fn(|cx| self.poll_head(&mut reader, &mut sent, cx)).await;
        let head = answered.map_err(|broken| Lost { sent, heard: reader.heard(), broken })?;
        self.framing = head.framing;
        self.reusable = head.keep_alive;
        self.rest = reader.rest();
        Ok(head.parts)
    }

    fn poll_head(
        &mut self,
        reader: &mut HeadReader,
        sent: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, Broken>> {
        *sent |= self.send(cx);
        if let Sending::Failed(_) = self.sending
            && !*sent
        {
            // Whatever is there to be read, it answers something else.
            return Poll::Ready(Err(self.failed(Broken::Closed)));
        }
        loop {
            let piece = match ready!(self.reader.poll(&mut self.stream, cx)) {
                Ok(piece) if piece.is_empty() => return Poll::Ready(Err(self.failed(Broken::Closed))),
                Ok(piece) => piece,
                Err(error) => return Poll::Ready(Err(self.failed(error.into()))),
            };
            if let Some(head) = reader.push(piece)? {
                return Poll::Ready(Ok(head));
            }
        }
    }

    /// The next piece of the answer's body, or its trailers. A pod says no more than is asked for here: nothing is read
    /// ahead.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.send(cx);
        loop {
            if self.framing.is_over() {
                return Poll::Ready(self.framing.take_trailers().map(|fields| Ok(Frame::trailers(fields))));
            }
            if let Some(broken) = self.framing.broken() {
                return Poll::Ready(Some(Err(broken.into())));
            }
            let mut piece = mem::take(&mut self.rest);
            if piece.is_empty() {
                piece = ready!(self.reader.poll(&mut self.stream, cx))?;
                if piece.is_empty() {
                    if self.framing.close() {
                        continue;
                    }
                    return Poll::Ready(Some(Err(Broken::Closed)));
                }
            }
            if self.framing.take(&mut piece)? {
                self.reusable = false;
            }
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece.freeze()))));
            }
        }
    }

    /// Whether the answer was read to its end, trailers and all.
    pub(super) fn is_done(&self) -> bool {
        self.framing.is_over() && !self.framing.has_trailers()
    }

    /// Whether another request may follow: the request has left, the answer is done, nothing lies behind it, and the
    /// pod did not say that it closes.
    pub(super) fn is_reusable(&self) -> bool {
        self.reusable && self.is_done() && self.rest.is_empty() && matches!(self.sending, Sending::Done)
    }

    /// How much of the body is still to come, where its head says that.
    pub(super) fn left(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) | Framing::UntilClose { .. } => None,
        }
    }

    /// Sends on, and says whether any byte was taken.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        let Sending::Going(request) = &mut self.sending else { return false };
        let sent = request.poll_send(&mut self.stream, cx);
        let any = request.any_left();
        match sent {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.sending = Sending::Done,
            Poll::Ready(Err(error)) => self.sending = Sending::Failed(error),
        }
        any
    }

    /// What failed first: the write, if it did.
    fn failed(&mut self, broken: Broken) -> Broken {
        match mem::replace(&mut self.sending, Sending::Done) {
            Sending::Failed(error) => error.into(),
            Sending::Done | Sending::Going(_) => broken,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, time::Duration};

    use http::{HeaderMap, HeaderValue, Method};
    use http_body_util::BodyExt as _;
    use proptest::{collection::vec, prelude::*};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf};

    use super::*;

    const GET: &str = "GET /x HTTP/1.1\r\nhost: pod\r\n\r\n";

    fn request(method: &Method, body: impl Into<Bytes>) -> Outgoing {
        let fields = HeaderMap::new();
        let head = RequestHead { method, base_path: "", path: "/x", host: "pod", fields: &fields, authorization: None };
        head.with(body.into()).unwrap()
    }

    /// A body as a `Body`, so that it is read as the gateway reads it.
    struct Rest<'a, S>(&'a mut Connection<S>);

    impl<S: AsyncRead + AsyncWrite + Unpin> http_body::Body for Rest<'_, S> {
        type Data = Bytes;
        type Error = Broken;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
            self.0.poll_frame(cx)
        }
    }

    type Read = (u16, Vec<u8>, Option<HeaderMap>);

    async fn whole<S>(live: &mut Connection<S>, request: Outgoing) -> Result<Read, Broken>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let head = live.ask(request).await.map_err(|lost| lost.broken)?;
        let body = Rest(live).collect().await?;
        let trailers = body.trailers().cloned();
        Ok((head.status.as_u16(), body.to_bytes().to_vec(), trailers))
    }

    /// What is made of `wire` if it comes in these pieces and the connection is closed behind it, and whether another
    /// request may follow.
    async fn told(wire: &[u8], cuts: &[usize]) -> (Result<Read, String>, bool) {
        let (mut pod, ours) = tokio::io::duplex(1 << 20);
        let mut live = Connection::new(ours);
        let says = async {
            pod.read_exact(&mut [0; GET.len()]).await.unwrap();
            let mut rest = wire;
            for cut in cuts.iter().copied().chain([usize::MAX]) {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                rest = behind;
                pod.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(pod);
        };
        let (read, ()) = tokio::join!(whole(&mut live, request(&Method::GET, "")), says);
        (read.map_err(|broken| broken.to_string()), live.is_reusable())
    }

    fn in_a_runtime<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    /// Every kind of answer, and whether its connection may be used again.
    const ANSWERS: [(&str, u16, &str, bool); 9] = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello", true),
        ("HTTP/1.1 103 Hints\r\na: b\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", 200, "hello", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\na: b\r\n\r\n", 200, "hello", true),
        ("HTTP/1.1 204 No Content\r\n\r\n", 204, "", true),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", 304, "", true),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello", 200, "hello", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, "hello", false),
        ("HTTP/1.1 200 OK\r\n\r\nhello", 200, "hello", false),
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_answer_is_the_same_however_it_is_cut(which in 0..ANSWERS.len(), cuts in vec(1..40_usize, 0..30)) {
            let (wire, status, body, reusable) = ANSWERS[which];
            for cuts in [cuts, vec![1; wire.len()], Vec::new()] {
                let (read, kept) = in_a_runtime(told(wire.as_bytes(), &cuts));
                let (is_status, is_body, trailers) = read.unwrap();
                prop_assert_eq!((is_status, is_body.as_slice(), kept), (status, body.as_bytes(), reusable));
                prop_assert_eq!(trailers.is_some(), wire.contains("0\r\na: b"));
            }
        }

        #[test]
        fn an_answer_that_stops_anywhere_never_looks_whole(which in 0..ANSWERS.len() - 1, at in 0..100_usize) {
            let wire = ANSWERS[which].0;
            let (read, kept) = in_a_runtime(told(&wire.as_bytes()[..at % wire.len()], &[]));
            prop_assert!(read.is_err() && !kept, "{read:?}");
        }
    }

    #[tokio::test]
    async fn nothing_may_lie_behind_an_answer_on_a_connection_that_is_used_again() {
        for (wire, ..) in &ANSWERS[..6] {
            for cuts in [vec![], vec![wire.len() - 1], vec![1; wire.len() - 1]] {
                let behind = format!("{wire}HTTP/1.1 200 OK\r\n\r\n");
                let (read, kept) = told(behind.as_bytes(), &cuts).await;
                assert!(read.is_ok() && !kept, "{wire:?}, {cuts:?}");
            }
        }
    }

    #[tokio::test]
    async fn one_connection_carries_one_request_after_the_other() {
        let (mut pod, ours) = tokio::io::duplex(1 << 10);
        let mut live = Connection::new(ours);
        for (wire, status, body, _) in &ANSWERS[..6] {
            let says = async {
                pod.read_exact(&mut [0; GET.len()]).await.unwrap();
                pod.write_all(wire.as_bytes()).await.unwrap();
            };
            let (read, ()) = tokio::join!(whole(&mut live, request(&Method::GET, "")), says);
            let (is_status, is_body, _) = read.unwrap();
            assert_eq!((is_status, is_body.as_slice(), live.is_reusable()), (*status, body.as_bytes(), true));
        }
        let says = async {
            pod.read_exact(&mut [0; GET.len() + 1]).await.unwrap();
            pod.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await.unwrap();
        };
        let (read, ()) = tokio::join!(whole(&mut live, request(&Method::HEAD, "")), says);
        assert_eq!((read.unwrap().1.len(), live.is_reusable()), (0, true));
    }

    /// A pod that takes some of a large request and says this.
    async fn early(
        says: &'static [u8],
        takes: usize,
        then: impl AsyncFnOnce(DuplexStream),
    ) -> (Result<Read, String>, bool) {
        let (mut pod, ours) = tokio::io::duplex(1 << 10);
        let mut live = Connection::new(ours);
        let answers = async {
            pod.read_exact(&mut vec![0; takes]).await.unwrap();
            pod.write_all(says).await.unwrap();
            then(pod).await;
        };
        let large = request(&Method::POST, vec![b'x'; 100_000]);
        let (read, ()) = tokio::join!(whole(&mut live, large), answers);
        (read.map_err(|broken| broken.to_string()), live.is_reusable())
    }

    const TOO_LARGE: &[u8] = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}";

    #[tokio::test]
    async fn a_pod_may_answer_before_it_has_read_the_request_and_is_not_asked_again() {
        for hangs_up in [false, true] {
            let then = async |pod| if hangs_up { drop(pod) } else { std::mem::forget(pod) };
            let (read, kept) = early(TOO_LARGE, 500, then).await;
            assert_eq!((read.unwrap().0, kept), (413, false), "hangs up: {hangs_up}");
        }
    }

    #[tokio::test]
    async fn a_large_request_goes_on_while_its_answer_comes() {
        let (mut pod, ours) = tokio::io::duplex(1 << 10);
        let mut live = Connection::new(ours);
        let echoes = async {
            pod.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            let (mut read, mut piece) = (0, [0; 512]);
            while read < 100_000 {
                let came = pod.read(&mut piece).await.unwrap();
                read += came;
                pod.write_all(format!("{came:x}\r\n{}\r\n", "y".repeat(came)).as_bytes()).await.unwrap();
            }
            pod.write_all(b"0\r\n\r\n").await.unwrap();
            pod
        };
        let asks = whole(&mut live, request(&Method::POST, vec![b'x'; 100_000]));
        let (read, _pod) = tokio::join!(asks, echoes);
        assert!(read.unwrap().1.len() >= 100_000);
    }

    /// A socket that takes so many bytes, then fails, and from which this can be read.
    struct Failing {
        takes: usize,
        says: &'static [u8],
    }

    impl AsyncRead for Failing {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let says = std::mem::take(&mut self.says);
            buf.put_slice(says);
            let reset = says.is_empty().then(|| io::ErrorKind::ConnectionReset.into());
            Poll::Ready(reset.map_or(Ok(()), Err))
        }
    }

    impl AsyncWrite for Failing {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let takes = self.takes.min(buf.len());
            self.takes -= takes;
            Poll::Ready(if takes == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(takes) })
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn it_is_known_what_was_sent_and_what_was_heard() {
        let lost = async |takes, says| {
            let lost = Connection::new(Failing { takes, says }).ask(request(&Method::GET, "")).await.unwrap_err();
            (lost.sent, lost.heard, lost.broken.to_string())
        };
        let (pipe, reset) = ("the connection failed: broken pipe", "the connection failed: connection reset");
        assert_eq!(lost(0, b"").await, (false, false, pipe.to_owned()));
        // What was said before anything was asked is no answer to it.
        assert_eq!(lost(0, TOO_LARGE).await, (false, false, pipe.to_owned()));
        assert_eq!(lost(1, b"").await, (true, false, pipe.to_owned()));
        assert_eq!(lost(1, b"HTTP/1.1 5").await, (true, true, pipe.to_owned()));
        assert_eq!(lost(GET.len(), b"").await, (true, false, reset.to_owned()));
        assert_eq!(lost(GET.len(), b"HTTP/1.1 5").await, (true, true, reset.to_owned()));
        assert_eq!(lost(GET.len(), b"SSH").await.2, "the pod does not speak HTTP/1");
        // It took a part, said why not the rest, and hung up.
        let mut live = Connection::new(Failing { takes: 9, says: TOO_LARGE });
        assert_eq!(whole(&mut live, request(&Method::GET, "")).await.unwrap().0, 413);
        assert!(!live.is_reusable());
    }

    #[tokio::test]
    async fn a_reset_is_no_end_of_a_body_that_ends_with_its_connection() {
        let mut live = Connection::new(Failing { takes: 99, says: b"HTTP/1.1 200 OK\r\n\r\nhal" });
        assert!(whole(&mut live, request(&Method::GET, "")).await.is_err());
    }

    #[tokio::test]
    async fn nothing_is_read_for_who_does_not_ask_for_it() {
        let (mut pod, ours) = tokio::io::duplex(64);
        let mut live = Connection::new(ours);
        let says = async {
            pod.read_exact(&mut [0; GET.len()]).await.unwrap();
            pod.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
        };
        let (head, ()) = tokio::join!(live.ask(request(&Method::GET, "")), says);
        assert_eq!(head.unwrap().headers["content-length"], HeaderValue::from(1000));
        assert_eq!(live.left(), Some(1000));
        let mut written = 0;
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(1), pod.write_all(b"0123456789abcdef")).await
        {
            written += 16;
        }
        assert_eq!(written, 64, "as much as the connection itself holds");
        assert_eq!(Rest(&mut live).frame().await.unwrap().unwrap().into_data().unwrap().len(), 64);
        assert_eq!(live.left(), Some(936));
    }
}
