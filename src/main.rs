//! Parses the command line, runs the command, exits with its code: nothing else.

fn main() -> std::process::ExitCode {
    firegopher::cli::main()
}
