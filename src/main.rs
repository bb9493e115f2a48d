//! One binary; the verbs live in `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tidegate::cli::main()
}
