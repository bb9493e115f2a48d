//! `tidegate lab report`: tables and pictures in a folder, of one kind of traffic or of the whole benchmark.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};

use super::{
    bar::Bar,
    stage::{Stage, rate, threads},
};
use crate::{
    clock,
    lab::{
        Watch as _,
        study::{
            Chapter, Plot,
            benchmark::{self, OURS, Pass, STAGES},
            chapter_page, page, plots, targets,
        },
        workloads::{Rate, WORKLOADS},
    },
};

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Args {
    /// The traffic; without it the whole benchmark, on its own stages (--seeds and --minutes still count)
    workload: Option<String>,
    /// The folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Rates to compare at, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "x1", value_parser = rate, value_name = "RATES", requires = "workload")]
    rates: Vec<Rate>,
    /// Of the whole benchmark only these stages; the list is below
    #[arg(long, value_delimiter = ',', value_name = "NAMES", conflicts_with = "workload")]
    only: Vec<String>,
    #[command(flatten)]
    stage: Stage,
}

pub(super) fn run(args: &Args, bar: &Bar) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    match &args.workload {
        Some(workload) => one(args, workload, bar)?,
        None => all(args, bar)?,
    }
    bar.finish();
    writeln!(io::stdout().lock(), "{}", args.page().display())?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn page(&self) -> PathBuf {
        self.out.join("report.md")
    }

    fn write(&self, text: &str) -> anyhow::Result<()> {
        fs::write(self.page(), text).with_context(|| format!("cannot write {}", self.page().display()))
    }
}

fn one(args: &Args, workload: &str, bar: &Bar) -> anyhow::Result<()> {
    let rates = in_order(&args.rates)?;
    let ready = args.stage.ready(workload)?;
    let exam = ready.exam(bar);
    bar.expect(exam.sheet_runs() * rates.len());
    let what = WORKLOADS.iter().find(|(name, _)| *name == workload).map_or("", |(_, what)| what);
    let mut chapter = Chapter { terms: ready.terms(&exam), ..Chapter::new(workload, what) };
    for rate in rates {
        chapter.sheets.push(exam.sheet(rate, true)?);
    }
    let pictures = drawn(&args.out, &chapter)?;
    args.write(&chapter_page(&chapter, &pictures))
}

/// From the lowest to the highest, each once: they are the places along the pictures, which have one unit.
fn in_order(rates: &[Rate]) -> anyhow::Result<Vec<Rate>> {
    let of = |unit: fn(&Rate) -> Option<f64>| -> Vec<f64> {
        let mut numbers: Vec<f64> = rates.iter().filter_map(unit).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.dedup();
        numbers
    };
    let per_second = of(|rate| if let Rate::PerSecond(number) = rate { Some(*number) } else { None });
    let times = of(|rate| if let Rate::Times(number) = rate { Some(*number) } else { None });
    ensure!(per_second.is_empty() || times.is_empty(), "--rates takes one unit: `10,20` or `x2,x4`, but not both");
    Ok(per_second.into_iter().map(Rate::PerSecond).chain(times.into_iter().map(Rate::Times)).collect())
}

fn all(args: &Args, bar: &Bar) -> anyhow::Result<()> {
    let began = clock::now();
    let known = |name: &String| benchmark::Stage::find(name).is_some();
    if let Some(unknown) = args.only.iter().find(|name| !known(name)) {
        bail!("there is no stage `{unknown}`; `tidegate lab report --help` lists them");
    }
    let (seeds, minutes) = args.stage.days();
    let pass = Pass { seeds, minutes, threads: threads(), watch: bar };
    let chosen = || STAGES.iter().filter(|stage| args.only.is_empty() || args.only.iter().any(|it| it == stage.name));
    bar.expect(chosen().map(|stage| stage.runs(seeds)).sum());
    let (mut chapters, mut pictures) = (Vec::new(), Vec::new());
    for stage in chosen() {
        let chapter = stage.play(&pass)?;
        pictures.push(drawn(&args.out, &chapter)?);
        chapters.push(chapter);
        let took = clock::now().saturating_duration_since(began).as_secs_f64() / 60.0;
        let closing = format!(
            "Written by `tidegate lab report`: {} stages in {took:.1} minutes on {} threads. The same command gives the \
             same numbers, but for what a decision took, which is wall time on the machine that ran it.",
            chapters.len(),
            pass.threads
        );
        // After each stage, so that whoever does not wait for the end has what was done until then.
        args.write(&page(&chapters, &pictures, &targets(&chapters), &closing))?;
    }
    Ok(())
}

