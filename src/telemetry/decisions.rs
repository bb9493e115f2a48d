//! The decision log: a file with one JSON line for each routed request, from which the lab plays the same traffic again.
//!
//! A file of its own, and not the log on stderr, because it is read by a program and holds thousands of hashes a line.
//! A request hands its facts over and goes on: it never waits for the disk, and what finds no room is dropped and
//! counted. It holds no text: neither prompts nor answers nor what sessions are called.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt as _,
    sync::mpsc,
};

use crate::{clock, tasks::Tasks};

/// Where a file ends and the next begins. A prompt of 8,000 tokens makes a line of about 2.5 kB, so that this is some
/// 100,000 requests; with the file before it, half a gigabyte of disk at most.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Decisions that may wait for the disk. The longest prompt's hashes are 16 KiB, so that these are 16 MiB at most.
const WAITING: usize = 1_024;

/// Decisions written at once: with the longest prompts 700 kB, a few milliseconds of the writer's time.
const BATCH: usize = 16;

/// A hash, written in hexadecimal, because JSON's numbers are exact only to 53 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{:016x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = |_| D::Error::custom(format!("`{text}` is no hash of 16 hexadecimal digits"));
        u64::from_str_radix(&text, 16).map(Self).map_err(wrong)
    }
}

/// One line: where a request went, how large it was and how it ended.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// When its head came, in milliseconds since the gateway started.
    pub at_ms: f64,
    /// What the client asked for.
    pub model: Arc<str>,
    /// What the pod was asked for.
    pub served_model: Arc<str>,
    /// Where it was routed.
    pub pool: Arc<str>,
    /// Where it went, if any pod could take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The session that its client named, hashed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Hex>,
    /// As the pod counted, else as estimated.
    pub prompt_tokens: u32,
    /// The length of the prompt's text.
    pub prompt_bytes: usize,
    /// As the pod counted, else as seen in the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u32>,
    /// What the pod says it found in its cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u32>,
    /// From its head to its first token, streams only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Mean between a stream's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_ms: Option<f64>,
    /// How it ended, in the words of the request's log line.
    pub outcome: &'static str,
    /// The prompt's whole blocks, each hash over all before it: equal beginnings have equal hashes.
    pub blocks: Vec<Hex>,
}

/// Where decisions are handed in.
#[derive(Clone, Debug)]
pub struct DecisionLog {
    started: Instant,
    lines: mpsc::Sender<Box<Decision>>,
    dropped: Counter,
}

impl DecisionLog {
    /// Opens the log at `path` and writes there until `tasks` stop, and then what is still waiting. A file that is
    /// there already is of another run, with its own clock: it is kept as `path.1`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn start(path: &Path, dropped: Counter, tasks: &Tasks) -> io::Result<Self> {
        let file = Rolling::begin(path, MAX_FILE_BYTES)?;
        let (lines, waiting) = mpsc::channel(WAITING);
        let counter = dropped.clone();
        let stop = tasks.clone();
        tasks.spawn(async move { write(waiting, file, &counter, stop.stopped()).await });
        Ok(Self { started: clock::now(), lines, dropped })
    }

    /// How long the gateway ran at `when`.
    pub fn since_start(&self, when: Instant) -> Duration {
        when.saturating_duration_since(self.started)
    }

    /// Hands `decision` to the writer, or drops it where the disk does not keep up. Never waits.
    pub fn put(&self, decision: Box<Decision>) {
        if self.lines.try_send(decision).is_err() {
            self.dropped.inc();
        }
    }
}

async fn write(
    mut waiting: mpsc::Receiver<Box<Decision>>,
    mut file: Rolling,
    dropped: &Counter,
    stopped: impl Future<Output = ()>,
) {
    let mut stopped = std::pin::pin!(stopped);
    let (mut batch, mut text, mut failing) = (Vec::with_capacity(BATCH), Vec::new(), false);
    loop {
        let got = tokio::select! {
            got = waiting.recv_many(&mut batch, BATCH) => got,
            () = &mut stopped, if !waiting.is_closed() => {
                // What was handed in before is still written.
                waiting.close();
                continue;
            }
        };
        if got == 0 {
            return;
        }
        text.clear();
        for decision in batch.drain(..) {
            // Writing numbers and strings to memory cannot fail.
            serde_json::to_writer(&mut text, &decision).ok();
            text.push(b'\n');
        }
        match file.append(&text).await {
            Ok(()) => failing = false,
            Err(error) => {
                dropped.inc_by(got as u64);
                if !failing {
                    tracing::warn!(path = %file.path.display(), %error, "decisions cannot be logged; check the disk");
                }
                failing = true;
            }
        }
    }
}

