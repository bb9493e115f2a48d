//! `oracle`: the marginal cost of a request on the engines' true state: what is really left to compute there, what is
//! really cached, how fast the pod really is now. What a policy could reach that guesses nothing wrong; greedy, and
//! blind to the future like all others.

use super::{Dice, Rival, Seen, View, lowest};

/// What a millisecond of prefill costs each stream there, as a share: the low end of what was measured to work alike.
const INTERFERENCE: f64 = 0.3;

pub(super) fn make(_pods: usize) -> Box<dyn Rival> {
    Box::new(Oracle)
}

#[derive(Debug)]
struct Oracle;

impl Rival for Oracle {
    fn choose(&mut self, view: &View<'_>, rng: &mut Dice) -> usize {
        lowest(view, view.pods.iter().map(|pod| cost_ms(pod, view)), rng)
    }

    fn sees_truth(&self) -> bool {
        true
    }
}

fn cost_ms(pod: &Seen, view: &View<'_>) -> f64 {
    let truth = &pod.truth;
    let own = (view.prompt_tokens - truth.cached_tokens).max(1.0);
    (truth.backlog_tokens + own * (1.0 + INTERFERENCE * truth.streams)) * truth.ms_per_token
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Truth, bench::asked},
        *,
    };

    #[test]
    fn the_cheapest_by_hand() {
        // (1000 + 1000 x 1) x 0.02 = 40 ms against (0 + 600 x (1 + 0.3 x 10)) x 0.02 = 48 ms; at 500 uncached, 40 ms.
        let waits = Truth { backlog_tokens: 1_000.0, ms_per_token: 0.02, ..Truth::default() };
        let warm = Truth { cached_tokens: 400.0, streams: 10.0, ms_per_token: 0.02, ..Truth::default() };
        let pods = |one, other| [one, other].map(|truth| Seen { truth, ..Seen::default() });
        assert_eq!(asked(&mut Oracle, &pods(waits, warm), 1_000.0), 0);
        let warmer = Truth { cached_tokens: 510.0, ..warm };
        assert_eq!(asked(&mut Oracle, &pods(waits, warmer), 1_000.0), 1);
    }
}
