//! The KV cache of one engine: a fixed number of blocks, shared by prefix, reused least recently used first.
//!
//! As in vLLM, a freed block keeps its content and its hash until it is handed out again, so "free" and "cached" are
//! not opposites. The free list is a linked list through the blocks themselves, because a prefix hit must be able to
//! take a block out of its middle in O(1). It does not know what a request is: it hands out block numbers.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// The end of the free list: no block has this number, as block numbers are below `num_gpu_blocks`.
const NIL: u32 = u32::MAX;

type ByHash = HashMap<u64, u32, BuildHasherDefault<HashedAlready>>;

/// The keys are hashes; hashing them again took half of all the time that a run in the lab takes.
#[derive(Debug, Default)]
struct HashedAlready(u64);

impl Hasher for HashedAlready {
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used for `u64`; whatever else came would be folded in.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Clone, Copy, Debug)]
struct Block {
    hash: Option<u64>,
    users: u32,
    older: u32,
    newer: u32,
}

/// The blocks, who may be found by which hash, and which may be reused.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    by_hash: ByHash,
    oldest: u32,
    newest: u32,
    free: u32,
}

impl BlockPool {
    /// `blocks` empty blocks, all free, to be handed out from the first to the last.
    pub fn new(blocks: u32) -> Self {
        let empty = Block { hash: None, users: 0, older: NIL, newer: NIL };
        let mut pool = Self {
            blocks: vec![empty; blocks as usize],
            by_hash: ByHash::default(),
            oldest: NIL,
            newest: NIL,
            free: 0,
        };
        (0..blocks).for_each(|id| pool.append_to_free(id));
        pool
    }

    /// How many blocks there are.
    pub fn total(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    /// How many could be handed out now, cached or not.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// The share of blocks in use; cached blocks that nobody uses count as free.
    pub fn usage(&self) -> f64 {
        if self.blocks.is_empty() {
            return 0.0;
        }
        1.0 - f64::from(self.free) / f64::from(self.total())
    }

    /// The block that holds this content, and whether it is free (and so would have to be taken from the free list).
    pub fn find(&self, hash: u64) -> Option<(u32, bool)> {
        let id = *self.by_hash.get(&hash)?;
        Some((id, self.block(id).users == 0))
    }

    /// One more user of a block that [`BlockPool::find`] returned.
    pub fn share(&mut self, id: u32) {
        if self.block(id).users == 0 {
            self.take_from_free(id);
        }
        self.edit(id, |block| block.users += 1);
    }

    /// The least recently used free block, its old content forgotten.
    pub fn take(&mut self) -> Option<u32> {
        let id = self.oldest;
        if id == NIL {
            return None;
        }
        self.take_from_free(id);
        self.forget(id);
        self.edit(id, |block| block.users = 1);
        Some(id)
    }

    /// Makes a block findable by its content. If another block already holds the same, that one stays the answer.
    pub fn remember(&mut self, id: u32, hash: u64) {
        if *self.by_hash.entry(hash).or_insert(id) == id {
            self.edit(id, |block| block.hash = Some(hash));
        }
    }

    /// One user less for each of a sequence's blocks. The last block goes first, so that the end of a prompt is
    /// reused before its beginning, which others are likelier to share.
    pub fn release(&mut self, blocks: &mut Vec<u32>) {
        for id in blocks.drain(..).rev() {
            self.edit(id, |block| block.users -= 1);
            if self.block(id).users == 0 {
                self.append_to_free(id);
            }
        }
    }

    /// Forgets all content, as vLLM's `/reset_prefix_cache` does.
    pub fn forget_all(&mut self) {
        self.by_hash.clear();
        self.blocks.iter_mut().for_each(|block| block.hash = None);
    }

    fn forget(&mut self, id: u32) {
        if let Some(hash) = self.block(id).hash {
            self.by_hash.remove(&hash);
            self.edit(id, |block| block.hash = None);
        }
    }

    fn append_to_free(&mut self, id: u32) {
        let newest = self.newest;
        self.edit(id, |block| (block.older, block.newer) = (newest, NIL));
        if newest == NIL {
            self.oldest = id;
        } else {
            self.edit(newest, |block| block.newer = id);
        }
        self.newest = id;
        self.free += 1;
    }

    fn take_from_free(&mut self, id: u32) {
        let Block { older, newer, .. } = self.block(id);
        if older == NIL {
            self.oldest = newer;
        } else {
            self.edit(older, |block| block.newer = newer);
        }
        if newer == NIL {
            self.newest = older;
        } else {
            self.edit(newer, |block| block.older = older);
        }
        self.free -= 1;
    }

    #[expect(clippy::indexing_slicing, reason = "every id was handed out by this pool, which never shrinks")]
    fn block(&self, id: u32) -> Block {
        self.blocks[id as usize]
    }

    fn edit(&mut self, id: u32, change: impl FnOnce(&mut Block)) {
        if let Some(block) = self.blocks.get_mut(id as usize) {
            change(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_least_recently_freed_first_and_the_end_of_a_prompt_before_its_beginning() {
        let mut pool = BlockPool::new(4);
        let mut first: Vec<u32> = (0..2).filter_map(|_| pool.take()).collect();
        let mut second: Vec<u32> = (0..2).filter_map(|_| pool.take()).collect();
        assert_eq!((first.as_slice(), second.as_slice()), ([0, 1].as_slice(), [2, 3].as_slice()));
        assert_eq!(pool.take(), None);
        pool.release(&mut second);
        pool.release(&mut first);
        let order: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(order, [3, 2, 1, 0]);
    }

    #[test]
    fn freed_content_is_found_until_its_block_is_reused() {
        let mut pool = BlockPool::new(2);
        let mut blocks = vec![pool.take().unwrap()];
        pool.remember(blocks[0], 7);
        pool.release(&mut blocks);
        assert_eq!(pool.find(7), Some((0, true)));
        assert!((pool.usage() - 0.0).abs() < f64::EPSILON, "cached is free");
        assert_eq!(pool.take(), Some(1), "the never used block is older in the list");
        assert_eq!(pool.take(), Some(0));
        assert_eq!(pool.find(7), None);
    }

    #[test]
    fn a_shared_block_is_free_only_after_its_last_user() {
        let mut pool = BlockPool::new(3);
        let mut a = vec![pool.take().unwrap()];
        pool.remember(a[0], 9);
        let (id, free) = pool.find(9).unwrap();
        assert!(!free);
        pool.share(id);
        let mut b = vec![id];
        pool.release(&mut a);
        assert_eq!(pool.free(), 2);
        pool.release(&mut b);
        assert_eq!(pool.free(), 3);
    }
}
