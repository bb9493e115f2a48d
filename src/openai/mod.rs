//! The clients' dialect: what is asked, for which model, and how answers are framed.
//!
//! Pure: bytes in, facts out. Requests are read once, without building a tree, and every fact is a span of the
//! body, because a gateway that re-serialises what it relays changes it. Answers are watched and edited as they
//! pass, in any chunking, in bounded memory. What to do about any of it is decided elsewhere.

mod ask;
mod body_watch;
mod endpoint;
mod error;
mod models;
mod multipart;
mod rename;
mod splice;
mod sse;
mod text;
mod usage;
mod watch;

pub use ask::{Ask, BesideText};
pub use body_watch::BodyWatch;
pub use endpoint::{Asked, Dialect, Endpoint, PathProblem, classify};
pub use error::{ErrorBody, Malformed, Reported};
pub use models::{ModelCard, list, one, parse_list};
pub use rename::{Framing, ModelRenamer};
pub use splice::{Changes, splice};
pub use sse::{Event, Frames};
pub use text::{AnswerText, Lexicon, Part};
pub use usage::{Usage, UsageStripper};
pub use watch::{End, Seen, StreamWatch};

#[cfg(test)]
mod pieces {
    use bytes::Bytes;
    use proptest::prelude::*;

    /// Where to cut, as lengths of pieces that are used in turn.
    pub(super) fn cuts() -> impl Strategy<Value = Vec<usize>> {
        prop_oneof![Just(vec![1]), proptest::collection::vec(1_usize..60, 1..20)]
    }

    pub(super) fn cut(bytes: &[u8], lengths: &[usize]) -> Vec<Bytes> {
        let mut rest = Bytes::copy_from_slice(bytes);
        let mut pieces = Vec::new();
        for length in lengths.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            pieces.push(rest.split_to((*length).min(rest.len())));
        }
        pieces
    }
}
