//! What all verbs of the lab take: the traffic, the pods, how they are seen, by which promise they are judged.

use std::{path::PathBuf, thread::available_parallelism, time::Duration};

use anyhow::Context as _;

use crate::{
    config,
    lab::{
        Policy, Setup, Slo, Watch,
        study::{Exam, benchmark},
        workloads::{self, Pods, Rate},
    },
};

/// Enough to see how far days differ, and few enough to wait for.
const SEEDS: u64 = 3;

/// As the benchmark asks for at least.
const BENCHMARK_SEEDS: u64 = 5;

/// Virtual minutes, as the benchmark asks for at least where traffic changes slowly.
const MINUTES: f64 = 20.0;

/// A day: longer traffic has days in it, and those are seeds.
const MOST_MINUTES: f64 = 1_440.0;

/// Far beyond any pod's memory and any engine's speed: more is a slip, such as per cent for a factor, and so is less
/// than a hundredth of the speed.
const MOST_TIMES: f64 = 100.0;
const LEAST_SPEED: f64 = 0.01;

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Stage {
    /// Policies by name, separated by commas, or `all`; the list is below
    #[arg(long, value_delimiter = ',', default_value = "all", value_name = "NAMES", requires = "workload")]
    policies: Vec<String>,
    /// How many pods [default: 8; w9: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096), requires = "workload")]
    pods: Option<u16>,
    /// What they are, as `tidegate sim` lists it; several take turns [default: h100-7b]
    #[arg(long, value_delimiter = ',', value_name = "NAMES", requires = "workload")]
    profile: Vec<String>,
    /// How many different days of the same traffic [default: 3; 5 for the whole benchmark]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: Option<u64>,
    /// Virtual minutes in which requests come; of the whole benchmark, at most so many [default: 20]
    #[arg(long, value_parser = minutes)]
    minutes: Option<f64>,
    /// The promise: `headline` (2s/50ms), `strict` (500ms/30ms), `long` (10s/100ms), or TTFT/TPOT of your own
    /// [default: the workload's]
    #[arg(long, value_name = "SLO", value_parser = slo, requires = "workload")]
    slo: Option<Slo>,
    /// A trace of your own: Mooncake's JSON lines for w1, Azure's CSV for w2 and those like it; for `trace`
    /// either, or what `tidegate serve --decision-log` wrote
    #[arg(long, value_name = "FILE", requires = "workload")]
    trace: Option<PathBuf>,
    /// Time from one page of metrics to the next [default: 250ms, or the workload's]
    #[arg(long, value_parser = config::duration, requires = "workload")]
    scrape: Option<Duration>,
    /// Share of pages that never come [default: 0, or the workload's]
    #[arg(long, value_name = "SHARE", value_parser = share, requires = "workload")]
    scrape_loss: Option<f64>,
    /// Gateways that share the traffic and know nothing of each other
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64), requires = "workload")]
    gateways: u16,
    /// KV cache of every pod, in terms of its profile's
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = kv, requires = "workload")]
    kv: f64,
    /// Speed of every pod, in terms of its profile's
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR", value_parser = speed, requires = "workload")]
    speed: f64,
}

/// What was asked for, found and checked.
#[derive(Debug)]
pub(super) struct Ready<'a> {
    stage: &'a Stage,
    workload: &'a str,
    seeds: u64,
    minutes: f64,
    setup: Setup,
    pub(super) policies: Vec<Policy>,
    pub(super) slo: Slo,
}

impl Stage {
    /// Seeds and minutes for the whole benchmark.
    pub(super) fn days(&self) -> (u64, f64) {
        (self.seeds.unwrap_or(BENCHMARK_SEEDS), self.minutes.unwrap_or(MINUTES))
    }

    /// What can be wrong with names is found here; numbers were looked at when they were read.
    pub(super) fn ready<'a>(&'a self, workload: &'a str) -> anyhow::Result<Ready<'a>> {
        let (seeds, minutes) = (self.seeds.unwrap_or(SEEDS), self.minutes.unwrap_or(MINUTES));
        let policies = policies(&self.policies)?;
        let count = self.pods.map_or_else(|| workloads::usual_pods(workload), usize::from);
        let pods = Pods { count, profiles: self.profile.clone(), kv: self.kv, speed: self.speed };
        let mut setup = workloads::stage(workload, &pods, minutes)?;
        if let Some(interval) = self.scrape {
            setup.scrape.interval_ms = interval.as_secs_f64() * 1e3;
        }
        setup.scrape.loss = self.scrape_loss.unwrap_or(setup.scrape.loss);
        setup.gateways = usize::from(self.gateways);
        let slo = self.slo.unwrap_or_else(|| workloads::promise(workload));
        Ok(Ready { stage: self, workload, seeds, minutes, setup, policies, slo })
    }
}

impl Ready<'_> {
    /// All of it as the lab takes it.
    pub(super) fn exam<'a>(&'a self, watch: &'a dyn Watch) -> Exam<'a> {
        Exam {
            workload: self.workload,
            setup: &self.setup,
            policies: &self.policies,
            slo: self.slo,
            seeds: self.seeds,
            minutes: self.minutes,
            trace: self.stage.trace.clone(),
            threads: threads(),
            watch,
        }
    }

    /// The conditions, in a line.
    pub(super) fn terms(&self, exam: &Exam<'_>) -> String {
        let profiles = match self.stage.profile.as_slice() {
            [] => "as the workload has them".to_owned(),
            names => names.join(", "),
        };
        benchmark::terms(self.setup.pods.len(), &profiles, exam)
    }
}

