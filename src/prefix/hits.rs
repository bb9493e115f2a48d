//! Where a prompt's beginning is: for each pod, what it is believed to hold and how much of that counts.

use std::cmp::Ordering;

use smallvec::SmallVec;

use super::BLOCK_BYTES;

/// One pod's part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Hit {
    pub(super) slot: u32,
    /// Leading blocks that it was sent and has not likely evicted.
    pub(super) held: u32,
    /// As many of them as its answers bear out.
    pub(super) counted: u32,
    /// How far the index is believed of it, 0 to 1.
    pub(super) trust: f32,
}

/// Where a prompt's beginning is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hits {
    /// By slot.
    pub(super) found: SmallVec<[Hit; 16]>,
    asked: usize,
}

impl Hits {
    /// No hits for a prompt of `asked` blocks.
    pub fn none(asked: usize) -> Self {
        Self { found: SmallVec::new(), asked }
    }

    /// Leading blocks that count as held by the pod in `slot`.
    pub fn blocks(&self, slot: u32) -> usize {
        self.hit(slot).map_or(0, |hit| hit.counted as usize)
    }

    /// Leading blocks that the pod in `slot` was sent and has not likely evicted, whatever its answers said since.
    pub fn held(&self, slot: u32) -> usize {
        self.hit(slot).map_or(0, |hit| hit.held as usize)
    }

    /// How far the index is believed of the pod in `slot`, 0 to 1, if there is anything to believe.
    pub fn trust(&self, slot: u32) -> Option<f32> {
        self.hit(slot).map(|hit| hit.trust)
    }

    fn hit(&self, slot: u32) -> Option<&Hit> {
        let at = self.found.binary_search_by_key(&slot, |hit| hit.slot);
        at.ok().and_then(|at| self.found.get(at))
    }

    /// For asking about many slots in their order.
    pub fn walk(&self) -> Walk<'_> {
        Walk { found: &self.found, at: 0, last: 0 }
    }

    /// [`Hits::blocks`] in bytes.
    pub fn bytes(&self, slot: u32) -> usize {
        self.blocks(slot) * BLOCK_BYTES
    }

    /// Blocks of the prompt that were looked for.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// Whether no pod counts as holding anything of it.
    pub fn is_empty(&self) -> bool {
        self.longest() == 0
    }

    /// The longest match of any pod, in blocks.
    pub fn longest(&self) -> usize {
        self.found.iter().map(|hit| hit.counted as usize).max().unwrap_or(0)
    }
}

/// Hits read in the order of slots, or nearly: a step where a search would be a dozen.
#[derive(Debug)]
pub struct Walk<'a> {
    found: &'a [Hit],
    at: usize,
    /// The slot last asked about: all before `at` are below it.
    last: u32,
}

impl Walk<'_> {
    /// Leading blocks that count as held by the pod in `slot`.
    #[inline]
    pub fn blocks(&mut self, slot: u32) -> usize {
        if slot < self.last {
            self.at = 0;
        }
        self.last = slot;
        while let Some(hit) = self.found.get(self.at) {
            match hit.slot.cmp(&slot) {
                Ordering::Less => self.at += 1,
                Ordering::Equal => return hit.counted as usize,
                Ordering::Greater => break,
            }
        }
        0
    }
}
