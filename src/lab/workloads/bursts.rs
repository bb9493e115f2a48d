//! W10's hardest burst: everybody at once. The other two are W2 with other arrivals.

use rand::{Rng, RngExt as _};

use crate::lab::script::{Ask, Client, Piece};

/// Requests of one volley.
const VOLLEY: u32 = 200;

/// Within this time.
const WITHIN_MS: f64 = 50.0;

/// From one to the next: long enough for eight idle pods to answer all.
const EVERY_MS: f64 = 10_000.0;

/// Equal requests: as long as the means of the Azure trace, 1,155 and 211 tokens, roughly.
const LENGTHS: (u32, u32) = (1_000, 200);

/// Volleys of equal requests with distinct prompts until the time is over.
pub(super) fn volleys(length_ms: f64, rng: &mut impl Rng) -> Vec<Ask> {
    let starts = (0..).map(|nth| f64::from(nth) * EVERY_MS).take_while(|at_ms| *at_ms < length_ms);
    let mut asks = Vec::new();
    for start in starts {
        for _ in 0..VOLLEY {
            let content: u64 = rng.random();
            asks.push(Ask {
                at_ms: start + rng.random::<f64>() * WITHIN_MS,
                prompt: [Piece { content, tokens: LENGTHS.0 }].into(),
                answer: Piece { content: !content, tokens: LENGTHS.1 },
                adapter: None,
                session: None,
                next: None,
                client: Client::default(),
            });
        }
    }
    asks
}
