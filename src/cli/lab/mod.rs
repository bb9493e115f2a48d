//! `tidegate lab`: policies measured against each other on simulated pods, in seconds and without a GPU.
//!
//! `run` compares them at one rate, `capacity` finds the highest rate that each can carry, `report` writes tables and
//! pictures. What they measure is `lab`'s; here stand only words, columns and the bar.

mod bar;
mod capacity;
mod overload;
mod report;
mod run;
mod stage;

use std::{process::ExitCode, sync::Arc};

use self::bar::Bar;
use crate::lab::{
    rivals::{OURS, RIVALS},
    study::{BOUNDS, benchmark::STAGES},
    workloads::{Rate, WORKLOADS},
};

/// What a shell makes of a process that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Measure policies on simulated pods: which policy, how many pods, for this traffic?
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = after_help(""))]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand, Clone, Debug)]
enum Verb {
    /// Let policies play the same traffic and print one table
    #[command(after_help = after_help(RUN_EXAMPLES))]
    Run(run::Run),
    /// Find the highest rate at which each policy keeps its promise
    #[command(after_help = after_help(CAPACITY_EXAMPLES))]
    Capacity(capacity::Args),
    /// Play more work than the fleet can carry, with every admission policy
    #[command(after_help = after_help(""))]
    Overload(overload::Args),
    /// Write tables and pictures: one workload from rate to rate, or the whole benchmark with its targets
    #[command(after_help = report_help())]
    Report(report::Args),
}

const RUN_EXAMPLES: &str = "
  tidegate lab run w1 --rate x4                             everybody on recorded conversations
  tidegate lab run w2 --rate 100 --policies least-cost,gie  two of them on short prompts
  tidegate lab run w4 --rate 10 --bounds --more             with what is possible, and more numbers
  tidegate lab run w7 --rate 200 --slo strict --json        for machines, judged strictly";

const CAPACITY_EXAMPLES: &str = "
  tidegate lab capacity w1 --rate x4                        everybody's, beginning at four times the recorded speed
  tidegate lab capacity w2 --rate 150 --at 0.99 --policies least-cost,round-robin
  tidegate lab capacity w5 --rate 30                        the unit is users: whole numbers";

const REPORT_EXAMPLES: &str = "
  tidegate lab report w1 --rates x2,x3,x4,x5 --out w1       one workload
  tidegate lab report --out benchmark                       the whole benchmark, in about half an hour
  tidegate lab report --only w2,w12 --seeds 1 --out quick   a part of it";

/// Runs what was asked for. Ctrl-C takes the bar away and ends it at once: nothing is worth waiting for.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let bar = Arc::new(Bar::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (verb, theirs) = (args.verb.clone(), Arc::clone(&bar));
    let work = runtime.spawn_blocking(move || match &verb {
        Verb::Run(args) => run::run(args, &theirs),
        Verb::Capacity(args) => capacity::run(args, &theirs),
        Verb::Overload(args) => overload::run(args, &theirs),
        Verb::Report(args) => report::run(args, &theirs),
    });
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = work => ended?,
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(INTERRUPTED)),
        }
    });
    bar.finish();
    runtime.shutdown_background();
    ended
}

/// A rate as it is written on the command line.
fn rate_text(rate: Rate) -> String {
    match rate {
        Rate::PerSecond(rate) => format!("{rate}"),
        Rate::Times(times) => format!("x{times}"),
    }
}

fn after_help(examples: &str) -> String {
    let workloads = list(&mut WORKLOADS.into_iter());
    let rivals = list(&mut RIVALS.iter().map(|entry| (entry.name, entry.what)));
    let examples = if examples.is_empty() { RUN_EXAMPLES } else { examples };
    format!(
        "Workloads:\n{workloads}\n\nPolicies of ours:\n  {}\n\nOther routers' policies:\n{rivals}\n\n\
         Bounds, which are no policies: {}: every request alone with an infinite cache, and all pods as one.\n\
         Times are seconds (TTFT, E2E) and milliseconds (TPOT: mean time between tokens of a stream; gap p99: its \
         longest).\nThe first tenth of the requests is not counted.\n\nExamples:{examples}\n\n{EXIT_CODES}",
        OURS.join(", "),
        BOUNDS.join(", ")
    )
}

fn report_help() -> String {
    let stage = |stage: &crate::lab::study::benchmark::Stage| {
        let rates: Vec<String> = stage.rates.iter().map(|rate| rate_text(*rate)).collect();
        (stage.name, format!("{} pods, {} virtual minutes, rates {}", stage.pods, stage.minutes, rates.join(", ")))
    };
    let stages: Vec<(&str, String)> = STAGES.iter().map(stage).collect();
    let stages = list(&mut stages.iter().map(|(name, what)| (*name, what.as_str())));
    format!("Stages of the benchmark:\n{stages}\n\n{}", after_help(REPORT_EXAMPLES))
}

fn list(lines: &mut dyn Iterator<Item = (&str, &str)>) -> String {
    lines.map(|(name, what)| format!("  {name:<14} {what}")).collect::<Vec<_>>().join("\n")
}

const EXIT_CODES: &str = "Exit codes:
  0    it was measured, and printed or written
  1    a name, a number or a trace makes no sense; the reason is printed
  2    the command line itself is wrong
  130  Ctrl-C";
