//! Reading from a socket so that a connection that waits holds no buffer.

use std::{
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

/// Read at once into the stack of whoever polls, bytes: dozens of token events, or the head and the whole of a short
/// answer. Two pages, so that nobody's stack minds.
const SMALL: usize = 8 << 10;

/// Read at once where an answer is large, and the most that is taken of one before it goes on to its client, bytes: the
/// largest head fits, and the 220 KB of a large answer are five reads.
const LARGE: usize = 64 << 10;

/// Reads pieces as large as what comes.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The last read filled what it had, so that more is likely to be there.
    more: bool,
}

impl Reader {
    /// What has come, in memory of its own size; nothing at the end.
    pub(super) fn poll<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<BytesMut>> {
        if self.more {
            return self.poll_large(stream, cx);
        }
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; SMALL];
        let mut scratch = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(stream).poll_read(cx, &mut scratch))?;
        self.more = scratch.remaining() == 0;
        Poll::Ready(Ok(BytesMut::from(scratch.filled())))
    }

    fn poll_large<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
        let mut piece = BytesMut::with_capacity(LARGE);
        let read = pin!(stream.read_buf(&mut piece)).poll(cx);
        // A connection that waits gives its buffer back.
        self.more = piece.len() >= SMALL;
        ready!(read)?;
        Poll::Ready(Ok(if self.more { piece } else { BytesMut::from(piece.as_ref()) }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn pieces_are_as_large_as_what_came_and_grow_where_more_is_there() {
        let (mut pod, mut us) = tokio::io::duplex(1 << 20);
        let mut reader = Reader::default();
        let mut next = async || std::future::poll_fn(|cx| reader.poll(&mut us, cx)).await.unwrap();
        pod.write_all(b"data: 1\n\n").await.unwrap();
        let piece = next().await;
        assert_eq!((piece.as_ref(), piece.capacity()), (&b"data: 1\n\n"[..], 9));
        pod.write_all(&vec![7; 220_000]).await.unwrap();
        let mut sizes = Vec::new();
        while sizes.iter().sum::<usize>() < 220_000 {
            sizes.push(next().await.len());
        }
        assert_eq!(sizes, [SMALL, LARGE, LARGE, LARGE, 220_000 - SMALL - 3 * LARGE]);
        pod.write_all(b"x").await.unwrap();
        assert_eq!(next().await.capacity(), 1, "no large buffer for a small piece");
        drop(pod);
        assert!(next().await.is_empty());
    }

    #[test]
    fn a_large_buffer_is_not_held_while_nothing_comes() {
        let (_pod, mut us) = tokio::io::duplex(1 << 20);
        let mut reader = Reader { more: true };
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(reader.poll(&mut us, &mut cx).is_pending());
        assert!(!reader.more);
    }
}
