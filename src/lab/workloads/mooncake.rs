//! W1: a trace in Mooncake's format, one JSON object a line, prompts as hashes of 512 tokens each.

use rand::{Rng, RngExt as _};
use serde::Deserialize;

use super::{
    Rate, Unmade,
    origin::{Extent, Text, possible, wrong},
};
use crate::lab::{
    script::{Ask, Client, Piece},
    text::mixed,
};

/// Tokens that one hash stands for.
const HASH_TOKENS: u32 = 512;

/// A recorder whose clock moves in steps of at least this gave many requests one timestamp (Mooncake's: 3 s): they are
/// spread over the step. A finer one is taken at its word.
const COARSE_MS: f64 = 1_000.0;

/// What a line looks like, for people.
pub(super) const EXAMPLE: &str = r#"`{"timestamp": 0, "input_length": 600, "output_length": 50, "hash_ids": [0, 1]}`"#;

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
    /// A step of the recorder's clock, if it is coarse.
    step_ms: f64,
    length_ms: f64,
}

impl Trace {
    pub(super) fn parse(Text { path, text }: &Text) -> Result<Self, Unmade> {
        let mut lines: Vec<Line> = Vec::new();
        for (nth, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let alien = |why| wrong(path, nth, format!("{why}; a line looks like {EXAMPLE}"));
            let line: Line = serde_json::from_str(line).map_err(alien)?;
            line.possible().map_err(|why| wrong(path, nth, why))?;
            lines.push(line);
        }
        lines.sort_by(|one, other| one.timestamp.total_cmp(&other.timestamp));
        let times = || lines.iter().map(|line| line.timestamp);
        let (Some(first), Some(last)) = (times().next(), times().next_back()) else {
            return Err(Unmade::Empty(path.clone()));
        };
        let gaps = times().zip(times().skip(1)).map(|(one, next)| next - one).filter(|gap| *gap > 0.0);
        let finest = gaps.fold(f64::INFINITY, f64::min);
        let step_ms = if (COARSE_MS..f64::INFINITY).contains(&finest) { finest } else { 0.0 };
        for line in &mut lines {
            line.timestamp -= first;
        }
        let mean_gap = (last - first) / lines.len() as f64;
        Ok(Self { step_ms, length_ms: (last - first + step_ms.max(mean_gap)).max(COARSE_MS), lines })
    }

    /// How much there is of it.
    pub(super) fn extent(&self) -> Extent {
        Extent { requests: self.lines.len(), length_ms: self.length_ms }
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
                let at_ms = begin_ms + (line.timestamp + rng.random::<f64>() * self.step_ms) / times;
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
    /// Hashes that cover less than the prompt, or more, would make a prompt of another length of it. None at all are
    /// taken for a prompt that shares nothing.
    fn possible(&self) -> Result<(), String> {
        possible(self.timestamp, self.input_length, self.output_length)?;
        let (has, needs) = (self.hash_ids.len(), self.input_length.max(1).div_ceil(HASH_TOKENS));
        if has == 0 || has == needs as usize {
            return Ok(());
        }
        Err(format!(
            "{} tokens need {needs} hash_ids of {HASH_TOKENS} tokens each, and there are {has}; an empty list says that \
             nothing is shared",
            self.input_length
        ))
    }

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
        if prompt.is_empty() {
            prompt.push(Piece { content: !answer, tokens: left });
        }
        // The trace names no sessions. All begin with one system prompt; what follows it tells conversations apart.
        let session = self.hash_ids.get(1).or(self.hash_ids.first()).map(|id| mixed(salt, *id));
        let answer = Piece { content: answer, tokens: self.output_length.max(1) };
        Ask { at_ms, prompt: prompt.into(), answer, adapter: None, session, next: None, client: Client::default() }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const TEXT: &str = r#"{"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [0, 3]}"#;

    fn parse(text: &'static str) -> Result<Trace, Unmade> {
        Trace::parse(&Text { path: "a.jsonl".into(), text: text.into() })
    }

    fn trace() -> Trace {
        parse(TEXT).unwrap()
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
    fn a_fine_clock_is_taken_at_its_word() {
        let fine = r#"{"timestamp": 1120, "input_length": 9, "output_length": 5, "hash_ids": [0]}
{"timestamp": 1000, "input_length": 9, "output_length": 5, "hash_ids": [0]}"#;
        let asks = parse(fine).unwrap().script(Rate::Times(0.5), 1_000.0, &mut StdRng::seed_from_u64(1));
        assert_eq!(asks.iter().map(|ask| ask.at_ms).collect::<Vec<_>>(), [0.0, 240.0]);
    }

    #[test]
    fn the_built_in_beginning_is_whole() {
        let trace = Trace::parse(&crate::lab::workloads::origin::MOONCAKE.built_in()).unwrap();
        assert_eq!((trace.lines.len(), trace.step_ms > 2_900.0), (1_500, true), "{}", trace.step_ms);
    }

    #[test]
    fn hashes_that_do_not_cover_the_prompt_are_refused_and_none_share_nothing() {
        let line = |ids| format!(r#"{{"timestamp": 0, "input_length": 8000, "output_length": 5, "hash_ids": {ids}}}"#);
        let parse = |text: String| Trace::parse(&Text { path: "a.jsonl".into(), text: text.into() });
        for ids in ["[1, 2]", "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]"] {
            let error = parse(line(ids)).unwrap_err().to_string();
            assert!(error.starts_with("a.jsonl:1: 8000 tokens need 16 hash_ids of 512 tokens each"), "{error}");
        }
        let trace = parse(format!("{}\n{}", line("[]"), line("[]"))).unwrap();
        let asks = trace.script(Rate::Times(1.0), 1_000.0, &mut StdRng::seed_from_u64(1));
        let [one, other] = asks.as_slice() else { panic!("{asks:?}") };
        assert_eq!((one.prompt_tokens(), other.prompt_tokens()), (8_000, 8_000));
        assert_ne!(one.prompt, other.prompt);
        assert!(parse(line("[]").replace("\"timestamp\": 0", "\"timestamp\": -1")).is_err());
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse("\n{\"timestamp\": 0}").unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:2: missing field `input_length`"), "{error}");
        assert!(error.ends_with(EXAMPLE), "{error}");
        assert!(matches!(parse("\n"), Err(Unmade::Empty(_))));
    }
}
