//! `tidegate lab`: policies measured against each other on simulated pods, in seconds and without a GPU.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    thread::available_parallelism,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};

use super::{colour, table::Table};
use crate::{
    clock, config,
    lab::{
        Contest, Policy, Script, Setup, Standing, Stats, compete,
        rivals::{OURS, RIVALS},
        workloads::{self, Order, Pods, Rate, WORKLOADS, Workload},
    },
};

/// Measure policies on simulated pods: which policy, how many pods, for this traffic?
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = after_help())]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Verb {
    /// Let policies play the same traffic and print one table
    #[command(after_help = after_help())]
    Run(Run),
}

#[derive(clap::Args, Clone, Debug)]
struct Run {
    /// The traffic; the list is below
    workload: String,
    /// Policies by name, separated by commas, or `all`; the list is below
    #[arg(long, value_delimiter = ',', default_value = "all", value_name = "NAMES")]
    policies: Vec<String>,
    /// How many pods [default: 8; w9: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pods: Option<u16>,
    /// What they are, as `tidegate sim` lists it; several take turns [default: h100-7b]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    profile: Vec<String>,
    /// Requests a second, or `x4`: four times as fast as recorded
    #[arg(long, default_value = "x1", value_parser = rate)]
    rate: Rate,
    /// How many different days of the same traffic
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Virtual minutes in which requests come
    #[arg(long, default_value_t = 20.0)]
    minutes: f64,
    /// A trace of your own: Mooncake's JSON lines for w1, Azure's CSV for w2 and those like it, either for `trace`
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Time from one page of metrics to the next [default: 250ms, or the workload's]
    #[arg(long, value_parser = config::duration)]
    scrape: Option<Duration>,
    /// Share of pages that never come [default: 0, or the workload's]
    #[arg(long, value_name = "SHARE")]
    scrape_loss: Option<f64>,
    /// Gateways that share the traffic and know nothing of each other
    #[arg(long, default_value_t = 1, value_name = "N")]
    gateways: usize,
    /// KV cache of every pod, in terms of its profile's
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    kv: f64,
    /// Speed of every pod, in terms of its profile's
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    speed: f64,
}

/// Runs what was asked for.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Verb::Run(run) = &args.verb;
    let policies = policies(&run.policies)?;
    ensure!(run.minutes.is_finite() && run.minutes > 0.0, "--minutes takes a number above 0");
    ensure!([run.kv, run.speed].iter().all(|it| it.is_finite() && *it > 0.0), "--kv and --speed take numbers above 0");
    let began = clock::now();
    let setup = setup(run)?;
    let pods = setup.pods.len();
    let (workload, trace) = (run.workload.clone(), run.trace.clone());
    let order = Order { workload, rate: run.rate, minutes: run.minutes, pods, trace };
    let workload = Workload::new(&order)?;
    let scripts: Vec<Script> = (0..run.seeds).map(|seed| workload.script(seed)).collect();
    let threads = available_parallelism().map_or(1, std::num::NonZero::get);
    let slo = workloads::promise(&run.workload);
    let contest = Contest { setup: &setup, policies: &policies, scripts: &scripts, slo, threads };
    let standings = compete(&contest).map_err(|report| anyhow!("the pool cannot be configured: {report}"))?;
    let took = clock::now().saturating_duration_since(began);
    let mut out = io::stdout().lock();
    let offered = standings.first().map_or(0.0, |it| it.mean(|stats| stats.offered as f64));
    writeln!(
        out,
        "{}: {} pods, {offered:.0} requests counted, {} seeds, {:.0} virtual minutes, SLO {:.1} s / {:.0} ms\n",
        run.workload,
        pods,
        run.seeds,
        run.minutes,
        slo.ttft_ms / 1e3,
        slo.tpot_ms
    )?;
    if let Some(trace) = workload.trace() {
        writeln!(out, "Played from {trace}.\n")?;
    }
    write!(out, "{}", table(&standings).rendered(colour(&out)))?;
    if setup.shift.is_some() {
        writeln!(out, "\n{}", second_arms(&standings))?;
    }
    writeln!(
        out,
        "\n± is the seed farthest from the mean. {} runs took {:.1} s.",
        policies.len() * scripts.len(),
        took.as_secs_f64()
    )?;
    Ok(ExitCode::SUCCESS)
}

fn setup(run: &Run) -> anyhow::Result<Setup> {
    let count = run.pods.map_or_else(|| workloads::usual_pods(&run.workload), usize::from);
    let pods = Pods { count, profiles: run.profile.clone(), kv: run.kv, speed: run.speed };
    let mut setup = workloads::stage(&run.workload, &pods, run.minutes)?;
    if let Some(interval) = run.scrape {
        setup.scrape.interval_ms = interval.as_secs_f64() * 1e3;
    }
    setup.scrape.loss = run.scrape_loss.unwrap_or(setup.scrape.loss);
    setup.gateways = run.gateways.max(1);
    Ok(setup)
}

