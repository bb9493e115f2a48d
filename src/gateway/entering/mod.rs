//! Who comes in: what is known of a client before it is known what it asks.

pub(super) mod cors;
mod identity;
mod peer;
mod whose;

pub(super) use identity::{Known, identify, told, unmasked};
pub use peer::Peer;
pub(super) use whose::whose;
