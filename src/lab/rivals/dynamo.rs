//! `dynamo`: prefill blocks waiting there with this request's own, less what is cached of it, plus the blocks that
//! decoding would hold; the lowest sum wins, ties are drawn (`lib/kv-router/src/scheduling/selector/default.rs` with
//! its defaults: prefill load counts once, overlap counts whole and does not decay, temperature 0).
//!
//! Everything is in KV blocks of one size, so the size cancels out and tokens do as well.

use super::{Dice, Rival, Seen, View, lowest};

pub(super) fn make(_pods: usize) -> Box<dyn Rival> {
    Box::new(Dynamo)
}

#[derive(Debug)]
struct Dynamo;

impl Rival for Dynamo {
    fn choose(&mut self, view: &View<'_>, rng: &mut Dice) -> usize {
        lowest(view, view.pods.iter().map(|pod| logit(pod, view)), rng)
    }
}

fn logit(pod: &Seen, view: &View<'_>) -> f64 {
    let prefill = (pod.prefill_tokens + view.prompt_tokens - pod.cached_tokens).max(0.0);
    let decode = pod.kv_tokens + view.prompt_tokens;
    prefill + decode
}

#[cfg(test)]
mod tests {
    use super::{super::bench::asked, *};

    #[test]
    fn prefill_and_decode_blocks_by_hand() {
        // 500 + 1000 - 800 + 3000 + 1000 = 4700 against 0 + 1000 - 0 + 2600 + 1000 = 4600.
        let warm = Seen { prefill_tokens: 500.0, kv_tokens: 3_000.0, cached_tokens: 800.0, ..Seen::default() };
        let cold = Seen { kv_tokens: 2_600.0, ..Seen::default() };
        assert_eq!(asked(&mut Dynamo, &[warm, cold], 1_000.0), 1);
        let warmer = Seen { cached_tokens: 950.0, ..warm };
        assert_eq!(asked(&mut Dynamo, &[warmer, cold], 1_000.0), 0);
    }
}
