//! `tidegate lab capacity`: how much each policy can carry before too many requests miss their promise.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::ensure;
use serde_json::json;

use super::{
    bar::Bar,
    stage::{Stage, rate},
};
use crate::{
    cli::{colour, table::Table},
    clock,
    lab::{
        study::{Capacity, benchmark, capacity_cells},
        workloads::Rate,
    },
};

#[derive(clap::Args, Clone, Debug)]
pub(super) struct Args {
    /// The traffic; the list is below
    workload: String,
    /// Where the search begins: requests a second (users, where the list says so), or `x4`; it tells the unit too
    #[arg(long, default_value = "x1", value_parser = rate)]
    rate: Rate,
    /// The attainments to keep
    #[arg(long, value_delimiter = ',', default_value = "0.9,0.99", value_name = "SHARES")]
    at: Vec<f64>,
    /// How close, as a share of the rate
    #[arg(long, default_value_t = benchmark::RESOLUTION, value_name = "SHARE")]
    resolution: f64,
    #[command(flatten)]
    stage: Stage,
    /// What was found as JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, bar: &Bar) -> anyhow::Result<ExitCode> {
    ensure!(args.at.iter().all(|it| *it > 0.0 && *it <= 1.0), "--at takes numbers above 0 and up to 1");
    ensure!((1e-4..1.0).contains(&args.resolution), "--resolution takes a number from 0.0001 to 1");
    let began = clock::now();
    let ready = args.stage.ready(&args.workload)?;
    let exam = ready.exam(bar);
    let found = exam.capacities(args.rate, &args.at, args.resolution)?;
    bar.finish();
    let took = clock::now().saturating_duration_since(began);
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &as_json(args, &found))?;
        writeln!(out)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{}: {}\n", args.workload, ready.terms(&exam))?;
    write!(out, "{}", table(args, &found).rendered(colour(&out)))?;
    writeln!(
        out,
        "\nThe highest rate that keeps its promise to that share of the requests, below the lowest that does not, to {} %.\n\
         \"of best\" is requests a second over the best other router's, the oracle aside. It took {:.1} s.",
        args.resolution * 100.0,
        took.as_secs_f64()
    )?;
    Ok(ExitCode::SUCCESS)
}

fn table(args: &Args, found: &[Capacity]) -> Table {
    let mut head = vec!["policy".to_owned()];
    for level in &args.at {
        head.extend([format!("rate at {} %", level * 100.0), "requests/s".to_owned(), "of best".to_owned()]);
    }
    let mut table = Table::new(head);
    let first = |it: &Capacity| it.at.first().copied().flatten().map_or(0.0, |point| point.per_second);
    let best = found.iter().map(first).fold(0.0, f64::max);
    for capacity in found {
        let mut row = vec![capacity.policy.to_owned()];
        row.extend((0..args.at.len()).flat_map(|level| capacity_cells(found, capacity, level, args.rate)));
        table.push(row, best > 0.0 && first(capacity) >= best);
    }
    table
}

fn as_json(args: &Args, found: &[Capacity]) -> serde_json::Value {
    let row = |capacity: &Capacity| {
        let level = |(level, point): (&f64, &Option<crate::lab::study::Point>)| {
            json!({
                "at": level,
                "rate": point.map(|it| it.rate),
                "per_second": point.map(|it| it.per_second),
                "attainment": point.map(|it| it.attainment),
            })
        };
        json!({ "policy": capacity.policy, "capacity": args.at.iter().zip(&capacity.at).map(level).collect::<Vec<_>>() })
    };
    json!({ "workload": args.workload, "policies": found.iter().map(row).collect::<Vec<_>>() })
}
