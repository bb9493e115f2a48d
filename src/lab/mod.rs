//! Many pods that are not there, on a clock that is not there either, with the production code deciding.
//!
//! It answers "which policy, how many pods, for this traffic?" in seconds instead of GPU hours. Every decision is made
//! by the functions that a running gateway calls, and they see only what HTTP would show them: what they sent, what
//! came back, and pages of metrics that are late, torn or missing. Other routers' rules ([`rivals`]) are measured beside
//! them. Same seed, same numbers. It opens no socket, sleeps never and prints nothing.

mod clockwork;
mod desk;
pub mod doors;
mod draws;
mod league;
pub mod overload;
pub mod rivals;
mod script;
mod setup;
pub mod study;
mod tally;
mod text;
pub mod workloads;
mod world;

pub use league::{Contest, Standing, Watch, compete, compete_watched};
pub use rivals::{Policy, RIVALS};
pub use script::{Ask, Client, Next, Piece, Script};
pub use setup::{Fault, Mishap, Scrape, Setup, Shift};
pub use tally::{Slo, Stats, Told, WallTime};
pub use world::{Run, run};
