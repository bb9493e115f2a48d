//! `tidegate check`: what `serve` would say about a configuration, without serving.
//!
//! It looks at the files alone. It opens no socket and no token file, so it runs on a laptop and in CI.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;

use super::{OK, PROBLEMS, colour};
use crate::config::{self, Config, Problem, Report};

/// What standard input is called in reports.
const STDIN: &str = "<stdin>";

/// Say everything that is wrong with a configuration, and what to do about it.
///
/// Every problem is printed with its file, line and column, the line itself and a remedy. Warnings are printed too, but
/// do not fail the check. Nothing is contacted: pods, token files and certificates are not looked at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes:
  0  every file can be used, perhaps with warnings
  1  at least one cannot, or could not be read
  2  the command line itself is wrong

Examples:
  tidegate check gateway.yaml
  kubectl get configmap gateway -o jsonpath='{.data.gateway\\.yaml}' | tidegate check -
  tidegate check --schema > schema.json     # for editors: completion and checks while typing")]
pub(super) struct Args {
    /// Configuration files; `-` reads standard input.
    #[arg(value_name = "FILE", required_unless_present = "schema")]
    files: Vec<PathBuf>,

    /// Print the JSON schema of a configuration instead.
    #[arg(long, conflicts_with = "files")]
    schema: bool,
}

/// Checks every file and prints what was found.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let stdout = io::stdout();
    let coloured = colour(&stdout);
    let mut out = stdout.lock();
    if args.schema {
        writeln!(out, "{}", serde_json::to_string_pretty(&config::schema())?)?;
        return Ok(ExitCode::from(OK));
    }
    let mut code = OK;
    for path in &args.files {
        let (text, good) = verdict(path, coloured);
        write!(out, "{text}")?;
        if !good {
            code = PROBLEMS;
        }
    }
    out.flush().context("cannot write the report")?;
    Ok(ExitCode::from(code))
}

/// What there is to say about one file, and whether it can be used.
fn verdict(path: &Path, coloured: bool) -> (String, bool) {
    let name = if path == Path::new("-") { STDIN.to_owned() } else { path.display().to_string() };
    let (problems, last, good) = match load(path) {
        Ok((config, warnings)) => {
            let last = format!("{name}: ok ({}){}\n", summary(&config), also(warnings.len()));
            (warnings, last, true)
        }
        Err(report) => {
            let errors = report.errors();
            let warnings = report.problems.len() - errors;
            (report.problems, format!("{name}: {}{}\n", counted(errors, "error"), also(warnings)), false)
        }
    };
    let shown = |problem: &Problem| problem.rendered(coloured) + "\n";
    (problems.iter().map(shown).collect::<String>() + &last, good)
}

/// The configuration at a path, or on standard input for `-`.
fn load(path: &Path) -> Result<(Config, Vec<Problem>), Report> {
    if path != Path::new("-") {
        return config::load_file(path);
    }
    let mut bytes = Vec::new();
    match io::stdin().lock().read_to_end(&mut bytes) {
        Ok(_) => config::load_bytes(STDIN, &bytes),
        Err(error) => {
            let message = format!("standard input cannot be read: {error}");
            Err(Report::whole_file(STDIN, message, "pipe a file into it, or name one"))
        }
    }
}

fn summary(config: &Config) -> String {
    [
        counted(config.listeners.len(), "listener"),
        counted(config.pools.len(), "pool"),
        counted(config.models.len(), "model"),
    ]
    .join(", ")
}

fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// The warnings, if there are any, to go behind something else.
fn also(warnings: usize) -> String {
    if warnings == 0 { String::new() } else { format!(", {}", counted(warnings, "warning")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_file_is_summed_up() {
        let (text, good) = verdict(Path::new("config/two-listeners.yaml"), false);
        assert_eq!((text.as_str(), good), ("config/two-listeners.yaml: ok (2 listeners, 2 pools, 1 model)\n", true));
    }

    #[test]
    fn a_missing_file_and_a_directory_are_told_apart() {
        let (text, good) = verdict(Path::new("config/none.yaml"), false);
        assert!(!good);
        assert_eq!(
            text,
            "config/none.yaml: error: there is no such file
  = help: check the path; it is taken from the directory you are in

config/none.yaml: 1 error
"
        );
        assert!(verdict(Path::new("config"), false).0.contains("this is a directory"));
    }

    #[test]
    fn colour_is_there_only_when_asked_for() {
        assert!(verdict(Path::new("none.yaml"), true).0.contains("\x1b[1;31merror"));
        assert!(!verdict(Path::new("none.yaml"), false).0.contains('\x1b'));
    }
}
