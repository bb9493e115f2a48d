//! A load generator that reads server-sent events over real sockets and says what a user would have felt.
//!
//! What is asked and when ([`Plan`]) is settled before the first request, so that two gateways can be given exactly the
//! same; what was felt ([`Tally`]) is plain arithmetic on instants; only [`Client`] and [`Player`] touch sockets. It
//! never decides what is good: that is for whoever reads the figures.

mod client;
mod plan;
mod player;
mod quantiles;
mod tally;

pub use client::{Answer, Client, Outcome, Timeline};
pub use plan::{Conversation, Kind, Plan, Shape, Turn};
pub use player::Player;
pub use quantiles::Samples;
pub use tally::{Figures, Open, Tally};
