//! W1: a trace in Mooncake's format, one JSON object a line, prompts as hashes of 512 tokens each.

use std::path::Path;

use rand::{Rng, RngExt as _};
use serde::Deserialize;

use super::{Rate, Unmade, text_of};
use crate::lab::{
    script::{Ask, Piece},
    text::mixed,
};

/// Where the trace is looked for.
const USUAL: &str = "../shared/traces/mooncake/conversation_trace.jsonl";

/// Tokens that one hash stands for.
const HASH_TOKENS: u32 = 512;

/// The recorder's clock: requests of one bucket have one timestamp, so they are spread over it.
const BUCKET_MS: f64 = 3_000.0;

#[derive(Clone, Debug, Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
}

/// A trace as it was recorded.
#[derive(Debug)]
pub(super) struct Trace {
    lines: Vec<Line>,
    length_ms: f64,
}

impl Trace {
    pub(super) fn read(path: Option<&Path>) -> Result<Self, Unmade> {
        let path = path.unwrap_or(Path::new(USUAL));
        Self::parse(path, &text_of(path)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Unmade> {
        let mut lines: Vec<Line> = Vec::new();
        for (nth, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let why =
                |why: serde_json::Error| Unmade::Line { path: path.to_owned(), line: nth + 1, why: why.to_string() };
            lines.push(serde_json::from_str(line).map_err(why)?);
        }
        let last = lines.iter().map(|line| line.timestamp).fold(f64::NEG_INFINITY, f64::max);
        if lines.is_empty() {
            return Err(Unmade::Empty(path.to_owned()));
        }
        Ok(Self { lines, length_ms: last + BUCKET_MS })
    }

    /// Repeated until the time is over, with other texts in each loop: nothing of a loop is cached in the next.
    pub(super) fn script(&self, rate: Rate, length_ms: f64, rng: &mut impl Rng) -> Vec<Ask> {
        let recorded = self.lines.len() as f64 / (self.length_ms / 1e3);
        let times = match rate {
            Rate::Times(times) => times,
            Rate::PerSecond(rate) => rate / recorded,
        };
        let mut asks = Vec::new();
        let mut begin_ms = 0.0;
        while begin_ms < length_ms {
            let salt = rng.random();
            for line in &self.lines {
                let at_ms = begin_ms + (line.timestamp + rng.random::<f64>() * BUCKET_MS) / times;
                if at_ms < length_ms {
                    asks.push(line.ask(at_ms, salt, rng.random()));
                }
            }
            begin_ms += self.length_ms / times;
        }
        asks
    }
}

impl Line {
    fn ask(&self, at_ms: f64, salt: u64, answer: u64) -> Ask {
        let mut left = self.input_length.max(1);
        let mut prompt = Vec::with_capacity(self.hash_ids.len());
        for id in &self.hash_ids {
            let tokens = left.min(HASH_TOKENS);
            if tokens > 0 {
                prompt.push(Piece { content: mixed(salt, *id), tokens });
            }
            left -= tokens;
        }
        // The trace names no sessions. All begin with one system prompt; what follows it tells conversations apart.
        let session = self.hash_ids.get(1).or(self.hash_ids.first()).map(|id| mixed(salt, *id));
        let answer = Piece { content: answer, tokens: self.output_length.max(1) };
        Ask { at_ms, prompt: prompt.into(), answer, adapter: None, session, next: None }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const TEXT: &str = r#"{"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [0, 3]}"#;

    fn trace() -> Trace {
        Trace::parse(Path::new("trace"), TEXT).unwrap()
    }

    #[test]
    fn hashes_are_pieces_of_512_tokens_and_the_last_is_the_rest() {
        let asks = trace().script(Rate::Times(1.0), 6_000.0, &mut StdRng::seed_from_u64(1));
        assert_eq!(asks.len(), 2);
        let tokens: Vec<u32> = asks[0].prompt.iter().map(|piece| piece.tokens).collect();
        assert_eq!(tokens, [512, 512, 6]);
        assert_eq!(asks[0].prompt[0], asks[1].prompt[0]);
        assert_ne!(asks[0].prompt[1].content, asks[1].prompt[1].content);
        assert!((0.0..3_000.0).contains(&asks[0].at_ms) && (3_000.0..6_000.0).contains(&asks[1].at_ms));
    }

    #[test]
    fn a_trace_that_is_too_short_is_repeated_with_other_texts() {
        let asks = trace().script(Rate::Times(4.0), 6_000.0, &mut StdRng::seed_from_u64(1));
        assert_eq!(asks.len(), 8);
        assert_eq!(asks[0].prompt[0], asks[1].prompt[0]);
        assert_ne!(asks[0].prompt[0], asks[2].prompt[0]);
        let faster = trace().script(Rate::PerSecond(4.0 / 3.0), 6_000.0, &mut StdRng::seed_from_u64(1));
        assert_eq!(faster, asks, "recorded were 2 in 6 s");
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = Trace::parse(Path::new("a.jsonl"), "{\"timestamp\": 0}").unwrap_err();
        assert!(error.to_string().starts_with("a.jsonl:1: missing field `input_length`"), "{error}");
        assert!(matches!(Trace::parse(Path::new("a"), "\n"), Err(Unmade::Empty(_))));
    }
}
