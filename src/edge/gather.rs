//! What goes to one HTTP/2 client, in few writes.
//!
//! h2 writes each frame of more than 256 bytes by itself, and tokio polls a connection right behind the first of its
//! streams that has something for it: where many streams say a little, as Envoy's conversations and token streams do,
//! each word is a system call, a packet and a TLS record of its own. Here a flush waits one turn of the scheduler, in
//! which the other streams that are awake say theirs; then all goes at once. No clock is involved, and nothing waits for
//! what is not there yet.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// As much is gathered: two frames of HTTP/2's usual largest size, so that one goes together with its head.
const MOST: usize = 32 << 10;

/// From here on a write is worth its costs, and nobody is waited for: one such frame.
const ENOUGH: usize = 16 << 10;

/// A buffer of up to this many bytes is kept while there is nothing to write.
const KEPT: usize = 4 << 10;

/// A client's socket, written to in gathered pieces.
pub(super) struct Gather<S> {
    socket: S,
    held: BytesMut,
    /// Whether what is held has waited its turn.
    waited: bool,
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, held: BytesMut::new(), waited: false }
    }

    fn write_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.advance(written);
        }
        self.waited = false;
        if self.held.capacity() > KEPT {
            self.held = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

/// Not vectored: h2 then copies frames of up to a KiB behind each other by itself.
impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() + bytes.len() > MOST {
            ready!(self.write_held(cx))?;
        }
        if bytes.len() > MOST {
            return Pin::new(&mut self.socket).poll_write(cx, bytes);
        }
        self.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() && self.held.len() < ENOUGH && !self.waited {
            self.waited = true;
            // A task that wakes itself goes behind all that are awake.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.write_held(cx))?;
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_held(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Waker};

    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    fn polled(gather: &mut Gather<DuplexStream>) -> Poll<io::Result<()>> {
        Pin::new(gather).poll_flush(&mut Context::from_waker(Waker::noop()))
    }

    /// What has arrived at the other end.
    fn arrived(end: &mut DuplexStream) -> usize {
        let mut scratch = vec![0; 128 << 10];
        let mut into = ReadBuf::new(&mut scratch);
        _ = Pin::new(end).poll_read(&mut Context::from_waker(Waker::noop()), &mut into);
        into.filled().len()
    }

    #[tokio::test]
    async fn small_words_wait_one_turn_for_each_other_and_then_go_together() {
        let (near, mut far) = duplex(64 << 10);
        let mut gather = Gather::new(near);
        gather.write_all(&[1; 300]).await.unwrap();
        assert!(polled(&mut gather).is_pending());
        gather.write_all(&[2; 300]).await.unwrap();
        assert_eq!(arrived(&mut far), 0);
        assert!(polled(&mut gather).is_ready());
        assert_eq!(arrived(&mut far), 600);
        assert!(polled(&mut gather).is_ready(), "nothing is held, so nothing waits");
    }

    #[tokio::test]
    async fn a_flush_that_waits_is_polled_again_by_itself() {
        let (near, mut far) = duplex(64 << 10);
        let mut gather = Gather::new(near);
        gather.write_all(b"word").await.unwrap();
        gather.flush().await.unwrap();
        assert_eq!(arrived(&mut far), 4);
    }

    #[tokio::test]
    async fn a_large_frame_does_not_wait_and_what_is_too_large_is_not_copied() {
        let (near, mut far) = duplex(1 << 20);
        let mut gather = Gather::new(near);
        gather.write_all(&[1; 9]).await.unwrap();
        gather.write_all(&vec![2; ENOUGH]).await.unwrap();
        assert!(polled(&mut gather).is_ready());
        assert_eq!(arrived(&mut far), 9 + ENOUGH);
        assert_eq!(gather.held.capacity(), 0, "an idle connection has no buffer of that size");
        gather.write_all(b"before").await.unwrap();
        gather.write_all(&vec![3; MOST + 1]).await.unwrap();
        assert_eq!(arrived(&mut far), 6 + MOST + 1, "in their order");
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_waited_for_and_the_end_brings_what_is_held() {
        let (near, mut far) = duplex(10);
        let mut gather = Gather::new(near);
        gather.write_all(&[7; 25]).await.unwrap();
        assert!(polled(&mut gather).is_pending() && polled(&mut gather).is_pending());
        let mut seen = 0;
        while seen < 25 {
            seen += arrived(&mut far);
            _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut gather).poll_shutdown(cx))).await;
        }
        assert_eq!(seen, 25);
    }
}
