//! Which pod likely holds the beginning of a prompt.
//!
//! The prompt's bytes are cut into blocks, each hashed together with all before it ([`Blocks`]); the [`Index`] knows
//! for every block which pods were sent it and have not likely evicted it. It is a belief from what we sent, bounded
//! by what a pod's KV cache can hold, and discounted where the pod says that it found less ([`Claim`]); it never asks an
//! engine and never reads a token.

mod blocks;
mod hits;
mod holders;
mod index;
mod lru;
mod trust;

pub use blocks::{BLOCK_BYTES, Blocks, Chain, MAX_BLOCKS};
pub use hits::{Hits, Walk};
pub use index::Index;
pub use trust::Claim;
