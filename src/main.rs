//! One binary; the verbs live in `cli`.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A small request is some hundred allocations. The C library's allocator, on threads of their own, takes a quarter of
/// what the request costs; this one a tenth.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tidegate::cli::main()
}
