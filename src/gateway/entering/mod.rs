//! Who comes in: what is known of a client before it is known what it asks.

mod identity;
mod peer;

pub(super) use identity::{identify, told};
pub use peer::Peer;
