//! Prompts as the two sides see them: bytes for the gateway, block hashes for the engine.
//!
//! Traces give token counts and which stretches are the same text, never the text. So text is made up: each piece's
//! bytes follow from its content number alone, which makes equal beginnings equal bytes, and the production code hashes
//! real bytes as it does on the data path. Pieces differ in bytes a token, because texts do; how many tokens a prompt
//! has is therefore for the gateway to estimate, as in life.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::script::{Ask, Piece};
use crate::prefix::{BLOCK_BYTES, Chain};

/// Bytes a token of the densest text, and how much more the loosest has: English prose is at 4 to 4.5 with the
/// tokenizers of Llama 3 and Qwen 2.5, code and other languages at 3 to 4.
const BYTES_PER_TOKEN: (f64, f64) = (3.5, 1.0);

/// How many bytes a piece is.
pub(super) fn bytes_of(piece: Piece) -> usize {
    let (least, more) = BYTES_PER_TOKEN;
    let share = (mixed(piece.content, 0) >> 11) as f64 / (1u64 << 53) as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length, far below 2^52")]
    let bytes = (f64::from(piece.tokens) * (least + more * share)) as usize;
    bytes
}

/// Bytes of a whole prompt.
pub(super) fn prompt_bytes(prompt: &[Piece]) -> usize {
    prompt.iter().map(|piece| bytes_of(*piece)).sum()
}

/// The prompt as the gateway's index sees it.
pub(super) fn chain(model: &str, prompt: &[Piece]) -> Chain {
    let mut chain = Chain::new(model, "");
    for piece in prompt {
        read_along(&mut chain, *piece);
    }
    chain
}

/// What comes behind it.
pub(super) fn read_along(chain: &mut Chain, piece: Piece) {
    for chunk in Chunks::of(piece) {
        if chain.is_full() {
            break;
        }
        chain.push(chunk.as_ref());
    }
}

/// A hash of its first 100 characters (`KubeAI`'s `prefixCharLength`).
pub(super) fn opening(prompt: &[Piece]) -> u64 {
    const CHARS: usize = 100;
    let mut start = Vec::with_capacity(BLOCK_BYTES + CHARS);
    for chunk in prompt.iter().flat_map(|piece| Chunks::of(*piece)) {
        start.extend_from_slice(chunk.as_ref());
        if start.len() >= CHARS {
            break;
        }
    }
    start.truncate(CHARS);
    xxh3_64(&start)
}

/// The prompt and its answer as the engine's cache sees them: one chained hash for each whole block. What one adapter
/// computed is of no use to another.
pub(super) fn engine_hashes(ask: &Ask, adapter: Option<u32>, block_tokens: u32) -> Arc<[u64]> {
    let tokens = ask.prompt_tokens() + ask.answer.tokens;
    let mut hashes = Vec::with_capacity((tokens / block_tokens.max(1)) as usize);
    let (mut chain, mut filled) = (adapter.map_or(0, |adapter| u64::from(adapter) + 1), 0u32);
    for piece in ask.prompt.iter().chain([&ask.answer]) {
        let mut at = 0;
        while at < piece.tokens {
            let taken = (piece.tokens - at).min(block_tokens - filled);
            chain = mixed(mixed(chain, piece.content), u64::from(at) << 32 | u64::from(taken));
            at += taken;
            filled += taken;
            if filled == block_tokens {
                hashes.push(chain);
                filled = 0;
            }
        }
    }
    hashes.into()
}

/// One number out of two, as if at random.
pub(super) fn mixed(one: u64, other: u64) -> u64 {
    let mut both = [0u8; 16];
    let (left, right) = both.split_at_mut(8);
    left.copy_from_slice(&one.to_le_bytes());
    right.copy_from_slice(&other.to_le_bytes());
    xxh3_64(&both)
}

/// A piece's bytes, some at a time.
struct Chunks {
    content: u64,
    at: u64,
    left: usize,
}