/// One run each keeps a core busy.
pub(super) fn threads() -> usize {
    available_parallelism().map_or(1, std::num::NonZero::get)
}

fn policies(names: &[String]) -> anyhow::Result<Vec<Policy>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Policy::all());
    }
    let find = |name: &String| {
        Policy::find(name).with_context(|| format!("there is no policy `{name}`; `tidegate lab run --help` lists them"))
    };
    // Who is named twice plays once.
    let once = names.iter().enumerate().filter(|(nth, name)| !names.iter().take(*nth).any(|it| it == *name));
    once.map(|(_, name)| find(name)).collect()
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = number(text).filter(|it| *it > 0.0 && *it <= MOST_MINUTES);
    minutes
        .ok_or_else(|| format!("write minutes above 0 and up to {MOST_MINUTES}, which is a day; --seeds has more days"))
}

fn kv(text: &str) -> Result<f64, String> {
    let factor = number(text).filter(|it| *it > 0.0 && *it <= MOST_TIMES);
    factor.ok_or_else(|| format!("write a factor above 0 and up to {MOST_TIMES}, such as `0.5` for half of it"))
}

fn speed(text: &str) -> Result<f64, String> {
    let factor = number(text).filter(|it| (LEAST_SPEED..=MOST_TIMES).contains(it));
    factor.ok_or_else(|| format!("write a factor from {LEAST_SPEED} to {MOST_TIMES}, such as `2` for twice as fast"))
}

fn share(text: &str) -> Result<f64, String> {
    let share = number(text).filter(|it| (0.0..=1.0).contains(it));
    share.ok_or_else(|| "write a share from 0 to 1, such as `0.1` for one in ten".to_owned())
}

fn number(text: &str) -> Option<f64> {
    text.parse().ok()
}

/// `100` is a second, `x4` is four times as fast.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    let (number, make): (&str, fn(f64) -> Rate) = match text.strip_prefix('x') {
        Some(times) => (times, Rate::Times),
        None => (text, Rate::PerSecond),
    };
    let above_zero = |rate: &f64| rate.is_finite() && *rate > 0.0;
    let number = number.parse().ok().filter(above_zero);
    number.map(make).ok_or_else(|| "write requests a second, such as `100`, or a speed-up, such as `x4`".to_owned())
}

fn slo(text: &str) -> Result<Slo, String> {
    let own = || {
        let (ttft, tpot) = text.split_once('/')?;
        let millis = |text| Some(config::duration(text).ok()?.as_secs_f64() * 1e3).filter(|ms| *ms > 0.0);
        Some(Slo { ttft_ms: millis(ttft)?, tpot_ms: millis(tpot)? })
    };
    let named = match text {
        "headline" => Some(Slo::HEADLINE),
        "strict" => Some(Slo::STRICT),
        "long" => Some(Slo::LONG),
        _ => own(),
    };
    named.ok_or_else(|| "write `headline`, `strict`, `long`, or two times, such as `1s/50ms`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_a_second_or_a_speed_up() {
        assert_eq!(rate("100"), Ok(Rate::PerSecond(100.0)));
        assert_eq!(rate("x1.5"), Ok(Rate::Times(1.5)));
        for bad in ["", "x", "-1", "x0", "fast", "NaN", "inf"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_out_of_reason_are_refused() {
        type Read = fn(&str) -> Result<f64, String>;
        let cases: [(Read, &[&str], &[&str]); 4] = [
            (minutes, &["0.1", "1440"], &["0", "-1", "1441", "NaN", "inf", "long"]),
            (kv, &["0.001", "100"], &["0", "101", "NaN", "inf"]),
            (speed, &["0.01", "100"], &["0.009", "101", "NaN", "0"]),
            (share, &["0", "1"], &["-0.1", "1.1", "10", "NaN"]),
        ];
        for (read, good, bad) in cases {
            assert!(good.iter().all(|it| read(it).is_ok()), "{good:?}");
            assert!(bad.iter().all(|it| read(it).is_err()), "{bad:?}");
        }
    }

    #[test]
    fn promises_have_names_or_two_times() {
        assert_eq!(slo("strict"), Ok(Slo { ttft_ms: 500.0, tpot_ms: 30.0 }));
        assert_eq!(slo("long"), Ok(Slo { ttft_ms: 10_000.0, tpot_ms: 100.0 }));
        assert_eq!(slo("1s/40ms"), Ok(Slo { ttft_ms: 1_000.0, tpot_ms: 40.0 }));
        for bad in ["", "1s", "1s/", "1/2", "0s/50ms", "often"] {
            assert!(slo(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_means_everybody_and_an_unknown_name_is_told() {
        assert_eq!(policies(&["all".to_owned()]).unwrap().len(), Policy::all().len());
        let twice = ["least-cost", "gie", "least-cost"].map(str::to_owned);
        assert_eq!(policies(&twice).unwrap().len(), 2, "who is named twice plays once");
        let error = policies(&["least-cost".to_owned(), "fastest".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "there is no policy `fastest`; `tidegate lab run --help` lists them");
    }
}
