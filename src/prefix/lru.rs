//! The order in which one pod's blocks were last used: a list through a table, so that a use, an eviction and a new block
//! each take one step and nothing is ever swept.
//!
//! It knows hashes and places, not what holds them. The table grows to the most blocks ever held at once and no further.

/// No place.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    hash: u64,
    /// Towards the oldest; of a free place, the next free one.
    older: u32,
    younger: u32,
}

/// Blocks, oldest use first.
#[derive(Debug)]
pub(super) struct Lru {
    nodes: Vec<Node>,
    oldest: u32,
    youngest: u32,
    free: u32,
    len: usize,
}

impl Default for Lru {
    fn default() -> Self {
        Self { nodes: Vec::new(), oldest: NONE, youngest: NONE, free: NONE, len: 0 }
    }
}

impl Lru {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A new block, used now. Returns its place.
    pub(super) fn push(&mut self, hash: u64) -> u32 {
        let node = Node { hash, older: NONE, younger: NONE };
        let free = self.free;
        let place = if let Some(cell) = self.nodes.get_mut(free as usize) {
            self.free = cell.older;
            *cell = node;
            free
        } else {
            // Fewer than 2^32 by the index's bound on entries.
            self.nodes.push(node);
            u32::try_from(self.nodes.len() - 1).unwrap_or(NONE)
        };
        self.link(place);
        self.len += 1;
        place
    }

    /// The block at `place` is used again.
    pub(super) fn touch(&mut self, place: u32) {
        if self.youngest != place {
            self.unlink(place);
            self.link(place);
        }
    }

    /// Takes out the block whose last use is the oldest.
    pub(super) fn pop(&mut self) -> Option<u64> {
        let place = self.oldest;
        let hash = self.nodes.get(place as usize)?.hash;
        self.unlink(place);
        if let Some(node) = self.nodes.get_mut(place as usize) {
            node.older = self.free;
            self.free = place;
        }
        self.len -= 1;
        Some(hash)
    }

    /// Puts `place` at the young end.
    fn link(&mut self, place: u32) {
        let before = std::mem::replace(&mut self.youngest, place);
        if let Some(node) = self.nodes.get_mut(place as usize) {
            (node.older, node.younger) = (before, NONE);
        }
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.younger = place,
            None => self.oldest = place,
        }
    }

    fn unlink(&mut self, place: u32) {
        let Some(&Node { older, younger, .. }) = self.nodes.get(place as usize) else { return };
        match self.nodes.get_mut(older as usize) {
            Some(node) => node.younger = younger,
            None => self.oldest = younger,
        }
        match self.nodes.get_mut(younger as usize) {
            Some(node) => node.older = older,
            None => self.youngest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(lru: &mut Lru) -> Vec<u64> {
        std::iter::from_fn(|| lru.pop()).collect()
    }

    #[test]
    fn the_oldest_use_comes_out_first() {
        let mut lru = Lru::default();
        let places: Vec<u32> = (0..5).map(|hash| lru.push(hash)).collect();
        for used in [2, 0, 4, 4] {
            lru.touch(places[used]);
        }
        assert_eq!(lru.len(), 5);
        assert_eq!(drained(&mut lru), [1, 3, 2, 0, 4]);
        assert_eq!((lru.len(), lru.pop()), (0, None));
        lru.push(9);
        assert_eq!(drained(&mut lru), [9]);
    }

    #[test]
    fn places_are_used_again() {
        let mut lru = Lru::default();
        for hash in 0..1_000 {
            lru.push(hash);
            if lru.len() > 3 {
                assert_eq!(lru.pop(), Some(hash - 3));
            }
        }
        assert_eq!(lru.nodes.len(), 4);
    }
}
