//! Plays one workload of the lab into one address over real sockets and writes down what each request felt.
//!
//! The lab has the traffic (`tidegate lab run --help` lists it) and `tidegate::bench` the client; this puts them together:
//! an open loop on a slowed-down clock. Texts are made so that equal pieces are equal bytes and a token is four of them,
//! which is what the simulated pods count. It prints one JSON object a request and judges nothing: `run` beside it does.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use serde_json::{Value, json};
use tidegate::{
    bench::{Answer, Client, Outcome},
    clock,
    lab::{
        Ask, Script,
        workloads::{Order, Rate, Workload},
    },
    sim::asked::answer_text,
    tasks::Tasks,
};
use tokio::time::{sleep_until, timeout_at};

/// How long the player looks at its script before the first request is due: bodies are made ahead of their time.
const CURTAIN: Duration = Duration::from_millis(200);

/// Plays one workload and prints one JSON object a request.
#[derive(Parser)]
struct Args {
    /// Where to play it
    #[arg(long)]
    to: SocketAddr,
    /// The model to ask for
    #[arg(long)]
    model: String,
    /// The traffic, by the lab's name; only such where no request waits for another's answer
    #[arg(long)]
    workload: String,
    /// Its trace
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Requests in each of the workload's seconds
    #[arg(long)]
    rate: f64,
    /// For how many of the workload's minutes requests come
    #[arg(long)]
    minutes: f64,
    /// What draws it
    #[arg(long)]
    seed: u64,
    /// Real seconds in each of the workload's seconds
    #[arg(long, default_value_t = 1.0)]
    slow: f64,
    /// The workload's seconds after the last request in which answers may still come
    #[arg(long, default_value_t = 30.0)]
    patience: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let order = Order {
        workload: args.workload.clone(),
        rate: Rate::PerSecond(args.rate),
        minutes: args.minutes,
        pods: 8,
        trace: args.trace.clone(),
    };
    let script = Workload::new(&order)?.script(args.seed);
    anyhow::ensure!(!script.asks.is_empty(), "nothing would be asked: --minutes or --rate is too small");
    for line in play(&args, &script).await? {
        println!("{line}");
    }
    Ok(())
}

async fn play(args: &Args, script: &Script) -> anyhow::Result<Vec<Value>> {
    let (players, connections) = (Tasks::new(), Tasks::new());
    let client = Arc::new(Client::new(args.to, connections.clone()));
    let told = Arc::new(Mutex::new(Vec::with_capacity(script.asks.len())));
    let start = clock::now() + CURTAIN;
    let end = start + slowed(args, script.until_ms + args.patience * 1e3);
    for at in script.starters() {
        let ask = script.asks.get(at as usize).context("the script has what it lists")?;
        let (at, due, body) = (ask.at_ms / 1e3, start + slowed(args, ask.at_ms), body(&args.model, ask));
        sleep_until(due.into()).await;
        let (client, told) = (Arc::clone(&client), Arc::clone(&told));
        players.spawn_until_stop(async move {
            let mut line = listen(&client, body.into(), [due, end]).await;
            if let Some(line) = line.as_object_mut() {
                line.insert("due".to_owned(), at.into());
            }
            told.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        });
    }
    players.wait().await;
    connections.stop();
    let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(told)
}

fn slowed(args: &Args, ms: f64) -> Duration {
    Duration::from_secs_f64(ms.max(0.0) / 1e3 * args.slow)
}

fn body(model: &str, ask: &Ask) -> String {
    let prompt: String = ask.prompt.iter().map(|piece| answer_text(piece.content, piece.tokens)).collect();
    json!({
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": ask.answer.tokens,
    })
    .to_string()
}

/// Asks and listens until all is said or time is over. Waiting counts from when the request was due, also if this
/// program was late to send it.
async fn listen(client: &Client, body: bytes::Bytes, [due, end]: [Instant; 2]) -> Value {
    let sent = clock::now();
    let mut first = None;
    let note = |seen: tidegate::openai::Seen, now| {
        if seen.tokens > 0 {
            first.get_or_insert(now);
        }
    };
    let answer = timeout_at(end.into(), client.chat(body, note)).await;
    let since_due = |at: Instant| at.saturating_duration_since(due).as_secs_f64();
    let mut line = json!({"late": since_due(sent), "ttft": first.map(since_due)});
    let more = match answer {
        Ok(answer) => ending(&answer),
        Err(_) => json!({"ended": "given up", "waited": since_due(end)}),
    };
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    line
}

