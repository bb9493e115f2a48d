//! The traffic and the stages of the benchmark, by name.

mod azure;
mod b2b;
mod bursts;
mod decisions;
mod lora;
mod mooncake;
mod origin;
mod sessions;
mod stages;

use std::path::PathBuf;

use rand::{SeedableRng as _, rngs::StdRng};

pub use stages::{Pods, promise, stage, usual_pods};

use super::script::{Ask, Script};

/// What can be run, for people.
pub const WORKLOADS: [(&str, &str); 30] = [
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
    ("w9", "W2 for 15 LoRA adapters in classes of 60, 30 and 10 %; a pod holds 3"),
    ("w10-gamma", "bursts: W2's lengths, gamma with 3.5"),
    ("w10-wave", "bursts: W2's lengths at once and five times the rate, 30 s each"),
    ("w10-200", "bursts: every 10 s, 200 equal requests within 50 ms"),
    ("w11", "W2 on four H100 and four A100"),
    ("w11-l40s", "W2 on seven H100 and one L40S"),
    ("w12", "W2, and for 50 s of each 5 minutes one pod is four times as slow"),
    ("w12-death", "W2, and every 5 minutes one pod dies and is back with an empty cache after a minute"),
    ("w12-hung", "W2, and for 1 of each 5 minutes half of the pods show no page"),
    ("w12-frozen", "W2, and for 1 of each 5 minutes half of the pods show an old page"),
    ("w12-join", "W2, and after a third of the time one more pod joins with an empty cache"),
    ("w12-weights", "W2 split 90/10 between a model and an adapter, from the middle on 50/50"),
    ("w13", "W2 for any number of pods: --rate is for each"),
    ("w13-shared", "W4 for any number of pods: --rate is for each, and companies grow with them"),
    ("w14-50ms", "W2, pages read every 50 ms"),
    ("w14-200ms", "W2, pages read every 200 ms"),
    ("w14-1s", "W2, pages read every second"),
    ("w14-5s", "W2, pages read every 5 s"),
    ("w14-lossy", "W2, one page in ten does not come"),
    ("trace", "your own: --trace FILE, a decision log or in Mooncake's or Azure's format, at its own times"),
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
    #[error("cannot read the trace {path}: {cause}; check the path after --trace")]
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
    /// The trace has nothing at all.
    #[error("the trace {0} is empty")]
    Blank(PathBuf),
    /// The trace is of no known kind.
    #[error(
        "{0}:1: this is neither Mooncake's format, {example}, nor Azure's, whose first line is `{head}`, nor a decision log of \
         `tidegate serve --decision-log`",
        example = mooncake::EXAMPLE,
        head = azure::HEAD
    )]
    Alien(PathBuf),
    /// There is no trace to play.
    #[error("`trace` plays a trace of yours: give it with --trace FILE")]
    NoTrace,
    /// A trace was given to a workload that plays none.
    #[error("`{0}` plays no trace; leave --trace out, or play it as `trace`")]
    PlaysNone(String),
    /// There would be more requests than memory should hold.
    #[error(
        "that makes about {0:.0} requests, and at most {most:.0} are played: each takes about 200 bytes of memory; \
         lower --rate or --minutes",
        most = MOST_REQUESTS
    )]
    TooMany(f64),
}

/// Requests of one run at most. Each has about 200 bytes of script and outcome, so these take 4 GB: what a laptop can
/// spare.
const MOST_REQUESTS: f64 = 20e6;

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
    /// For how many pods.
    pub pods: usize,
    /// The trace to use instead of the usual one.
    pub trace: Option<PathBuf>,
}

/// A workload made ready: its trace is read.
#[derive(Debug)]
pub struct Workload {
    source: Source,
    rate: Rate,
    length_ms: f64,
    adapters: bool,
    trace: Option<PathBuf>,
}

/// Where requests come from.
#[derive(Debug)]
enum Source {
    Mooncake(mooncake::Trace),
    Azure(azure::Trace, azure::Arrivals),
    Decisions(decisions::Log),
    B2b(b2b::Shape),
    Sessions(sessions::Shape),
    Volleys,
}

/// What a trace of somebody's own is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// JSON lines with block hashes.
    Mooncake,
    /// CSV with lengths.
    Azure,
    /// A gateway's own log.
    Decisions,
}

impl Kind {
    /// By its first line.
    fn of(text: &str) -> Option<Self> {
        let first = text.lines().find(|line| !line.trim().is_empty())?;
        if first.starts_with(azure::HEAD) {
            return Some(Self::Azure);
        }
        if decisions::looks_like(first) {
            return Some(Self::Decisions);
        }
        (first.trim_start().starts_with('{') && first.contains("\"hash_ids\"")).then_some(Self::Mooncake)
    }
}

