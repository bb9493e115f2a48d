//! Sheddable streams that may be ended while somebody critical waits, where the operator wants that: the youngest first,
//! because the least was computed for it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::Waiting;
use crate::fleet::PoolState;

/// No two of a pool are ended within this: what the first frees is seen only when its pod has noticed. The reference gives
/// its victims as long.
const EVERY: Duration = Duration::from_millis(500);

/// A pool's streams that may be ended, the youngest last.
#[derive(Default)]
pub(super) struct Running {
    tokens: BTreeMap<u64, CancellationToken>,
    next: u64,
    ended: Option<Instant>,
}

impl Running {
    /// Ends the youngest, unless one was ended just before.
    pub(super) fn end_one(&mut self, now: Instant) {
        if self.ended.is_some_and(|ended| now.saturating_duration_since(ended) < EVERY) {
            return;
        }
        if let Some((_, token)) = self.tokens.pop_last() {
            self.ended = Some(now);
            token.cancel();
        }
    }
}

/// A stream that may be ended, for as long as it runs.
pub(in crate::gateway) struct Evictable {
    waiting: Arc<Waiting>,
    pool: Arc<str>,
    number: u64,
    /// Cancelled to end it.
    pub(in crate::gateway) token: CancellationToken,
}

impl Waiting {
    /// From now on a stream from `pool` may be ended.
    pub(in crate::gateway) fn may_end(self: &Arc<Self>, pool: &Arc<PoolState>) -> Evictable {
        let token = CancellationToken::new();
        let mut state = self.state();
        let running = &mut state.at(pool).running;
        let number = running.next;
        running.next += 1;
        running.tokens.insert(number, token.clone());
        Evictable { waiting: Arc::clone(self), pool: Arc::clone(pool.name()), number, token }
    }
}

impl Drop for Evictable {
    fn drop(&mut self) {
        if let Some(at) = self.waiting.state().pools.get_mut(&self.pool) {
            at.running.tokens.remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_is_ended_and_no_two_at_once() {
        let mut running = Running::default();
        let tokens: Vec<_> = (0..3).map(|_| CancellationToken::new()).collect();
        running.tokens.extend(tokens.iter().cloned().enumerate().map(|(nth, token)| (nth as u64, token)));
        let now = crate::clock::now();
        let ended = |running: &mut Running, now| {
            running.end_one(now);
            tokens.iter().map(CancellationToken::is_cancelled).collect::<Vec<_>>()
        };
        assert_eq!(ended(&mut running, now), [false, false, true]);
        assert_eq!(ended(&mut running, now + EVERY / 2), [false, false, true]);
        assert_eq!(ended(&mut running, now + EVERY), [false, true, true]);
    }
}
