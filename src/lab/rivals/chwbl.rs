//! `chwbl`: `KubeAI`'s consistent hashing with bounded loads. The first 100 characters fall on a ring of 256 places a
//! pod; from there the first pod that is not loaded beyond 1.25 of the mean takes it. It needs no state but counts.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Dice, Rival, View};

/// Places of one pod on the ring (`KubeAI`'s `replication`).
const PLACES: u64 = 256;

/// Load a pod may have, in terms of the mean (`KubeAI`'s `meanLoadFactor`, 125 %).
const FACTOR: f64 = 1.25;

pub(super) fn make(pods: usize) -> Box<dyn Rival> {
    let place = |pod: usize, nth: u64| (xxh3_64_with_seed(&pod.to_le_bytes(), nth), pod);
    let mut ring: Vec<(u64, usize)> = (0..pods).flat_map(|pod| (0..PLACES).map(move |nth| place(pod, nth))).collect();
    ring.sort_unstable();
    Box::new(Chwbl { ring })
}

#[derive(Debug)]
struct Chwbl {
    ring: Vec<(u64, usize)>,
}

impl Rival for Chwbl {
    fn choose(&mut self, view: &View<'_>, _rng: &mut Dice) -> usize {
        let all: f64 = view.in_use().map(|pod| pod.in_flight).sum();
        let bound = (all + 1.0) / view.in_use().count() as f64 * FACTOR;
        let start = self.ring.partition_point(|(at, _)| *at < view.opening);
        let in_use = |pod: &usize| view.pods.get(*pod).is_some_and(|seen| !seen.out);
        let (before, after) = self.ring.split_at_checked(start).unwrap_or_default();
        let walk = || after.iter().chain(before).map(|(_, pod)| *pod).filter(in_use);
        let fits = |pod: &usize| view.pods.get(*pod).is_some_and(|seen| seen.in_flight <= bound);
        // If none fits, the first on the ring takes it unbounded, as there.
        walk().find(fits).or_else(|| walk().next()).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Seen, super::bench::asked, *};

    fn pods(in_flight: [f64; 4]) -> [Seen; 4] {
        in_flight.map(|in_flight| Seen { in_flight, ..Seen::default() })
    }

    #[test]
    fn an_opening_stays_until_its_pod_is_a_quarter_above_the_mean() {
        let mut ring = make(4);
        let home = asked(&mut *ring, &pods([0.0; 4]), 100.0);
        // Of 10 + 1 over 4, times 1.25: 3.4375.
        let mut loads = [2.0; 4];
        loads[home] = 4.0;
        assert_ne!(asked(&mut *ring, &pods(loads), 100.0), home);
        // Of 14 + 1: 4.6875.
        loads = [10.0 / 3.0; 4];
        loads[home] = 4.0;
        assert_eq!(asked(&mut *ring, &pods(loads), 100.0), home);
    }
}
