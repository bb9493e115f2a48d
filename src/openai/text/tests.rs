//! That a prompt and its answer together are the beginning of the next turn's prompt.

#![expect(clippy::string_slice, clippy::format_collect, reason = "cut at characters; short, and no hurry")]

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::openai::{Ask, BodyWatch, Endpoint, Lexicon, StreamWatch, pieces};

fn form_of(endpoint: Endpoint, body: &str) -> Vec<u8> {
    let ask = Ask::parse(endpoint, None, body.as_bytes()).unwrap();
    let mut form = Vec::new();
    let length = ask.prompt_text(body.as_bytes(), usize::MAX, |piece| form.extend_from_slice(piece));
    assert_eq!(length, form.len());
    form
}

fn chat(messages: &Value) -> Vec<u8> {
    form_of(Endpoint::ChatCompletions, &json!({"model": "m", "messages": messages}).to_string())
}

/// The text of a streamed answer, if it comes back.
fn heard<P: AsRef<[u8]>>(endpoint: Endpoint, chunks: impl IntoIterator<Item = P>) -> Option<Vec<u8>> {
    let mut watch = StreamWatch::new(endpoint.dialect(), &Lexicon::default()).with_text(endpoint);
    let mut text = Vec::new();
    for chunk in chunks {
        watch.feed(chunk.as_ref());
        text.extend_from_slice(watch.text().unwrap().text());
    }
    watch.finish();
    text.extend_from_slice(watch.text().unwrap().text());
    watch.text().unwrap().comes_back().then_some(text)
}

fn events(events: &[Value]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>() + "data: [DONE]\n\n"
}

fn deltas(deltas: &[Value]) -> String {
    let chunks: Vec<Value> = deltas.iter().map(|delta| json!({"choices": [{"index": 0, "delta": delta}]})).collect();
    events(&chunks)
}

fn whole(endpoint: Endpoint, body: &Value) -> Option<Vec<u8>> {
    let mut watch = BodyWatch::new(&Lexicon::default()).with_text(endpoint);
    watch.feed(body.to_string().as_bytes());
    watch.finish();
    let text = watch.text().unwrap();
    text.comes_back().then(|| text.text().to_vec())
}

fn begins(next: &[u8], prompt: &[u8], answer: &[u8]) -> bool {
    next.starts_with(&[prompt, answer].concat())
}

#[test]
fn the_form_is_who_speaks_and_what_is_said() {
    let text = chat(&json!([{"role": "system", "content": "S\n\"é\""}, {"role": "user", "content": "U"}]));
    assert_eq!(text, b"\xffsystem\xfeS\\n\\\"\xc3\xa9\\\"\xffuser\xfeU");
    let body = r#"{"model":"m","messages":[
        { "content" : "a\u00e9\ud83d\ude00\/\t\\", "role" : "user" }, 7, {"x":"y"}, {"role":"tool","content":null,"name":"f"}]}"#;
    let text = form_of(Endpoint::ChatCompletions, body);
    let expected = ["a\u{e9}\u{1f600}/\\t\\\\".as_bytes(), b"\xfd7\xfd{\"x\":\"y\"}\xfftool\xfe\xfdname\xfd\"f\""];
    assert_eq!(text, [&b"\xffuser\xfe"[..], &expected.concat()].concat());
}

