//! The `pglockstep` program; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pglockstep::cli::main(std::env::args_os())
}
