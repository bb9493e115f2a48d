//! `tidegate lab overload`: what admission policies make of more work than the fleet can carry.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;

use super::{
    bar::Bar,
    stage::{Stage, rate, threads},
};
use crate::config;
use crate::lab::{
    Policy, Setup, Watch as _,
    doors::{DOORS, Entry},
    overload::{self, Crowd, Sheet, Study, page},
    study::{
        Exam,
        benchmark::{OURS, RESOLUTION},
    },
    workloads::Rate,
};

/// The attainment at which a fleet is said to carry what comes.
const LEVEL: f64 = 0.9;

/// Where the pictures go, from the page.
const PICTURES: &str = "overload";

/// What the page is called.
const PAGE: &str = "overload.md";

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
    /// From which predicted wait on a pod counts as full, for the doors that go by it [default: the configuration's]
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    full: Option<Duration>,
    /// A folder to write the page and its pictures into, instead of printing the page
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    stage: Stage,
}

pub(super) fn run(args: &Args, bar: &Bar) -> anyhow::Result<ExitCode> {
    let ready = args.stage.ready(&args.workload)?;
    let policies = [Policy::find(OURS).context("the default policy is gone")?];
    let exam = Exam { policies: &policies, ..ready.exam(bar) };
    let capacity = args.capacity.map_or_else(|| carried(&exam, args.rate), Ok)?;
    let doors: Vec<&'static Entry> = if args.doors.is_empty() {
        DOORS.to_vec()
    } else {
        args.doors
            .iter()
            .map(|name| Entry::find(name).with_context(|| format!("there is no door `{name}`")))
            .collect::<Result<_, _>>()?
    };
    let full_ms = args.full.map(|full| full.as_secs_f64() * 1e3);
    let setup = Setup { full_ms, ..exam.setup.clone() };
    let study = Study {
        workload: &args.workload,
        trace: exam.trace.as_deref(),
        setup: &setup,
        policy: &policies[0],
        doors: &doors,
        slo: exam.slo,
        capacity,
        seeds: exam.seeds,
        minutes: exam.minutes,
        threads: threads(),
        watch: bar,
    };
    let terms = format!("{}: {}; it can carry {capacity:.1} requests a second.", args.workload, ready.terms(&exam));
    let mut sheets = Vec::new();
    for crowd in wanted(&args.only)? {
        let loads = crowd.loads();
        bar.expect(study.runs(loads.len()));
        sheets.extend(study.play(crowd, &loads)?);
        // After each, so that whoever does not wait for the end has what was done until then.
        if let Some(folder) = &args.out {
            write_down(folder, &sheets, &terms)?;
        }
    }
    bar.finish();
    let mut out = io::stdout().lock();
    match &args.out {
        Some(folder) => writeln!(out, "{}", folder.join(PAGE).display())?,
        None => write!(out, "{}", page(&sheets, &terms, PICTURES))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The page and its pictures.
fn write_down(folder: &Path, sheets: &[Sheet], terms: &str) -> anyhow::Result<()> {
    let write = |path: PathBuf, text: String| {
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let pictures = folder.join(PICTURES);
    fs::create_dir_all(&pictures).with_context(|| format!("cannot make the folder {}", pictures.display()))?;
    for picture in overload::pictures(sheets) {
        write(pictures.join(format!("{}.svg", picture.name)), picture.svg())?;
    }
    write(folder.join(PAGE), page(sheets, terms, PICTURES))
}

/// The highest rate that keeps the promise to nine requests in ten.
fn carried(exam: &Exam<'_>, start: Rate) -> anyhow::Result<f64> {
    let found = exam.capacities(start, &[LEVEL], RESOLUTION)?;
    let point = found.first().and_then(|it| it.at.first().copied().flatten());
    Ok(point.context("no rate keeps the promise; begin elsewhere with --rate")?.per_second)
}

fn wanted(names: &[String]) -> anyhow::Result<Vec<Crowd>> {
    if names.is_empty() {
        return Ok(Crowd::ALL.to_vec());
    }
    let find = |name: &String| {
        let found = Crowd::ALL.into_iter().find(|crowd| crowd.name() == name);
        found.with_context(|| format!("there is no crowd `{name}`; `tidegate lab overload --help` lists them"))
    };
    names.iter().map(find).collect()
}
