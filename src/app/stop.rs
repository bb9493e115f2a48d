//! A stop in order: not ready, then no new connections, then a grace for what runs, then the rest is cut and counted.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{sleep, timeout};

use super::{Running, counts};
use crate::edge::Phase;

/// How long clients have to take in that their stream is cut.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Requests that were cut off because the grace was over.
    pub cut: usize,
}

impl Running {
    /// Stops: stays open for `delay` while not ready any more, then gives open requests `grace` to end. Resolving
    /// `hurry` (a second signal) ends both.
    pub async fn stop(self, delay: Duration, grace: Duration, hurry: impl Future<Output = ()>) -> Stopped {
        let orderly = async {
            self.stage.enter(Phase::Leaving);
            if self.policy.load().config.reuse_port {
                // The operator's doors are shared with the successor too: whoever asks there shall meet it.
                self.office_stage.enter(Phase::Closing);
            }
            if delay > Duration::ZERO {
                tracing::info!(open = self.open(), ?delay, "stopping: not ready any more, still accepting");
                sleep(delay).await;
            }
            self.stage.enter(Phase::Closing);
            tracing::info!(open = self.open(), ?grace, "stopping: no new connections, open requests go on");
            // What is still open afterwards is counted below.
            timeout(grace, self.clients.wait()).await.ok();
        };
        tokio::select! {
            () = orderly => {}
            () = hurry => {}
        }
        let cut = self.open();
        // Streams are told; then whoever did not take it in is dropped.
        self.house.cut.cancel();
        timeout(LAST_WORDS, self.clients.wait()).await.ok();
        self.stage.enter(Phase::Cutting);
        self.clients.wait().await;
        self.office_stage.enter(Phase::Cutting);
        self.office.stop();
        self.office.wait().await;
        self.background.stop();
        self.background.wait().await;
        if let Some(file) = &self.policy.load().config.quotas.state_file {
            counts::save(&self.house, file);
        }
        tell(cut);
        Stopped { cut }
    }

    fn open(&self) -> usize {
        self.house.requests_open.load(Relaxed)
    }
}

fn tell(cut: usize) {
    if cut > 0 {
        tracing::warn!(cut, "stopped: requests were cut off");
    } else {
        tracing::info!("stopped: nothing was cut off");
    }
}
