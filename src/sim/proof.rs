//! Answers that prove themselves: by the request's body and id a client can foretell every word of its answer, and the
//! last word is the checksum of all before. So a test sees at once if an answer is another's, or lost, repeated,
//! swapped or invented anything on its way.
//!
//! What gateways may change on purpose (`model`, `stream_options`) is left out of what is hashed. It judges what was
//! said and how it ended; whether the connection ended well only the caller knows.

use serde_json::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::asked::{Asked, Dialect};

/// The header with the checksum of a whole answer, bytes as they left.
pub const CHECKSUM: &str = "x-sim-checksum";

/// How an answer that has nothing wrong in it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With every word.
    Complete,
    /// The pod said that it gave up (`finish_reason: "abort"`).
    Aborted,
    /// An error was told instead of an end.
    Error(String),
    /// It broke off without a word.
    BrokenOff,
}

/// What is wrong with an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(String);

fn wrong<T>(why: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong(why.into()))
}

/// What all words of the answer to this request are drawn from.
pub fn seed(body: &[u8], request_id: &str) -> u64 {
    let by_id = xxh3_64(request_id.as_bytes());
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(mut fields)) => {
            fields.remove("model");
            fields.remove("stream_options");
            xxh3_64_with_seed(Value::Object(fields).to_string().as_bytes(), by_id)
        }
        _ => xxh3_64_with_seed(body, by_id),
    }
}

/// The last word of an answer, for what was said before it: four tokens long.
pub fn last_word(seed: u64, before: &str) -> String {
    format!("{:016x}", xxh3_64_with_seed(before.as_bytes(), seed))
}

/// The value of [`CHECKSUM`] for a whole answer to this request.
pub fn of_whole(body: &[u8], request_id: &str, answer: &[u8]) -> String {
    format!("{:016x}", xxh3_64_with_seed(answer, seed(body, request_id)))
}

/// What the answer to one request must be.
#[derive(Clone, Debug)]
pub struct Proof {
    asked: Asked,
    request_id: String,
    text: String,
}

/// An answer, taken apart.
#[derive(Debug, Default)]
struct Said {
    text: String,
    finish: Option<String>,
    error: Option<String>,
    /// The dialect's own end was seen.
    over: bool,
    /// Events that carry a number, so far.
    numbered: u64,
}

impl Proof {
    /// For this body, sent with this `x-request-id`; `None` if it asks for no answer in words.
    pub fn of(dialect: Dialect, body: &[u8], request_id: &str) -> Option<Self> {
        let asked = Asked::parse(dialect, body)?.proven(body, request_id);
        let words = asked.words(asked.output_tokens);
        let text = if asked.tool.is_some() { format!("{{\"words\": \"{words}\"}}") } else { words };
        Some(Self { asked, request_id: request_id.to_owned(), text })
    }

    /// The whole text that must be said.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Judges the body of an answer with status 200. `ended`: whether its connection said that this was all.
    pub fn judge(&self, answer: &[u8], ended: bool) -> Result<Ending, Wrong> {
        let Ok(answer) = std::str::from_utf8(answer) else {
            return if ended { wrong("not UTF-8") } else { Ok(Ending::BrokenOff) };
        };
        let mut said = Said::default();
        if self.asked.stream {
            self.read_stream(answer, ended, &mut said)?;
        } else {
            match serde_json::from_str::<Value>(answer) {
                Ok(answer) => self.read_whole(&answer, &mut said)?,
                Err(_) if !ended => return Ok(Ending::BrokenOff),
                Err(error) => return wrong(format!("a whole answer that is no JSON: {error}: {answer:.200}")),
            }
        }
        self.conclude(said, ended)
    }

    fn conclude(&self, said: Said, ended: bool) -> Result<Ending, Wrong> {
        if !self.text.starts_with(&said.text) {
            let at = self.text.bytes().zip(said.text.bytes()).take_while(|(one, other)| one == other).count();
            let (tail, wanted) = (said.text.get(at..).unwrap_or_default(), self.text.get(at..).unwrap_or_default());
            return wrong(format!("from byte {at} on it says {tail:.60?} for {wanted:.60?}"));
        }
        if let Some(error) = said.error {
            return Ok(Ending::Error(error));
        }
        match (said.over, said.finish.as_deref()) {
            (true, Some("abort" | "failed")) => Ok(Ending::Aborted),
            (true, Some(_)) if said.text == self.text => Ok(Ending::Complete),
            (true, Some(_)) => wrong(format!("{} of {} bytes, and then an end", said.text.len(), self.text.len())),
            (true, None) => wrong("an end without a finish reason"),
            (false, _) if ended => wrong(format!("a clean end without the end, {} bytes in", said.text.len())),
            (false, _) => Ok(Ending::BrokenOff),
        }
    }

