//! The stages of a stop, in order; every door and the readiness probe watch them.

use tokio::sync::watch;

/// How far a stop has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// All is open.
    Serving,
    /// Not ready any more, but still accepting: load balancers need a moment to notice.
    Leaving,
    /// No new connections; those that exist are told to go after what they are doing.
    Closing,
    /// Whoever is still here is cut off.
    Cutting,
}

/// The present phase, and the right to move it forward.
#[derive(Debug)]
pub struct Stage(watch::Sender<Phase>);

impl Default for Stage {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Stage {
    /// Moves on to `phase`; never back.
    pub fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            *now = phase.max(*now);
            forward
        });
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Follows the phases.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }

    /// Resolves once `phase` is reached or passed.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives in self, so waiting cannot fail.
        self.watch().wait_for(|now| *now >= phase).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_never_goes_back() {
        let stage = Stage::default();
        stage.enter(Phase::Closing);
        stage.enter(Phase::Leaving);
        assert_eq!(stage.phase(), Phase::Closing);
    }
}
