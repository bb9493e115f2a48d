//! `gie`: the Gateway API Inference Extension's default: queue 2, KV cache 2, prefix 3, the most points, ties drawn. It
//! steers by the last page alone, and its index believes that a pod holds as many blocks of 64 tokens as the engine has
//! blocks of 16.

use super::{Dice, Rival, View, lowest};
use crate::prefix::Index;

/// Weights of queue, KV cache and prefix (`default-plugins.yaml`).
const WEIGHTS: [f64; 3] = [2.0, 2.0, 3.0];

/// Blocks remembered of one pod before its page has told (`lruCapacityPerServer`).
const LRU_BLOCKS: usize = 31_250;

pub(super) fn make(pods: usize) -> Box<dyn Rival> {
    let index = Index::default();
    (0..pods).for_each(|pod| index.set_capacity(slot(pod), LRU_BLOCKS));
    Box::new(Gie { index, capacities: vec![LRU_BLOCKS; pods] })
}

#[derive(Debug)]
struct Gie {
    index: Index,
    capacities: Vec<usize>,
}

impl Rival for Gie {
    fn choose(&mut self, view: &View<'_>, rng: &mut Dice) -> usize {
        self.tune(view);
        let queues = || view.in_use().map(|pod| pod.waiting);
        let (min, max) = (queues().fold(f64::INFINITY, f64::min), queues().fold(0.0, f64::max));
        let hits = self.index.longest(view.blocks);
        let asked = view.blocks.len().max(1) as f64;
        let points = view.pods.iter().enumerate().map(|(place, pod)| {
            let queue = if max > min { (max - pod.waiting) / (max - min) } else { 1.0 };
            let prefix = hits.blocks(slot(place)) as f64 / asked;
            let [of_queue, of_kv, of_prefix] = WEIGHTS;
            of_queue * queue + of_kv * (1.0 - pod.kv_usage) + of_prefix * prefix
        });
        let chosen = lowest(view, points.map(|points| -points), rng);
        self.index.insert(slot(chosen), view.blocks);
        chosen
    }
}

impl Gie {
    /// `autoTune`: one entry for each of the engine's blocks.
    fn tune(&mut self, view: &View<'_>) {
        for (place, (pod, known)) in view.pods.iter().zip(&mut self.capacities).enumerate() {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, never negative")]
            let blocks = pod.kv_blocks as usize;
            if blocks > 0 && blocks != *known {
                *known = blocks;
                self.index.set_capacity(slot(place), blocks);
            }
        }
    }
}

fn slot(pod: usize) -> u32 {
    u32::try_from(pod).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{
        super::Seen,
        super::bench::{asked, asked_about},
        *,
    };
    use crate::prefix::{BLOCK_BYTES, Blocks};

    #[test]
    fn a_queue_of_one_weighs_like_a_queue_of_five_hundred() {
        // 2 x 1 + 2 x (1 - 0.9) = 2.2 against 2 x 0 + 2 x (1 - 0) = 2.
        let full = Seen { waiting: 0.0, kv_usage: 0.9, ..Seen::default() };
        let queue = Seen { waiting: 1.0, ..Seen::default() };
        assert_eq!(asked(&mut *make(2), &[full, queue], 100.0), 0);
        // Without a queue anywhere the KV cache decides.
        assert_eq!(asked(&mut *make(2), &[full, Seen::default()], 100.0), 1);
    }

    #[test]
    fn a_whole_match_outweighs_a_queue_but_not_a_queue_and_a_full_cache() {
        let blocks = Blocks::of("m", "", [[1; BLOCK_BYTES]]);
        let mut router = make(2);
        let home = asked_about(&mut *router, &[Seen::default(); 2], 64.0, &blocks);
        let mut pods = [Seen::default(); 2];
        // 3 + 0 + 2 x 0.9 = 4.8 against 2 + 2 = 4; with usage 0.6 it is 3.8.
        pods[home] = Seen { waiting: 9.0, kv_usage: 0.1, ..Seen::default() };
        assert_eq!(asked_about(&mut *router, &pods, 64.0, &blocks), home);
        pods[home].kv_usage = 0.6;
        assert_ne!(asked_about(&mut *router, &pods, 64.0, &blocks), home);
    }
}