    fn read_whole(&self, answer: &Value, said: &mut Said) -> Result<(), Wrong> {
        self.check_id(answer)?;
        let text = |pointer: &str| answer.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let (words, finish) = match self.asked.dialect {
            Dialect::Chat => {
                let called = text("/choices/0/message/tool_calls/0/function/arguments");
                (called.or_else(|| text("/choices/0/message/content")), text("/choices/0/finish_reason"))
            }
            Dialect::Completions => (text("/choices/0/text"), text("/choices/0/finish_reason")),
            Dialect::Responses => (text("/output/0/content/0/text"), text("/status")),
            Dialect::Messages => (text("/content/0/text"), text("/stop_reason")),
        };
        said.text = words.unwrap_or_default();
        said.finish = finish;
        said.over = true;
        Ok(())
    }

    fn read_stream(&self, stream: &str, ended: bool, said: &mut Said) -> Result<(), Wrong> {
        let mut rest = stream;
        while let Some((block, after)) = rest.split_once("\n\n") {
            rest = after;
            self.read_block(block, said)?;
        }
        // The last event of a stream that broke off may be there in part.
        if ended && !rest.is_empty() {
            return wrong(format!("a clean end within an event: {rest:.200?}"));
        }
        Ok(())
    }

    fn read_block(&self, block: &str, said: &mut Said) -> Result<(), Wrong> {
        let mut data = None;
        for line in block.lines() {
            match line.strip_prefix("data: ") {
                Some(found) if data.is_none() => data = Some(found),
                Some(_) => return wrong(format!("two events in one: {block:.200?}")),
                None if line.starts_with("event: ") || line.starts_with(':') || line.is_empty() => {}
                None => return wrong(format!("not a line of an event: {line:.200?}")),
            }
        }
        let Some(data) = data else { return Ok(()) };
        if said.over {
            return wrong(format!("said after the end: {data:.200?}"));
        }
        if data == "[DONE]" {
            said.over = true;
            return Ok(());
        }
        let Ok(event) = serde_json::from_str::<Value>(data) else {
            return wrong(format!("an event that is no JSON: {data:.200?}"));
        };
        if said.error.is_some() {
            return wrong(format!("said after an error: {data:.200?}"));
        }
        match self.asked.dialect {
            Dialect::Chat | Dialect::Completions => self.read_chunk(&event, said),
            Dialect::Responses => self.read_response_event(&event, said),
            Dialect::Messages => self.read_message_event(&event, said),
        }
    }

    fn read_chunk(&self, event: &Value, said: &mut Said) -> Result<(), Wrong> {
        if let Some(error) = event.get("error") {
            said.error = Some(error.to_string());
            return Ok(());
        }
        self.check_id(event)?;
        let words = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
        let deltas =
            ["/choices/0/delta/content", "/choices/0/delta/tool_calls/0/function/arguments", "/choices/0/text"];
        said.text.extend(deltas.into_iter().filter_map(words));
        if let Some(finish) = words("/choices/0/finish_reason") {
            said.finish = Some(finish.to_owned());
        }
        Ok(())
    }

    fn read_response_event(&self, event: &Value, said: &mut Said) -> Result<(), Wrong> {
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
        // Whoever cuts a stream may not know how it began.
        let failed = kind == "response.failed" && event.pointer("/response/error").is_some_and(Value::is_object);
        if kind == "error" || failed {
            said.error = Some(event.to_string());
            return Ok(());
        }
        let number = event.get("sequence_number").and_then(Value::as_u64);
        if number != Some(said.numbered) {
            return wrong(format!("event {number:?} where {} was due", said.numbered));
        }
        said.numbered += 1;
        match (kind, event.get("response")) {
            ("response.output_text.delta", _) => {
                said.text.push_str(event.get("delta").and_then(Value::as_str).unwrap_or_default());
            }
            ("response.completed" | "response.incomplete" | "response.failed", Some(response)) => {
                self.check_id(response)?;
                said.finish = response.get("status").and_then(Value::as_str).map(str::to_owned);
                said.over = true;
            }
            (_, Some(response)) => self.check_id(response)?,
            _ => {}
        }
        Ok(())
    }

    fn read_message_event(&self, event: &Value, said: &mut Said) -> Result<(), Wrong> {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        match text("/type") {
            "error" => said.error = Some(event.to_string()),
            "message_start" => self.check_id(event.get("message").unwrap_or(&Value::Null))?,
            "content_block_delta" => said.text.push_str(text("/delta/text")),
            "message_delta" => said.finish = Some(text("/delta/stop_reason").to_owned()),
            "message_stop" => said.over = true,
            _ => {}
        }
        Ok(())
    }

    /// The pod names its answer after the request.
    fn check_id(&self, answer: &Value) -> Result<(), Wrong> {
        let id = answer.get("id").and_then(Value::as_str).unwrap_or_default();
        if id.ends_with(&self.request_id) {
            return Ok(());
        }
        wrong(format!("the answer {id:?} to the request {:?}", self.request_id))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::json;

    use super::*;
    use crate::{
        sim::{Pod, PodConfig},
        tasks::Tasks,
    };

    const ID: &str = "one-of-many";

    fn path(dialect: Dialect) -> &'static str {
        match dialect {
            Dialect::Chat => "/v1/chat/completions",
            Dialect::Completions => "/v1/completions",
            Dialect::Responses => "/v1/responses",
            Dialect::Messages => "/v1/messages",
        }
    }

