//! The decision log of a running gateway (`tidegate serve --decision-log`), played again: its own traffic, at its own
//! times, with its own shared prefixes, and no word of what was said.

use std::collections::HashMap;

use rand::{Rng, RngExt as _};
use serde::Deserialize;

use super::{
    Rate, Unmade,
    origin::{Extent, Text, possible, wrong},
};
use crate::{
    lab::{
        script::{Ask, Client, Piece},
        text::mixed,
    },
    prefix::BLOCK_BYTES,
    telemetry::Hex,
};

/// A shorter log than a second is not repeated sooner: its rate would say nothing.
const SHORTEST_MS: f64 = 1_000.0;

/// What of a line matters here, for people.
pub(super) const EXAMPLE: &str = r#"`{"at_ms": 12.5, "prompt_tokens": 130, "prompt_bytes": 520, "output_tokens": 7, "blocks": ["00000000000000ff"]}`"#;

/// Its form, without what a policy decided and how it went: that is drawn anew.
#[derive(Clone, Debug, Deserialize)]
struct Line {
    at_ms: f64,
    prompt_tokens: u32,
    prompt_bytes: usize,
    output_tokens: Option<u32>,
    session: Option<Hex>,
    blocks: Vec<Hex>,
}

/// One request as it was logged.
#[derive(Debug)]
struct Logged {
    at_ms: f64,
    /// Whole blocks, by their hashes.
    blocks: Vec<Piece>,
    /// Tokens behind the last whole block, whose text is nobody else's.
    tail: u32,
    output: u32,
    session: Option<u64>,
}

/// A log.
#[derive(Debug)]
pub(super) struct Log {
    asks: Vec<Logged>,
    length_ms: f64,
}

/// Whether `first`, a line, can be one of a decision log.
pub(super) fn looks_like(first: &str) -> bool {
    first.trim_start().starts_with('{') && first.contains("\"at_ms\"") && first.contains("\"blocks\"")
}

impl Log {
    pub(super) fn parse(Text { path, text }: &Text) -> Result<Self, Unmade> {
        let mut lines: Vec<Line> = Vec::new();
        for (nth, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let alien = |why| wrong(path, nth, format!("{why}; a line has at least {EXAMPLE}"));
            let line: Line = serde_json::from_str(line).map_err(alien)?;
            let output = line.output_tokens.unwrap_or(0);
            possible(line.at_ms, line.prompt_tokens, output).map_err(|why| wrong(path, nth, why))?;
            lines.push(line);
        }
        // Lines stand where their requests ended; what shares text must find it where it came first.
        lines.sort_by(|one, other| one.at_ms.total_cmp(&other.at_ms));
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else {
            return Err(Unmade::Empty(path.clone()));
        };
        let (first, span) = (first.at_ms, last.at_ms - first.at_ms);
        let length_ms = (span + span / lines.len() as f64).max(SHORTEST_MS);
        let mut known = HashMap::new();
        let asks = lines.into_iter().map(|line| line.logged(first, &mut known)).collect();
        Ok(Self { asks, length_ms })
    }

    /// How much there is of it.
    pub(super) fn extent(&self) -> Extent {
        Extent { requests: self.asks.len(), length_ms: self.length_ms }
    }

    /// Repeated until the time is over, with other texts in each loop: nothing of a loop is cached in the next.
    pub(super) fn script(&self, rate: Rate, length_ms: f64, rng: &mut impl Rng) -> Vec<Ask> {
        let logged = self.asks.len() as f64 / (self.length_ms / 1e3);
        let times = match rate {
            Rate::Times(times) => times,
            Rate::PerSecond(rate) => rate / logged,
        };
        let mut asks = Vec::new();
        let mut begin_ms = 0.0;
        while begin_ms < length_ms {
            let salt = rng.random();
            for logged in &self.asks {
                let at_ms = begin_ms + logged.at_ms / times;
                if at_ms < length_ms {
                    asks.push(logged.ask(at_ms, salt, rng));
                }
            }
            begin_ms += self.length_ms / times;
        }
        asks
    }
}

impl Line {
    /// Spreads the prompt's tokens over its bytes. A block has as many tokens as it had where it came first (`known`):
    /// a shared beginning must have one length everywhere, or what follows it would not be the same text.
    fn logged(self, first_ms: f64, known: &mut HashMap<Hex, u32>) -> Logged {
        let (mut tokens, mut bytes) = (self.prompt_tokens.max(1), self.prompt_bytes);
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for hash in self.blocks {
            let share = BLOCK_BYTES as f64 / bytes.max(BLOCK_BYTES) as f64;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a u32")]
            let fair = (f64::from(tokens) * share).round() as u32;
            let own = *known.entry(hash).or_insert(fair.max(1));
            blocks.push(Piece { content: hash.0, tokens: own });
            tokens = tokens.saturating_sub(own);
            bytes = bytes.saturating_sub(BLOCK_BYTES);
        }
        Logged {
            at_ms: self.at_ms - first_ms,
            blocks,
            tail: tokens,
            output: self.output_tokens.unwrap_or(1).max(1),
            session: self.session.map(|session| session.0),
        }
    }
}

