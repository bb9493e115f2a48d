//! The traffic and the stages of the benchmark, by name.

mod azure;
mod b2b;
mod bursts;
mod mooncake;
mod sessions;

use std::path::{Path, PathBuf};

use rand::{SeedableRng as _, rngs::StdRng};

use super::{
    script::{Ask, Script},
    setup::{Fault, Mishap, Setup},
    tally::Slo,
};
use crate::sim::{EngineConfig, profiles, step::StepModel};

/// What can be run, for people.
pub const WORKLOADS: [(&str, &str); 15] = [
    ("w1", "conversations recorded by Mooncake: long prompts, shared prefixes"),
    ("w2", "chat recorded by Azure: lengths only, nothing shared; Poisson"),
    ("w2-cv2", "the same, gamma with a coefficient of variation of 2"),
    ("w2-cv4", "the same with 4"),
    ("w2-recorded", "the same at the recorded times"),
    ("w4", "150 companies with 5 users each: 6,000 tokens shared, 1,200 own, 1,000 answered"),
    ("w4-inverse", "the same with 1,200 shared and 6,000 own"),
    ("w5", "agents: sessions of long contexts; --rate is how many at once"),
    ("w6", "reasoning: 8,000 tokens answered; --rate is how many at once"),
    ("w7", "people in chats who think; --rate is how many at once"),
    ("w10-gamma", "bursts: W2's lengths, gamma with 3.5"),
    ("w10-wave", "bursts: W2's lengths at once and five times the rate, 30 s each"),
    ("w10-200", "bursts: every 10 s, 200 equal requests within 50 ms"),
    ("w11", "W2 on four H100 and four A100"),
    ("w12", "W2, and for 50 s of each 5 minutes one pod is four times as slow"),
];

/// Why a workload cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Unmade {
    /// There is none of that name.
    #[error("there is no workload `{0}`; `tidegate lab run --help` lists them")]
    Workload(String),
    /// There is no profile of that name.
    #[error("there is no profile `{0}`; `tidegate sim --help` lists them")]
    Profile(String),
    /// The trace cannot be read.
    #[error("cannot read the trace {path}: {cause}; give one with --trace")]
    Trace {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        cause: std::io::Error,
    },
    /// A line of the trace makes no sense.
    #[error("{path}:{line}: {why}")]
    Line {
        /// The trace.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// The trace has no requests.
    #[error("the trace {0} has no requests")]
    Empty(PathBuf),
}

/// How fast requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// So many a second.
    PerSecond(f64),
    /// So many times as fast as recorded.
    Times(f64),
}

/// What is asked of a workload.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its name.
    pub workload: String,
    /// How fast requests come.
    pub rate: Rate,
    /// For how long.
    pub minutes: f64,
    /// The trace to use instead of the usual one.
    pub trace: Option<PathBuf>,
}

/// Which pods there are.
#[derive(Clone, Debug)]
pub struct Pods {
    /// How many.
    pub count: usize,
    /// What they are, one after the other and again from the first.
    pub profiles: Vec<String>,
    /// Their KV cache in terms of the profile's.
    pub kv: f64,
    /// Their speed in terms of the profile's.
    pub speed: f64,
}

/// A workload made ready: its trace is read.
#[derive(Debug)]
pub struct Workload {
    source: Source,
    rate: Rate,
    length_ms: f64,
}

#[derive(Debug)]
enum Source {
    Mooncake(mooncake::Trace),
    Azure(azure::Trace, azure::Arrivals),
    B2b(b2b::Shape),
    Sessions(sessions::Shape),
    Volleys,
}

