//! A real Envoy before simulated pods, with this gateway as its picker, set as `deploy/envoy` recommends.
//!
//! Envoy is taken from `$TIDEGATE_ENVOY`, from the path, or from where `.ci/run` installs it. Where there is none, these
//! tests say so and pass; with `$TIDEGATE_ENVOY` set they do not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::disallowed_methods,
    clippy::large_futures,
    clippy::float_cmp,
    clippy::cognitive_complexity,
    clippy::format_push_string,
    clippy::print_stderr,
    dead_code,
    unused_imports,
    reason = "tests fail by panicking; the harness is shared and not all of it is used here"
)]

mod breaking;
#[path = "../integration/harness/mod.rs"]
mod harness;
mod process;
mod scene;
mod serving;
mod wires;
