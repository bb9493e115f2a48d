//! The only place that reads the time or takes a random generator.
//!
//! Everything that judges takes `now` and `rng` as arguments, so that a test or the lab can own both.

use std::time::{Instant, SystemTime};

/// The monotonic instant. It follows tokio's clock, so that a test which pauses tokio pauses this too.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The wall clock, for what people read (logs, `created` fields); never for measuring.
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// This thread's random generator.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn rng() -> rand::rngs::ThreadRng {
    rand::rng()
}
