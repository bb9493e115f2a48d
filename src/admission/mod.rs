//! May it come in, and when: who asks, what they may use up, and in which order they are let in where not all can be
//! served at once.
//!
//! Pure: (who, what, now) -> verdict. It reads no header and no file, it wakes nobody, and it chooses no pod.

mod certificate;
mod identity;
pub mod line;
mod quotas;

pub use crate::keys::Caller;
pub use certificate::PeerCertificate;
pub use identity::{CREDENTIALS, Credential, Secret, Stranger, credential, names, of_certificate};
pub use quotas::{
    Counted, Counts, Demand, Granted, Hold, Limit, Mode, Moment, Plan, Refusal, Relief, Room, Saved, Scope, Spent,
    Standing, rfc3339,
};
