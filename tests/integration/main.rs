//! The gateway as its clients, its pods and its operator meet it: real sockets, whole requests, every way to fail.
//!
//! One binary, so that it links once. A file a subject; what they share is in `harness`.
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
    clippy::format_collect,
    reason = "tests fail by panicking, count exactly, own their time and their tasks, and tell a story from top to bottom"
)]

mod abandoning;
mod binary;
mod breaking;
mod deploying;
mod differential;
mod edge_addresses;
mod edge_pages;
mod edge_tls;
mod ejecting;

mod failing;
#[path = "../files/mod.rs"]
mod files;
mod forwarding;
mod guarding;
mod harness;
mod hostile_bodies;
mod hostile_http2;
mod identifying;
mod keeping;
#[cfg(feature = "kubernetes")]
mod keys_in_a_cluster;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod leaving;
mod limiting;
mod limiting_together;
mod logging_decisions;
mod logging_requests;
mod mistaking;
mod mixture;
mod models;
mod noticing;
mod overload;
mod picking;
mod picking_for_the_worst;
mod refusing;
mod reliability;
mod reloading;
mod remembering;
mod responses;
mod restarting;
mod retrying;
mod rewriting;
mod shedding;
mod slow_clients;
mod smuggling;
mod splitting;
mod stopping;
mod streaming;
mod telling;
mod timing;
mod tls;
mod tokens;
mod waiting;
