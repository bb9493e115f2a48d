//! What the clients' dialect costs: reading an ask, making its edits, and reading along an answer.
//!
//! The targets are 4 us for an ask of 2 KB 300 ns for an ordinary event of 200 bytes, and 1 us with its
//! text read for the prefix index.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tidegate::{
    openai::{
        Ask, Changes, Dialect, Endpoint, Framing, Lexicon, ModelRenamer, StreamWatch, UsageStripper, classify, splice,
    },
    prefix::Chain,
};

/// A chat of about `size` bytes: a system prompt, turns of 400 characters with a few escapes, usual parameters.
fn chat(size: usize) -> String {
    let text = "The quick brown fox said: \\\"jump\\\" and then it did.\\n".repeat(8);
    let mut turns = format!(r#"{{"role":"system","content":"{text}"}}"#);
    let mut number = 0;
    while turns.len() + 250 < size {
        let role = if number % 2 == 0 { "user" } else { "assistant" };
        let room = (size - turns.len() - 240).min(text.len());
        let content = text.split_at(room).0.trim_end_matches('\\');
        turns.extend([r#",{"role":""#, role, r#"","content":""#, content, r#""}"#]);
        number += 1;
    }
    format!(
        r#"{{"model":"/model/llama2","messages":[{turns}],"temperature":0.7,"top_p":0.95,"max_tokens":256,"stream":true,"stop":["</s>"],"user":"someone@example.com","seed":42}}"#
    )
}

/// What vLLM sends for one token.
const EVENT: &str = "data: {\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\
    \"created\":1763000000,\"model\":\"llama2-lora-v2\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\
    \"logprobs\":null,\"finish_reason\":null}]}\n\n";

#[expect(clippy::expect_used, reason = "a bench that cannot parse its own body must stop")]
fn asks(c: &mut Criterion) {
    let mut group = c.benchmark_group("ask");
    for (name, size) in [("2KB", 2 << 10), ("32KB", 32 << 10), ("256KB", 256 << 10)] {
        let body = chat(size);
        let parse = || Ask::parse(Endpoint::ChatCompletions, None, black_box(body.as_bytes())).expect("a chat");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("parse/{name}"), |b| b.iter(parse));
        let ask = parse();
        let changes = Changes { model: Some("llama2-lora-v2"), include_usage: true };
        group.bench_function(format!("splice/{name}"), |b| {
            b.iter(|| splice(body.as_bytes(), &ask, &changes));
        });
        group.bench_function(format!("opening/{name}"), |b| b.iter(|| ask.opening(body.as_bytes())));
    }
    group.finish();
    c.bench_function("classify", |b| {
        b.iter(|| classify(&http::Method::POST, black_box("/v1/chat/completions"), &[]));
    });
}

fn answers(c: &mut Criterion) {
    let mut group = c.benchmark_group("event");
    group.throughput(Throughput::Bytes(EVENT.len() as u64));
    let lexicon = Lexicon::default();
    group.bench_function("watch", |b| {
        let mut watch = StreamWatch::new(Dialect::OpenAi, &lexicon);
        b.iter(|| watch.feed(black_box(EVENT.as_bytes())));
    });
    group.bench_function("watch+text", |b| {
        let mut watch = StreamWatch::new(Dialect::OpenAi, &lexicon).with_text(Endpoint::ChatCompletions);
        let mut chain = Chain::new("m", "");
        b.iter(|| {
            watch.feed(black_box(EVENT.as_bytes()));
            if let Some(text) = watch.text() {
                chain.push(text.text());
            }
        });
    });
    group.bench_function("rename", |b| {
        let mut renamer = ModelRenamer::new("/model/llama2", Framing::Events);
        b.iter_batched(|| Bytes::from_static(EVENT.as_bytes()), |event| renamer.push(event), BatchSize::SmallInput);
    });
    group.bench_function("strip", |b| {
        let mut stripper = UsageStripper::new();
        b.iter_batched(|| Bytes::from_static(EVENT.as_bytes()), |event| stripper.push(event), BatchSize::SmallInput);
    });
    group.finish();
    c.bench_function("watch/new", |b| b.iter(|| StreamWatch::new(Dialect::OpenAi, &lexicon)));
}

criterion_group!(benches, asks, answers);
criterion_main!(benches);
