//! How many tokens an answer says it took, in each dialect's words.
//!
//! Numbers are taken as reported. What an engine does not say stays unknown and is never estimated here.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Token counts of one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included unless the engine counts them apart.
    pub prompt_tokens: Option<u32>,
    /// Tokens generated.
    pub completion_tokens: Option<u32>,
    /// Tokens of the prompt that were already in the pod's cache.
    pub cached_tokens: Option<u32>,
}

/// `usage` in all dialects: their field names do not collide.
#[derive(Deserialize)]
struct Reported<'a> {
    #[serde(borrow)]
    prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt_tokens_details: Option<Details<'a>>,
    #[serde(borrow)]
    input_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    output_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    input_tokens_details: Option<Details<'a>>,
    #[serde(borrow)]
    cache_read_input_tokens: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Details<'a> {
    #[serde(borrow)]
    cached_tokens: Option<&'a RawValue>,
}

impl Usage {
    /// Reads a `usage` object; `None` if it is `null` or something else.
    pub(super) fn read(raw: &str) -> Option<Self> {
        if !raw.starts_with('{') {
            return None;
        }
        let said: Reported<'_> = serde_json::from_str(raw).ok()?;
        let details = said.prompt_tokens_details.or(said.input_tokens_details);
        let cached = details.and_then(|details| details.cached_tokens).or(said.cache_read_input_tokens);
        Some(Self {
            prompt_tokens: said.prompt_tokens.or(said.input_tokens).and_then(count),
            completion_tokens: said.completion_tokens.or(said.output_tokens).and_then(count),
            cached_tokens: cached.and_then(count),
        })
    }

    /// What is known from two reports of one answer; the later one wins where both speak.
    pub(super) fn updated_by(self, later: Self) -> Self {
        Self {
            prompt_tokens: later.prompt_tokens.or(self.prompt_tokens),
            completion_tokens: later.completion_tokens.or(self.completion_tokens),
            cached_tokens: later.cached_tokens.or(self.cached_tokens),
        }
    }
}

fn count(raw: &RawValue) -> Option<u32> {
    let count: u64 = raw.get().parse().ok()?;
    Some(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt: u32, completion: u32, cached: Option<u32>) -> Option<Usage> {
        Some(Usage { prompt_tokens: Some(prompt), completion_tokens: Some(completion), cached_tokens: cached })
    }

    #[test]
    fn every_dialect_is_read() {
        let chat = r#"{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,
            "prompt_tokens_details":{"cached_tokens":4}}"#;
        assert_eq!(Usage::read(chat), usage(7, 2, Some(4)));
        let plain = r#"{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,"prompt_tokens_details":null}"#;
        assert_eq!(Usage::read(plain), usage(7, 2, None));
        let responses = r#"{"input_tokens":7,"input_tokens_details":{"cached_tokens":0},"output_tokens":2,
            "output_tokens_details":{"reasoning_tokens":1},"total_tokens":9}"#;
        assert_eq!(Usage::read(responses), usage(7, 2, Some(0)));
        let messages = r#"{"input_tokens":7,"output_tokens":2,"cache_read_input_tokens":5,
            "cache_creation_input_tokens":null}"#;
        assert_eq!(Usage::read(messages), usage(7, 2, Some(5)));
    }

    #[test]
    fn what_is_not_a_count_stays_unknown() {
        assert_eq!(Usage::read("null"), None);
        assert_eq!(Usage::read("[1,2]"), None);
        let odd = r#"{"prompt_tokens":-1,"completion_tokens":"2"}"#;
        assert_eq!(Usage::read(odd), Some(Usage::default()));
        let huge = Usage::read(r#"{"prompt_tokens":99999999999}"#).unwrap();
        assert_eq!(huge.prompt_tokens, Some(u32::MAX));
    }

    #[test]
    fn later_reports_win_where_they_speak() {
        let first = Usage { prompt_tokens: Some(7), completion_tokens: Some(1), cached_tokens: Some(3) };
        let later = Usage { completion_tokens: Some(9), ..Usage::default() };
        assert_eq!(Some(first.updated_by(later)), usage(7, 9, Some(3)));
    }
}
