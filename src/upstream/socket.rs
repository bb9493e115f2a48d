//! The socket of a pod, plain or with TLS on it.

use std::{
    io,
    io::IoSlice,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// A socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// TCP.
    Plain(TcpStream),
    /// TLS over it. Boxed: its state has a kilobyte.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    /// Whether nothing can be read, as it is between two answers: neither an end nor anything that the pod says unasked.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [const { MaybeUninit::<u8>::uninit() }; 1];
        match self {
            // The system is asked itself: the runtime may not have heard yet what it knows, and what lies there already
            // would be taken for the next answer.
            Self::Plain(tcp) => {
                SockRef::from(&*tcp).peek(&mut byte).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            // What came may be the TLS library's own: a ticket, a new key.
            Self::Tls(tls) => {
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(tls).poll_read(&mut cx, &mut ReadBuf::uninit(&mut byte)).is_pending()
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(tcp) => tcp.is_write_vectored(),
            Self::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}
