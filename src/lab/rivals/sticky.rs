//! `sticky`: llm-d's "sticky until saturated". Pods that hold at least 0.8 of the prompt are kept, unless their backlog
//! is so much larger than the best other's that waiting there costs more than computing anew; among those left, the
//! fewest uncached tokens in flight with this request's own.

use super::{Dice, Rival, Seen, View, lowest};

/// Share of the prompt from which a pod is kept (`affinityThreshold`).
const AFFINITY: f64 = 0.8;

/// How much more backlog is still worth it: 20,480 tokens/s for 14 s, as the guides compute it for Qwen3-32B on H100;
/// the plugin's own default, 15,928 tokens/s for 18 s, is the same.
const TAU: f64 = 286_720.0;

/// Where the token-load scorer stops telling pods apart.
const MOST_LOAD: f64 = 4_194_304.0;

pub(super) fn make(_pods: usize) -> Box<dyn Rival> {
    Box::new(Sticky)
}

#[derive(Debug)]
struct Sticky;

impl Rival for Sticky {
    fn choose(&mut self, view: &View<'_>, rng: &mut Dice) -> usize {
        let holds = |pod: &Seen| pod.cached_tokens >= AFFINITY * view.prompt_tokens;
        let least = |kept: bool| {
            let loads = view.in_use().filter(|pod| holds(pod) == kept).map(|pod| load(pod, view));
            loads.fold(f64::INFINITY, f64::min)
        };
        let (kept, others) = (least(true), least(false));
        let stick = kept.is_finite() && kept - others <= TAU;
        let score = |pod: &Seen| if stick && !holds(pod) { f64::INFINITY } else { load(pod, view).min(MOST_LOAD) };
        lowest(view, view.pods.iter().map(score), rng)
    }
}

fn load(pod: &Seen, view: &View<'_>) -> f64 {
    pod.prefill_tokens + pod.uncached(view)
}

#[cfg(test)]
mod tests {
    use super::{super::bench::asked, *};

    fn pod(cached_tokens: f64, prefill_tokens: f64) -> Seen {
        Seen { prefill_tokens, cached_tokens, ..Seen::default() }
    }

    #[test]
    fn a_pod_with_four_fifths_of_the_prompt_is_kept_however_idle_the_others_are() {
        assert_eq!(asked(&mut Sticky, &[pod(0.0, 0.0), pod(800.0, 100_000.0)], 1_000.0), 1);
        assert_eq!(asked(&mut Sticky, &[pod(0.0, 0.0), pod(799.0, 100_000.0)], 1_000.0), 0);
    }

    #[test]
    fn until_its_backlog_is_tau_more_than_the_best_others() {
        // 286,520 + 200 - (0 + 1000) = 285,720 is within tau; 287,521 + 200 - 1000 = 286,721 is not.
        assert_eq!(asked(&mut Sticky, &[pod(0.0, 0.0), pod(800.0, 286_520.0)], 1_000.0), 1);
        assert_eq!(asked(&mut Sticky, &[pod(0.0, 0.0), pod(800.0, 287_521.0)], 1_000.0), 0);
    }

    #[test]
    fn among_the_kept_the_fewest_tokens_win() {
        assert_eq!(asked(&mut Sticky, &[pod(900.0, 500.0), pod(800.0, 300.0), pod(0.0, 0.0)], 1_000.0), 1);
    }
}
