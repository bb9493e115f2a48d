//! Which pods hold which blocks, as far as we know from what we sent them.
//!
//! One rule carries everything: **a pod that holds a block holds all blocks before it in the chain.** It stays true
//! because a chain is touched from its last block to its first, so that a block is always younger than those behind it
//! and the oldest, which is evicted, has nothing behind it left (vLLM frees a request's blocks in the same order). So
//! the holders only shrink along a chain, and one walk that compares their number finds every pod's match.
//!
//! Long work is done in slices, each under the lock for itself, so that no pick waits for more than one. Between the
//! slices of an insertion the rule does not hold for that pod: a walk in that moment may take it for a holder already, or
//! miss another's end, and one guess is off.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError, RwLock},
    time::Instant,
};

use smallvec::SmallVec;

use super::{
    Blocks, Claim, Hits,
    hits::Hit,
    holders::{Holder, Table},
    lru::Lru,
    trust::Record,
};

/// Blocks a pod is believed to hold where its KV cache's size is not known: 524,288 tokens, next above the 422,000
/// that an 8B model leaves on an 80 GB card.
const DEFAULT_CAPACITY: usize = 8_192;

/// Entries over all pods, about 70 bytes each: 300 MB. Reached only with more than 500 pods of default size; then each
/// pod's part shrinks.
const MAX_ENTRIES: usize = 4 << 20;

/// A capacity that differs by less than one part in this many is the same: it follows a learned ratio, which never
/// stands still, and is not worth a writer's lock after every page.
const CAPACITY_STEPS: usize = 64;

/// Blocks put in or taken out under the lock at once: 128 new ones at a pod that is full, so that as many go, take about
/// 35 us (a sixteenth of the bench `lock/insert 2048 new`).
const SLICE: usize = 128;

/// The index. Its lock is held for one walk or one slice of work and never across anything else.
#[derive(Debug, Default)]
pub struct Index {
    state: RwLock<State>,
    /// What was heard of each pod, by slot. Locked before `state` where both are.
    records: Mutex<Vec<Record>>,
}

#[derive(Debug, Default)]
struct State {
    holders: Table,
    pods: HashMap<u32, PodBlocks>,
    /// How far each pod's part is believed, by slot; those that are not there are.
    trust: Vec<f32>,
}

/// What one pod holds.
#[derive(Debug)]
struct PodBlocks {
    used: Lru,
    capacity: usize,
}

impl Default for PodBlocks {
    fn default() -> Self {
        Self { used: Lru::default(), capacity: DEFAULT_CAPACITY }
    }
}

impl Index {
    /// The pod in `slot` was sent a prompt of these blocks.
    pub fn insert(&self, slot: u32, blocks: &Blocks) {
        if blocks.is_empty() {
            return;
        }
        let capacity = self.write().capacity(slot);
        // A chain longer than the cache keeps its beginning.
        let kept = blocks.hashes().get(..capacity).unwrap_or(blocks.hashes());
        for slice in kept.rchunks(SLICE) {
            self.write().insert(slot, slice, capacity);
        }
    }

    /// Which pods hold the beginning of these blocks, and how far.
    pub fn longest(&self, blocks: &Blocks) -> Hits {
        let mut hits = Hits::none(blocks.len());
        let state = self.read();
        state.walk(blocks.hashes(), &mut hits.found);
        drop(state);
        // A pod that is just being given this chain may have been met twice.
        hits.found.sort_unstable_by_key(|hit| (hit.slot, Reverse(hit.held)));
        hits.found.dedup_by_key(|hit| hit.slot);
        hits
    }

    /// The pod in `slot` is gone or has lost its cache.
    pub fn forget(&self, slot: u32) {
        self.hear(slot, |record| *record = Record::default());
        // Not more than there are now: what is sent to it meanwhile is young and stays.
        self.evict(slot, self.held(slot));
        self.write().pods.retain(|it, pod| *it != slot || pod.used.len() > 0);
    }

    /// The KV cache of the pod in `slot` has room for so many blocks.
    pub fn set_capacity(&self, slot: u32, blocks: usize) {
        let known = self.read().pods.get(&slot).map(|pod| pod.capacity);
        if known.is_none_or(|known| known.abs_diff(blocks) > known / CAPACITY_STEPS) {
            let over = self.write().set_capacity(slot, blocks);
            self.evict(slot, over);
        }
    }