/// Draws a chapter's pictures into the folder.
fn drawn(folder: &Path, chapter: &Chapter) -> anyhow::Result<Vec<Plot>> {
    let pictures = plots(chapter, OURS);
    for picture in &pictures {
        let path = folder.join(format!("{}.svg", picture.name));
        fs::write(&path, picture.svg()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(pictures)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        Line::try_parse_from([&["report"], line].concat()).unwrap().args
    }

    #[test]
    fn a_report_is_a_page_and_its_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("deep").join("er");
        let line = ["w10-200", "--rates", "100,200", "--policies", "least-cost,round-robin", "--seeds", "1"];
        let args = args(&[&line[..], &["--minutes", "0.1", "--out", out.to_str().unwrap()]].concat());
        run(&args, &Bar::new()).unwrap();
        let text = fs::read_to_string(out.join("report.md")).unwrap();
        assert!(text.contains("At rate 100") && text.contains("At rate 200"), "{text}");
        for link in text.lines().filter_map(|line| line.split_once("](")) {
            let picture = fs::read_to_string(out.join(link.1.trim_end_matches(')'))).unwrap();
            assert!(picture.starts_with("<svg"));
        }
    }

    #[test]
    fn what_the_whole_benchmark_has_of_its_own_goes_with_a_workload_only() {
        let flags = ["rates=5", "pods=2", "profile=h100-8b", "slo=strict", "trace=a", "scrape=1s", "scrape-loss=0.1"];
        for flag in flags.iter().chain(&["gateways=2", "kv=0.5", "speed=2", "policies=gie"]) {
            let flag = format!("--{flag}");
            let error = Line::try_parse_from(["report", "--out", "x", &flag]).unwrap_err().to_string();
            assert!(error.contains("<WORKLOAD>"), "{flag}: {error}");
            assert!(Line::try_parse_from(["report", "w2", "--out", "x", &flag]).is_ok(), "{flag}");
        }
        assert!(Line::try_parse_from(["report", "--out", "x", "--seeds", "1", "--minutes", "1"]).is_ok());
        for flag in ["--gateways=0", "--gateways=65", "--minutes=1441", "--kv=101", "--speed=0", "--scrape-loss=2"] {
            assert!(Line::try_parse_from(["report", "w2", "--out", "x", flag]).is_err(), "{flag}");
        }
    }

    #[test]
    fn rates_are_put_in_order_and_have_one_unit() {
        let [one, two] = [1.0, 2.0].map(Rate::Times);
        assert_eq!(in_order(&[two, one, two]).unwrap(), [one, two]);
        let error = in_order(&[one, Rate::PerSecond(2.0)]).unwrap_err().to_string();
        assert!(error.starts_with("--rates takes one unit"), "{error}");
    }

    #[test]
    fn an_unknown_stage_is_told_and_stages_do_not_go_with_a_workload() {
        let folder = tempfile::tempdir().unwrap();
        let error = run(&args(&["--only", "w99", "--out", folder.path().to_str().unwrap()]), &Bar::new()).unwrap_err();
        assert!(error.to_string().starts_with("there is no stage `w99`"), "{error}");
        assert!(Line::try_parse_from(["report", "w1", "--only", "w1", "--out", "x"]).is_err());
    }
}
