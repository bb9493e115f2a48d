//! What only many requests at once, or much time, bring to light: a storm of cancellations, and a long mixed load on
//! the real binary.
//!
//! A binary of its own, because its tests watch the memory, the tasks and the descriptors of a whole process; they run
//! one at a time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    clippy::large_futures,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::format_push_string,
    clippy::too_many_lines,
    clippy::float_cmp,
    clippy::format_collect,
    clippy::similar_names,
    reason = "tests fail by panicking, count exactly, own their time and their tasks, and tell what they measured"
)]

mod chaos;
mod client;
mod growing;
#[path = "../integration/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "what the other binary uses of it")]
mod harness;
mod process;
mod slow_readers;
mod soak;

use tokio::sync::{Mutex, MutexGuard};

static ALONE: Mutex<()> = Mutex::const_new(());

/// Waits until no other test of this binary runs.
async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}