    fn evict(&self, slot: u32, mut blocks: usize) {
        while blocks > 0 {
            let slice = blocks.min(SLICE);
            self.write().evict(slot, slice);
            blocks -= slice;
        }
    }

    /// An answer of the pod in `slot` came to its end: what was believed of its prompt, and the tokens of it that the pod
    /// says it found in its cache; `None` if it does not say.
    pub fn answered(&self, slot: u32, claim: Claim, found: Option<u32>, now: Instant) {
        self.hear(slot, |record| record.answered(claim, found, now));
    }

    /// A page of the pod in `slot` says how many prompt tokens were found in its cache since the engine started.
    pub fn counted(&self, slot: u32, hits: u64, now: Instant) {
        self.hear(slot, |record| record.counted(hits, now));
    }

    /// How far the index is believed of the pod in `slot`, 0 to 1.
    pub fn trust(&self, slot: u32) -> f32 {
        self.read().trust(slot)
    }

    fn hear(&self, slot: u32, hear: impl FnOnce(&mut Record)) {
        let mut records = self.records();
        let at = slot as usize;
        if records.len() <= at {
            records.resize_with(at + 1, Record::default);
        }
        let Some(record) = records.get_mut(at) else { return };
        let before = record.trust();
        hear(record);
        let trust = record.trust();
        if trust.to_bits() != before.to_bits() {
            self.write().set_trust(slot, trust);
        }
    }

    /// Blocks that the pod in `slot` is believed to hold.
    pub fn held(&self, slot: u32) -> usize {
        self.read().pods.get(&slot).map_or(0, |pod| pod.used.len())
    }

    fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn walk(&self, hashes: &[u64], found: &mut SmallVec<[Hit; 16]>) {
        let mut before: &[Holder] = &[];
        let mut depth = 0u32;
        for hash in hashes {
            let here = self.holders.of(*hash);
            if here.len() < before.len() {
                found.extend(lost(before, here).map(|slot| self.hit(slot, depth)));
            }
            before = here;
            if here.is_empty() {
                return;
            }
            depth += 1;
        }
        found.extend(before.iter().map(|(slot, _)| self.hit(*slot, depth)));
    }

    fn hit(&self, slot: u32, held: u32) -> Hit {
        let trust = self.trust(slot);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "no more than held")]
        let counted = (held as f32 * trust) as u32;
        Hit { slot, held, counted, trust }
    }

    fn trust(&self, slot: u32) -> f32 {
        self.trust.get(slot as usize).copied().unwrap_or(1.0)
    }

    fn set_trust(&mut self, slot: u32, trust: f32) {
        let at = slot as usize;
        if self.trust.len() <= at {
            self.trust.resize(at + 1, 1.0);
        }
        if let Some(cell) = self.trust.get_mut(at) {
            *cell = trust;
        }
    }

    /// How much of it the pod in `slot` may hold.
    fn capacity(&mut self, slot: u32) -> usize {
        let capacity = self.pods.entry(slot).or_default().capacity;
        capacity.min(MAX_ENTRIES / self.pods.len().max(1))
    }

    fn insert(&mut self, slot: u32, hashes: &[u64], capacity: usize) {
        let Self { holders, pods, .. } = self;
        let used = &mut pods.entry(slot).or_default().used;
        for hash in hashes.iter().rev() {
            if let Some(place) = holders.hold(*hash, slot, || used.push(*hash)) {
                used.touch(place);
            }
        }
        let over = used.len().saturating_sub(capacity);
        self.evict(slot, over);
    }

    /// Takes the oldest blocks from a pod.
    fn evict(&mut self, slot: u32, blocks: usize) {
        let Some(pod) = self.pods.get_mut(&slot) else { return };
        for _ in 0..blocks {
            let Some(hash) = pod.used.pop() else { return };
            self.holders.release(hash, slot);
        }
    }

    /// Returns how many blocks the pod now has too many.
    fn set_capacity(&mut self, slot: u32, blocks: usize) -> usize {
        let pod = self.pods.entry(slot).or_default();
        pod.capacity = blocks;
        pod.used.len().saturating_sub(blocks)
    }
}

