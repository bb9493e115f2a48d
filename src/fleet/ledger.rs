//! What we ourselves have sent to a pod and not yet seen end.
//!
//! Counted up by [`Reservation::new`], counted down by its `Drop`: success, error and a client that went away take
//! the same path, so the counters return to exactly zero. Nothing here is keyed by anything a client sends.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::Pod;

/// Running counts of one pod. `sent`, `ended` and `heard` only grow, so that a scrape can remember them and later tell what
/// happened since; the others are levels.
#[derive(Debug, Default)]
pub struct Ledger {
    sent: AtomicU64,
    ended: AtomicU64,
    heard: AtomicU64,
    prefilled: AtomicU64,
    unstarted: AtomicU64,
    prefill_tokens: AtomicU64,
    kv_tokens: AtomicU64,
}

impl Ledger {
    /// Requests sent since the pod is known.
    #[inline]
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// Requests ended since the pod is known, however they ended.
    #[inline]
    pub fn ended(&self) -> u64 {
        self.ended.load(Relaxed)
    }

    /// Pieces of answers that came, since the pod is known.
    pub fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// Prompt tokens, believed not cached, of requests that showed their first token, since the pod is known.
    pub fn prefilled(&self) -> u64 {
        self.prefilled.load(Relaxed)
    }

    /// Requests sent and not ended.
    #[inline]
    pub fn in_flight(&self) -> u64 {
        // `ended` first: a request that ends between the two reads then counts as in flight, never as less than none.
        let ended = self.ended();
        self.sent().saturating_sub(ended)
    }

    /// Requests sent that have not shown their first token.
    #[inline]
    pub fn unstarted(&self) -> u64 {
        self.unstarted.load(Relaxed)
    }

    /// Prompt tokens, believed not cached, of requests sent that have not shown their first token.
    #[inline]
    pub fn prefill_tokens(&self) -> u64 {
        self.prefill_tokens.load(Relaxed)
    }

    /// Estimated KV-cache tokens that our requests there hold: their prompts and what they have generated.
    #[inline]
    pub fn kv_tokens(&self) -> u64 {
        self.kv_tokens.load(Relaxed)
    }
}

/// The sizes of a request about to be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Send {
    /// Estimated prompt tokens.
    pub prompt_tokens: u32,
    /// Of those, the ones that this pod will have to compute.
    pub uncached_tokens: u32,
}

/// A request's place on a pod, from the moment it is picked to its last byte. Dropping it gives everything back.
#[derive(Debug)]
pub struct Reservation {
    pod: Arc<Pod>,
    waiting_tokens: Option<u32>,
    kv_tokens: u64,
    probe: bool,
}

impl Reservation {
    /// Counts the request in. Call it under the pool's gate, right after the pick, so that simultaneous picks see
    /// each other.
    pub fn new(pod: Arc<Pod>, send: Send) -> Self {
        let ledger = &pod.ledger;
        ledger.sent.fetch_add(1, Relaxed);
        ledger.unstarted.fetch_add(1, Relaxed);
        ledger.prefill_tokens.fetch_add(u64::from(send.uncached_tokens), Relaxed);
        ledger.kv_tokens.fetch_add(u64::from(send.prompt_tokens), Relaxed);
        let probe = pod.health.begin_probe();
        Self { waiting_tokens: Some(send.uncached_tokens), kv_tokens: u64::from(send.prompt_tokens), probe, pod }
    }

    /// The pod.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Whether this request is the one that tries an ejected pod again.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// A piece of the answer came.
    pub fn heard(&self) {
        self.pod.ledger.heard.fetch_add(1, Relaxed);
    }

    /// The first token came: its prompt no longer stands in anybody's way. Only the first call counts.
    pub fn first_token(&mut self) {
        if let Some(tokens) = self.start() {
            self.pod.ledger.prefilled.fetch_add(u64::from(tokens), Relaxed);
        }
    }

    /// It no longer stands before anybody; its uncached tokens, the first time.
    fn start(&mut self) -> Option<u32> {
        let tokens = self.waiting_tokens.take()?;
        self.pod.ledger.unstarted.fetch_sub(1, Relaxed);
        self.pod.ledger.prefill_tokens.fetch_sub(u64::from(tokens), Relaxed);
        Some(tokens)
    }

    /// `tokens` more were generated and now occupy the KV cache.
    pub fn generated(&mut self, tokens: u32) {
        self.kv_tokens = self.kv_tokens.saturating_add(u64::from(tokens));
        self.pod.ledger.kv_tokens.fetch_add(u64::from(tokens), Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // Refused, or left by its client: who knows what was computed of it.
        self.start();
        self.pod.ledger.kv_tokens.fetch_sub(self.kv_tokens, Relaxed);
        self.pod.ledger.ended.fetch_add(1, Relaxed);
        if self.probe {
            self.pod.health.end_probe();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod() -> Arc<Pod> {
        Arc::new(Pod::for_test("pool", 1))
    }

    #[test]
    fn a_first_token_frees_the_prefill_but_keeps_the_stream() {
        let pod = pod();
        let mut held = Reservation::new(Arc::clone(&pod), Send { prompt_tokens: 100, uncached_tokens: 60 });
        assert_eq!((pod.ledger.in_flight(), pod.ledger.prefill_tokens(), pod.ledger.kv_tokens()), (1, 60, 100));
        held.first_token();
        held.first_token();
        held.generated(5);
        assert_eq!((pod.ledger.unstarted(), pod.ledger.prefill_tokens(), pod.ledger.kv_tokens()), (0, 0, 105));
        drop(held);
        assert_eq!((pod.ledger.in_flight(), pod.ledger.kv_tokens()), (0, 0));
    }

    #[test]
    fn a_request_that_never_began_has_computed_nothing() {
        let pod = pod();
        drop(Reservation::new(Arc::clone(&pod), Send { prompt_tokens: 100, uncached_tokens: 60 }));
        assert_eq!((pod.ledger.unstarted(), pod.ledger.prefilled()), (0, 0));
    }

    proptest! {
        #[test]
        fn counters_return_to_exactly_zero(steps in prop::collection::vec((0u8..4, 0u32..5_000, 0u32..5_000), 0..200)) {
            let pod = pod();
            let mut open: Vec<Reservation> = Vec::new();
            for (step, a, b) in steps {
                let at = a as usize % open.len().max(1);
                match (step, open.get_mut(at)) {
                    (0, _) | (_, None) => open.push(Reservation::new(
                        Arc::clone(&pod),
                        Send { prompt_tokens: a.max(b), uncached_tokens: a.min(b) },
                    )),
                    (1, Some(one)) => one.first_token(),
                    (2, Some(one)) => one.generated(b),
                    (_, Some(_)) => drop(open.swap_remove(at)),
                }
                prop_assert_eq!(pod.ledger.in_flight(), open.len() as u64);
            }
            drop(open);
            let ledger = &pod.ledger;
            prop_assert_eq!(
                (ledger.in_flight(), ledger.unstarted(), ledger.prefill_tokens(), ledger.kv_tokens()),
                (0, 0, 0, 0)
            );
        }
    }
}