impl Workload {
    /// Finds it and reads its trace.
    ///
    /// # Errors
    /// If there is none of that name, or its trace cannot be read.
    pub fn new(order: &Order) -> Result<Self, Unmade> {
        use azure::Arrivals;
        let trace = order.trace.as_deref();
        let azure = |arrivals| azure::Trace::read(trace).map(|trace| Source::Azure(trace, arrivals));
        let source = match order.workload.as_str() {
            "w1" => Source::Mooncake(mooncake::Trace::read(trace)?),
            "w2" | "w11" | "w12" => azure(Arrivals::Gamma { cv: 1.0 })?,
            "w2-cv2" => azure(Arrivals::Gamma { cv: 2.0 })?,
            "w2-cv4" => azure(Arrivals::Gamma { cv: 4.0 })?,
            "w2-recorded" => azure(Arrivals::Recorded)?,
            "w10-gamma" => azure(Arrivals::Gamma { cv: 3.5 })?,
            "w10-wave" => azure(Arrivals::Wave)?,
            "w4" => Source::B2b(b2b::Shape::LONG_SHARED),
            "w4-inverse" => Source::B2b(b2b::Shape::LONG_OWN),
            "w5" => Source::Sessions(sessions::Shape::AGENTIC),
            "w6" => Source::Sessions(sessions::Shape::REASONING),
            "w7" => Source::Sessions(sessions::Shape::INTERACTIVE),
            "w10-200" => Source::Volleys,
            other => return Err(Unmade::Workload(other.to_owned())),
        };
        Ok(Self { source, rate: order.rate, length_ms: order.minutes * 60_000.0 })
    }

    /// The traffic that `seed` draws.
    pub fn script(&self, seed: u64) -> Script {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut asks: Vec<Ask> = match &self.source {
            Source::Mooncake(trace) => trace.script(self.rate, self.length_ms, &mut rng),
            Source::Azure(trace, arrivals) => trace.script(*arrivals, self.rate, self.length_ms, &mut rng),
            Source::B2b(shape) => shape.script(per_second(self.rate), self.length_ms, &mut rng),
            Source::Sessions(shape) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "saturates, never negative"
                )]
                let users = per_second(self.rate).round().max(1.0) as u32;
                // In their order already: those that follow others are found by their places.
                return Script { asks: shape.script(users, self.length_ms, &mut rng), until_ms: self.length_ms };
            }
            Source::Volleys => bursts::volleys(self.length_ms, &mut rng),
        };
        asks.sort_by(|one, other| one.at_ms.total_cmp(&other.at_ms));
        Script { asks, until_ms: self.length_ms }
    }
}

/// The stage that a workload asks for.
///
/// # Errors
/// If there is no profile of that name.
pub fn stage(workload: &str, pods: &Pods, minutes: f64) -> Result<Setup, Unmade> {
    let mixed = ["h100-8b", "a100-8b"].map(str::to_owned).to_vec();
    let profiles = if workload == "w11" && pods.profiles.is_empty() { &mixed } else { &pods.profiles };
    let engines: Result<Vec<_>, _> = (0..pods.count).map(|nth| engine(profiles, nth, pods)).collect();
    let mut setup = Setup::new(engines?);
    if workload == "w12" {
        setup.faults = slow_spells(minutes);
    }
    Ok(setup)
}

/// The promise that a workload is judged by: W11's is 1 s, all others' the headline.
pub fn promise(workload: &str) -> Slo {
    match workload {
        "w11" => Slo { ttft_ms: 1_000.0, ..Slo::HEADLINE },
        _ => Slo::HEADLINE,
    }
}

fn engine(profiles: &[String], nth: usize, pods: &Pods) -> Result<EngineConfig, Unmade> {
    let name = profiles.iter().cycle().nth(nth).map_or("h100-7b", String::as_str);
    let profile = profiles::find(name).ok_or_else(|| Unmade::Profile(name.to_owned()))?;
    let mut config = EngineConfig::new(StepModel::new(profile, pods.speed));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, never negative")]
    let blocks = (f64::from(config.num_gpu_blocks) * pods.kv) as u32;
    config.num_gpu_blocks = blocks.max(2);
    Ok(config)
}

/// 50 s at a quarter of the speed, first after 2 minutes and then every 5.
fn slow_spells(minutes: f64) -> Vec<Fault> {
    let starts = (0..).map(|nth| 120_000.0 + f64::from(nth) * 300_000.0);
    let spells = starts.take_while(|at_ms| *at_ms < minutes * 60_000.0);
    spells
        .flat_map(|at_ms| {
            [(at_ms, 4.0), (at_ms + 50_000.0, 1.0)].map(|(at_ms, slow)| Fault {
                at_ms,
                pod: 0,
                what: Mishap::Slow(slow),
            })
        })
        .collect()
}

fn per_second(rate: Rate) -> f64 {
    match rate {
        Rate::PerSecond(rate) | Rate::Times(rate) => rate,
    }
}

/// A trace's text.
fn text_of(path: &Path) -> Result<String, Unmade> {
    std::fs::read_to_string(path).map_err(|cause| Unmade::Trace { path: path.to_owned(), cause })
}
