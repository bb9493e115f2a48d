//! What a client asks of a simulated pod: a JSON body turned into prompt blocks and the length of the answer.
//!
//! There is no tokenizer. Four bytes of text are a token, and a block's hash is the hash of its text chained to the
//! block before, so that equal beginnings of prompts hit the cache as they would in a real engine. Every part of a
//! conversation is padded to whole tokens and the answer's own hashes are foretold, so that the next turn hits the
//! answer too. Fields that change nothing about load (`temperature`, `top_p` ...) are not looked at.

use std::sync::Arc;

use serde_json::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::sim::{proof, terms::PromptBlocks};

/// Bytes of text in a token: English averages a little over four in common tokenizers.
pub const BYTES_PER_TOKEN: usize = 4;
/// The shortest answer to a request that names no limit.
const SHORTEST: u64 = 16;
/// How many lengths there are from there, so that such answers have 16 to 256 tokens, like short chat turns.
const LENGTHS: u64 = 241;

/// In which API's words a question is put and must be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages` (Anthropic's)
    Messages,
}

/// One request for an answer.
#[derive(Clone, Debug)]
pub struct Asked {
    /// In whose words.
    pub dialect: Dialect,
    /// The model as named; empty if it was not.
    pub model: String,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Whether a stream ends with a usage chunk.
    pub include_usage: bool,
    /// The function that must be called instead of talking.
    pub tool: Option<String>,
    /// The prompt as text, padded to whole tokens.
    pub text: String,
    /// How many tokens the answer has.
    pub output_tokens: u32,
    /// Whether the client set that number.
    pub limited: bool,
    salt: String,
    /// What the answer's words are drawn from if they shall prove whose they are.
    proof: Option<u64>,
}

impl Asked {
    /// Reads a body; `None` if it is not a JSON object.
    pub fn parse(dialect: Dialect, body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        body.as_object()?;
        let text = prompt_text(dialect, &body);
        let limit = ["max_completion_tokens", "max_output_tokens", "max_tokens"]
            .iter()
            .find_map(|name| body.get(name)?.as_u64())
            .and_then(|limit| u32::try_from(limit).ok());
        let natural = u32::try_from(SHORTEST + xxh3_64(text.as_bytes()) % LENGTHS).unwrap_or(u32::MAX);
        Some(Self {
            dialect,
            model: string(&body, "model"),
            stream: body.get("stream").and_then(Value::as_bool).unwrap_or(false),
            include_usage: body.pointer("/stream_options/include_usage").and_then(Value::as_bool).unwrap_or(false),
            tool: forced_tool(&body),
            output_tokens: limit.unwrap_or(natural).max(1),
            limited: limit.is_some(),
            salt: string(&body, "cache_salt"),
            proof: None,
            text,
        })
    }

    /// The same, to be answered in words that prove that they answer this body with this id.
    #[must_use]
    pub fn proven(mut self, body: &[u8], request_id: &str) -> Self {
        self.proof = Some(proof::seed(body, request_id));
        self
    }

    /// What the words of the answer are drawn from: the prompt alone, so that the same question gets the same answer
    /// under any model name, unless they shall prove more.
    pub fn seed(&self) -> u64 {
        self.proof.unwrap_or_else(|| xxh3_64(self.text.as_bytes()))
    }

    /// Token `index` of the answer.
    pub fn word(&self, index: u32) -> String {
        let seed = self.seed();
        if self.proof.is_some() && index + 1 == self.output_tokens {
            return proof::last_word(seed, &answer_text(seed, index));
        }
        word(seed, index)
    }

    /// The first `tokens` tokens of the answer.
    pub fn words(&self, tokens: u32) -> String {
        let before = tokens.saturating_sub(1);
        let mut words = answer_text(self.seed(), before);
        if tokens > 0 {
            words.push_str(&self.word(before));
        }
        words
    }

    /// The blocks of the prompt and, beyond it, of the answer.
    pub fn prompt(&self, adapter: Option<&str>, block_size: u32) -> PromptBlocks {
        let answer = self.words(self.output_tokens);
        let whole = [self.text.as_str(), answer.as_str()].concat();
        // An adapter's KV is its own, and a salt keeps tenants apart: both begin another chain.
        let mut chain = xxh3_64([adapter.unwrap_or_default(), "\0", &self.salt].concat().as_bytes());
        let block_bytes = block_size as usize * BYTES_PER_TOKEN;
        let block_hashes: Arc<[u64]> = whole
            .as_bytes()
            .chunks_exact(block_bytes)
            .map(|block| {
                chain = xxh3_64_with_seed(block, chain);
                chain
            })
            .collect();
        PromptBlocks { tokens: tokens_in(&self.text), block_hashes }
    }
}

