//! The `sgp` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    sgp::cli::run()
}
