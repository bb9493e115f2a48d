//! Who comes in: what is known of a client before it is known what it asks.

mod peer;

pub use peer::Peer;
