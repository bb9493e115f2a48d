//! `sglang`: the SGLang router's `cache_aware` with its defaults (0.3, 64, 1.5). While loads are balanced, the longest
//! match wins if it is more than 0.3 of the text, else the smallest tree; when they are not, the fewest requests.
//!
//! Its tree is of characters, ours of blocks of 256: of a prompt of some thousand tokens that is within 2 %. It is
//! trimmed to its bound at each insertion instead of every two minutes.

use super::{Dice, Rival, View, lowest};
use crate::prefix::{BLOCK_BYTES, Index};

/// Share of the text from which a match counts (`--cache-threshold`).
const THRESHOLD: f64 = 0.3;

/// Loads are out of balance beyond this difference ... (`--balance-abs-threshold`)
const ABSOLUTE: f64 = 64.0;

/// ... and this ratio (`--balance-rel-threshold`).
const RELATIVE: f64 = 1.5;

/// Characters remembered of one pod (`--max-tree-size`).
const TREE_CHARS: usize = 67_108_864;

pub(super) fn make(pods: usize) -> Box<dyn Rival> {
    let tree = Index::default();
    (0..pods).for_each(|pod| tree.set_capacity(slot(pod), TREE_CHARS / BLOCK_BYTES));
    Box::new(CacheAware { tree })
}

#[derive(Debug)]
struct CacheAware {
    tree: Index,
}

impl Rival for CacheAware {
    fn choose(&mut self, view: &View<'_>, rng: &mut Dice) -> usize {
        let loads = || view.in_use().map(|pod| pod.in_flight);
        let (min, max) = (loads().fold(f64::INFINITY, f64::min), loads().fold(0.0, f64::max));
        let hits = self.tree.longest(view.blocks);
        let in_use = (0..view.pods.len()).filter(|pod| view.pods.get(*pod).is_some_and(|pod| !pod.out));
        let longest = in_use.map(|pod| hits.blocks(slot(pod))).max().unwrap_or(0);
        let chosen = if max - min > ABSOLUTE && max > RELATIVE * min {
            lowest(view, view.pods.iter().map(|pod| pod.in_flight), rng)
        } else if longest as f64 > THRESHOLD * view.blocks.len() as f64 {
            lowest(view, (0..view.pods.len()).map(|pod| if hits.blocks(slot(pod)) == longest { 0.0 } else { 1.0 }), rng)
        } else {
            lowest(view, (0..view.pods.len()).map(|pod| self.tree.held(slot(pod)) as f64), rng)
        };
        self.tree.insert(slot(chosen), view.blocks);
        chosen
    }
}

fn slot(pod: usize) -> u32 {
    u32::try_from(pod).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{super::Seen, super::bench::asked_about, *};
    use crate::prefix::Blocks;

    fn prompt(letters: &str) -> Blocks {
        Blocks::of("m", "", letters.bytes().map(|letter| [letter; BLOCK_BYTES]))
    }

    fn pods(in_flight: [f64; 3]) -> [Seen; 3] {
        in_flight.map(|in_flight| Seen { in_flight, ..Seen::default() })
    }

    #[test]
    fn a_match_above_three_tenths_wins_and_below_it_the_smallest_tree() {
        let mut router = make(3);
        let mut ask = |letters: &str| asked_about(&mut *router, &pods([1.0, 2.0, 3.0]), 640.0, &prompt(letters));
        let first = ask("abcdefghij");
        assert_eq!(ask("abcdklmnop"), first, "4 of 10");
        let second = ask("abcqrstuvw");
        assert_ne!(second, first, "3 of 10 is not more than three tenths");
        let third = ask("0123456789");
        assert!(third != first && third != second, "the only tree that is still empty");
    }

    #[test]
    fn out_of_balance_the_fewest_requests_win_whatever_is_cached() {
        let mut router = make(3);
        let home = asked_about(&mut *router, &pods([0.0; 3]), 640.0, &prompt("abc"));
        let mut loads = [100.0; 3];
        loads[home] = 164.0;
        assert_eq!(asked_about(&mut *router, &pods(loads), 640.0, &prompt("abc")), home, "64 is not more than 64");
        loads[home] = 165.0;
        assert_ne!(asked_about(&mut *router, &pods(loads), 640.0, &prompt("abc")), home);
    }
}
