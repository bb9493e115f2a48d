//! `tidegate completions`: what a shell needs to complete our command line.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, OK};

/// Print completions for a shell.
///
/// For bash: `tidegate completions bash > /etc/bash_completion.d/tidegate`. For zsh: write `_tidegate` into a directory
/// of `$fpath`. For fish: `~/.config/fish/completions/tidegate.fish`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes:\n  0  printed\n  2  no such shell")]
pub(super) struct Args {
    /// The shell that shall complete.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tidegate", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(ExitCode::from(OK))
}
