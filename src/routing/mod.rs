//! Which pool serves a request, and under which name: a client's model name becomes one arm of its split.
//!
//! Pure: the configuration, the request's words and a random generator go in, a [`Route`] comes out. It does not know
//! pods; whether one of them is there to answer is the scheduler's question.

mod priority;
mod split;
mod table;

pub use priority::{Claims, Objectives, Priority};
pub use split::{StickyKey, key_of};
pub use table::{Route, Table, UnknownModel};
