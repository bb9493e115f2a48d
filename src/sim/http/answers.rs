//! How an answer is put into words: whole JSON bodies and SSE frames in the four APIs that vLLM speaks.
//!
//! Shapes only: nothing here waits, and nothing knows when a token comes. Field order and the odd habits (a role
//! chunk first, a usage chunk without choices, no `[DONE]` for Anthropic's messages) are what clients were seen to
//! depend on.

use serde_json::{Value, json};

use super::asked::{Asked, Dialect};

/// The frame that ends a stream in `OpenAI`'s APIs.
pub(super) const DONE: &str = "data: [DONE]\n\n";

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finish {
    /// It was complete.
    Stop,
    /// The client's limit was reached.
    Length,
    /// A function is to be called.
    ToolCalls,
    /// The engine gave up.
    Abort,
}

impl Finish {
    fn openai(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Abort => "abort",
        }
    }

    fn anthropic(self) -> &'static str {
        match self {
            Self::Stop => "end_turn",
            Self::Length => "max_tokens",
            Self::ToolCalls => "tool_use",
            Self::Abort => "abort",
        }
    }

    fn responses_status(self) -> &'static str {
        match self {
            Self::Stop | Self::ToolCalls => "completed",
            Self::Length => "incomplete",
            Self::Abort => "failed",
        }
    }
}

/// One answer under way.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) asked: Asked,
    /// What follows `chatcmpl-`, `cmpl-`, `resp_` or `msg_`.
    pub(super) id: String,
    /// The model's name as the client gave it.
    pub(super) model: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) prompt_tokens: u32,
}

impl Answer {
    pub(super) fn new(asked: Asked, id: String, model: String, created: u64, prompt_tokens: u32) -> Self {
        Self { asked, id, model, created, prompt_tokens }
    }

    /// The finish reason if nothing goes wrong.
    pub(super) fn natural_finish(&self) -> Finish {
        match (&self.asked.tool, self.asked.limited) {
            (Some(_), _) => Finish::ToolCalls,
            (None, true) => Finish::Length,
            (None, false) => Finish::Stop,
        }
    }

    /// The name under which a Responses client asks for this answer again.
    pub(super) fn response_id(&self) -> String {
        format!("resp_{}", self.id)
    }