/// The slots of `before` that are not in `here`, a subset; both by slot.
fn lost<'a>(before: &'a [Holder], here: &'a [Holder]) -> impl Iterator<Item = u32> + 'a {
    let mut still = here.iter().map(|(slot, _)| *slot).peekable();
    before.iter().filter_map(move |(slot, _)| match still.next_if_eq(slot) {
        Some(_) => None,
        None => Some(*slot),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::prefix::BLOCK_BYTES;

    /// A prompt of which each letter is one block.
    fn prompt(letters: &str) -> Blocks {
        Blocks::of("m", "", letters.bytes().map(|letter| [letter; BLOCK_BYTES]))
    }

    #[test]
    fn each_pod_is_found_with_the_part_it_holds() {
        let index = Index::default();
        index.insert(7, &prompt("abcd"));
        index.insert(3, &prompt("abxy"));
        index.insert(5, &prompt("a"));
        let hits = index.longest(&prompt("abcdef"));
        assert_eq!([7, 3, 5, 9].map(|slot| hits.blocks(slot)), [4, 2, 1, 0]);
        assert_eq!((hits.bytes(7), hits.asked(), hits.longest()), (4 * BLOCK_BYTES, 6, 4));
        assert!(index.longest(&prompt("zabcd")).is_empty());
    }

    #[test]
    fn a_walk_finds_the_same_in_any_order() {
        let index = Index::default();
        for (slot, letters) in [(2, "ab"), (3, "abc"), (5, "abcde"), (8, "abcdefgh"), (13, "abcdefghijklm")] {
            index.insert(slot, &prompt(letters));
        }
        let hits = index.longest(&prompt("abcdefghijklmn"));
        let mut walk = hits.walk();
        for slot in [0, 1, 2, 2, 3, 4, 8, 5, 13, 14, 13, 0, 8] {
            assert_eq!(walk.blocks(slot), hits.blocks(slot), "{slot}");
        }
    }

    #[test]
    fn the_end_of_the_oldest_prompt_goes_first() {
        let index = Index::default();
        index.set_capacity(1, 6);
        index.insert(1, &prompt("abcd"));
        index.insert(1, &prompt("wxyz"));
        assert_eq!(index.longest(&prompt("abcd")).blocks(1), 2);
        assert_eq!(index.longest(&prompt("wxyz")).blocks(1), 4);
        // Used again, it is the younger one.
        index.insert(1, &prompt("ab"));
        index.insert(1, &prompt("mn"));
        assert_eq!(index.longest(&prompt("abcd")).blocks(1), 2);
        assert_eq!(index.longest(&prompt("wxyz")).blocks(1), 2);
    }

    #[test]
    fn a_prompt_larger_than_the_cache_keeps_its_beginning() {
        let index = Index::default();
        index.set_capacity(1, 3);
        index.insert(1, &prompt("abcdef"));
        assert_eq!((index.longest(&prompt("abcdef")).blocks(1), index.held(1)), (3, 3));
        index.set_capacity(1, 1);
        assert_eq!((index.longest(&prompt("abcdef")).blocks(1), index.held(1)), (1, 1));
    }

    #[test]
    fn a_forgotten_pod_leaves_nothing_behind() {
        let index = Index::default();
        index.insert(1, &prompt("abc"));
        index.insert(2, &prompt("ab"));
        index.forget(1);
        index.forget(2);
        assert!(index.longest(&prompt("abc")).is_empty());
        assert_eq!((index.read().holders.len(), index.read().pods.len()), (0, 0));
    }

    #[test]
    fn long_prompts_go_in_and_out_slice_by_slice() {
        let text = |seed: u8, blocks: usize| Blocks::of("m", &seed.to_string(), vec![[seed; BLOCK_BYTES]; blocks]);
        let index = Index::default();
        index.set_capacity(1, SLICE * 5);
        let (first, second) = (text(1, SLICE * 3 + 7), text(2, SLICE * 3));
        index.insert(1, &first);
        index.insert(1, &second);
        assert_eq!(index.longest(&first).blocks(1), SLICE * 2);
        assert_eq!((index.longest(&second).blocks(1), index.held(1)), (SLICE * 3, SLICE * 5));
        index.insert(1, &text(3, SLICE * 7));
        assert_eq!((index.longest(&text(3, SLICE * 7)).blocks(1), index.held(1)), (SLICE * 5, SLICE * 5));
        index.forget(1);
        assert_eq!(index.read().holders.len(), 0);
    }

    #[test]
    fn what_a_pod_does_not_find_counts_less_and_a_restart_clears_its_name() {
        let (index, now) = (Index::default(), crate::clock::now());
        for slot in [1, 2] {
            index.insert(slot, &prompt("abcdefgh"));
        }
        // 2,000 tokens of prior and 2,000 believed, of which nothing was found: half.
        index.answered(1, Claim { tokens: 2_000.0, sent: now }, Some(0), now);
        let hits = index.longest(&prompt("abcdefgh"));
        assert_eq!((hits.blocks(1), hits.held(1), hits.trust(1)), (4, 8, Some(0.5)));
        assert_eq!((hits.blocks(2), hits.held(2), hits.trust(2)), (8, 8, Some(1.0)));
        for _ in 0..20 {
            index.answered(1, Claim { tokens: 2_000.0, sent: now }, Some(0), now);
        }
        let hits = index.longest(&prompt("abcdefgh"));
        assert_eq!((hits.blocks(1), hits.walk().blocks(1), hits.held(1)), (0, 0, 8));
        assert!(!hits.is_empty() && index.trust(1) <= 0.0);
        index.forget(1);
        index.insert(1, &prompt("ab"));
        assert_eq!(index.longest(&prompt("ab")).blocks(1), 2);
    }

    #[test]
    fn the_pages_counter_shows_a_cache_that_is_switched_off() {
        let (index, mut now) = (Index::default(), crate::clock::now());
        index.insert(1, &prompt("abcd"));
        for _ in 0..40 {
            index.counted(1, 0, now);
            now += Duration::from_millis(250);
            index.answered(1, Claim { tokens: 1_000.0, sent: now }, None, now);
        }
        assert_eq!(index.longest(&prompt("abcd")).blocks(1), 0);
    }

    #[test]
    fn a_capacity_that_hardly_changes_is_left_as_it_is() {
        let index = Index::default();
        index.set_capacity(1, 6_400);
        for (asked, kept) in [(6_450, 6_400), (6_300, 6_400), (6_501, 6_501), (6_400, 6_501), (6_399, 6_399)] {
            index.set_capacity(1, asked);
            assert_eq!(index.read().pods[&1].capacity, kept, "{asked}");
        }
    }

    #[test]
    fn a_prompt_repeated_for_ever_takes_no_more_room() {
        let index = Index::default();
        for _ in 0..10_000 {
            index.insert(1, &prompt("abcdefgh"));
        }
        assert_eq!(index.held(1), 8);
        assert_eq!(index.longest(&prompt("abcdefgh")).blocks(1), 8);
    }

    proptest! {
        /// Against a slow model: per pod a list of (block, last touch), the oldest evicted.
        #[test]
        fn it_holds_what_a_plain_lru_list_holds(
            steps in prop::collection::vec((0u32..3, "[ab]{0,3}[abc]{0,5}", 0u8..20), 1..80),
            capacity in 1usize..12,
            asked in "[ab]{0,3}[abc]{0,5}",
        ) {
            let index = Index::default();
            let mut model: [Vec<u64>; 3] = Default::default();
            (0..3).for_each(|slot| index.set_capacity(slot, capacity));
            for (slot, letters, chance) in steps {
                let list = &mut model[slot as usize];
                if chance == 0 {
                    index.forget(slot);
                    index.set_capacity(slot, capacity);
                    list.clear();
                    continue;
                }
                let blocks = prompt(&letters);
                index.insert(slot, &blocks);
                for hash in blocks.hashes().iter().take(capacity).rev() {
                    list.retain(|it| it != hash);
                    list.push(*hash);
                }
                let over = list.len().saturating_sub(capacity);
                list.drain(..over);
                prop_assert_eq!(index.held(slot), list.len());
            }
            let asked = prompt(&asked);
            let hits = index.longest(&asked);
            for (slot, list) in (0u32..).zip(&model) {
                let held = asked.hashes().iter().take_while(|hash| list.contains(hash)).count();
                prop_assert_eq!(hits.blocks(slot), held);
            }
        }
    }
}
