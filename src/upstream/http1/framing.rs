//! Where an answer's body ends, and which of the bytes that come are its own.

use bytes::BytesMut;
use http::HeaderMap;

use super::chunked::Chunked;

/// Something that no HTTP/1.1 client should have to guess at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// A head, or trailers, that httparse refuses.
    #[error("the answer's head is malformed: {0}")]
    Head(#[from] httparse::Error),
    /// Everything else.
    #[error("{0}")]
    Said(&'static str),
}

/// Where a body ends.
#[derive(Debug)]
pub(super) enum Framing {
    /// After so many more bytes.
    Length(u64),
    /// Where its chunks say.
    Chunked(Chunked),
    /// Where the connection does.
    UntilClose {
        /// It has.
        over: bool,
    },
}

impl Framing {
    /// Leaves the body's own bytes in `piece`, and says whether there were others behind its end.
    pub(super) fn take(&mut self, piece: &mut BytesMut) -> Result<bool, Nonsense> {
        let came = piece.len();
        let (own, read) = match self {
            Self::Length(left) => {
                let own = usize::try_from(*left).unwrap_or(usize::MAX).min(came);
                *left -= own as u64;
                (own, own)
            }
            Self::Chunked(chunked) => chunked.take(piece)?,
            Self::UntilClose { .. } => (came, came),
        };
        piece.truncate(own);
        Ok(read < came)
    }

    /// What was wrong behind the bytes that were taken last.
    pub(super) fn broken(&self) -> Option<Nonsense> {
        match self {
            Self::Chunked(chunked) => chunked.broken,
            Self::Length(_) | Self::UntilClose { .. } => None,
        }
    }

    /// The connection was closed in good order: whether that is the body's end.
    pub(super) fn close(&mut self) -> bool {
        if let Self::UntilClose { over } = self {
            *over = true;
        }
        self.is_over()
    }

    /// Whether the body has come to its end.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_over(),
            Self::UntilClose { over } => *over,
        }
    }

    /// Whether there are trailers to take.
    pub(super) fn has_trailers(&self) -> bool {
        matches!(self, Self::Chunked(chunked) if chunked.trailers.is_some())
    }

    /// The fields behind the body, once.
    pub(super) fn take_trailers(&mut self) -> Option<HeaderMap> {
        match self {
            Self::Chunked(chunked) => chunked.trailers.take().map(|fields| *fields),
            Self::Length(_) | Self::UntilClose { .. } => None,
        }
    }
}
