//! Questions put to the lab: how policies compare from rate to rate, how much each can carry, how far each is from what
//! is possible, and whether what is promised of ours is kept.

pub mod benchmark;
mod bounds;
mod capacity;
mod exam;
mod markdown;
mod metrics;
mod plot;
mod targets;

pub use bounds::{BOUNDS, bounds, gap_closed, nearest};
pub use capacity::{Point, Search};
pub use exam::{Capacity, Chapter, Exam, Failed, Overload, Sheet};
pub use markdown::{capacity_cells, chapter_page, page, table as markdown_table};
pub use metrics::{METRICS, Metric, Unit};
pub use plot::{Line, Plot, plots};
pub use targets::{Target, targets};
