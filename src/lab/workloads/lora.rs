//! W9: which of fifteen adapters each request is for.

use rand::{Rng, RngExt as _};

use crate::lab::script::Ask;

/// Adapters that every pod serves.
pub(super) const ADAPTERS: u32 = 15;

/// Adapters that a pod holds at once.
pub(super) const MAX_LORAS: usize = 3;

/// How long loading one takes, at least and at most: each has its own time, as adapters differ in rank.
pub(super) const LOAD_MS: (f64, f64) = (150.0, 500.0);

/// Shares of three equal classes of adapters: the often, the sometimes and the seldom asked for.
const CLASSES: [f64; 3] = [0.6, 0.3, 0.1];

/// Gives every request an adapter.
pub(super) fn name_adapters(asks: &mut [Ask], rng: &mut impl Rng) {
    for ask in asks {
        ask.adapter = Some(adapter(rng));
    }
}

fn adapter(rng: &mut impl Rng) -> u32 {
    const EACH: u32 = ADAPTERS / 3;
    let drawn: f64 = rng.random();
    let [often, sometimes, _] = CLASSES;
    let class = u32::from(drawn >= often) + u32::from(drawn >= often + sometimes);
    class * EACH + rng.random_range(0..EACH)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    #[test]
    fn the_first_five_get_sixty_per_cent_and_the_last_five_ten() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut counts = [0u32; ADAPTERS as usize];
        (0..100_000).for_each(|_| counts[adapter(&mut rng) as usize] += 1);
        for (class, share) in counts.chunks(5).zip(CLASSES) {
            for count in class {
                let expected = share / 5.0 * 100_000.0;
                assert!((f64::from(*count) / expected - 1.0).abs() < 0.08, "{counts:?}");
            }
        }
    }
}
