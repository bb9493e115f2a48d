//! W4: companies whose users share a long system prompt, as in llm-d's published measurements.
//!
//! As there (inference-perf's `shared_prefix` data), there is a fixed set of prompts, one for each user, and they are
//! asked again and again in a shuffled order.

use rand::{Rng, RngExt as _, seq::SliceRandom as _};

use crate::lab::{
    draws,
    script::{Ask, Client, Piece},
};

/// Companies for eight pods.
const GROUPS: u64 = 150;

/// Pods for which there are as many.
const PODS: u64 = 8;

/// Users of each.
const USERS: u64 = 5;

/// Tokens of every answer.
const ANSWER: u32 = 1_000;

/// Lengths of the parts of a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    groups: u64,
    shared: u32,
    own: u32,
}

impl Shape {
    pub(super) const LONG_SHARED: Self = Self { groups: GROUPS, shared: 6_000, own: 1_200 };
    pub(super) const LONG_OWN: Self = Self { groups: GROUPS, shared: 1_200, own: 6_000 };

    /// As many companies for each of `pods` as there are usually: equal load and equal caches.
    pub(super) fn for_pods(self, pods: usize) -> Self {
        Self { groups: (GROUPS * pods as u64).div_ceil(PODS).max(1), ..self }
    }

    pub(super) fn script(self, per_second: f64, length_ms: f64, rng: &mut impl Rng) -> Vec<Ask> {
        let mut deck: Vec<u64> = Vec::new();
        let mut asks = Vec::new();
        let mut at_ms = 0.0;
        loop {
            at_ms += draws::exponential(1e3 / per_second, rng);
            if deck.is_empty() {
                deck.extend(0..self.groups * USERS);
                deck.shuffle(rng);
            }
            let Some(user) = deck.pop().filter(|_| at_ms < length_ms) else { return asks };
            asks.push(self.ask(at_ms, user, rng.random()));
        }
    }

    fn ask(self, at_ms: f64, user: u64, answer: u64) -> Ask {
        let shared = Piece { content: user % self.groups, tokens: self.shared };
        let own = Piece { content: self.groups + user, tokens: self.own };
        let answer = Piece { content: answer, tokens: ANSWER };
        Ask {
            at_ms,
            prompt: [shared, own].into(),
            answer,
            adapter: None,
            session: Some(user),
            next: None,
            client: Client::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn five_users_share_a_system_prompt_and_everybody_comes_once_before_anybody_comes_twice() {
        let asks = Shape::LONG_SHARED.script(100.0, 60_000.0, &mut StdRng::seed_from_u64(1));
        assert!((5_700..6_300).contains(&asks.len()), "{}", asks.len());
        let parts = |part: usize| asks[..750].iter().map(|ask| ask.prompt[part].content).collect::<BTreeSet<_>>().len();
        assert_eq!((parts(0), parts(1)), (150, 750));
        assert_eq!((asks[0].prompt_tokens(), asks[0].answer.tokens), (7_200, 1_000));
        assert_eq!([4, 8, 16].map(|pods| Shape::LONG_SHARED.for_pods(pods).groups), [75, 150, 300]);
    }
}
