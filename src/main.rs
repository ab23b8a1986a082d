//! Parses the command line, runs the command, exits with its code: nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|a| a == firegopher::supervise::ARGUMENT) {
        return firegopher::supervise::child_main();
    }
    ExitCode::SUCCESS
}
