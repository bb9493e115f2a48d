//! How much an ask may take, by its own words: the most tokens of one answer, how many answers there will be, and what of
//! its prompt is no text. Engines differ in how they read odd values, so what could be read in two ways is read as the
//! larger. What cannot be read counts as absent.

use super::{Ask, Top};
use crate::openai::{
    Endpoint,
    text::{Cursor, Kind},
};

/// Contents within contents that are looked into: Anthropic's tool results have one.
const DEPTH: u32 = 2;

/// What of a prompt is no text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BesideText {
    /// Images, sounds, films and files.
    pub parts: u32,
    /// The bytes that describe them.
    pub bytes: usize,
}

/// The most tokens of one answer. Only what its endpoint's engines read counts; a chat has two names for it, and engines
/// that take the one first, or the one if it is not 0.
pub(super) fn most_tokens(endpoint: Endpoint, top: &Top<'_>) -> Option<u32> {
    let keys: &[&str] = match endpoint {
        Endpoint::ChatCompletions => &["max_completion_tokens", "max_tokens"],
        Endpoint::Responses => &["max_output_tokens"],
        Endpoint::Extra => &["max_completion_tokens", "max_tokens", "max_output_tokens"],
        _ => &["max_tokens"],
    };
    keys.iter().filter_map(|key| top.count(key)).filter(|most| *most > 0).max()
}

/// How many answers there will be: of each prompt, times the prompts.
pub(super) fn choices(endpoint: Endpoint, top: &Top<'_>) -> Option<u32> {
    let of_each = ["n", "best_of"].iter().filter_map(|key| top.count(key)).max();
    if endpoint != Endpoint::Completions {
        return of_each;
    }
    match top.get("prompt").map_or(1, |prompt| prompts(prompt.get().as_bytes())) {
        1 => of_each,
        prompts => Some(of_each.unwrap_or(1).max(1).saturating_mul(prompts)),
    }
}

/// Of a list of texts or of lists of tokens each is a prompt; a list of tokens is one.
fn prompts(prompt: &[u8]) -> u32 {
    let mut at = Cursor::new(prompt);
    if !at.eat(b'[') {
        return 1;
    }
    let mut prompts = 0_u32;
    while let Some(first) = at.element() {
        if !matches!(first, b'"' | b'[') {
            return 1;
        }
        at.value();
        prompts = prompts.saturating_add(1);
    }
    prompts.max(1)
}

/// A number as lenient readers take it: `8.0`, `1e1` and `"8"` are counts too. One too large to matter is the largest.
pub(super) fn count(json: &str) -> Option<u32> {
    let digits = json.trim_matches('"').trim();
    let count: f64 = digits.parse().ok().filter(|count: &f64| *count >= 0.0)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
    Some(count.ceil() as u32)
}

impl Ask {
    /// What of its prompt, which lies in `body`, is no text.
    pub fn beside_text(&self, body: &[u8]) -> BesideText {
        let mut found = BesideText::default();
        let turns = self.prompt.iter().filter(|part| part.kind == Kind::Turns);
        for value in turns.filter_map(|part| body.get(part.span.clone())) {
            let mut at = Cursor::new(value);
            if at.eat(b'[') {
                while at.element().is_some() {
                    let content = Cursor::new(at.value()).field(b"content");
                    look(content.unwrap_or_default(), DEPTH, &mut found);
                }
            }
        }
        found
    }
}

/// Looks for parts that are no text in a content.
fn look(content: &[u8], depth: u32, found: &mut BesideText) {
    let mut at = Cursor::new(content);
    if depth == 0 || !at.eat(b'[') {
        return;
    }
    while at.element().is_some() {
        let whole = at.value();
        let (mut part, mut is_other) = (Cursor::new(whole), false);
        if !part.eat(b'{') {
            continue;
        }
        while let Some(key) = part.key() {
            let value = part.value();
            // Engines know a part by its type, or by what it has.
            is_other |= is_no_text(key) || (key == b"type" && is_no_text(value));
            if key == b"content" {
                look(value, depth - 1, found);
            }
        }
        if is_other {
            found.parts = found.parts.saturating_add(1);
            found.bytes += whole.len();
        }
    }
}

/// Whether a word is of those for what is no text: `image_url`, `input_image`, `input_audio`, `video_url`, `input_file`,
/// `document`. Who spells one oddly means one.
fn is_no_text(word: &[u8]) -> bool {
    let words: [&[u8]; 5] = [b"image", b"audio", b"video", b"file", b"document"];
    word.contains(&b'\\') || words.iter().any(|kind| word.windows(kind.len()).any(|part| part == *kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(endpoint: Endpoint, rest: &str) -> (Option<u32>, Option<u32>) {
        let ask = Ask::parse(endpoint, None, format!(r#"{{"model":"m",{rest}}}"#).as_bytes()).unwrap();
        (ask.max_tokens, ask.choices)
    }

    #[test]
    fn a_decoy_length_makes_no_reservation_smaller_than_what_the_engine_reads() {
        use Endpoint::{ChatCompletions, Completions, Messages, Responses};
        let all = r#""max_completion_tokens":1,"max_tokens":1000,"max_output_tokens":7"#;
        for (endpoint, most) in [(Completions, 1_000), (Messages, 1_000), (Responses, 7), (ChatCompletions, 1_000)] {
            assert_eq!(read(endpoint, all).0, Some(most), "{endpoint:?}");
        }
        for (given, most) in [
            (r#""max_completion_tokens":0,"max_tokens":1000"#, Some(1_000)),
            (r#""max_completion_tokens":null,"max_tokens":9"#, Some(9)),
            (r#""max_completion_tokens":20,"max_tokens":9"#, Some(20)),
            (r#""max_completion_tokens":0"#, None),
            (r#""max_output_tokens":5"#, None),
            (r#""max_tokens":"1e3""#, Some(1_000)),
            (r#""max_tokens":-5"#, None),
            (r#""max_tokens":[5]"#, None),
        ] {
            assert_eq!(read(ChatCompletions, given).0, most, "{given}");
        }
    }

    #[test]
    fn however_many_answers_are_asked_for_each_is_counted() {
        for (given, choices) in [
            (r#""n":8.0"#, Some(8)),
            (r#""n":1e1"#, Some(10)),
            (r#""n":"4""#, Some(4)),
            (r#""n":2,"best_of":5"#, Some(5)),
            (r#""n":2,"prompt":["a","b, [c]","d"]"#, Some(6)),
            (r#""prompt":[[1,2],[3]]"#, Some(2)),
            (r#""prompt":[1,2,3]"#, None),
            (r#""prompt":["a"],"n":3"#, Some(3)),
            (r#""n":1e99,"prompt":["a","b"]"#, Some(u32::MAX)),
        ] {
            assert_eq!(read(Endpoint::Completions, given).1, choices, "{given}");
        }
        assert_eq!(read(Endpoint::ChatCompletions, r#""n":3,"prompt":["a","b"]"#).1, Some(3));
    }

    #[test]
    fn parts_that_are_no_text_are_counted_and_text_is_not() {
        let image = r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}"#;
        let body = format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"an image"}},{{"content":[{{"type":"text","text":"image"}},
            {image},{{"im\u0061ge_url":"x"}}]}},{{"content":[{{"type":"tool_result","content":[{image}]}}]}}]}}"#
        );
        let ask = Ask::parse(Endpoint::ChatCompletions, None, body.as_bytes()).unwrap();
        let odd = r#"{"im\u0061ge_url":"x"}"#;
        assert_eq!(ask.beside_text(body.as_bytes()), BesideText { parts: 3, bytes: 2 * image.len() + odd.len() });
    }
}