impl Workload {
    /// Finds it and reads its trace.
    ///
    /// # Errors
    /// If there is none of that name, or its trace cannot be read.
    pub fn new(order: &Order) -> Result<Self, Unmade> {
        use azure::Arrivals;
        let mut workload = Self {
            source: Source::Volleys,
            rate: order.rate,
            length_ms: order.minutes * 60_000.0,
            adapters: order.workload == "w9",
            trace: None,
        };
        workload.source = match order.workload.as_str() {
            "w1" => {
                let text = origin::MOONCAKE.or_given(order.trace.as_deref())?;
                workload.play(text, Some(Kind::Mooncake), Arrivals::Recorded)?
            }
            "trace" => {
                let text = origin::read(order.trace.as_deref().ok_or(Unmade::NoTrace)?)?;
                let kind = Kind::of(&text.text);
                workload.play(text, kind, Arrivals::Recorded)?
            }
            "w4" => Source::B2b(b2b::Shape::LONG_SHARED),
            "w4-inverse" => Source::B2b(b2b::Shape::LONG_OWN),
            "w13-shared" => Source::B2b(b2b::Shape::LONG_SHARED.for_pods(order.pods)),
            "w5" => Source::Sessions(sessions::Shape::AGENTIC),
            "w6" => Source::Sessions(sessions::Shape::REASONING),
            "w7" => Source::Sessions(sessions::Shape::INTERACTIVE),
            "w10-200" => Source::Volleys,
            other => {
                let arrivals = arrivals(other).ok_or_else(|| Unmade::Workload(other.to_owned()))?;
                let text = origin::AZURE.or_given(order.trace.as_deref())?;
                workload.play(text, Some(Kind::Azure), arrivals)?
            }
        };
        if order.workload.starts_with("w13") {
            workload.rate = order.rate.times(order.pods as f64);
        }
        if workload.trace.is_none() && order.trace.is_some() {
            return Err(Unmade::PlaysNone(order.workload.clone()));
        }
        let requests = workload.per_second() * workload.length_ms / 1e3;
        if requests > MOST_REQUESTS {
            return Err(Unmade::TooMany(requests));
        }
        Ok(workload)
    }

    fn play(&mut self, text: origin::Text, kind: Option<Kind>, arrivals: azure::Arrivals) -> Result<Source, Unmade> {
        let source = match kind {
            Some(Kind::Mooncake) => Source::Mooncake(mooncake::Trace::parse(&text)?),
            Some(Kind::Azure) => Source::Azure(azure::Trace::parse(&text)?, arrivals),
            Some(Kind::Decisions) => Source::Decisions(decisions::Log::parse(&text)?),
            None => return Err(Unmade::Alien(text.path)),
        };
        self.trace = Some(text.path);
        Ok(source)
    }

    /// The trace that it plays, if it plays one: a path, or what is built in, and how much of it.
    pub fn trace(&self) -> Option<String> {
        let extent = self.extent()?;
        let told = match &self.source {
            Source::Azure(_, arrivals) if *arrivals != azure::Arrivals::Recorded => {
                format!("lengths drawn from its {} requests", extent.requests)
            }
            _ => extent.told(self.rate, self.length_ms),
        };
        self.trace.as_ref().map(|path| format!("{}: {told}", path.display()))
    }

    fn extent(&self) -> Option<origin::Extent> {
        match &self.source {
            Source::Mooncake(trace) => Some(trace.extent()),
            Source::Azure(trace, _) => Some(trace.extent()),
            Source::Decisions(log) => Some(log.extent()),
            Source::B2b(_) | Source::Sessions(_) | Source::Volleys => None,
        }
    }

    /// Roughly how many requests come; of users, as if each asked once a second, which none does for long. Volleys are
    /// as large as they are.
    fn per_second(&self) -> f64 {
        match (&self.source, self.extent()) {
            (_, Some(extent)) => extent.per_second(self.rate),
            (Source::Volleys, None) => 0.0,
            (_, None) => per_second(self.rate),
        }
    }