fn ending(answer: &Answer) -> Value {
    let timeline = &answer.timeline;
    let tokens_apart: Duration = timeline.gaps.iter().sum();
    let usage = timeline.usage.unwrap_or_default();
    let ended = match &answer.outcome {
        Outcome::Complete => "complete",
        Outcome::Failed(why) => why,
    };
    json!({
        "ended": ended,
        "tpot": (!timeline.gaps.is_empty()).then(|| tokens_apart.as_secs_f64() / timeline.gaps.len() as f64),
        "tokens": usage.completion_tokens,
        "prompt": usage.prompt_tokens,
        "cached": usage.cached_tokens,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tidegate::{
        lab::{Client as Asker, Piece},
        sim::{Pod, PodConfig},
    };

    use super::*;

    fn ask(at_ms: f64, shared: u64, own: u64) -> Ask {
        let prompt = [Piece { content: shared, tokens: 160 }, Piece { content: own, tokens: 77 }].into();
        Ask {
            at_ms,
            prompt,
            answer: Piece { content: 9, tokens: 5 },
            session: None,
            adapter: None,
            next: None,
            client: Asker::default(),
        }
    }

    fn args(to: SocketAddr, patience: &str) -> Args {
        let flags = ["--workload", "w1", "--rate", "1", "--minutes", "1", "--seed", "1", "--model", "m"];
        let to = to.to_string();
        Args::parse_from(["play", "--to", &to, "--slow", "0.1", "--patience", patience].into_iter().chain(flags))
    }

    #[tokio::test]
    async fn each_request_leaves_a_line_with_what_the_pod_counted() {
        let tasks = Tasks::new();
        let config = PodConfig::new("m").time_scale(0.1);
        let pod = Pod::start(config, (Ipv4Addr::LOCALHOST, 0).into(), &tasks).await.unwrap();
        let script = Script { asks: vec![ask(0.0, 1, 2), ask(2_000.0, 1, 3)], until_ms: 2_000.0 };
        let lines = play(&args(pod.addr(), "60"), &script).await.unwrap();
        assert_eq!(lines.len(), 2);
        for line in &lines {
            assert_eq!(line["ended"], "complete", "{line}");
            // 160 + 77, and the words that say who speaks: `<|user|>` is two tokens, `<|assistant|>` four.
            assert_eq!(line["prompt"], 160 + 77 + 2 + 4, "{line}");
            assert_eq!(line["tokens"], 5);
            assert!(line["ttft"].as_f64() > Some(0.0) && line["tpot"].as_f64() > Some(0.0), "{line}");
        }
        assert_eq!((&lines[0]["due"], &lines[1]["due"]), (&json!(0.0), &json!(2.0)));
        // The shared piece begins after `<|user|>`: 162 tokens are ten whole blocks.
        assert_eq!((&lines[0]["cached"], &lines[1]["cached"]), (&json!(0), &json!(160)));
        tasks.stop();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn nobody_is_waited_for_longer_than_patience_and_a_refusal_is_told() {
        let tasks = Tasks::new();
        let pod = Pod::start(PodConfig::new("m"), (Ipv4Addr::LOCALHOST, 0).into(), &tasks).await.unwrap();
        let script = Script { asks: vec![ask(0.0, 1, 2)], until_ms: 0.0 };
        pod.faults().change(|faults| faults.hang_before_headers = true);
        let hung = play(&args(pod.addr(), "1"), &script).await.unwrap();
        assert_eq!((&hung[0]["ended"], &hung[0]["ttft"]), (&json!("given up"), &Value::Null));
        pod.faults().heal();
        pod.faults().change(|faults| faults.status = Some(503));
        let refused = play(&args(pod.addr(), "60"), &script).await.unwrap();
        assert!(refused[0]["ended"].as_str().unwrap().starts_with("503"), "{refused:?}");
        tasks.stop();
        tasks.wait().await;
    }
}
