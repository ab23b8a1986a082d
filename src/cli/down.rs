//! `firegopher down`: stops VMs and removes what they used. Works from state, without the manifest.

use super::place::{Place, Wanted};
use super::target;
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::name::Name;
use crate::net;
use crate::project;
use crate::supervise::{self, STATE_FILE, State, Wish};
use crate::ui::Ui;
use fs_err as fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// A guest that does not end within its grace is killed by its supervisor; this is for supervisors that hang.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these VMs.
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completions::running_vms))]
    vms: Vec<String>,
    #[command(flatten)]
    project: Wanted,
    /// Also delete the volumes and their data.
    #[arg(short, long)]
    volumes: bool,
    /// Kill the VMs at once.
    #[arg(long)]
    kill: bool,
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let home = Home::from_env()?;
    let project::Identity { key, label, .. } = place.project(&home, &args.project)?;
    if args.volumes && !args.vms.is_empty() {
        return Err(Error::usage("down.volumes", "--volumes deletes the whole project's volumes")
            .help("Leave the VM names away, or leave --volumes away."));
    }
    let nothing = || format!("Nothing to do: project {label} has no VMs.");
    let has_volumes = args.volumes && home.volumes(&key).exists();
    if !has_volumes && !home.project(&key).exists() {
        ui.note(&nothing());
        return Ok(ExitCode::SUCCESS);
    }
    // Also refuses a home that is somebody else's.
    let _store = project::open_store(&home)?;
    let _guard = project::take(&home, &key, &ui)?;
    let observed = supervise::observe(&home, &key)?;
    for wanted in &args.vms {
        if !observed.iter().any(|o| o.state.vm.as_str() == wanted) {
            return Err(target::unknown_vm(wanted, observed.iter().map(|o| o.state.vm.as_str())));
        }
    }
    let chosen: Vec<_> = observed
        .iter()
        .filter(|o| args.vms.is_empty() || args.vms.iter().any(|n| n == o.state.vm.as_str()))
        .collect();
    let names: Vec<&Name> = chosen.iter().map(|o| &o.state.vm).collect();
    remove_all(&home, &key, &names, args.kill, &ui)?;
    if chosen.is_empty() {
        ui.note(&nothing());
    }
    if has_volumes {
        fs::remove_dir_all(home.volumes(&key)).or_failed("down.volumes", || "cannot delete the volumes")?;
        ui.note("deleted the project's volumes");
    }
    if args.vms.is_empty() {
        forget_if_gone(&home, &key, &ui)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes what is kept of a project whose directory is gone, unless it has volumes: nothing would come back to it. The
/// caller holds its lock, and none of its VMs is left.
fn forget_if_gone(home: &Home, key: &Name, ui: &Ui) -> Result<()> {
    let state = home.project(key);
    let Some(claim) = project::Claim::load(&state) else { return Ok(()) };
    if claim.stands() != project::Standing::Gone || claim.directory.exists() {
        return Ok(());
    }
    if home.volumes(key).exists() {
        ui.note(&format!(
            "its volumes stay, although {} is gone: `firegopher down --project {} --volumes` deletes them",
            claim.directory.display(),
            project::Naming::of(home, key)
        ));
        return Ok(());
    }
    fs::remove_dir_all(&state).or_failed("down.state", || "cannot remove the project's state")?;
    ui.note(&format!("forgot the project: its directory {} is gone", claim.directory.display()));
    Ok(())
}

/// Removes VMs side by side, so that none waits for another one's end. A failure keeps no other VM up.
///
/// # Errors
/// The first failure by the order of `vms`; the others are warnings.
fn remove_all(home: &Home, project: &Name, vms: &[&Name], kill: bool, ui: &Ui) -> Result<()> {
    // Without a handler Ctrl-C ends this command; the VMs end by themselves then.
    let wish = || if kill { Wish::Kill } else { Wish::Wait };
    let remove = |vm: &Name| {
        if !kill && let Some(why) = paused(&home.vm(project, vm)) {
            ui.warning(&format!(
                "{vm} is paused: {why}. If it cannot go on now it is killed, and what its guest has not yet written \
                 to its disks is lost"
            ));
        }
        remove_vm(home, project, vm, &wish)?;
        ui.note(&format!("{vm} is down"));
        Ok(())
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = vms.iter().map(|vm| scope.spawn(|| remove(vm))).collect();
        let panicked = |_| Err(Error::bug("a thread that stopped a VM panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let mut failures = results.into_iter().filter_map(Result::err);
    let Some(first) = failures.next() else { return Ok(()) };
    failures.for_each(|error| ui.warning(&error.to_string()));
    Err(first)
}

/// Why a VM stands still, if it runs and does.
fn paused(dir: &Path) -> Option<String> {
    let state = State::load(dir).ok().flatten().filter(|state| state.is_alive(dir))?;
    state.paused
}

/// Stops a VM if it runs and removes everything it used but its volumes and logs. `wish` is asked all the while.
pub(super) fn remove_vm(home: &Home, project: &Name, vm: &Name, wish: &dyn Fn() -> Wish) -> Result<()> {
    let dir = home.vm(project, vm);
    // Never started, or removed before: there are logs at most.
    if !dir.join(STATE_FILE).exists() && !supervise::is_lost(home, project, vm)? {
        return Ok(());
    }
    if supervise::stop_while(home, project, vm, PATIENCE, wish)?.is_none() {
        supervise::reclaim(home, project, vm)?;
    }
    match fs::remove_file(dir.join(STATE_FILE)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::failed("down.state", format!("cannot remove the state of {vm}")).because(e));
        }
        _ => {}
    }
    net::address::release(&home.project(project), vm)
}
