//! The command line: what can be typed, and which file does it. One file a command.

mod attach;
mod build;
mod caps;
mod completions;
mod doctor;
mod down;
mod early;
mod gc;
mod init;
mod lock;
mod logs;
mod man;
mod mistyped;
mod place;
mod plan;
mod preflight;
mod ps;
mod run;
mod screen;
mod signals;
mod sink;
mod starter;
mod stdin;
mod stdio;
mod store;
mod target;
mod up;
mod update;
mod verify;

use crate::color;
use crate::error::{Error, Result};
use crate::supervise::{FAILED_CODE, Stream};
use crate::ui;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use mistyped::Wrong;
use place::Place;
use std::any::Any;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs your app in a microVM, from the firegopher.kdl beside it.
#[derive(Debug, Parser)]
#[command(name = "firegopher", version, disable_version_flag = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 changes pending (plan --detailed-exitcode), 64 usage or \
    manifest error, 69 the host lacks something, 70 a bug, 128+N ended by signal N. `run` exits with the workload's own code."
)]
struct Cli {
    /// Work as if started in this directory.
    #[arg(short = 'C', value_name = "DIR", global = true, default_value = ".")]
    directory: PathBuf,
    /// Colour output: auto, always or never.
    #[arg(long, value_name = "WHEN", global = true, value_enum, default_value_t)]
    #[arg(hide_possible_values = true, display_order = 900)]
    color: color::When,
    /// Use this manifest; its directory is the project's. [default: firegopher.kdl here or in the nearest directory above]
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print the version.
    #[arg(short = 'V', short_alias = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a commented starter manifest.
    Init(init::Args),
    /// Show what would happen, and why.
    Plan(plan::Args),
    /// Fetch and build everything, without booting.
    Build(build::Args),
    /// Build what changed, boot, and follow the logs.
    Up(up::Args),
    /// Boot one throw-away VM and exit with its workload's code.
    Run(run::Args),
    /// Stop VMs and remove what they used; volumes stay.
    Down(down::Args),
    /// List this project's VMs, or all projects.
    Ps(ps::Args),
    /// Show what a workload wrote.
    Logs(logs::Args),
    /// Prove what this host can do, by doing it.
    Doctor(doctor::Args),
    /// Pin every asset in firegopher.lock.
    Lock(lock::Args),
    /// Move pins to what the package sources serve now.
    Update(update::Args),
    /// Remove what nobody needs and was not used for long.
    Gc(gc::Args),
    /// Check the store's objects, and take out those that are broken.
    Verify(verify::Args),
    /// Show what the store holds, and what could go.
    Store(store::Args),
    /// Print a shell's completions; source them, or put them where the shell looks.
    Completions(completions::Args),
    /// Write a man page for each command.
    Man(man::Args),
}

/// Parses the process's arguments, runs the command, returns the exit code.
pub fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(first) if first == crate::supervise::ARGUMENT => return crate::supervise::child_main(),
        Some(first) if first == crate::supervise::guard::ARGUMENT => return crate::supervise::guard::main(),
        _ => {}
    }
    completions::answer();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let command = Cli::command().color(color_of_words(&arguments));
    let parsed = command.try_get_matches_from(arguments).and_then(|all| Cli::from_arg_matches(&all));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            let words: Vec<String> =
                std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
            let error = match mistyped::explain(error, &words) {
                Wrong::Ours(error) => {
                    report(&error);
                    return ui::exit_code(&error);
                }
                Wrong::Clap(error) => error,
            };
            // --help and --version are no errors; everything else is EX_USAGE of sysexits.h.
            let code = if error.use_stderr() { 64 } else { 0 };
            // Nothing to be done about a closed terminal.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    color::choose(cli.color);
    let throw_away = matches!(cli.command, Command::Run(_));
    finish(throw_away, || dispatch(cli))
}

/// What clap's own words are coloured by: it has not parsed `--color` yet when it complains of something else.
fn color_of_words(arguments: &[OsString]) -> clap::ColorChoice {
    let own = arguments.iter().skip(1).take_while(|word| *word != "--").filter_map(|word| word.to_str());
    let words: Vec<&str> = own.collect();
    let value = words.iter().enumerate().find_map(|(at, word)| match *word {
        "--color" => words.get(at + 1).copied(),
        word => word.strip_prefix("--color="),
    });
    match value {
        Some("always") => clap::ColorChoice::Always,
        Some("never") => clap::ColorChoice::Never,
        _ => clap::ColorChoice::Auto,
    }
}

/// Does the work, shows its error and returns the exit code. `throw_away`: every code but 125 is a workload's.
fn finish(throw_away: bool, work: impl FnOnce() -> Result<ExitCode>) -> ExitCode {
    // Nothing of what the panic left half done is used again: the process ends.
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(bug_of(&*panic)));
    match result {
        Ok(code) => code,
        Err(error) if error.code() == CLOSED => ExitCode::from(stdio::CLOSED_CODE),
        Err(error) => {
            report(&error);
            if throw_away { ExitCode::from(FAILED_CODE) } else { ui::exit_code(&error) }
        }
    }
}

