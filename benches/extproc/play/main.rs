//! The two ends of the comparison of pickers: a picker that does nothing, and an Envoy without Envoy.
//!
//! The first is the floor: what the hop costs whoever answers it. The second plays Envoy's messages over one HTTP/2
//! connection, so that a picker's own work can be counted without the noise of anything beside it. They measure and judge
//! nothing: `run` beside this folder does.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

mod envoy;
mod nothing;

use clap::Parser;
use tokio::runtime::Builder;

/// As the gateway itself has it: an allocator is no difference between the two.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
enum Verb {
    /// A picker that names the pods in turn and passes everything on
    Nothing(nothing::Args),
    /// Plays Envoy's part of conversations with a picker and prints one JSON object about them
    Envoy(envoy::Args),
}

fn main() -> anyhow::Result<()> {
    match Verb::parse() {
        // As many threads as the gateway would have.
        Verb::Nothing(args) => Builder::new_multi_thread().enable_all().build()?.block_on(nothing::run(args)),
        Verb::Envoy(args) => Builder::new_current_thread().enable_all().build()?.block_on(envoy::run(args)),
    }
}