    fn body(stream: bool, tool: bool) -> Vec<u8> {
        let mut body = json!({"model": "m", "stream": stream, "max_tokens": 7, "prompt": "hi", "input": "hi",
                              "messages": [{"role": "user", "content": "hi"}]});
        if tool {
            body["tools"] = json!([{"type": "function", "function": {"name": "clock", "parameters": {}}}]);
            body["tool_choice"] = json!("required");
        }
        body.to_string().into_bytes()
    }

    async fn answered(path: &str, body: Vec<u8>, id: &str) -> (Option<String>, Vec<u8>) {
        // reqwest is built without a TLS provider of its own and wants one even for plain HTTP.
        rustls::crypto::ring::default_provider().install_default().ok();
        let tasks = Tasks::new();
        let config = PodConfig::new("m").time_scale(0.01).checksum();
        let pod = Pod::start(config, (Ipv4Addr::LOCALHOST, 0).into(), &tasks).await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(pod.url() + path).header("x-request-id", id).body(body);
        let answer = request.send().await.unwrap();
        let sum = answer.headers().get(CHECKSUM).map(|sum| sum.to_str().unwrap().to_owned());
        let bytes = answer.bytes().await.unwrap().to_vec();
        let complete = || pod.visits().iter().any(|visit| visit.request_id == id && visit.complete);
        while !complete() {
            tokio::task::yield_now().await;
        }
        tasks.stop();
        (sum, bytes)
    }

    #[tokio::test]
    async fn every_dialect_proves_itself_and_nothing_else() {
        for dialect in [Dialect::Chat, Dialect::Completions, Dialect::Responses, Dialect::Messages] {
            for (stream, tool) in [(false, false), (true, false), (false, true), (true, true)] {
                if tool && dialect != Dialect::Chat {
                    continue;
                }
                let body = body(stream, tool);
                let (sum, answer) = answered(path(dialect), body.clone(), ID).await;
                let proof = Proof::of(dialect, &body, ID).unwrap();
                assert_eq!(proof.judge(&answer, true), Ok(Ending::Complete), "{dialect:?} {stream} {tool}");
                assert_eq!(sum, (!stream).then(|| of_whole(&body, ID, &answer)));
                let other = Proof::of(dialect, &body, "another").unwrap();
                assert!(other.judge(&answer, true).is_err(), "{dialect:?} {stream}: another's answer");
                assert_eq!(proof.judge(&answer[..answer.len() / 2], false), Ok(Ending::BrokenOff));
                assert!(proof.judge(&answer[..answer.len() / 2], true).is_err(), "{dialect:?} {stream}: half");
            }
        }
    }

    #[tokio::test]
    async fn an_event_lost_repeated_or_swapped_is_seen() {
        let body = body(true, false);
        let (_, answer) = answered(path(Dialect::Chat), body.clone(), ID).await;
        let proof = Proof::of(Dialect::Chat, &body, ID).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let events: Vec<&str> = answer.split_inclusive("\n\n").collect();
        let judge = |events: Vec<&str>| proof.judge(events.concat().as_bytes(), true);
        assert_eq!(judge(events.clone()), Ok(Ending::Complete));
        let with = |edit: fn(&mut Vec<&str>)| {
            let mut edited = events.clone();
            edit(&mut edited);
            judge(edited)
        };
        assert!(with(|events| _ = events.remove(3)).is_err(), "lost");
        assert!(with(|events| events.insert(3, events[3])).is_err(), "repeated");
        assert!(with(|events| events.swap(3, 4)).is_err(), "swapped");
        assert!(with(|events| _ = events.pop()).is_err(), "without its end");
        assert!(with(|events| events.push(events[3])).is_err(), "beyond its end");
        let told = [&events[..4], &["data: {\"error\": {\"message\": \"x\"}}\n\n", "data: [DONE]\n\n"]].concat();
        assert!(matches!(judge(told), Ok(Ending::Error(_))));
    }

    #[test]
    fn a_model_renamed_on_the_way_changes_no_word() {
        let one = seed(br#"{"model":"a","prompt":"x"}"#, ID);
        assert_eq!(one, seed(br#"{"prompt":"x", "model":"b","stream_options":{"include_usage":true}}"#, ID));
        assert_ne!(one, seed(br#"{"model":"a","prompt":"y"}"#, ID));
        assert_ne!(one, seed(br#"{"model":"a","prompt":"x"}"#, "another"));
    }

    #[tokio::test]
    async fn numbers_carry_their_checksum_in_a_header() {
        let body = json!({"model": "m", "input": ["a", "b"]}).to_string().into_bytes();
        let (sum, answer) = answered("/v1/embeddings", body.clone(), ID).await;
        assert_eq!(sum, Some(of_whole(&body, ID, &answer)));
    }
}