/// What a panic comes to. Where it happened was said by the panic itself.
fn bug_of(panic: &(dyn Any + Send)) -> Error {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word");
    Error::bug(format!("firegopher panicked: {said}"))
}

/// Shows an error, unless it only comes of the process being ended by a signal.
fn report(error: &Error) {
    use std::io::Write;
    signals::yield_to_the_end();
    // A closed terminal must not turn an error into a panic.
    let _ = writeln!(std::io::stderr(), "{}", ui::render(error));
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let place = Place { dir: cli.directory, file: cli.file };
    if !place.dir.is_dir() {
        let text = format!("there is no directory {}", place.dir.display());
        return Err(Error::usage("directory.missing", text).help("`-C DIR` names the project's directory."));
    }
    match cli.command {
        Command::Init(args) => init::run(&place, &args),
        Command::Plan(args) => plan::run(&place, &args),
        Command::Build(args) => build::run(&place, &args),
        Command::Up(args) => up::run(&place, &args),
        Command::Run(args) => run::run(&place, &args),
        Command::Down(args) => down::run(&place, &args),
        Command::Ps(args) => ps::run(&place, &args),
        Command::Logs(args) => logs::run(&place, &args),
        Command::Doctor(args) => doctor::run(&place, &args),
        Command::Lock(args) => lock::run(&place, &args),
        Command::Update(args) => update::run(&place, &args),
        Command::Gc(args) => gc::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&place, &args),
    }
}

/// Writes a document to stdout as JSON.
fn print_json(document: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(document).map_err(|e| Error::bug(e.to_string()))?;
    print(&(text + "\n"))
}

/// The code of the error of `print` when nobody reads any more.
const CLOSED: &str = "stdout.closed";

/// Writes data to stdout. A reader that went away ends the command without a word, as SIGPIPE ends any filter.
fn print(text: &str) -> Result<()> {
    use crate::error::Context;
    match stdio::write_all(Stream::Stdout, text.as_bytes()) {
        Err(e) if stdio::is_closed(Stream::Stdout, &e) => {
            Err(Error::failed(CLOSED, "standard output was closed").because(e))
        }
        other => other.or_failed("stdout", || "cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_has_its_exit_code() {
        let table: [(fn() -> Error, u8); 4] = [
            (|| Error::failed("x", "it failed"), 1),
            (|| Error::usage("x", "wrong input"), 64),
            (|| Error::host("x", "the host lacks it"), 69),
            (|| Error::bug("an invariant"), 70),
        ];
        for (error, code) in table {
            assert_eq!(finish(false, || Err(error())), ExitCode::from(code), "{}", error());
            assert_eq!(finish(true, || Err(error())), ExitCode::from(125), "`run`: {}", error());
        }
        assert_eq!(finish(true, || Ok(ExitCode::from(64))), ExitCode::from(64), "a workload's own code");
        assert_eq!(finish(false, || Ok(ExitCode::from(2))), ExitCode::from(2));
        for throw_away in [false, true] {
            let closed = || Err(Error::failed(CLOSED, "standard output was closed"));
            assert_eq!(finish(throw_away, closed), ExitCode::from(141), "as if SIGPIPE had ended it");
        }
    }

    #[test]
    fn the_colour_of_clap_s_own_words_follows_the_flag() {
        let chosen = |words: &[&str]| color_of_words(&words.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(chosen(&["firegopher", "ps", "--color", "never"]), clap::ColorChoice::Never);
        assert_eq!(chosen(&["firegopher", "--color=always", "p"]), clap::ColorChoice::Always);
        assert_eq!(chosen(&["firegopher", "run", "--", "ls", "--color=always"]), clap::ColorChoice::Auto);
    }

    #[test]
    fn a_panic_is_told_as_a_bug() {
        let whole = || -> Result<ExitCode> { panic!("the {} broke", "vase") };
        assert_eq!(finish(false, whole), ExitCode::from(70));
        assert_eq!(finish(true, whole), ExitCode::from(125));
        let said = |panic: Box<dyn Any + Send>| bug_of(&*panic).to_string();
        assert!(
            said(catch_unwind(|| panic!("the {} broke", "vase")).unwrap_err()).ends_with("the vase broke")
        );
        assert!(said(catch_unwind(|| panic!("plain")).unwrap_err()).ends_with("plain"));
        assert!(said(Box::new(7)).ends_with("without a word"));
        let shown = ui::render(&bug_of(&"plain"));
        assert!(shown.contains("This is a bug in firegopher"), "{shown}");
    }
}
