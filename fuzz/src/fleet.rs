//! What a page is read into.

#[path = "../../src/fleet/load.rs"]
mod load;

pub use load::*;
