//! A prompt as a chain of block hashes: two prompts share exactly as many leading hashes as they share leading blocks.
//!
//! Only whole blocks count, as in the engines: a partial one would match nothing but its own repetition. The hash is
//! fast, not cryptographic: whoever builds a collision gains a wrong guess about a cache, nothing else.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Bytes in a block: 64 tokens at 4 bytes each. The reference picker's smallest block too; engines' blocks (16 tokens)
/// would cost four times the memory and tell nothing more about where to send a request.
pub const BLOCK_BYTES: usize = 256;

/// Blocks kept of one prompt: 131,072 tokens, the reference picker's bound. What lies behind is not matched.
pub const MAX_BLOCKS: usize = 2_048;

/// The chained hashes of a prompt's whole blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks(Vec<u64>);

impl Blocks {
    /// The blocks of `pieces`, taken as if they were one text, under `model` (the served model or adapter: their caches
    /// are apart) and `salt` (the request's `cache_salt`; empty if it has none).
    pub fn of<P: AsRef<[u8]>>(model: &str, salt: &str, pieces: impl IntoIterator<Item = P>) -> Self {
        let mut chain = Chain::new(model, salt);
        for piece in pieces {
            if chain.is_full() {
                break;
            }
            chain.push(piece.as_ref());
        }
        chain.blocks
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the prompt is shorter than one block.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hashes, first block first.
    pub fn hashes(&self) -> &[u64] {
        &self.0
    }
}

/// A text being cut into blocks: the whole ones, and the bytes behind them, so that more can be put behind.
#[derive(Clone, Debug)]
pub struct Chain {
    blocks: Blocks,
    last: u64,
    /// A block that began in one piece and goes on in the next.
    open: [u8; BLOCK_BYTES],
    filled: usize,
}

impl Chain {
    /// The most bytes of a text that count.
    pub const MAX_BYTES: usize = MAX_BLOCKS * BLOCK_BYTES;

    /// No text yet, under `model` and `salt` as in [`Blocks::of`].
    pub fn new(model: &str, salt: &str) -> Self {
        let mut seed = Xxh3::new();
        seed.update(model.as_bytes());
        // A byte that UTF-8 never uses keeps ("ab", "c") and ("a", "bc") apart.
        seed.update(&[0xff]);
        seed.update(salt.as_bytes());
        Self { blocks: Blocks::default(), last: seed.digest(), open: [0; BLOCK_BYTES], filled: 0 }
    }

    /// The whole blocks so far.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Whether what comes behind no longer counts.
    pub fn is_full(&self) -> bool {
        self.blocks.len() >= MAX_BLOCKS
    }

    /// Puts `piece` behind the text.
    pub fn push(&mut self, piece: &[u8]) {
        let rest = self.fill_open(piece);
        let (whole, tail) = rest.as_chunks::<BLOCK_BYTES>();
        let room = MAX_BLOCKS - self.blocks.len().min(MAX_BLOCKS);
        self.blocks.0.reserve(whole.len().min(room));
        for block in whole.iter().take(room) {
            self.close(block);
        }
        if let Some(open) = self.open.get_mut(self.filled..self.filled + tail.len()) {
            open.copy_from_slice(tail);
            self.filled += tail.len();
        }
    }

    /// Completes the open block from the front of `piece`; returns what is left of it. If any is left, no block is open.
    fn fill_open<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        if self.filled == 0 {
            return piece;
        }
        let wanted = (BLOCK_BYTES - self.filled).min(piece.len());
        let (head, rest) = piece.split_at_checked(wanted).unwrap_or((piece, &[]));
        if let Some(open) = self.open.get_mut(self.filled..self.filled + head.len()) {
            open.copy_from_slice(head);
            self.filled += head.len();
        }
        if self.filled == BLOCK_BYTES && !self.is_full() {
            let block = self.open;
            self.close(&block);
            self.filled = 0;
        }
        rest
    }

    fn close(&mut self, block: &[u8; BLOCK_BYTES]) {
        let mut link = [0u8; 16];
        let (before, own) = link.split_at_mut(8);
        before.copy_from_slice(&self.last.to_le_bytes());
        own.copy_from_slice(&xxh3_64(block).to_le_bytes());
        self.last = xxh3_64(&link);
        self.blocks.0.push(self.last);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_whole_blocks_count() {
        let of = |bytes: usize| Blocks::of("m", "", [vec![1u8; bytes]]).len();
        assert_eq!((of(0), of(255), of(256), of(511), of(512)), (0, 0, 1, 1, 2));
    }

    #[test]
    fn a_change_in_one_block_changes_it_and_all_behind_it() {
        let mut prompt = vec![1u8; BLOCK_BYTES * 4];
        let before = Blocks::of("m", "", [&prompt]);
        prompt[BLOCK_BYTES * 2] = 2;
        let after = Blocks::of("m", "", [&prompt]);
        assert_eq!(before.hashes()[..2], after.hashes()[..2]);
        assert!((2..4).all(|at| before.hashes()[at] != after.hashes()[at]));
    }

    #[test]
    fn models_and_salts_share_nothing() {
        let prompt = [vec![1u8; BLOCK_BYTES]];
        let of = |model, salt| Blocks::of(model, salt, &prompt);
        assert_ne!(of("a", ""), of("b", ""));
        assert_ne!(of("a", ""), of("a", "tenant"));
        assert_ne!(of("ab", "c"), of("a", "bc"));
    }

    #[test]
    fn a_huge_prompt_is_cut_at_the_bound() {
        let prompt = vec![1u8; BLOCK_BYTES * (MAX_BLOCKS + 10) + 3];
        assert_eq!(Blocks::of("m", "", [&prompt]).len(), MAX_BLOCKS);
        assert_eq!(Blocks::of("m", "", prompt.chunks(300)).len(), MAX_BLOCKS);
    }

    proptest! {
        #[test]
        fn how_a_prompt_is_cut_into_pieces_does_not_matter(
            prompt in prop::collection::vec(any::<u8>(), 0..3_000),
            cuts in prop::collection::vec(0usize..700, 0..12),
        ) {
            let mut pieces = Vec::new();
            let mut rest = &prompt[..];
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = after;
            }
            pieces.push(rest);
            prop_assert_eq!(Blocks::of("m", "s", pieces), Blocks::of("m", "s", [&prompt]));
        }
    }
}
