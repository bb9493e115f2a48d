//! Who may come: keys in files, tokens of issuers, names of certificates. Read again when they change, and published as
//! snapshots, so that a request finds in memory all that it is judged by.
//!
//! What is secret stays in here: of keys there are only hashes, and no text that a client showed is kept or told.

mod caller;
mod claims;
mod file;
mod issuers;
mod jwks;
mod jwt;
mod keyring;
mod mint;
mod salt;
mod shared;
mod signatures;
mod table;

pub use caller::Caller;
pub use jwt::{BadToken, Issuers};
pub use keyring::{Bad, ClientTls, Keyring, KeyringError, Read};
pub use mint::{ENOUGH, Minted, hash_of, mint};
pub use salt::Salt;
pub use shared::{Meter, MeterKind, Reserved, Shared, SharedMetrics, Stand, Ticket};
pub use table::{BadKey, Keys};
