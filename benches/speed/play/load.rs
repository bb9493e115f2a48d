//! Requests at a given rate, whatever becomes of the answers; or from so many users who each wait for theirs.
//!
//! With a rate, a thread of its own sleeps until the next request is due, because the runtime's timers know only whole
//! milliseconds; a request takes a connection that is idle or opens one, so that a slow proxy is not asked less.

use std::{
    cell::RefCell,
    io::{Read as _, Write as _},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use memchr::memmem;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tidegate::{bench::Samples, clock};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::mpsc, task::LocalSet};

use super::{
    upstream::{EVENT_ID, ID_DIGITS, since_epoch},
    wire::{self, Head},
};

/// Requests open at once at a given rate; more are not sent and count as failed.
const MOST_OPEN: usize = 4_096;

/// Streams that are being opened at once while many are to be held: fewer than what listeners queue.
const OPENING: usize = 64;

/// How long the next stream may take to begin: a proxy that holds answers back is not waited for.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);

/// Digits in the part of a prompt that is its own.
const OWN: usize = 16;

#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// Where to send
    #[arg(long)]
    to: SocketAddr,
    /// Requests a second, at random distances; 0: each connection asks again when it has its answer
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Connections that ask, without a rate; with one, those opened beforehand
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// For how long
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Length of each body, about
    #[arg(long, default_value_t = 1024)]
    bytes: usize,
    /// Events of each answer; 0: answers in one piece
    #[arg(long, default_value_t = 0)]
    events: u64,
    /// Microseconds between two events
    #[arg(long, default_value_t = 0)]
    pace: u64,
    /// Open so many streams, say so, and hold them until stdin ends
    #[arg(long)]
    hold: Option<usize>,
}

/// What all requests share.
struct Load {
    args: Args,
    request: Request,
    idle: RefCell<Vec<TcpStream>>,
    felt: RefCell<Felt>,
}

/// What was felt.
#[derive(Default)]
struct Felt {
    done: usize,
    failed: usize,
    open: usize,
    events: u64,
    failure: Option<String>,
    whole: Samples,
    first: Samples,
    way: Samples,
    late: Samples,
}

/// One request, and where in it stands what makes each its own.
struct Request {
    bytes: Vec<u8>,
    own: usize,
}

impl Request {
    /// As the OpenAI SDK for Python writes it. The first half of the prompt is the same for all.
    fn of(args: &Args) -> Self {
        const LINE: &str = "The gate keeps the harbour while ferries and cranes wait for the tide.\\n";
        let (stream, events, pace) = (args.events > 0, args.events.max(1), args.pace);
        let begin = format!(
            r#"{{"model":"tiny","stream":{stream},"max_tokens":{events},"seed":{pace},"messages":[{{"role":"user","content":""#
        );
        let half = args.bytes.saturating_sub(begin.len() + OWN + 4) / 2 / LINE.len();
        let body = [&begin, &LINE.repeat(half), &"0".repeat(OWN), &LINE.repeat(half), r#""}]}"#].concat();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\naccept: application/json\r\naccept-encoding: gzip, deflate\r\n\
             connection: keep-alive\r\nuser-agent: OpenAI/Python 2.8.0\r\ncontent-type: application/json\r\n\
             authorization: Bearer sk-speed\r\nx-stainless-lang: python\r\nx-stainless-package-version: 2.8.0\r\n\
             x-stainless-os: Linux\r\nx-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\n\
             x-stainless-runtime-version: 3.13.0\r\nx-stainless-async: false\r\nx-stainless-retry-count: 0\r\n\
             content-length: {}\r\n\r\n",
            args.to,
            body.len()
        );
        let own = head.len() + begin.len() + half * LINE.len();
        Self { bytes: [head.as_bytes(), body.as_bytes()].concat(), own }
    }

    fn number(&self, number: u64) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(own) = bytes.get_mut(self.own..self.own + OWN) {
            own.copy_from_slice(format!("{number:0OWN$}").as_bytes());
        }
        bytes
    }
}