/// A file that is set aside when it is full.
#[derive(Debug)]
struct Rolling {
    path: PathBuf,
    file: File,
    written: u64,
    cap: u64,
}

impl Rolling {
    fn begin(path: &Path, cap: u64) -> io::Result<Self> {
        if std::fs::metadata(path).is_ok_and(|old| old.is_file() && old.len() > 0) {
            std::fs::rename(path, set_aside(path))?;
        }
        let file = File::from_std(std::fs::OpenOptions::new().create(true).append(true).open(path)?);
        Ok(Self { path: path.to_owned(), file, written: 0, cap })
    }

    /// Puts whole lines behind the others, all or none of them.
    async fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.written > 0 && self.written.saturating_add(lines.len() as u64) > self.cap {
            fs::rename(&self.path, set_aside(&self.path)).await?;
            self.file = fs::OpenOptions::new().create(true).append(true).open(&self.path).await?;
            self.written = 0;
        }
        let mut wrote = self.file.write_all(lines).await;
        if wrote.is_ok() {
            wrote = self.file.flush().await;
        }
        match wrote {
            Ok(()) => self.written += lines.len() as u64,
            // Half a line would spoil the file for its reader.
            Err(_) => _ = self.file.set_len(self.written).await.ok(),
        }
        wrote
    }
}

fn set_aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(at_ms: f64) -> Box<Decision> {
        Box::new(Decision {
            at_ms,
            model: "m".into(),
            served_model: "m-lora".into(),
            pool: "pods".into(),
            pod: Some("10.0.0.1:8000".to_owned()),
            session: Some(Hex(10)),
            prompt_tokens: 130,
            prompt_bytes: 520,
            output_tokens: Some(7),
            cached_tokens: None,
            ttft_ms: Some(1.5),
            itl_ms: None,
            outcome: "complete",
            blocks: vec![Hex(1), Hex(u64::MAX)],
        })
    }

    const LINE: &str = r#"{"at_ms":12.5,"model":"m","served_model":"m-lora","pool":"pods","pod":"10.0.0.1:8000","session":"000000000000000a","prompt_tokens":130,"prompt_bytes":520,"output_tokens":7,"ttft_ms":1.5,"outcome":"complete","blocks":["0000000000000001","ffffffffffffffff"]}"#;

    /// Two whole batches and a part of one.
    const LINES: usize = BATCH * 2 + 1;

    #[tokio::test]
    async fn every_decision_is_a_line_and_those_that_wait_at_the_stop_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.jsonl");
        std::fs::write(&path, "an earlier run\n").unwrap();
        let (tasks, dropped) = (Tasks::new(), Counter::default());
        let log = DecisionLog::start(&path, dropped.clone(), &tasks).unwrap();
        for _ in 0..LINES {
            log.put(decision(12.5));
        }
        tasks.stop();
        tasks.wait().await;
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), LINES);
        assert!(text.lines().all(|line| line == LINE), "{text}");
        assert_eq!(std::fs::read_to_string(set_aside(&path)).unwrap(), "an earlier run\n");
        assert_eq!(dropped.get(), 0);
        log.put(decision(1.0));
        assert_eq!(dropped.get(), 1, "nobody writes any more");
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (tasks, dropped) = (Tasks::new(), Counter::default());
        let log = DecisionLog::start(&folder.path().join("d"), dropped.clone(), &tasks).unwrap();
        // The writer shares this thread, so that it takes nothing meanwhile.
        for _ in 0..WAITING + 3 {
            log.put(decision(0.0));
        }
        assert_eq!(dropped.get(), 3);
        tasks.stop();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_full_file_is_set_aside_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d");
        let mut file = Rolling::begin(&path, 10).unwrap();
        for line in ["1234\n", "5678\n", "9\n", "abcdefgh\n"] {
            file.append(line.as_bytes()).await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "abcdefgh\n");
        assert_eq!(std::fs::read_to_string(set_aside(&path)).unwrap(), "9\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_hash_is_read_as_it_was_written() {
        let written = serde_json::to_string(&Hex(0xdead_beef)).unwrap();
        assert_eq!(written, r#""00000000deadbeef""#);
        assert_eq!(serde_json::from_str::<Hex>(&written).unwrap(), Hex(0xdead_beef));
        assert!(serde_json::from_str::<Hex>(r#""prompt""#).is_err());
    }
}