    /// The traffic that `seed` draws.
    pub fn script(&self, seed: u64) -> Script {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut asks: Vec<Ask> = match &self.source {
            Source::Mooncake(trace) => trace.script(self.rate, self.length_ms, &mut rng),
            Source::Decisions(log) => log.script(self.rate, self.length_ms, &mut rng),
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
        if self.adapters {
            lora::name_adapters(&mut asks, &mut rng);
        }
        Script { asks, until_ms: self.length_ms }
    }
}

/// How requests with Azure's lengths come in the workloads that are about something else, too.
fn arrivals(workload: &str) -> Option<azure::Arrivals> {
    use azure::Arrivals;
    match workload {
        "w2" | "w9" | "w11" | "w11-l40s" | "w12" | "w12-death" | "w12-hung" | "w12-frozen" | "w12-join"
        | "w12-weights" | "w13" | "w14-50ms" | "w14-200ms" | "w14-1s" | "w14-5s" | "w14-lossy" => {
            Some(Arrivals::Gamma { cv: 1.0 })
        }
        "w2-cv2" => Some(Arrivals::Gamma { cv: 2.0 }),
        "w2-cv4" => Some(Arrivals::Gamma { cv: 4.0 }),
        "w2-recorded" => Some(Arrivals::Recorded),
        "w10-gamma" => Some(Arrivals::Gamma { cv: 3.5 }),
        "w10-wave" => Some(Arrivals::Wave),
        _ => None,
    }
}

impl Rate {
    fn times(self, factor: f64) -> Self {
        match self {
            Self::PerSecond(rate) => Self::PerSecond(rate * factor),
            Self::Times(times) => Self::Times(times * factor),
        }
    }
}

fn per_second(rate: Rate) -> f64 {
    match rate {
        Rate::PerSecond(rate) | Rate::Times(rate) => rate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(workload: &str) -> Order {
        let (rate, workload) = (Rate::PerSecond(4.0), workload.to_owned());
        Order { workload, rate, minutes: 1.0, pods: 8, trace: None }
    }

    fn with_trace(text: &str) -> Result<Workload, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let order = Order { trace: Some(file.path().to_owned()), rate: Rate::Times(1.0), ..order("trace") };
        Workload::new(&order).map_err(|why| why.to_string().replace(&file.path().display().to_string(), "FILE"))
    }

    #[test]
    fn every_workload_that_is_listed_can_be_made_and_has_traffic() {
        for (name, _) in WORKLOADS.iter().filter(|(name, _)| *name != "trace") {
            let workload = Workload::new(&order(name)).unwrap();
            let script = workload.script(1);
            assert!(script.asks.len() > 3, "{name}");
            assert_eq!(script.asks.iter().any(|ask| ask.adapter.is_some()), *name == "w9", "{name}");
        }
        assert!(matches!(Workload::new(&order("trace")), Err(Unmade::NoTrace)));
        assert!(matches!(Workload::new(&order("w99")), Err(Unmade::Workload(_))));
    }

    #[test]
    fn a_trace_is_known_by_its_content() {
        let azure = format!("{}\n2023-11-16 23:59:59.5,374,44\n", azure::HEAD);
        assert!(matches!(with_trace(&azure).unwrap().source, Source::Azure(_, azure::Arrivals::Recorded)));
        let mooncake = mooncake::EXAMPLE.trim_matches('`');
        assert!(matches!(with_trace(mooncake).unwrap().source, Source::Mooncake(_)));
        let decision = decisions::EXAMPLE.trim_matches('`');
        assert!(matches!(with_trace(decision).unwrap().source, Source::Decisions(_)));
        let error = with_trace("{\"prompt\": 7}").unwrap_err();
        assert!(error.starts_with("FILE:1: this is neither Mooncake's format"), "{error}");
    }

    #[test]
    fn a_trace_for_a_workload_that_plays_none_is_refused() {
        for name in ["w4", "w4-inverse", "w5", "w6", "w7", "w10-200", "w13-shared"] {
            let order = Order { trace: Some("/dev/null".into()), ..order(name) };
            assert!(matches!(Workload::new(&order), Err(Unmade::PlaysNone(_))), "{name}");
        }
        assert_eq!(with_trace(" \n").unwrap_err(), "the trace FILE is empty");
    }

    #[test]
    fn more_requests_than_memory_should_hold_are_refused() {
        for (name, rate, pods) in [
            ("w2", Rate::PerSecond(333_400.0), 8),
            ("w1", Rate::Times(1e6), 8),
            ("w4", Rate::PerSecond(333_400.0), 8),
            ("w13", Rate::PerSecond(83_400.0), 4),
        ] {
            let made = Workload::new(&Order { rate, pods, ..order(name) });
            assert!(matches!(made, Err(Unmade::TooMany(_))), "{name}");
        }
        let most = Order { rate: Rate::PerSecond(333_300.0), ..order("w2") };
        assert!(Workload::new(&most).is_ok(), "60 s of it are just below 20 million");
    }

    #[test]
    fn what_is_played_of_a_trace_is_told() {
        let mooncake = mooncake::EXAMPLE.trim_matches('`');
        assert!(with_trace(mooncake).unwrap().trace().unwrap().ends_with(": 1 request over 1 s, repeated 60.0 times"));
        let drawn = Workload::new(&order("w2")).unwrap().trace().unwrap();
        assert!(drawn.contains(": lengths drawn from its "), "{drawn}");
    }

    #[test]
    fn load_for_each_pod_stays_the_same_however_many_there_are() {
        for name in ["w13", "w13-shared"] {
            let asks = |pods| Workload::new(&Order { pods, ..order(name) }).unwrap().script(1).asks.len() as f64;
            let ratio = asks(64) / asks(4) / 16.0;
            assert!((0.9..1.1).contains(&ratio), "{name}: {ratio}");
        }
    }
}