/// What each policy's requests got of the second arm.
fn second_arms(standings: &[Standing]) -> String {
    let share = |it: &Standing, of: fn(&Stats) -> f64| it.mean(of) * 100.0;
    let line = |it: &Standing| {
        let (before, since) = (share(it, |stats| stats.second_arm[0]), share(it, |stats| stats.second_arm[1]));
        format!("{}: second arm {before:.1} % before, {since:.1} % since", it.policy)
    };
    standings.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn policies(names: &[String]) -> anyhow::Result<Vec<Policy>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Policy::all());
    }
    let find = |name: &String| {
        Policy::find(name).with_context(|| format!("there is no policy `{name}`; `tidegate lab run --help` lists them"))
    };
    names.iter().map(find).collect()
}

fn rate(text: &str) -> Result<Rate, String> {
    let (number, make): (&str, fn(f64) -> Rate) = match text.strip_prefix('x') {
        Some(times) => (times, Rate::Times),
        None => (text, Rate::PerSecond),
    };
    let above_zero = |rate: &f64| rate.is_finite() && *rate > 0.0;
    let number = number.parse().ok().filter(above_zero);
    number.map(make).ok_or_else(|| "write requests a second, such as `100`, or a speed-up, such as `x4`".to_owned())
}

fn table(standings: &[Standing]) -> Table {
    let head = [
        "policy",
        "attained",
        "±",
        "TTFT mean",
        "±",
        "p50",
        "p90",
        "p99",
        "TPOT p99",
        "gap p99",
        "hits",
        "preempted",
        "max/mean",
    ];
    let mut table = Table::new(head);
    let best = standings.iter().map(|it| it.mean(|stats| stats.attainment)).fold(0.0, f64::max);
    for standing in standings {
        let seconds = |of: fn(&Stats) -> f64| format!("{:.3}", standing.mean(of) / 1e3);
        let millis = |of: fn(&Stats) -> f64| format!("{:.1}", standing.mean(of));
        let attainment = |stats: &Stats| stats.attainment;
        let row = vec![
            standing.policy.to_owned(),
            format!("{:.4}", standing.mean(attainment)),
            format!("{:.4}", standing.spread(attainment)),
            seconds(|stats| stats.ttft_mean),
            format!("{:.3}", standing.spread(|stats| stats.ttft_mean) / 1e3),
            seconds(|stats| stats.ttft_p50),
            seconds(|stats| stats.ttft_p90),
            seconds(|stats| stats.ttft_p99),
            millis(|stats| stats.tpot_p99),
            millis(|stats| stats.gap_p99),
            format!("{:.3}", standing.mean(|stats| stats.hit_ratio)),
            format!("{:.0}", standing.mean(|stats| stats.preemptions)),
            format!("{:.2}", standing.mean(|stats| stats.imbalance)),
        ];
        table.push(row, standing.mean(attainment) >= best);
    }
    table
}

fn after_help() -> String {
    let list = |lines: &mut dyn Iterator<Item = (&str, &str)>| {
        lines.map(|(name, what)| format!("  {name:<14} {what}")).collect::<Vec<_>>().join("\n")
    };
    let workloads = list(&mut WORKLOADS.into_iter());
    let rivals = list(&mut RIVALS.iter().map(|entry| (entry.name, entry.what)));
    format!(
        "Workloads:\n{workloads}\n\nPolicies of ours:\n  {}\n\nOther routers' policies:\n{rivals}\n\n\
         Times are seconds (TTFT) and milliseconds (TPOT: mean time between tokens of a stream; gap: its longest).\n\
         The first tenth of the requests is not counted.\n\n\
         Examples:\n  tidegate lab run w1 --rate x4                            everybody on recorded conversations\n  \
         tidegate lab run w2 --rate 100 --policies least-cost,gie two of them on short prompts\n\n\
         Exit codes:\n  0  the table was printed\n  1  a name or a trace makes no sense; the reason is printed\n  \
         2  the command line itself is wrong",
        OURS.join(", ")
    )
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
    fn all_means_everybody_and_an_unknown_name_is_told() {
        assert_eq!(policies(&["all".to_owned()]).unwrap().len(), OURS.len() + RIVALS.len());
        let error = policies(&["least-cost".to_owned(), "fastest".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "there is no policy `fastest`; `tidegate lab run --help` lists them");
    }
}
