//! What we tell operators: every metric family, the set-up of logs, and label values that stay bounded.
//!
//! This room knows nobody above the ground floor: facts are handed to it.

mod certificates;
pub mod decisions;
pub mod identity;
pub mod labels;
mod line;
pub mod logs;
pub mod metrics;
mod quotas;
mod rows;
mod seldom;
mod tally;

pub use certificates::CertificateMetrics;
pub use decisions::{Decision, DecisionLog, Hex};
pub use identity::IdentityMetrics;
pub use labels::Name;
pub use metrics::{Histograms, Metrics};
pub use quotas::{QuotaMetrics, QuotaRow, SpendLabels};
pub use rows::{KindRow, PodRow, PoolRow, ReadRows, Rows};
pub use seldom::Seldom;
pub use tally::{Tallies, Tally};