/// How many tokens a text has.
pub fn tokens_in(text: &str) -> u32 {
    u32::try_from(text.len().div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

/// The word that is token `index` of the answer to a prompt with this seed: three letters and a space.
pub fn word(seed: u64, index: u32) -> String {
    let draw = xxh3_64_with_seed(&index.to_le_bytes(), seed).to_le_bytes();
    let pick = |letters: &[u8], from: u8| letters.get(usize::from(from) % letters.len()).map_or('a', |&it| it.into());
    let consonants = b"bdfgklmnprstvz";
    let [first, vowel, second, ..] = draw;
    [pick(consonants, first), pick(b"aeiou", vowel), pick(consonants, second), ' '].iter().collect()
}

/// The first `tokens` words of the answer to a prompt with this seed.
pub fn answer_text(seed: u64, tokens: u32) -> String {
    (0..tokens).map(|index| word(seed, index)).collect()
}

fn prompt_text(dialect: Dialect, body: &Value) -> String {
    let mut text = String::new();
    if let Some(tools) = body.get("tools") {
        push_padded(&mut text, &tools.to_string());
    }
    match dialect {
        Dialect::Completions => push_padded(&mut text, &plain(body.get("prompt"))),
        Dialect::Chat => push_messages(&mut text, body.get("messages")),
        Dialect::Messages => {
            push_turn(&mut text, "system", &plain(body.get("system")));
            push_messages(&mut text, body.get("messages"));
        }
        Dialect::Responses => {
            push_turn(&mut text, "system", &plain(body.get("instructions")));
            match body.get("input") {
                Some(Value::String(input)) => push_turn(&mut text, "user", input),
                input => push_messages(&mut text, input),
            }
        }
    }
    if dialect != Dialect::Completions {
        push_padded(&mut text, "<|assistant|>");
    }
    text
}

fn push_messages(text: &mut String, messages: Option<&Value>) {
    for message in messages.and_then(Value::as_array).into_iter().flatten() {
        push_turn(text, &string(message, "role"), &plain(message.get("content")));
        if let Some(calls) = message.get("tool_calls") {
            push_padded(text, &calls.to_string());
        }
    }
}

fn push_turn(text: &mut String, role: &str, content: &str) {
    if !content.is_empty() {
        push_padded(text, &format!("<|{role}|>"));
        push_padded(text, content);
    }
}

fn push_padded(text: &mut String, piece: &str) {
    text.push_str(piece);
    while !text.len().is_multiple_of(BYTES_PER_TOKEN) {
        text.push('\0');
    }
}

/// Text out of a string, a list of strings or token numbers, or a list of content parts.
fn plain(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts.iter().map(|part| plain(Some(part))).collect(),
        // A token number stands for a whole token of text.
        Some(Value::Number(token)) => format!("{:04x}", token.as_u64().unwrap_or(0) & 0xffff),
        Some(Value::Object(part)) => match part.get("text") {
            Some(text) => plain(Some(text)),
            None => Value::Object(part.clone()).to_string(),
        },
        _ => String::new(),
    }
}

fn string(body: &Value, name: &str) -> String {
    body.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn forced_tool(body: &Value) -> Option<String> {
    let choice = body.get("tool_choice")?;
    let named = choice.pointer("/function/name").or_else(|| choice.get("name"));
    let first = || body.pointer("/tools/0/function/name").or_else(|| body.pointer("/tools/0/name"));
    let required = || (choice.as_str() == Some("required")).then(first).flatten();
    named.or_else(required)?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(body: &Value) -> Asked {
        Asked::parse(Dialect::Chat, body.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_next_turn_shares_every_block_of_the_turn_before_and_its_answer() {
        let system = "You are terse. ".repeat(20);
        let first = chat(&json!({"model": "m", "max_tokens": 40, "messages": [
            {"role": "system", "content": system}, {"role": "user", "content": "What is a tide?"}]}));
        let answer = answer_text(first.seed(), first.output_tokens);
        let second = chat(&json!({"model": "m", "max_tokens": 40, "messages": [
            {"role": "system", "content": system}, {"role": "user", "content": "What is a tide?"},
            {"role": "assistant", "content": answer}, {"role": "user", "content": "And a gate?"}]}));
        let (one, two) = (first.prompt(None, 16), second.prompt(None, 16));
        assert_eq!(one.block_hashes.len(), (one.tokens as usize + 40) / 16);
        assert_eq!(one.block_hashes[..], two.block_hashes[..one.block_hashes.len()]);
        assert_ne!(one.block_hashes[..2], second.prompt(Some("lora"), 16).block_hashes[..2]);
    }

    #[test]
    fn an_answer_depends_on_the_prompt_and_not_on_the_model() {
        let ask =
            |model: &str, text: &str| chat(&json!({"model": model, "messages": [{"role": "user", "content": text}]}));
        assert_eq!(ask("a", "hi").seed(), ask("b", "hi").seed());
        assert_ne!(ask("a", "hi").seed(), ask("a", "ho").seed());
        assert!((16..=256).contains(&ask("a", "hi").output_tokens));
        assert!(!ask("a", "hi").limited);
    }

    #[test]
    fn a_word_is_one_token_and_content_parts_are_text() {
        assert_eq!(tokens_in(&answer_text(5, 9)), 9);
        let whole = chat(&json!({"messages": [{"role": "user", "content": "hello"}]}));
        let parts = chat(&json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}));
        assert_eq!(whole.text, parts.text);
    }

    #[test]
    fn only_a_forced_tool_is_called() {
        let tools = json!([{"type": "function", "function": {"name": "clock", "parameters": {}}}]);
        assert_eq!(chat(&json!({"tools": tools, "tool_choice": "auto"})).tool, None);
        assert_eq!(chat(&json!({"tools": tools, "tool_choice": "required"})).tool.as_deref(), Some("clock"));
        let named = json!({"type": "function", "function": {"name": "map"}});
        assert_eq!(chat(&json!({"tools": tools, "tool_choice": named})).tool.as_deref(), Some("map"));
    }
}
