//! The pod at the far end: reads a request, answers what its body asks for, and costs almost nothing.
//!
//! A stream has as many events as `max_tokens` says, of the size and shape of vLLM's; between two of them lie as many
//! microseconds as `seed` says. Each event carries the time at which it left, so that its way can be timed.

use std::{io::Write as _, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use memchr::memmem;
use tidegate::{clock, tasks::Tasks};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    time::sleep,
};

use super::wire;

/// What the pods answer, apart from streams.
struct Answers {
    whole: Vec<u8>,
    page: Vec<u8>,
    models: Vec<u8>,
    health: Vec<u8>,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The first port; the others follow
    #[arg(long)]
    port: u16,
    /// How many ports
    #[arg(long, default_value_t = 1)]
    ports: u16,
    /// The page at /metrics
    #[arg(long)]
    page: PathBuf,
}

/// In an event, what its time stands behind: nanoseconds of the wall clock.
pub(crate) const EVENT_ID: &[u8] = b"\"chatcmpl-";

/// How many digits the time has.
pub(crate) const ID_DIGITS: usize = 20;

const MODELS: &[u8] = br#"{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"bench"}]}"#;

/// With its head 300 bytes and a little.
const ANSWER: &[u8] = br#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"The gate rises with the tide."},"finish_reason":"stop"}],"usage":{"prompt_tokens":250,"completion_tokens":8,"total_tokens":258}}"#;

const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ndate: Sat, 01 Jan 2000 00:00:00 GMT\r\nserver: uvicorn\r\n\
    content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";

/// Serves until it is killed.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let page = std::fs::read(&args.page).with_context(|| args.page.display().to_string())?;
    let answers = Arc::new(Answers {
        whole: answer("application/json", ANSWER),
        page: answer("text/plain; version=0.0.4; charset=utf-8", &page),
        models: answer("application/json", MODELS),
        health: answer("application/json", b""),
    });
    let tasks = Tasks::new();
    for port in args.port..args.port + args.ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| port.to_string())?;
        let (answers, inner) = (Arc::clone(&answers), tasks.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answers = Arc::clone(&answers);
                // Whoever goes, goes.
                inner.spawn(async move { serve(stream, &answers).await.ok() });
            }
        });
    }
    println!("ready");
    tasks.wait().await;
    Ok(())
}

fn answer(kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ndate: Sat, 01 Jan 2000 00:00:00 GMT\r\nserver: uvicorn\r\ncontent-length: {}\r\n\
         content-type: {kind}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

async fn serve(mut stream: TcpStream, answers: &Answers) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    loop {
        request.clear();
        let head = loop {
            wire::more(&mut stream, &mut request).await?;
            if let Some(head) = wire::head(&request) {
                break head;
            }
        };
        while !head.complete(&request) {
            wire::more(&mut stream, &mut request).await?;
        }
        match request.as_slice() {
            it if it.starts_with(b"GET /metrics") => stream.write_all(&answers.page).await?,
            it if it.starts_with(b"GET /v1/models") => stream.write_all(&answers.models).await?,
            it if it.starts_with(b"GET") => stream.write_all(&answers.health).await?,
            it if is_streamed(it) => {
                let (events, pace) = (number(it, b"\"max_tokens\":"), number(it, b"\"seed\":"));
                tell(&mut stream, events.unwrap_or(1), Duration::from_micros(pace.unwrap_or(0))).await?;
            }
            _ => stream.write_all(&answers.whole).await?,
        }
        if head.closes {
            return Ok(());
        }
    }
}

/// Routers write the body anew, some with spaces and in another order.
fn is_streamed(request: &[u8]) -> bool {
    memmem::find(request, b"\"stream\":true").or_else(|| memmem::find(request, b"\"stream\": true")).is_some()
}

/// The number behind `key`.
fn number(request: &[u8], key: &[u8]) -> Option<u64> {
    let value = request.get(memmem::find(request, key)? + key.len()..)?.trim_ascii_start();
    let digits = value.iter().position(|byte| !byte.is_ascii_digit())?;
    str::from_utf8(value.get(..digits)?).ok()?.parse().ok()
}

/// Streams `events` events. The head leaves before the first, as uvicorn does it.
async fn tell(stream: &mut TcpStream, events: u64, pace: Duration) -> std::io::Result<()> {
    stream.write_all(STREAM_HEAD).await?;
    let (mut event, mut chunk) = (Vec::new(), Vec::new());
    for nth in 0..events {
        if nth > 0 && !pace.is_zero() {
            tokio::select! {
                () = sleep(pace) => {}
                // Nothing comes before the end of the answer, but the end of the connection.
                _ = stream.readable() => return Ok(()),
            }
        }
        let last = nth + 1 == events;
        event.clear();
        write!(
            event,
            r#"data: {{"id":"chatcmpl-{:0ID_DIGITS$}","object":"chat.completion.chunk","created":1700000000,"model":"tiny","choices":[{{"index":0,"delta":{{"content":" tide"}},"logprobs":null,"finish_reason":{}}}]}}"#,
            since_epoch().as_nanos(),
            if last { "\"stop\"" } else { "null" },
        )?;
        event.extend_from_slice(b"\n\n");
        if last {
            event.extend_from_slice(b"data: [DONE]\n\n");
        }
        chunk.clear();
        write!(chunk, "{:x}\r\n", event.len())?;
        chunk.extend_from_slice(&event);
        chunk.extend_from_slice(if last { b"\r\n0\r\n\r\n" } else { b"\r\n" });
        stream.write_all(&chunk).await?;
    }
    Ok(())
}

/// The wall clock: the one that two processes share.
pub(crate) fn since_epoch() -> Duration {
    clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_found_however_it_is_written() {
        let plain = br#"{"model":"tiny","stream":true,"max_tokens":128,"seed":250}"#;
        assert!(is_streamed(plain));
        assert_eq!((number(plain, b"\"max_tokens\":"), number(plain, b"\"seed\":")), (Some(128), Some(250)));
        let spaced = br#"{"seed": 7, "stream": false, "max_tokens": 12}"#;
        assert!(!is_streamed(spaced));
        assert_eq!((number(spaced, b"\"max_tokens\":"), number(spaced, b"\"seed\":")), (Some(12), Some(7)));
        assert_eq!(number(b"{}", b"\"seed\":"), None);
    }
}
