//! A handful of numbers that one writer replaces now and then and every pick reads: a sequence lock over atomics.
//!
//! Reading through a pointer that is swapped costs a pick four cache misses and two atomic swaps a pod; with a thousand
//! pods that is most of the pick. Here it is a few plain loads beside the ledger. Only the scrape writes.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};

/// After so many tries a reader takes what is there: each number is whole, only not all of one reading, and a pick that
/// is off by one reading is better than one that waits for a writer that lost its core.
const TRIES: u32 = 100;

/// `N` numbers that belong together.
#[derive(Debug)]
pub(super) struct Slate<const N: usize> {
    /// Odd while they are being replaced.
    version: AtomicU32,
    words: [AtomicU64; N],
}

impl<const N: usize> Default for Slate<N> {
    fn default() -> Self {
        Self { version: AtomicU32::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl<const N: usize> Slate<N> {
    /// Replaces all numbers.
    pub(super) fn write(&self, words: [u64; N]) {
        let version = self.claim();
        for (cell, word) in self.words.iter().zip(words) {
            cell.store(word, Relaxed);
        }
        self.version.store(version.wrapping_add(2), Release);
    }

    /// All numbers, as they were at one moment unless that took too long.
    #[inline]
    pub(super) fn read(&self) -> [u64; N] {
        for _ in 0..TRIES {
            if let Some(words) = self.read_whole() {
                return words;
            }
            std::hint::spin_loop();
        }
        self.read_any()
    }

    /// All numbers as they were at one moment; `None` if they were just being replaced.
    #[inline]
    fn read_whole(&self) -> Option<[u64; N]> {
        let before = self.version.load(Acquire);
        let words = self.read_any();
        fence(Acquire);
        let whole = before.is_multiple_of(2) && self.version.load(Relaxed) == before;
        whole.then_some(words)
    }

    #[inline]
    #[expect(clippy::indexing_slicing, clippy::needless_range_loop, reason = "both have N; see below")]
    fn read_any(&self) -> [u64; N] {
        let mut words = [0; N];
        // Not by an iterator: a pick does this twice a pod, and two arrays zipped become a call and a loop, not N loads.
        for at in 0..N {
            words[at] = self.words[at].load(Relaxed);
        }
        words
    }

    /// Makes the version odd; another writer waits. Returns the even version before it.
    fn claim(&self) -> u32 {
        loop {
            let version = self.version.load(Relaxed) & !1;
            let claimed = self.version.compare_exchange_weak(version, version.wrapping_add(1), Acquire, Relaxed);
            if claimed.is_ok() {
                // Whoever sees a new number also sees the odd version.
                fence(Release);
                return version;
            }
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_never_see_half_of_one_and_half_of_another() {
        let slate = Slate::<8>::default();
        std::thread::scope(|scope| {
            for writer in 1..3u64 {
                let slate = &slate;
                scope.spawn(move || (0..20_000).for_each(|n| slate.write([n * 2 + writer; 8])));
            }
            for _ in 0..20_000 {
                let Some(words) = slate.read_whole() else { continue };
                assert!(words.iter().all(|word| *word == words[0]), "{words:?}");
            }
        });
    }
}
