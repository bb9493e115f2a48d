//! `lmetric`: uncached prompt tokens waiting there, this request's own among them, times the batch that it would be
//! part of (arXiv 2603.15202). A product needs no weights.

use super::{Dice, Rival, Seen, View, lowest};

pub(super) fn make(_pods: usize) -> Box<dyn Rival> {
    Box::new(LMetric)
}

#[derive(Debug)]
struct LMetric;

impl Rival for LMetric {
    fn choose(&mut self, view: &View<'_>, rng: &mut Dice) -> usize {
        lowest(view, view.pods.iter().map(|pod| score(pod, view)), rng)
    }
}

/// The request counts in its own batch, or every idle pod would score nothing whatever it has cached.
fn score(pod: &Seen, view: &View<'_>) -> f64 {
    (pod.prefill_tokens + pod.uncached(view)) * (pod.in_flight + 1.0)
}

#[cfg(test)]
mod tests {
    use super::{super::bench::asked, *};

    #[test]
    fn tokens_times_batch_by_hand() {
        // (0 + 1000) x 11 = 11,000 against (2000 + 1000) x 4 = 12,000; with 400 cached there, 10,400.
        let batch = Seen { in_flight: 10.0, ..Seen::default() };
        let queue = Seen { in_flight: 3.0, prefill_tokens: 2_000.0, ..Seen::default() };
        assert_eq!(asked(&mut LMetric, &[batch, queue], 1_000.0), 0);
        let cached = Seen { cached_tokens: 400.0, ..queue };
        assert_eq!(asked(&mut LMetric, &[batch, cached], 1_000.0), 1);
    }
}
