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
use http_body::{Frame, SizeHint};
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
    pub(super) fn size_hint(&self) -> SizeHint {
        match self.framing {
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::Chunked(_) | Framing::UntilClose { .. } => SizeHint::default(),
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
