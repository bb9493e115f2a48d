//! Block -> the pods that hold it.
//!
//! In parts, because a table that grows is copied whole under the index's lock: half a million entries at once would
//! hold up every pick for milliseconds, a 64th of them for less than a tenth of one.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use smallvec::SmallVec;

/// A pod's slot, and the block's place among the pod's own.
pub(super) type Holder = (u32, u32);

/// By slot. Two fit without an allocation; most blocks are one conversation's and have one.
type Row = SmallVec<[Holder; 2]>;

/// Parts of the table: growing from the default size of 64 pods on copies 8,192 entries a part.
const PARTS: usize = 64;

/// Keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64(bytes);
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

type Part = HashMap<u64, Row, BuildHasherDefault<AsIs>>;

/// Who holds what.
#[derive(Debug)]
pub(super) struct Table {
    parts: [Part; PARTS],
}

impl Default for Table {
    fn default() -> Self {
        Self { parts: std::array::from_fn(|_| Part::default()) }
    }
}

impl Table {
    /// Who holds the block, by slot.
    #[inline]
    pub(super) fn of(&self, hash: u64) -> &[Holder] {
        self.parts.get(part(hash)).and_then(|part| part.get(&hash)).map_or(&[], SmallVec::as_slice)
    }

    /// The place of the block among those of the pod in `slot`, put there as `place` says if it held it not.
    pub(super) fn hold(&mut self, hash: u64, slot: u32, place: impl FnOnce() -> u32) -> Option<u32> {
        let row = self.parts.get_mut(part(hash))?.entry(hash).or_default();
        match row.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(at) => row.get(at).map(|(_, place)| *place),
            Err(at) => {
                row.insert(at, (slot, place()));
                None
            }
        }
    }

    /// The pod in `slot` no longer holds the block.
    pub(super) fn release(&mut self, hash: u64, slot: u32) {
        let Some(part) = self.parts.get_mut(part(hash)) else { return };
        let Some(row) = part.get_mut(&hash) else { return };
        if let Ok(at) = row.binary_search_by_key(&slot, |(slot, _)| *slot) {
            row.remove(at);
        }
        if row.is_empty() {
            part.remove(&hash);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(HashMap::len).sum()
    }
}

fn part(hash: u64) -> usize {
    // From the middle: a map uses the bits at both ends.
    (hash >> 32) as usize % PARTS
}