/// Loads, and prints what was felt.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let load = Rc::new(Load {
        request: Request::of(&args),
        args: args.clone(),
        idle: RefCell::default(),
        felt: RefCell::default(),
    });
    let began = clock::now();
    let here = LocalSet::new();
    match args.hold {
        Some(streams) => return here.run_until(hold(load, streams)).await,
        None if args.rate > 0.0 => here.run_until(at_rate(&load, began)).await?,
        None => here.run_until(in_turn(&load, began)).await,
    }
    println!("{}", load.felt.borrow().told(began));
    Ok(())
}

impl Felt {
    /// Streams that came so far that something is known of them.
    fn answered_or_failed(&self) -> usize {
        self.first.len() + self.failed
    }

    fn told(&self, began: Instant) -> serde_json::Value {
        let micros = |samples: &Samples| {
            let [half, most] = samples.quantiles([0.5, 0.99]);
            json!({"p50": half, "p99": most})
        };
        json!({
            "done": self.done, "failed": self.failed, "failure": self.failure, "events": self.events,
            "seconds": clock::now().saturating_duration_since(began).as_secs_f64(),
            "whole": micros(&self.whole), "first": micros(&self.first),
            "way": micros(&self.way), "late": micros(&self.late),
        })
    }
}

/// An open loop.
async fn at_rate(load: &Rc<Load>, began: Instant) -> anyhow::Result<()> {
    for _ in 0..load.args.connections {
        let stream = connect(load.args.to).await?;
        load.idle.borrow_mut().push(stream);
    }
    let (rate, length) = (load.args.rate, load.args.seconds);
    let (due, mut asks) = mpsc::unbounded_channel();
    let sleeper = std::thread::spawn(move || {
        let mut rng = StdRng::seed_from_u64(1);
        let mut at = 0.0;
        while at < length {
            at += -rng.random_range(f64::MIN_POSITIVE..1.0_f64).ln() / rate;
            let when = began + Duration::from_secs_f64(at);
            std::thread::sleep(when.saturating_duration_since(clock::now()));
            if due.send(when).is_err() {
                return;
            }
        }
    });
    let mut number = first_number();
    while let Some(when) = asks.recv().await {
        load.felt.borrow_mut().late.add(micros_since(when));
        if load.felt.borrow().open >= MOST_OPEN {
            load.failed("too many are open");
            continue;
        }
        number += 1;
        let load = Rc::clone(load);
        tokio::task::spawn_local(async move { load.one(number).await });
    }
    sleeper.join().ok();
    while load.felt.borrow().open > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// So many users, each with one connection and one request at a time.
async fn in_turn(load: &Rc<Load>, began: Instant) {
    let end = began + Duration::from_secs_f64(load.args.seconds);
    let first = first_number();
    let users = (0..load.args.connections as u64).map(|user| {
        let load = Rc::clone(load);
        tokio::task::spawn_local(async move {
            let mut number = first + user * 1_000_000;
            while clock::now() < end {
                number += 1;
                load.one(number).await;
            }
        })
    });
    for user in users.collect::<Vec<_>>() {
        user.await.ok();
    }
}

/// Opens streams until there are as many as wanted, tells, and holds them.
async fn hold(load: Rc<Load>, streams: usize) -> anyhow::Result<()> {
    let mut numbers = (first_number()..).take(streams);
    let (mut asked, mut known, mut moved) = (0, 0, clock::now());
    while known < streams && clock::now() < moved + BEGINS_WITHIN {
        let begun = load.felt.borrow().answered_or_failed();
        if begun > known {
            (known, moved) = (begun, clock::now());
        }
        while asked < known + OPENING
            && let Some(number) = numbers.next()
        {
            asked += 1;
            let load = Rc::clone(&load);
            tokio::task::spawn_local(async move { load.one(number).await });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let failure = load.felt.borrow().failure.clone();
    println!("{}", json!({"open": load.felt.borrow().first.len(), "failure": failure}));
    std::io::stdout().flush()?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    // The streams are not over: this program is.
    Ok(())
}

impl Load {
    async fn one(&self, number: u64) {
        self.felt.borrow_mut().open += 1;
        let request = self.request.number(number);
        let began = clock::now();
        let kept = self.idle.borrow_mut().pop();
        let reused = kept.is_some();
        let mut ended = match kept {
            Some(stream) => self.exchange(stream, &request, began).await,
            None => self.on_new(&request, began).await,
        };
        if reused && ended.as_ref().is_err_and(|error| error.unanswered) {
            // It was closed while it was idle, as SDKs know.
            ended = self.on_new(&request, began).await;
        }
        let mut felt = self.felt.borrow_mut();
        felt.open -= 1;
        match ended {
            Ok(()) => {
                felt.done += 1;
                felt.whole.add(micros_since(began));
            }
            Err(error) => {
                drop(felt);
                self.failed(&error.why);
            }
        }
    }

    fn failed(&self, why: &str) {
        let mut felt = self.felt.borrow_mut();
        felt.failed += 1;
        felt.failure.get_or_insert_with(|| why.to_owned());
    }

    async fn on_new(&self, request: &[u8], began: Instant) -> Result<(), Broken> {
        let stream =
            connect(self.args.to).await.map_err(|error| Broken { why: error.to_string(), unanswered: false })?;
        self.exchange(stream, request, began).await
    }

    async fn exchange(&self, mut stream: TcpStream, request: &[u8], began: Instant) -> Result<(), Broken> {
        let mut answer = Vec::new();
        let head = self
            .answered(&mut stream, request, began, &mut answer)
            .await
            .map_err(|error| Broken { why: error.to_string(), unanswered: answer.is_empty() })?;
        if !answer.starts_with(b"HTTP/1.1 200") {
            let told = String::from_utf8_lossy(&answer).chars().take(300).collect();
            return Err(Broken { why: told, unanswered: false });
        }
        if !head.closes {
            self.idle.borrow_mut().push(stream);
        }
        Ok(())
    }

    async fn answered(
        &self,
        stream: &mut TcpStream,
        request: &[u8],
        began: Instant,
        answer: &mut Vec<u8>,
    ) -> std::io::Result<Head> {
        stream.write_all(request).await?;
        let (mut head, mut noted) = (None, 0);
        loop {
            wire::more(stream, answer).await?;
            head = head.or_else(|| wire::head(answer));
            let Some(head) = head else { continue };
            if self.args.events > 0 {
                let none_yet = noted == 0;
                noted += self.note(answer.get(noted..).unwrap_or_default());
                if none_yet && noted > 0 {
                    self.felt.borrow_mut().first.add(micros_since(began));
                }
            }
            if head.complete(answer) {
                return Ok(head);
            }
        }
    }

    /// Notes the events in `bytes` and says how much of them it has read.
    fn note(&self, bytes: &[u8]) -> usize {
        let now = since_epoch();
        let mut felt = self.felt.borrow_mut();
        let mut noted = 0;
        for at in memmem::find_iter(bytes, EVENT_ID) {
            let begin = at + EVENT_ID.len();
            let digits = bytes.get(begin..begin + ID_DIGITS).and_then(|digits| str::from_utf8(digits).ok());
            let Some(left) = digits.and_then(|digits| digits.parse().ok()) else { break };
            noted = begin + ID_DIGITS;
            felt.events += 1;
            felt.way.add(now.saturating_sub(Duration::from_nanos(left)).as_secs_f64() * 1e6);
        }
        noted
    }
}

/// A request that got no whole answer.
struct Broken {
    why: String,
    /// Not one byte of an answer came.
    unanswered: bool,
}

fn micros_since(then: Instant) -> f64 {
    clock::now().saturating_duration_since(then).as_secs_f64() * 1e6
}

async fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// No run repeats another's prompts.
fn first_number() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or_default() * 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_about_as_long_as_asked_and_its_own_part_is_in_the_middle() {
        for bytes in [1_024, 16 << 10, 220_000] {
            let args = Args {
                to: "127.0.0.1:1".parse().unwrap(),
                rate: 0.0,
                connections: 1,
                seconds: 1.0,
                bytes,
                events: 128,
                pace: 250,
                hold: None,
            };
            let request = Request::of(&args).number(42);
            let head = wire::head(&request).unwrap();
            assert!(head.complete(&request));
            let body = &request[head.end..];
            assert!(body.len() <= bytes && body.len() + 160 > bytes, "{} of {bytes}", body.len());
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            assert_eq!((&body["stream"], &body["max_tokens"], &body["seed"]), (&json!(true), &json!(128), &json!(250)));
            let prompt = body["messages"][0]["content"].as_str().unwrap();
            let own = prompt.find("0000000000000042").unwrap();
            assert!(own.abs_diff(prompt.len() / 2) < 80);
        }
    }
}
