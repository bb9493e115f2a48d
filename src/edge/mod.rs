//! The doors for clients: accept connections, bound what one client may do to us, and close in good order.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge, told apart by the first bytes; within TLS where the listener has it. What a
//! request means is the desk's business.

mod accept;
mod connection;
mod drain;
mod entering;
mod gather;
mod head;
mod proxy_header;
mod pulse;
mod rejected;
mod stall;
mod tls;
mod wire;

pub use accept::{Door, run};
pub use connection::Limits;
pub use drain::{Phase, Stage};
pub use entering::Rules;
pub use rejected::Rejected;
pub use tls::Tls;
