//! What is true about the pods, as far as we can know it: which there are, what they last said of themselves and
//! when, what we have sent them since, whether they may be used, and how fast they have shown themselves to be.
//!
//! No I/O and no clock: the senses and the desk write here, judgement only reads. One writer per fact: discovery
//! writes which pods exist, scrape their [`PodLoad`], the desk what it sent and saw.

mod course;
#[cfg(test)]
pub(crate) mod for_test;
mod glance;
mod health;
mod ledger;
mod load;
mod pod;
mod roster;
mod saturation;
mod slate;
mod snapshot;
mod speed;

pub use course::Course;
pub use glance::{AdapterState, Glance, Moment, Name};
pub use health::{Admission, Condition, Ejection, Evidence, Health};
pub use ledger::{Ledger, Reservation, Send};
pub use load::{Adapters, PodLoad, Reading};
pub use pod::{Pod, PodId, ReportedModel, Serving, View};
pub use roster::{Changes, Fleet, PoolState, Pools};
pub use saturation::{FULL_CACHE, Room, Saturation, Spare, others_tokens};
pub use snapshot::{FleetSnapshot, PodSnapshot, PoolSnapshot};
pub use speed::{Inflow, Of, Pace, PoolSpeed, Speed};
