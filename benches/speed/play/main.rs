//! The two ends of the speed comparison: a server that always answers the same, and a load generator that reads streams.
//!
//! Both speak HTTP/1.1 over bare sockets, so that neither costs more than what stands between them. They measure and
//! judge nothing: `run` beside this folder does.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

mod load;
mod upstream;
mod wire;

use clap::Parser;
use tokio::runtime::Builder;

#[derive(Parser)]
enum Verb {
    /// Answers every request alike, on one port or many
    Upstream(upstream::Args),
    /// Sends requests and prints one JSON object about how long they took
    Load(load::Args),
}

fn main() -> anyhow::Result<()> {
    let verb = Verb::parse();
    // One thread each: the two share one core, and the proxy has the other.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    match verb {
        Verb::Upstream(args) => runtime.block_on(upstream::run(args)),
        Verb::Load(args) => runtime.block_on(load::run(args)),
    }
}
