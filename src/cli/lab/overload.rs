//! `tidegate lab overload`: what admission policies make of more work than the fleet can carry.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;

use super::{
    bar::Bar,
    stage::{Stage, rate, threads},
};
use crate::lab::{
    Policy, Watch as _,
    doors::{DOORS, Entry},
    overload::{Crowd, Study, page},
    study::benchmark::OURS,
    workloads::Rate,
};

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Args {
    /// The traffic; the list is below
    workload: String,
    /// Where the search for what the fleet can carry begins
    #[arg(long, default_value = "100", value_parser = rate)]
    rate: Rate,
    /// What the fleet can carry, in requests a second, if it need not be searched
    #[arg(long, value_name = "RATE")]
    capacity: Option<f64>,
    /// Admission policies by name, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    doors: Vec<String>,
    /// Only these
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    #[command(flatten)]
    stage: Stage,
}

pub(super) fn run(args: &Args, bar: &Bar) -> anyhow::Result<ExitCode> {
    let ready = args.stage.ready(&args.workload)?;
    let policies = [Policy::find(OURS).context("the default policy is gone")?];
    let exam = crate::lab::study::Exam { policies: &policies, ..ready.exam(bar) };
    let capacity = match args.capacity {
        Some(given) => given,
        None => {
            let found = exam.capacities(args.rate, &[0.9], 0.01)?;
            let point = found.first().and_then(|it| it.at.first().copied().flatten());
            point.context("no rate keeps the promise; begin elsewhere with --rate")?.per_second
        }
    };
    let doors: Vec<&'static Entry> = if args.doors.is_empty() {
        DOORS.to_vec()
    } else {
        args.doors
            .iter()
            .map(|name| Entry::find(name).with_context(|| format!("there is no door `{name}`")))
            .collect::<Result<_, _>>()?
    };
    let study = Study {
        workload: &args.workload,
        setup: exam.setup,
        policy: &policies[0],
        doors: &doors,
        slo: exam.slo,
        capacity,
        seeds: exam.seeds,
        minutes: exam.minutes,
        threads: threads(),
        watch: bar,
    };
    let crowds = [Crowd::Classes, Crowd::Hurried, Crowd::Impatient, Crowd::Tenants, Crowd::Light];
    let mut sheets = Vec::new();
    let mut out = io::stdout().lock();
    writeln!(out, "capacity {capacity:.2}")?;
    for crowd in crowds {
        if !args.only.is_empty() && !args.only.iter().any(|it| *it == format!("{crowd:?}").to_lowercase()) {
            continue;
        }
        let loads = crowd.loads();
        bar.expect(study.runs(loads.len()));
        let played = study.play(crowd, &loads)?;
        write!(out, "{}", page(&played))?;
        sheets.extend(played);
    }
    bar.finish();
    Ok(ExitCode::SUCCESS)
}
