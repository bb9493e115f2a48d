//! The socket of one client, seen from hyper: reads are noted, writes that get nowhere end, and what hyper says by
//! itself is said in our words.
//!
//! hyper answers what it cannot parse, or what `head` refuses and it may not see, with a bare status, before any service hears of it. Such an answer is known by
//! being what no other is: a whole head without a body and without a request id, while nothing is being answered.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{head::Head, pulse::Pulse, rejected::TLS_BEGINS, stall::WRITE_STALL};
use crate::gateway::refuse_unparsed;

/// hyper's own answers have 90 to 120 bytes.
const LONGEST_OWN_ANSWER: usize = 200;

/// After an answer to a client that is still sending, what comes is read and dropped for so long, so that the answer is
/// not lost to a reset (nginx lingers 5 s between pieces and 30 s in all).
const LINGER: Duration = Duration::from_secs(2);

/// ... and up to so many bytes: the largest body allowed by default.
const LINGER_BYTES: usize = 32 << 20;

/// NUL is allowed nowhere in a head...
const NO_BYTE_OF_A_HEAD: u8 = 0;

/// How a client begins that speaks HTTP/2 (RFC 9113, 3.4).
const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// ... and hyper looks at one once it seems to be complete.
const END_OF_HEAD: &[u8] = b"\n\n";

/// A client's socket.
pub(super) struct Wire<S> {
    socket: S,
    pulse: Arc<Pulse>,
    /// How long a write may get nowhere.
    limit: Duration,
    /// What was read to tell how the client speaks; it comes again, in one piece with what follows.
    greeting: Vec<u8>,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Our words in place of hyper's, not yet written.
    words: Bytes,
    linger: Option<(Pin<Box<Sleep>>, usize)>,
    /// The head that is being read, and how many were before it.
    head: (Head, u32),
    unfit: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(socket: S, pulse: Arc<Pulse>, limit: Duration) -> Self {
        Self {
            socket,
            pulse,
            limit,
            greeting: Vec::new(),
            stalled: None,
            words: Bytes::new(),
            linger: None,
            head: Default::default(),
            unfit: false,
        }
    }

    /// Whether the client begins as HTTP/2 does. hyper-util can tell that as well, but then the first head comes in two
    /// pieces, for which hyper makes its buffer twice as large.
    pub(super) async fn greets_in_http2(&mut self) -> io::Result<bool> {
        while let Some(rest) = HTTP2.get(self.greeting.len()..).filter(|rest| !rest.is_empty()) {
            let mut piece = [0; HTTP2.len()];
            let room = piece.get_mut(..rest.len()).unwrap_or_default();
            let read = self.socket.read(room).await?;
            let new = piece.get(..read).unwrap_or_default();
            self.greeting.extend_from_slice(new);
            if new.is_empty() || !rest.starts_with(new) {
                if self.greeting.starts_with(&TLS_BEGINS) {
                    self.pulse.rejected.spoke_tls();
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A write that gets nowhere ends after a while.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let limit = self.limit;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        self.pulse.rejected.count(WRITE_STALL);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client stopped reading")))
    }

    /// Whether these bytes may be read. What is not is made to be no head at all, so that hyper refuses it, in our words.
    fn is_fit(&mut self, bytes: &[u8]) -> bool {
        if !self.pulse.nothing_open() || self.pulse.is_http2() {
            return true;
        }
        let asked = self.pulse.asked_so_far();
        if self.head.1 != asked {
            self.head = (Head::default(), asked);
        }
        self.head.0.accepts(bytes)
    }

    fn write_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.words.is_empty() {
            let written = Pin::new(&mut self.socket).poll_write(cx, &self.words);
            let written = ready!(self.judge(written, cx))?;
            self.words.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes hyper's own answer, if that is what `bytes` are, and puts ours in its place.
    fn takes_over(&mut self, bytes: &[u8]) -> bool {
        let Some(status) = own_answer(bytes).filter(|_| self.pulse.nothing_open()) else { return false };
        let (answer, reason) = refuse_unparsed(status);
        self.words = answer;
        self.pulse.rejected.count(reason);
        true
    }

    /// Reads on after our last word if the client is still speaking, until it has heard it.
    fn linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (timer, room) = self.linger.get_or_insert_with(|| (Box::pin(sleep(LINGER)), LINGER_BYTES));
        let mut scratch = [0_u8; 8 << 10];
        while *room > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.socket).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    *room = room.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if *room == LINGER_BYTES => return Poll::Ready(()),
                Poll::Pending => return timer.as_mut().poll(cx),
            }
        }
        Poll::Ready(())
    }
}

/// The status, if these bytes are what hyper answers by itself.
fn own_answer(bytes: &[u8]) -> Option<u16> {
    if bytes.len() > LONGEST_OWN_ANSWER || !bytes.starts_with(b"HTTP/1.1 4") {
        return None;
    }
    let text = str::from_utf8(bytes).ok()?;
    let bare = text.ends_with("\r\n\r\n") && text.contains("content-length: 0\r\n") && !text.contains("x-request-id");
    let status = text.get(9..12)?.parse().ok()?;
    (bare && matches!(status, 400 | 414 | 431)).then_some(status)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unfit {
            into.put_slice(END_OF_HEAD.get(..into.remaining()).unwrap_or(END_OF_HEAD));
            return Poll::Ready(Ok(()));
        }
        let before = into.filled().len();
        if !self.greeting.is_empty() {
            let fits = self.greeting.len().min(into.remaining());
            let rest = self.greeting.split_off(fits);
            into.put_slice(&std::mem::replace(&mut self.greeting, rest));
        }
        let read = Pin::new(&mut self.socket).poll_read(cx, into)?;
        if into.filled().len() == before {
            ready!(read);
        }
        let Some(new) = into.filled_mut().get_mut(before..).filter(|new| !new.is_empty()) else {
            return Poll::Ready(Ok(()));
        };
        self.pulse.heard(new);
        if !self.is_fit(new) {
            self.unfit = true;
            new.fill(NO_BYTE_OF_A_HEAD);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.takes_over(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.judge(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = pieces
            && self.takes_over(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, pieces);
        self.judge(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_words(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(self.write_words(cx))?;
            ready!(Pin::new(&mut self.socket).poll_shutdown(cx))?;
        }
        self.linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_refusal_is_taken_for_hypers_own() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\
                    date: Sat, 21 Nov 2026 15:00:00 GMT\r\n\r\n";
        assert_eq!(own_answer(own), Some(431));
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\nx-request-id: 1\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert_eq!(own_answer(other), None);
        }
    }
}