    /// A whole answer of `tokens` tokens.
    pub(super) fn whole(&self, tokens: u32, cached: u32, finish: Finish) -> Value {
        let text = self.asked.words(tokens);
        match self.asked.dialect {
            Dialect::Chat => json!({
                "id": format!("chatcmpl-{}", self.id), "object": "chat.completion", "created": self.created,
                "model": self.model,
                "choices": [{"index": 0, "message": self.message(&text), "logprobs": null,
                             "finish_reason": finish.openai(), "stop_reason": null}],
                "usage": self.usage(tokens, cached),
            }),
            Dialect::Completions => json!({
                "id": format!("cmpl-{}", self.id), "object": "text_completion", "created": self.created,
                "model": self.model,
                "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": finish.openai(),
                             "stop_reason": null}],
                "usage": self.usage(tokens, cached),
            }),
            Dialect::Responses => self.response(finish.responses_status(), Some((tokens, cached))),
            Dialect::Messages => json!({
                "id": format!("msg_{}", self.id), "type": "message", "role": "assistant", "model": self.model,
                "content": [{"type": "text", "text": text}],
                "stop_reason": finish.anthropic(), "stop_sequence": null,
                "usage": self.anthropic_usage(tokens, cached),
            }),
        }
    }

    /// What comes before the first token.
    pub(super) fn opening(&self, cached: u32) -> String {
        match self.asked.dialect {
            Dialect::Chat => self.chat_chunk(&json!({"role": "assistant", "content": ""}), None),
            Dialect::Completions => String::new(),
            Dialect::Responses => {
                let begun = self.response("in_progress", None);
                let item = json!({"id": self.item_id(), "type": "message", "role": "assistant",
                                  "status": "in_progress", "content": []});
                let part = json!({"type": "output_text", "text": "", "annotations": []});
                [
                    event("response.created", json!({"response": &begun, "sequence_number": 0})),
                    event("response.in_progress", json!({"response": &begun, "sequence_number": 1})),
                    event("response.output_item.added", json!({"output_index": 0, "item": item, "sequence_number": 2})),
                    event(
                        "response.content_part.added",
                        json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0, "part": part,
                               "sequence_number": 3}),
                    ),
                ]
                .concat()
            }
            Dialect::Messages => {
                let message = json!({"id": format!("msg_{}", self.id), "type": "message", "role": "assistant",
                                     "model": self.model, "content": [], "stop_reason": null, "stop_sequence": null,
                                     "usage": self.anthropic_usage(0, cached)});
                let block = json!({"type": "text", "text": ""});
                [
                    event("message_start", json!({"message": message})),
                    event("content_block_start", json!({"index": 0, "content_block": block})),
                ]
                .concat()
            }
        }
    }

    /// Token `index`.
    pub(super) fn token(&self, index: u32) -> String {
        let word = self.asked.word(index);
        match self.asked.dialect {
            Dialect::Chat => match &self.asked.tool {
                Some(name) => self.tool_chunk(name, index, &word),
                None => self.chat_chunk(&json!({"content": word}), None),
            },
            Dialect::Completions => self.completion_chunk(&word, None),
            Dialect::Responses => event(
                "response.output_text.delta",
                json!({"item_id": self.item_id(), "output_index": 0, "content_index": 0, "delta": word,
                       "logprobs": [], "sequence_number": index + 4}),
            ),
            Dialect::Messages => {
                event("content_block_delta", json!({"index": 0, "delta": {"type": "text_delta", "text": word}}))
            }
        }
    }

    /// What comes after the last of `tokens` tokens.
    pub(super) fn closing(&self, tokens: u32, cached: u32, finish: Finish) -> String {
        match self.asked.dialect {
            Dialect::Chat => {
                let delta = match &self.asked.tool {
                    Some(_) => json!({"tool_calls": [{"index": 0, "function": {"arguments": "\"}"}}]}),
                    None => json!({"content": ""}),
                };
                let last = self.chat_chunk(&delta, Some(finish));
                [last, self.usage_chunk("chat.completion.chunk", tokens, cached), DONE.to_owned()].concat()
            }
            Dialect::Completions => {
                let last = self.completion_chunk("", Some(finish));
                [last, self.usage_chunk("text_completion", tokens, cached), DONE.to_owned()].concat()
            }
            Dialect::Responses => self.close_response(tokens, cached, finish),
            Dialect::Messages => [
                event("content_block_stop", json!({"index": 0})),
                event(
                    "message_delta",
                    json!({"delta": {"stop_reason": finish.anthropic(), "stop_sequence": null},
                           "usage": self.anthropic_usage(tokens, cached)}),
                ),
                event("message_stop", json!({})),
            ]
            .concat(),
        }
    }

    /// An error in the middle of a stream, as vLLM writes it when its engine dies.
    pub(super) fn broken(&self) -> String {
        let message = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
        match self.asked.dialect {
            Dialect::Messages => event("error", json!({"error": {"type": "api_error", "message": message}})),
            Dialect::Responses => event("error", json!({"code": "server_error", "message": message, "param": null})),
            Dialect::Chat | Dialect::Completions => {
                let error = json!({"error": {"message": message, "type": "InternalServerError", "param": null,
                                             "code": 500}});
                [data(&error), DONE.to_owned()].concat()
            }
        }
    }

    fn close_response(&self, tokens: u32, cached: u32, finish: Finish) -> String {
        let text = self.asked.words(tokens);
        let id = self.item_id();
        let part = json!({"type": "output_text", "text": text, "annotations": []});
        let response = self.response(finish.responses_status(), Some((tokens, cached)));
        let item = response.pointer("/output/0").cloned().unwrap_or_default();
        let last = format!("response.{}", finish.responses_status());
        [
            event(
                "response.output_text.done",
                json!({"item_id": id, "output_index": 0, "content_index": 0, "text": text, "logprobs": [],
                       "sequence_number": tokens + 4}),
            ),
            event(
                "response.content_part.done",
                json!({"item_id": id, "output_index": 0, "content_index": 0, "part": part,
                       "sequence_number": tokens + 5}),
            ),
            event("response.output_item.done", json!({"output_index": 0, "item": item, "sequence_number": tokens + 6})),
            event(&last, json!({"response": response, "sequence_number": tokens + 7})),
        ]
        .concat()
    }

    fn response(&self, status: &str, ended: Option<(u32, u32)>) -> Value {
        let output = ended.map_or(json!([]), |(tokens, _)| {
            let text = self.asked.words(tokens);
            json!([{"id": self.item_id(), "type": "message", "role": "assistant", "status": status,
                    "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": null}]}])
        });
        let usage = ended.map(|(tokens, cached)| {
            json!({"input_tokens": self.prompt_tokens, "input_tokens_details": {"cached_tokens": cached},
                   "output_tokens": tokens, "output_tokens_details": {"reasoning_tokens": 0},
                   "total_tokens": self.prompt_tokens + tokens})
        });
        let incomplete = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        json!({"id": self.response_id(), "object": "response", "created_at": self.created, "status": status,
               "model": self.model, "output": output, "usage": usage, "error": null,
               "incomplete_details": incomplete, "instructions": null, "metadata": null, "parallel_tool_calls": true,
               "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "tools": []})
    }

    fn item_id(&self) -> String {
        format!("msg_{}", self.id)
    }

    fn message(&self, text: &str) -> Value {
        match &self.asked.tool {
            Some(name) => json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": self.call_id(), "type": "function",
                 "function": {"name": name, "arguments": format!("{{\"words\": \"{text}\"}}")}}]}),
            None => json!({"role": "assistant", "content": text, "refusal": null, "tool_calls": []}),
        }
    }

    fn tool_chunk(&self, name: &str, index: u32, word: &str) -> String {
        let call = if index == 0 {
            json!({"index": 0, "id": self.call_id(), "type": "function",
                   "function": {"name": name, "arguments": format!("{{\"words\": \"{word}")}})
        } else {
            json!({"index": 0, "function": {"arguments": word}})
        };
        self.chat_chunk(&json!({"tool_calls": [call]}), None)
    }

    fn call_id(&self) -> String {
        format!("chatcmpl-tool-{}", self.id)
    }

    fn chat_chunk(&self, delta: &Value, finish: Option<Finish>) -> String {
        data(&json!({"id": format!("chatcmpl-{}", self.id), "object": "chat.completion.chunk",
                     "created": self.created, "model": self.model,
                     "choices": [{"index": 0, "delta": delta, "logprobs": null,
                                  "finish_reason": finish.map(Finish::openai)}]}))
    }

    fn completion_chunk(&self, text: &str, finish: Option<Finish>) -> String {
        data(&json!({"id": format!("cmpl-{}", self.id), "object": "text_completion", "created": self.created,
                     "model": self.model,
                     "choices": [{"index": 0, "text": text, "logprobs": null,
                                  "finish_reason": finish.map(Finish::openai), "stop_reason": null}]}))
    }

    fn usage_chunk(&self, object: &str, tokens: u32, cached: u32) -> String {
        if !self.asked.include_usage {
            return String::new();
        }
        let prefix = if self.asked.dialect == Dialect::Chat { "chatcmpl" } else { "cmpl" };
        data(&json!({"id": format!("{prefix}-{}", self.id), "object": object, "created": self.created,
                     "model": self.model, "choices": [], "usage": self.usage(tokens, cached)}))
    }

    fn usage(&self, tokens: u32, cached: u32) -> Value {
        json!({"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens + tokens,
               "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": cached}})
    }

    fn anthropic_usage(&self, tokens: u32, cached: u32) -> Value {
        json!({"input_tokens": self.prompt_tokens - cached, "cache_read_input_tokens": cached,
               "cache_creation_input_tokens": 0, "output_tokens": tokens})
    }
}

fn data(body: &Value) -> String {
    format!("data: {body}\n\n")
}

/// A typed event: its name is the body's `type` too.
fn event(name: &str, mut body: Value) -> String {
    if let Some(fields) = body.as_object_mut() {
        fields.insert("type".to_owned(), json!(name));
    }
    format!("event: {name}\ndata: {body}\n\n")
}
