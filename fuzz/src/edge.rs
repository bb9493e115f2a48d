//! Heads of requests, and what balancers write before them.

use std::{net::SocketAddr, pin::Pin, task::{Context, Poll}};

use tokio::io::{AsyncRead, ReadBuf};

#[path = "../../src/edge/head.rs"]
mod head;
#[path = "../../src/edge/proxy_header.rs"]
mod proxy_header;

/// Whether a head that comes in these pieces is accepted.
pub fn accepts<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut head = head::Head::default();
    pieces.into_iter().all(|piece| head.accepts(piece))
}

/// Whom a PROXY header names that comes in pieces of this size, and how many bytes are left behind it.
pub fn proxy_client(bytes: &[u8], size: usize) -> (Result<Option<SocketAddr>, std::io::ErrorKind>, usize) {
    let mut pieces = Pieces { bytes, size };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let read = runtime.block_on(proxy_header::read(&mut pieces));
    (read.map_err(|error| error.kind()), pieces.bytes.len())
}

struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let fits = self.size.min(into.remaining()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(fits);
        into.put_slice(now);
        self.bytes = later;
        Poll::Ready(Ok(()))
    }
}
