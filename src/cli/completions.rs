//! `firegopher completions`: what a shell needs to complete commands, options and names. The script asks this program,
//! so names of VMs and projects are those of the moment.

use super::place::Place;
use super::{Cli, print};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::manifest;
use crate::manifest::model::Manifest;
use crate::name::Name;
use crate::{project, supervise};
use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tells this program that a shell asks for completions, and which shell.
const VARIABLE: &str = "FIREGOPHER_COMPLETE";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell to write them for.
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let shell = args.shell.to_string();
    let shells = Shells::builtins();
    let shell = shells.completer(&shell).ok_or_else(|| Error::bug(format!("{shell} has no completions")))?;
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, "firegopher", "firegopher", "firegopher", &mut script)
        .or_failed("completions", || "cannot write completions")?;
    print(&String::from_utf8(script).map_err(|_| Error::bug("completions are not text"))?)?;
    Ok(ExitCode::SUCCESS)
}

/// Answers a shell and ends the process, if a shell asks.
pub(super) fn answer() {
    CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .bin("firegopher")
        .completer("firegopher")
        .complete();
}

/// The manifest that the command line being completed is about: `-C` and `-f` have been typed before.
fn manifest() -> Option<Manifest> {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    // The shell's words come after `--`, with the program's name first.
    let typed = words.iter().position(|word| word == "--").map_or(&[][..], |at| &words[at + 1..]);
    manifest::load_at(&place(typed.get(1..).unwrap_or_default()).quiet().ok()?).ok()
}

/// What the words before the command say of the place: a command may have options of its own that are called the same.
fn place(words: &[String]) -> Place {
    let mut place = Place { dir: PathBuf::from("."), file: None };
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next_if(|word| word.starts_with('-')) {
        let (option, attached) = match word.split_at_checked(2) {
            Some(("--", _)) => word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value))),
            Some((short, value)) if !value.is_empty() => {
                (short, Some(value.strip_prefix('=').unwrap_or(value)))
            }
            _ => (word, None),
        };
        if !["-C", "-f", "--file", "--color"].contains(&option) {
            continue;
        }
        // bash makes words of their own of `=`.
        let _ = attached.is_none().then(|| words.next_if_eq(&"="));
        let Some(value) = attached.or_else(|| words.next()).map(PathBuf::from) else { break };
        match option {
            "-C" => place.dir = value,
            "-f" | "--file" => place.file = Some(value),
            _ => {}
        }
    }
    // `-C` means the same to every command.
    let mut rest = words.take_while(|word| *word != "--").skip_while(|word| *word != "-C");
    if let Some(dir) = rest.nth(1) {
        place.dir = dir.into();
    }
    place
}

fn candidates(names: impl IntoIterator<Item = Name>) -> Vec<CompletionCandidate> {
    names.into_iter().map(|name| CompletionCandidate::new(name.to_string())).collect()
}

/// The VMs of the manifest.
pub(super) fn vms() -> Vec<CompletionCandidate> {
    candidates(manifest().into_iter().flat_map(|manifest| manifest.vms).map(|vm| vm.name))
}

/// The VMs that have state.
pub(super) fn running_vms() -> Vec<CompletionCandidate> {
    let known = || {
        let home = Home::from_env().ok()?;
        let found = project::identify(&home, &manifest()?).ok()?;
        let observed = supervise::observe(&home, &found.key).ok()?;
        Some(observed.into_iter().map(|vm| vm.state.vm).collect::<Vec<_>>())
    };
    candidates(known().unwrap_or_default())
}

/// The projects of the home.
pub(super) fn projects() -> Vec<CompletionCandidate> {
    let all = Home::from_env().map(|home| project::claims(&home)).unwrap_or_default();
    let naming = |claimed: &project::Claimed| project::Naming::among(&all, &claimed.key).to_string();
    all.iter().map(|claimed| CompletionCandidate::new(naming(claimed))).collect()
}

/// What `update` takes: kinds of assets, and those of the manifest by name.
pub(super) fn assets() -> Vec<CompletionCandidate> {
    let mut words: Vec<String> =
        ["kernel", "vmm", "image", "workload", "tool"].into_iter().map(str::to_owned).collect();
    if let Some(manifest) = manifest() {
        let graph = project::graph_of_any_host(&manifest);
        let needs = project::needs_of(&graph);
        words.extend(needs.iter().flat_map(|need| need.id.names()).map(str::to_owned));
    }
    words.dedup();
    words.into_iter().map(CompletionCandidate::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_what_the_words_before_the_command_say() {
        for (typed, dir, file) in [
            ("logs -f web", ".", None),
            ("logs -C x", "x", None),
            ("-f a.kdl logs -f web", ".", Some("a.kdl")),
            ("--file a.kdl -C shop up", "shop", Some("a.kdl")),
            ("--file=a.kdl up", ".", Some("a.kdl")),
            ("--file = a.kdl up", ".", Some("a.kdl")),
            ("-fa.kdl -C=shop up", "shop", Some("a.kdl")),
            ("--color never -f a.kdl up", ".", Some("a.kdl")),
            ("-f", ".", None),
        ] {
            let words: Vec<String> = typed.split(' ').map(str::to_owned).collect();
            let found = place(&words);
            assert_eq!((found.dir, found.file), (dir.into(), file.map(PathBuf::from)), "{typed}");
        }
    }
}