#[test]
fn the_same_words_are_the_same_in_every_json() {
    let plain = chat(&json!([{"role": "user", "content": "hé\n"}, {"role": "assistant", "content": "A"}]));
    let spelt = r#"{"model":"m","messages": [ {"content": "h\u00e9\u000a", "role": "user"},
        {"role":"assistant","refusal":null,"content":[{"type":"text","text":"A","cache_control":{"type":"x"}}],
         "tool_calls":[],"audio":null,"reasoning_content":"Hm"} ]}"#;
    assert_eq!(form_of(Endpoint::ChatCompletions, spelt), plain);
    let responses = json!({"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "hé\n"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "A", "annotations": []}]}]});
    assert_eq!(form_of(Endpoint::Responses, &responses.to_string()), plain);
}

#[test]
fn half_a_pair_is_what_decoders_make_of_it() {
    for (spelt, meant) in [
        (r"\ud83dx", "\u{fffd}x"),
        (r"\ud83d\u0041", "\u{fffd}A"),
        (r"\ude00", "\u{fffd}"),
        (r"\ud83d\ud83d\ude00", "\u{fffd}\u{1f600}"),
    ] {
        let body = format!(r#"{{"model":"m","prompt":"{spelt}"}}"#);
        assert_eq!(form_of(Endpoint::Completions, &body), meant.as_bytes(), "{spelt}");
    }
}

#[test]
fn what_is_oddly_spelt_is_spelt_as_usual() {
    for (spelt, usual) in
        [(r"\u0041\/\u000a\u0022\u005C\u001B\u0008", r#"A/\n\"\\\u001b\b"#), (r"C:\\users\\/\\", r"C:\\users\\/\\")]
    {
        let body = format!(r#"{{"model":"m","prompt":"{spelt}"}}"#);
        assert_eq!(form_of(Endpoint::Completions, &body), usual.as_bytes(), "{spelt}");
    }
}

#[test]
fn enough_is_enough_and_the_length_is_told_all_the_same() {
    let long = "0123456789".repeat(1_000);
    let body =
        json!({"model": "m", "messages": [{"role": "user", "content": long}, {"role": "user", "content": long}]});
    let body = body.to_string();
    let ask = Ask::parse(Endpoint::ChatCompletions, None, body.as_bytes()).unwrap();
    let mut given = 0;
    let length = ask.prompt_text(body.as_bytes(), 5_000, |piece| given += piece.len());
    assert!((5_000..10_100).contains(&given), "{given}");
    assert!((20_000..20_100).contains(&length), "{length}");
}

#[test]
fn a_tool_call_comes_back_whoever_cut_it() {
    let asked = json!([{"role": "user", "content": "weather?"}]);
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    let streamed = deltas(&[
        json!({"role": "assistant", "content": ""}),
        json!({"content": "let me see"}),
        json!({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        json!({"tool_calls": [{"index": 0, "function": {"name": null, "arguments": "{\"a\""}}]}),
        json!({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
        json!({"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]}),
    ]);
    let next = json!([asked[0], {"role": "assistant", "content": "let me see", "tool_calls": [call("c1"), call("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"}]);
    let answer = heard(Endpoint::ChatCompletions, [streamed]).unwrap();
    assert!(begins(&chat(&next), &chat(&asked), &answer), "{}", answer.escape_ascii());
    let message =
        json!({"role": "assistant", "content": "let me see", "refusal": null, "tool_calls": [call("c1"), call("c2")]});
    let answer = whole(Endpoint::ChatCompletions, &json!({"choices": [{"index": 0, "message": message}]})).unwrap();
    assert!(begins(&chat(&next), &chat(&asked), &answer), "{}", answer.escape_ascii());
}

#[test]
fn thoughts_do_not_come_back_and_spoil_what_follows() {
    for thought in ["reasoning_content", "reasoning"] {
        let streamed = deltas(&[json!({thought: "Hm"}), json!({"content": "A"})]);
        assert_eq!(heard(Endpoint::ChatCompletions, [streamed]), None);
        let message = json!({"role": "assistant", "content": "A", thought: "Hm"});
        assert_eq!(whole(Endpoint::ChatCompletions, &json!({"choices": [{"message": message}]})), None);
    }
    let thinking = events(&[
        json!({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "Hm"}}),
        json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "A"}}),
    ]);
    assert_eq!(heard(Endpoint::Messages, [thinking]), None);
    let reasoning = events(&[
        json!({"type": "response.reasoning_text.delta", "delta": "Hm"}),
        json!({"type": "response.output_text.delta", "delta": "A"}),
    ]);
    assert_eq!(heard(Endpoint::Responses, [reasoning]), None);
}

#[test]
fn anthropic_and_responses_come_back_too() {
    let messages = |more: &[Value]| {
        let asked = json!({"role": "user", "content": [{"type": "text", "text": "U"}]});
        let turns: Vec<Value> = std::iter::once(asked).chain(more.iter().cloned()).collect();
        form_of(Endpoint::Messages, &json!({"model": "m", "system": "S", "messages": turns}).to_string())
    };
    let said =
        json!({"role": "assistant", "content": [{"type": "text", "text": "A\n"}, {"type": "tool_use", "id": "t"}]});
    let streamed = events(&[
        json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "A"}}),
        json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "\n"}}),
        json!({"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{}"}}),
        json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "more"}}),
    ]);
    for answer in [heard(Endpoint::Messages, [streamed]), whole(Endpoint::Messages, &said)] {
        assert_eq!(answer.as_deref(), Some(&b"\xffassistant\xfeA\\n"[..]));
        assert!(begins(&messages(std::slice::from_ref(&said)), &messages(&[]), &answer.unwrap()));
    }

    let item = json!({"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "A\n"}]});
    let streamed = events(&[
        json!({"type": "response.output_text.delta", "delta": "A"}),
        json!({"type": "response.output_text.delta", "delta": "\n"}),
    ]);
    let whole = whole(Endpoint::Responses, &json!({"id": "resp_1", "output": [item]}));
    for answer in [heard(Endpoint::Responses, [streamed]), whole] {
        assert_eq!(answer.as_deref(), Some(&b"\xffassistant\xfeA\\n"[..]));
    }
}

#[test]
fn an_answer_too_large_to_keep_is_not_read() {
    let message = json!({"role": "assistant", "content": "x".repeat(1 << 20)});
    assert_eq!(whole(Endpoint::ChatCompletions, &json!({"choices": [{"message": message}]})), None);
}

#[test]
fn only_one_answer_to_one_prompt_goes_on() {
    let goes_on = |endpoint, body: &str| Ask::parse(endpoint, None, body.as_bytes()).unwrap().goes_on;
    let (chat, text) = (Endpoint::ChatCompletions, Endpoint::Completions);
    assert!(goes_on(chat, r#"{"model":"m","n":1,"messages":[]}"#));
    assert!(!goes_on(chat, r#"{"model":"m","n":2,"messages":[]}"#));
    assert!(goes_on(text, r#"{"model":"m","prompt":"x","echo":false,"suffix":null}"#));
    for body in [r#""prompt":["x","y"]"#, r#""prompt":[1,2]"#, r#""prompt":"x","echo":true"#, r#""prompt":"x","n":3"#] {
        assert!(!goes_on(text, &format!(r#"{{"model":"m",{body}}}"#)), "{body}");
    }
    assert!(!goes_on(Endpoint::Embeddings, r#"{"model":"m","input":"x"}"#));
}

/// A string as some client or engine may write it.
fn spelt(text: &str, ascii: bool) -> String {
    let plain = serde_json::to_string(text).unwrap();
    if !ascii {
        return plain;
    }
    let escaped = |letter: char| match letter {
        '/' => "\\/".to_owned(),
        '\0'..='\x7f' => letter.to_string(),
        _ => letter.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
    };
    plain.chars().map(escaped).collect()
}

/// `text` in pieces of so many characters.
fn parts(text: &str, lengths: &[usize]) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let at = rest.char_indices().nth(*length).map_or(rest.len(), |(at, _)| at);
        parts.push(rest[..at].to_owned());
        rest = &rest[at..];
    }
    parts
}

fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z\"\\\\/\n\té😀\u{1}]{1,80}",
        any::<String>().prop_filter("says something", |text| !text.is_empty())
    ]
}

proptest! {
    #[test]
    fn a_chats_next_turn_begins_with_its_last_and_the_answer(
        (system, user, answer) in (words(), words(), words()),
        (ascii, streamed_ascii, ascii_next) in any::<(bool, bool, bool)>(),
        tokens in proptest::collection::vec(1usize..9, 1..9),
        cuts in pieces::cuts(),
    ) {
        let body = |ascii: bool, more: &[(&str, &str)]| {
            let turns = [("system", &*system), ("user", &*user)];
            let turns = turns.iter().chain(more).map(|(role, text)| {
                let text = spelt(text, ascii);
                format!(r#"{{"role":"{role}", "content":{text}}}"#)
            });
            format!(r#"{{"model":"m","messages":[{}]}}"#, turns.collect::<Vec<_>>().join(", "))
        };
        let stream: String = parts(&answer, &tokens).iter().map(|token| {
            let token = spelt(token, streamed_ascii);
            format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{token}}},\"logprobs\":null}}]}}\n\n")
        }).collect();
        let prompt = form_of(Endpoint::ChatCompletions, &body(ascii, &[]));
        let next = form_of(Endpoint::ChatCompletions, &body(ascii_next, &[("assistant", &answer), ("user", "go on")]));
        let heard = heard(Endpoint::ChatCompletions, pieces::cut(stream.as_bytes(), &cuts)).unwrap();
        prop_assert!(begins(&next, &prompt, &heard), "{}", heard.escape_ascii());
        let once = whole(Endpoint::ChatCompletions, &json!({"choices": [{"message": {"role": "assistant", "content": answer}}]}));
        prop_assert_eq!(once.unwrap(), heard);
    }

    #[test]
    fn a_completions_next_prompt_begins_with_its_last_and_the_answer(
        (prompt, answer) in (words(), words()),
        (ascii, streamed_ascii) in any::<(bool, bool)>(),
        tokens in proptest::collection::vec(1usize..9, 1..9),
    ) {
        let body = |text: &str| form_of(Endpoint::Completions, &format!(r#"{{"model":"m","prompt":{}}}"#, spelt(text, ascii)));
        let stream: String = parts(&answer, &tokens).iter().map(|token| {
            format!("data: {{\"choices\":[{{\"index\":0,\"text\":{}}}]}}\n\n", spelt(token, streamed_ascii))
        }).collect();
        let heard = heard(Endpoint::Completions, [stream]).unwrap();
        prop_assert_eq!(body(&format!("{prompt}{answer}!")), [&body(&prompt), &heard, &b"!"[..]].concat());
        let said = serde_json::to_string(&prompt).unwrap();
        prop_assert_eq!(&body(&prompt), &said.as_bytes()[1..said.len() - 1], "what is said and nothing else");
    }

    #[test]
    fn noise_comes_to_an_end(noise in r#"[\[\]{}",:\\a-f0-9 u]{0,60}"#, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for noise in [noise.as_bytes(), &bytes] {
            for kind in [super::Kind::Turns, super::Kind::Text, super::Kind::System] {
                let part = super::Part { kind, span: 0..noise.len() };
                super::prompt(&[part], noise, usize::MAX, &mut |_| ());
            }
            for endpoint in [Endpoint::ChatCompletions, Endpoint::Messages, Endpoint::Responses] {
                super::AnswerText::new(endpoint, &Lexicon::default()).whole(noise);
                heard(endpoint, [&[b"data: {\"delta\":{\"content\":\"", noise, b"\n\n"].concat()]);
            }
        }
    }
}