impl Chunks {
    fn of(piece: Piece) -> Self {
        Self { content: piece.content, at: 0, left: bytes_of(piece) }
    }
}

/// Up to a block of made-up text.
struct Chunk {
    bytes: [u8; BLOCK_BYTES],
    length: usize,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&self.bytes)
    }
}

impl Iterator for Chunks {
    type Item = Chunk;

    fn next(&mut self) -> Option<Chunk> {
        let length = self.left.min(BLOCK_BYTES);
        if length == 0 {
            return None;
        }
        let mut chunk = Chunk { bytes: [0; BLOCK_BYTES], length };
        let mut word = mixed(self.content, self.at);
        let (words, _) = chunk.bytes.as_chunks_mut::<8>();
        for bytes in words {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407); // Knuth's
            *bytes = word.to_le_bytes();
        }
        self.at += 1;
        self.left -= length;
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Client;

    fn piece(content: u64, tokens: u32) -> Piece {
        Piece { content, tokens }
    }

    fn ask(prompt: &[Piece], answer: Piece) -> Ask {
        Ask {
            at_ms: 0.0,
            prompt: prompt.into(),
            answer,
            adapter: None,
            session: None,
            next: None,
            client: Client::default(),
        }
    }

    fn shared(one: &[u64], other: &[u64]) -> usize {
        one.iter().zip(other).take_while(|(one, other)| one == other).count()
    }

    #[test]
    fn equal_beginnings_are_equal_blocks_and_no_more_for_both_sides() {
        let common = [piece(1, 512), piece(2, 512)];
        let one = [&common[..], &[piece(3, 300)]].concat();
        let other = [&common[..], &[piece(4, 300)]].concat();
        let bytes: usize = common.iter().map(|it| bytes_of(*it)).sum();
        assert_eq!(
            shared(chain("m", &one).blocks().hashes(), chain("m", &other).blocks().hashes()),
            bytes / BLOCK_BYTES
        );
        let (one, other) = (ask(&one, piece(8, 9)), ask(&other, piece(9, 9)));
        assert_eq!(shared(&engine_hashes(&one, None, 16), &engine_hashes(&other, None, 16)), 1_024 / 16);
        assert_eq!(engine_hashes(&one, None, 16).len(), (1_324 + 9) / 16);
    }

    #[test]
    fn two_adapters_share_nothing_in_the_engine() {
        let ask = ask(&[piece(1, 512)], piece(2, 9));
        let of = |adapter| engine_hashes(&ask, adapter, 16);
        assert_eq!((shared(&of(None), &of(Some(0))), shared(&of(Some(0)), &of(Some(1)))), (0, 0));
        assert_eq!(of(Some(1)), of(Some(1)));
    }

    #[test]
    fn a_longer_piece_of_the_same_content_begins_like_a_shorter_one() {
        let (short, long) = (chain("m", &[piece(7, 500)]), chain("m", &[piece(7, 900)]));
        let (short, long) = (short.blocks(), long.blocks());
        assert_eq!(shared(short.hashes(), long.hashes()), short.len());
        assert!(short.len() >= 6 && long.len() > short.len());
    }

    #[test]
    fn the_next_turn_finds_the_answer_in_the_engine() {
        let first = ask(&[piece(1, 100)], piece(2, 60));
        let second = ask(&[piece(1, 100), piece(2, 60), piece(3, 40)], piece(4, 10));
        assert_eq!(shared(&engine_hashes(&first, None, 16), &engine_hashes(&second, None, 16)), 160 / 16);
    }

    #[test]
    fn texts_differ_in_bytes_a_token_around_four() {
        let lengths: Vec<usize> = (0..1_000).map(|content| bytes_of(piece(content, 1_000))).collect();
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        assert!((3_950..4_050).contains(&mean), "{mean}");
        assert!(lengths.iter().all(|it| (3_500..4_500).contains(it)));
    }
}