impl Logged {
    fn ask(&self, at_ms: f64, salt: u64, rng: &mut impl Rng) -> Ask {
        let salted = |piece: &Piece| Piece { content: mixed(salt, piece.content), ..*piece };
        let mut prompt: Vec<Piece> = self.blocks.iter().map(salted).collect();
        if self.tail > 0 {
            prompt.push(Piece { content: rng.random(), tokens: self.tail });
        }
        let answer = Piece { content: rng.random(), tokens: self.output };
        let session = self.session.map(|session| mixed(salt, session));
        Ask { at_ms, prompt: prompt.into(), answer, adapter: None, session, next: None, client: Client::default() }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    /// In the order in which they ended; the second began first.
    const TEXT: &str = r#"{"at_ms":1700.0,"model":"m","prompt_tokens":300,"prompt_bytes":1024,"outcome":"cut","blocks":["0a","0b","0d","0e"]}
{"at_ms":1200.0,"session":"07","prompt_tokens":130,"prompt_bytes":520,"output_tokens":9,"blocks":["0a","0b"]}
{"at_ms":2200.0,"session":"07","prompt_tokens":5,"prompt_bytes":20,"output_tokens":0,"blocks":[]}
"#;

    fn parse(text: &'static str) -> Result<Log, Unmade> {
        Log::parse(&Text { path: "a.jsonl".into(), text: text.into() })
    }

    fn script(rate: Rate, length_ms: f64) -> Vec<Ask> {
        parse(TEXT).unwrap().script(rate, length_ms, &mut StdRng::seed_from_u64(1))
    }

    fn tokens(ask: &Ask) -> Vec<u32> {
        ask.prompt.iter().map(|piece| piece.tokens).collect()
    }

    #[test]
    fn requests_come_when_they_came_with_the_tokens_that_they_had() {
        let asks = script(Rate::Times(1.0), 1_001.0);
        assert_eq!(asks.iter().map(|ask| ask.at_ms).collect::<Vec<_>>(), [0.0, 500.0, 1_000.0]);
        // 130 * 256 / 520 = 64, 66 * 256 / 264 = 64, and 2 behind them.
        assert_eq!(tokens(&asks[0]), [64, 64, 2]);
        // 172 tokens are left for 512 bytes.
        assert_eq!(tokens(&asks[1]), [64, 64, 86, 86]);
        assert_eq!(tokens(&asks[2]), [5]);
        assert_eq!(asks.iter().map(|ask| ask.answer.tokens).collect::<Vec<_>>(), [9, 1, 1]);
    }

    #[test]
    fn equal_blocks_are_equal_text_and_equal_sessions_one_session() {
        let asks = script(Rate::Times(1.0), 1_001.0);
        assert_eq!(asks[0].prompt[..2], asks[1].prompt[..2]);
        assert_ne!(asks[0].prompt[2].content, asks[1].prompt[2].content);
        assert!(asks[0].session.is_some() && asks[0].session == asks[2].session);
        assert_eq!(asks[1].session, None);
    }

    #[test]
    fn a_log_that_is_too_short_is_repeated_with_other_texts() {
        // It is 1 s long and a gap of a third.
        let asks = script(Rate::Times(2.0), 1_200.0);
        let times: Vec<f64> = asks.iter().map(|ask| ask.at_ms.round()).collect();
        assert_eq!(times, [0.0, 250.0, 500.0, 667.0, 917.0, 1_167.0]);
        assert_ne!(asks[0].prompt[0].content, asks[3].prompt[0].content);
        assert_eq!(asks[3].prompt[..2], asks[4].prompt[..2]);
        let by_rate = script(Rate::PerSecond(4.5), 1_200.0);
        assert_eq!(by_rate.len(), asks.len(), "logged were 3 in 1.33 s");
    }

    #[test]
    fn a_block_keeps_its_tokens_even_where_fewer_were_counted() {
        let text = r#"{"at_ms":0,"prompt_tokens":100,"prompt_bytes":256,"blocks":["0a"]}
{"at_ms":1,"prompt_tokens":80,"prompt_bytes":512,"blocks":["0a","0b"]}"#;
        let asks = parse(text).unwrap().script(Rate::Times(1.0), 100.0, &mut StdRng::seed_from_u64(1));
        assert_eq!(asks.iter().map(tokens).collect::<Vec<_>>(), [vec![100], vec![100, 1]]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse("\n{\"at_ms\": 0}").unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:2: missing field `prompt_tokens`"), "{error}");
        assert!(error.ends_with(EXAMPLE), "{error}");
        let error =
            parse(r#"{"at_ms":0,"prompt_tokens":1,"prompt_bytes":1,"blocks":["word"]}"#).unwrap_err().to_string();
        assert!(error.starts_with("a.jsonl:1: `word` is no hash of 16 hexadecimal digits"), "{error}");
        assert!(matches!(parse("\n"), Err(Unmade::Empty(_))));
    }
}
