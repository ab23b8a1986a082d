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
    let after = |options: &[&str]| {
        let at = words.iter().position(|word| options.contains(&word.as_str()))?;
        words.get(at + 1).map(PathBuf::from)
    };
    let place =
        Place { dir: after(&["-C"]).unwrap_or_else(|| PathBuf::from(".")), file: after(&["-f", "--file"]) };
    manifest::load_at(&place.quiet().ok()?).ok()
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
