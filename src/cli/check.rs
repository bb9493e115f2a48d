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
use crate::{
    config::{
        self, Config, Given, Problem, Report,
        resources::{Furnished, furnish},
    },
    discovery,
};

/// What standard input is called in reports.
const STDIN: &str = "<stdin>";

/// Say everything that is wrong with a configuration, and what to do about it.
///
/// Every problem is printed with its file, line and column, the line itself and a remedy. Warnings are printed too, but
/// do not fail the check. Nothing is contacted: pods, token files and certificates are not looked at.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes:
  0  every file can be used, perhaps with warnings
  1  at least one cannot, or could not be read; with --against, also: a reload would refuse it
  2  the command line itself is wrong

Examples:
  tidegate check gateway.yaml
  kubectl get configmap gateway -o jsonpath='{.data.gateway\\.yaml}' | tidegate check -
  tidegate check new.yaml --against gateway.yaml    # what would a reload change, what needs a restart?
  tidegate check gateway.yaml --manifests seed/     # InferencePools and InferenceModels, too
  tidegate check --schema > schema.json     # for editors: completion and checks while typing")]
pub(super) struct Args {
    /// Configuration files; `-` reads standard input.
    #[arg(value_name = "FILE", required_unless_present = "schema")]
    files: Vec<PathBuf>,

    /// The configuration in force: say what a reload from it would change, and what only a restart can
    #[arg(long, value_name = "OLD", conflicts_with = "schema")]
    against: Option<PathBuf>,

    /// Check this directory of manifests (or this file) as well, as `serve --manifests` would read it
    #[arg(long, value_name = "DIR", conflicts_with = "schema")]
    manifests: Option<PathBuf>,

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
    let given = Given { manifests: args.manifests.clone() };
    let against = args.against.as_deref().map(|path| load(path, &given).map_err(|report| (path, report))).transpose();
    let against = match against {
        Ok(against) => against,
        Err((path, report)) => {
            write!(out, "{}", told(&report.problems, coloured))?;
            writeln!(out, "{}: {}", path.display(), counted(report.errors(), "error"))?;
            return Ok(ExitCode::from(PROBLEMS));
        }
    };
    let mut code = OK;
    for path in &args.files {
        let (text, good) = verdict(path, against.as_ref(), &given, coloured);
        write!(out, "{text}")?;
        if !good {
            code = PROBLEMS;
        }
    }
    out.flush().context("cannot write the report")?;
    Ok(ExitCode::from(code))
}

/// A configuration that can be used, its text and its warnings.
struct Loaded {
    config: Config,
    text: String,
    warnings: Vec<Problem>,
}

/// What there is to say about one file, and whether it can be used.
fn verdict(path: &Path, against: Option<&Loaded>, given: &Given, coloured: bool) -> (String, bool) {
    let name = if path == Path::new("-") { STDIN.to_owned() } else { path.display().to_string() };
    let (problems, last, good) = match load(path, given) {
        Ok(new) => {
            let last = format!("{name}: ok ({}){}\n", summary(&new.config), also(new.warnings.len()));
            let (more, good) = against.map_or((String::new(), true), |old| reload(&name, old, &new, coloured));
            (new.warnings, last + &more, good)
        }
        Err(report) => {
            let errors = report.errors();
            let warnings = report.problems.len() - errors;
            (report.problems, format!("{name}: {}{}\n", counted(errors, "error"), also(warnings)), false)
        }
    };
    (told(&problems, coloured) + &last, good)
}

fn told(problems: &[Problem], coloured: bool) -> String {
    problems.iter().map(|problem| problem.rendered(coloured) + "\n").collect()
}

/// What a reload from `old` to `new` would do, and whether it would be taken.
fn reload(name: &str, old: &Loaded, new: &Loaded, coloured: bool) -> (String, bool) {
    match config::compare(name, (&old.config, &old.text), (&new.config, &new.text)) {
        Ok(changes) if changes.is_empty() => ("a reload changes nothing\n".to_owned(), true),
        Ok(changes) => {
            let lines: Vec<_> = changes.iter().map(ToString::to_string).collect();
            let many = counted(changes.len(), "value");
            (format!("a reload changes {many}:\n  {}\n", lines.join("\n  ")), true)
        }
        Err(report) => ("a reload is refused:\n".to_owned() + &told(&report.problems, coloured), false),
    }
}

/// The configuration at a path, or on standard input for `-`.
fn load(path: &Path, given: &Given) -> Result<Loaded, Report> {
    let name = path.display().to_string();
    let (name, bytes) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map_err(|error| {
            let message = format!("standard input cannot be read: {error}");
            Report::whole_file(STDIN, message, "pipe a file into it, or name one")
        })?;
        (STDIN, bytes)
    } else {
        (name.as_str(), config::read_file(path)?)
    };
    let (config, mut warnings) = config::load_given(name, &bytes, given)?;
    let (config, notes) = with_manifests(config)?;
    warnings.extend(notes);
    Ok(Loaded { config, text: String::from_utf8_lossy(&bytes).into_owned(), warnings })
}

/// The configuration with what its manifests bring, and what there is to say of them.
fn with_manifests(config: Config) -> Result<(Config, Vec<Problem>), Report> {
    let Some((kubernetes, path)) = config.kubernetes.as_ref().and_then(|it| Some((it, it.manifests.as_deref()?)))
    else {
        return Ok((config, Vec::new()));
    };
    let manifests = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| Report::whole_file("tidegate", error.to_string(), "free some memory or file descriptors"))?
        .block_on(discovery::read_manifests(kubernetes, path))?;
    let Furnished { config, mut notes } = furnish(config, &manifests.world);
    notes.extend(manifests.without_pods(&config));
    let problems = manifests.problems(&notes);
    Ok((config, problems))
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
        let (text, good) = verdict(Path::new("config/two-listeners.yaml"), None, &Given::default(), false);
        assert_eq!((text.as_str(), good), ("config/two-listeners.yaml: ok (2 listeners, 2 pools, 1 model)\n", true));
    }

    #[test]
    fn what_a_reload_would_change_or_refuse_is_told() {
        let old =
            load(Path::new("config/two-listeners.yaml"), &Given::default()).unwrap_or_else(|report| panic!("{report}"));
        let path = Path::new("config/two-listeners.yaml");
        assert!(verdict(path, Some(&old), &Given::default(), false).0.ends_with("a reload changes nothing\n"));
        let (text, good) = verdict(Path::new("config/minimal.yaml"), Some(&old), &Given::default(), false);
        assert!(!good && text.contains("a reload is refused:\n") && text.contains("restart for it"), "{text}");
    }

    #[test]
    fn a_missing_file_and_a_directory_are_told_apart() {
        let (text, good) = verdict(Path::new("config/none.yaml"), None, &Given::default(), false);
        assert!(!good);
        assert_eq!(
            text,
            "config/none.yaml: error: there is no such file
  = help: check the path; it is taken from the directory you are in

config/none.yaml: 1 error
"
        );
        assert!(verdict(Path::new("config"), None, &Given::default(), false).0.contains("this is a directory"));
    }

    #[test]
    fn colour_is_there_only_when_asked_for() {
        assert!(verdict(Path::new("none.yaml"), None, &Given::default(), true).0.contains("\x1b[1;31merror"));
        assert!(!verdict(Path::new("none.yaml"), None, &Given::default(), false).0.contains('\x1b'));
    }
}
