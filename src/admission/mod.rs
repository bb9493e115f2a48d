//! May it come in, and when: who asks, what they may use up, and in which order they are let in where not all can be
//! served at once.
//!
//! Pure: (who, what, now) -> verdict. It reads no header and no file, it wakes nobody, and it chooses no pod.

mod caller;
pub mod line;

pub use caller::Caller;
