//! The verbs. Each has a file with `pub struct Args` (what it takes) and `pub fn run(args)` (what it does); to add one,
//! write that file and give it a `mod` line, a variant of [`Verb`] and an arm in [`Verb::run`].
//!
//! Only this room prints, and only it decides exit codes.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::config::{self, Config, Given};

mod check;
mod completions;
mod demo;
mod epp;
mod explain;
mod keys;
mod lab;
mod serve;
mod sim;
mod table;

/// Everything worked.
const OK: u8 = 0;
/// What was given has problems; they were printed.
const PROBLEMS: u8 = 1;

/// Shown under `--help` of the whole. The codes are clap's own for usage, and the usual ones for the rest.
const EXIT_CODES: &str = "Exit codes:
  0  it worked
  1  what you gave has problems, or something failed; the reason is printed
  2  the command line itself is wrong";

/// An inference-aware gateway for LLM fleets: it knows how busy each pod is before it sends a request there.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, after_help = EXIT_CODES, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Serve(serve::Args),
    Epp(epp::Args),
    Check(check::Args),
    Sim(sim::Args),
    Lab(lab::Args),
    Explain(explain::Args),
    Keys(keys::Args),
    Completions(completions::Args),
}

impl Verb {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(args) => demo::run(&args),
            Self::Serve(args) => serve::run(&args),
            Self::Epp(args) => epp::run(&args),
            Self::Sim(args) => sim::run(args),
            Self::Lab(args) => lab::run(&args),
            Self::Check(args) => check::run(&args),
            Self::Explain(args) => explain::run(&args),
            Self::Keys(args) => keys::run(&args),
            Self::Completions(args) => completions::run(&args),
        }
    }
}

/// Reads the command line, does what it says, and tells how it went.
pub fn main() -> ExitCode {
    let error = match Cli::parse_from(epp::with_verb(std::env::args_os())).verb.run() {
        Ok(code) => return code,
        Err(error) => error,
    };
    if broken_pipe(&error) {
        // The reader has gone, as `| head` does: there is nobody left to tell, and nothing failed.
        return ExitCode::from(OK);
    }
    // When stderr is gone too, the exit code has to say it all.
    let told = writeln!(io::stderr().lock(), "tidegate: {error:#}");
    drop(told);
    ExitCode::from(PROBLEMS)
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    let cause = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    error.chain().any(cause)
}

/// The configuration at `path`; its problems are printed, and `None` says that it cannot be used.
fn load_config(path: &Path) -> anyhow::Result<Option<Config>> {
    Ok(load_config_text(path, &Given::default())?.map(|(config, _)| config))
}

/// The same, with its text, and with what the command line said besides.
fn load_config_text(path: &Path, given: &Given) -> anyhow::Result<Option<(Config, String)>> {
    let mut err = io::stderr().lock();
    let coloured = colour(&err);
    let loaded = config::read_file(path).and_then(|bytes| {
        let (config, warnings) = config::load_given(&path.display().to_string(), &bytes, given)?;
        Ok(((config, String::from_utf8_lossy(&bytes).into_owned()), warnings))
    });
    let (config, problems) = match loaded {
        Ok((config, warnings)) => (Some(config), warnings),
        Err(report) => (None, report.problems),
    };
    for problem in &problems {
        writeln!(err, "{}", problem.rendered(coloured))?;
    }
    Ok(config)
}

/// Whether to colour what goes to this stream: on a terminal that can, unless `NO_COLOR` is set.
fn colour(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_help_and_says_its_exit_codes() {
        for verb in Cli::command().get_subcommands_mut() {
            let help = verb.render_long_help().to_string();
            assert!(verb.get_about().is_some(), "{help}");
            assert!(help.contains("Exit codes:"), "{help}");
        }
    }
}
