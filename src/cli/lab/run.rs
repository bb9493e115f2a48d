//! `tidegate lab run`: policies on the same traffic, one table.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::{
    bar::Bar,
    rate_text,
    stage::{Stage, rate},
};
use crate::{
    cli::{colour, table::Table},
    clock,
    lab::{
        Standing, Stats,
        study::{METRICS, Metric, Sheet},
        workloads::Rate,
    },
};

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Run {
    /// The traffic; the list is below
    workload: String,
    /// Requests a second (users, where the list says so), or `x4`: four times as fast as recorded
    #[arg(long, default_value = "x1", value_parser = rate)]
    rate: Rate,
    #[command(flatten)]
    stage: Stage,
    /// Also what no policy can beat, and how much of the way from round robin to there each has come
    #[arg(long)]
    bounds: bool,
    /// A second table: goodput, time to the last token, balance of tokens, what a decision takes
    #[arg(long)]
    more: bool,
    /// All numbers as JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// The numbers of the first table; attainment's spread stands beside it, all others are in the JSON.
const FIRST: [&str; 10] = [
    "attainment",
    "ttft_mean_ms",
    "ttft_p50_ms",
    "ttft_p90_ms",
    "ttft_p99_ms",
    "tpot_p99_ms",
    "gap_p99_ms",
    "hit_ratio",
    "preemptions",
    "requests_max_over_mean",
];

pub(super) fn run(run: &Run, bar: &Bar) -> anyhow::Result<ExitCode> {
    use crate::lab::Watch as _;
    let began = clock::now();
    let ready = run.stage.ready(&run.workload)?;
    let exam = ready.exam(bar);
    bar.expect(exam.sheet_runs());
    let sheet = exam.sheet(run.rate, run.bounds)?;
    bar.finish();
    let took = clock::now().saturating_duration_since(began);
    let mut out = io::stdout().lock();
    let terms = ready.terms(&exam);
    if run.json {
        serde_json::to_writer_pretty(&mut out, &as_json(run, &sheet, &terms))?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    let offered = sheet.standings.first().map_or(0.0, |it| it.mean(|stats| stats.offered as f64));
    writeln!(out, "{} at {}: {terms}, {offered:.0} requests counted\n", run.workload, rate_text(run.rate))?;
    if let Some(trace) = &sheet.trace {
        writeln!(out, "Played from {trace}.\n")?;
    }
    let coloured = colour(&out);
    write!(out, "{}", first(&sheet).rendered(coloured))?;
    if run.more {
        write!(out, "\n{}", second(&sheet).rendered(coloured))?;
    }
    if let Some(unanswered) = sheet.unanswered() {
        writeln!(out, "\n{unanswered}")?;
    }
    if exam.setup.shift.is_some() {
        writeln!(out, "\n{}", second_arms(&sheet.standings))?;
    }
    let seeds = "± is the seed farthest from the mean. ";
    let seeds = if sheet.standings.first().is_some_and(|it| it.runs.len() > 1) { seeds } else { "" };
    let runs = (sheet.standings.len() + sheet.bounds.len()) * sheet.standings.first().map_or(0, |it| it.runs.len());
    writeln!(out, "\n{seeds}{runs} run{} took {:.1} s.", if runs == 1 { "" } else { "s" }, took.as_secs_f64())?;
    Ok(ExitCode::SUCCESS)
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

fn first(sheet: &Sheet) -> Table {
    let metrics: Vec<&Metric> = METRICS.iter().filter(|metric| FIRST.contains(&metric.key)).collect();
    table(sheet, &metrics, true)
}

fn second(sheet: &Sheet) -> Table {
    let metrics: Vec<&Metric> = METRICS.iter().filter(|metric| !FIRST.contains(&metric.key)).collect();
    table(sheet, &metrics, false)
}

/// One row each, the best attainment strong; with spreads and the gap where `full`.
fn table(sheet: &Sheet, metrics: &[&Metric], full: bool) -> Table {
    let spread = |metric: &Metric| full && metric.key == "attainment";
    let mut head = vec!["policy".to_owned()];
    for metric in metrics {
        // Two maxima over means: only in this table is it clear which.
        head.push(metric.heading.trim_start_matches("requests ").to_owned());
        head.extend(spread(metric).then(|| "±".to_owned()));
    }
    head.push("gap".to_owned());
    let mut table = Table::new(head);
    let attainment = |it: &Standing| it.mean(|stats| stats.attainment);
    let best = sheet.standings.iter().map(attainment).fold(0.0, f64::max);
    for standing in sheet.standings.iter().chain(&sheet.bounds) {
        let mut row = vec![standing.policy.to_owned()];
        for metric in metrics {
            row.push(metric.unit.text(standing.mean(metric.of)));
            row.extend(spread(metric).then(|| metric.unit.text_of(standing.spread(metric.of))));
        }
        row.push(sheet.gap_closed(standing).filter(|_| full).map_or_else(String::new, |gap| format!("{gap:.2}")));
        table.push(row, attainment(standing) >= best);
    }
    table
}

fn as_json(run: &Run, sheet: &Sheet, terms: &str) -> Value {
    let numbers = |of: &dyn Fn(&Metric) -> Option<f64>| -> Value {
        METRICS
            .iter()
            .map(|metric| (metric.key.to_owned(), json!(of(metric))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let row = |standing: &Standing| {
        json!({
            "policy": standing.policy,
            "unanswered": standing.runs.iter().map(|stats| stats.unanswered).sum::<usize>(),
            "gap_closed": sheet.gap_closed(standing),
            "mean": numbers(&|metric| Some(standing.mean(metric.of))),
            "spread": numbers(&|metric| standing.spread(metric.of)),
        })
    };
    json!({
        "workload": run.workload,
        "rate": rate_text(sheet.rate),
        "terms": terms,
        "trace": sheet.trace,
        "policies": sheet.standings.iter().map(row).collect::<Vec<_>>(),
        "bounds": sheet.bounds.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let stats = |ttft_mean| Stats {
            ttft_mean,
            ttft_p99: 123_456.7,
            attainment: 0.9,
            preemptions: 12_345.0,
            ..Stats::default()
        };
        let standing = |policy, ttft| Standing { policy, runs: vec![stats(ttft), stats(ttft)] };
        Sheet {
            rate: Rate::Times(4.0),
            standings: vec![standing("least-request", 500.0), standing("round-robin", 2_000.0)],
            bounds: vec![standing("bound-pooled", 100.0)],
            trace: None,
        }
    }

    #[test]
    fn the_tables_fit_120_columns_with_everything_in_them() {
        for table in [first(&sheet()), second(&sheet())] {
            let text = table.rendered(false);
            assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
        }
        let text = first(&sheet()).rendered(false);
        assert!(text.lines().nth(1).unwrap().ends_with("0.79"), "(2 - 0.5) / (2 - 0.1): {text}");
    }

    #[test]
    fn one_seed_has_no_spread_and_requests_without_an_answer_are_told() {
        let mut sheet = sheet();
        assert_eq!(sheet.unanswered(), None);
        sheet.standings.iter_mut().for_each(|it| it.runs.truncate(1));
        sheet.standings[1].runs[0].unanswered = 7;
        let text = first(&sheet).rendered(false);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells[..3], ["least-request", "0.9000", "-"], "{text}");
        let told = sheet.unanswered().unwrap();
        assert!(told.ends_with(": round-robin 7."), "{told}");
    }

    #[test]
    fn every_number_is_in_one_of_the_tables() {
        assert!(FIRST.iter().all(|key| METRICS.iter().any(|metric| metric.key == *key)));
    }
}
