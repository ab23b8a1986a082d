//! Looks at VMs from outside: which are there, which live, and what the dead left behind.

use super::client::Client;
use super::effects::remove_file;
use super::host::Host;
use super::journal::{Effect, JOURNAL_FILE, Journal};
use super::machine::Platform;
use super::outcome::{Outcome, Reason};
use super::process::Whereabouts;
use super::state::{STATE_FILE, State, Status};
use super::supervisor;
use super::{clock, wire};
use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::name::Name;
use crate::net::address;
use crate::net::netns::Netns;
use crate::replace;
use fs_err as fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// A VM as found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// What its supervisor last wrote.
    pub state: State,
    /// Whether its supervisor still runs. A state that says `Running` without one is a crash: reclaim it.
    pub alive: bool,
}

/// The VMs of a project, by name.
pub fn observe(home: &Home, project: &Name) -> Result<Vec<Observed>> {
    let dir = home.project(project);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => {
            let text = format!("cannot list the VMs of project {project}");
            return Err(Error::failed("supervise.observe", text).because(e));
        }
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry =
            entry.or_failed("supervise.observe", || format!("cannot list the VMs of project {project}"))?;
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        if let Some(state) = State::load(&entry.path())? {
            found.push(Observed { alive: state.is_alive(&entry.path()), state });
        }
    }
    found.sort_by(|a, b| a.state.vm.cmp(&b.state.vm));
    Ok(found)
}

/// Removes whatever a dead supervisor left of a VM: its VMM, jail, cgroup, tap, scratch disk, lease and socket, as
/// written in the journal. Its state then says that it failed. Does nothing to a VM that was cleaned up already.
///
/// # Errors
/// `supervise.running` if the supervisor lives; `supervise.clean-up` names what could not be removed.
pub fn reclaim(home: &Home, project: &Name, vm: &Name) -> Result<()> {
    let dir = home.vm(project, vm);
    // A tap that outlives its VMM is removed where the project's other VMs live.
    let netns = match project_netns(home, project) {
        // The others' namespace cannot be entered from here; a tap ends with the process that holds it.
        Err(e) if e.code() == HIDDEN => None,
        other => other?,
    };
    reclaim_with(&Host::new(netns), &dir, vm)?;
    // Others keep their address from boot to boot; an ephemeral VM never boots again.
    if !dir.exists() {
        address::release(&home.project(project), vm)?;
    }
    Ok(())
}

/// Whether a VM's supervisor died before it cleaned up: there is something for [`reclaim`] to do.
pub fn is_lost(home: &Home, project: &Name, vm: &Name) -> Result<bool> {
    let dir = home.vm(project, vm);
    match State::load(&dir)? {
        Some(state) if state.is_alive(&dir) => Ok(false),
        // One that ends for good leaves no directory either.
        Some(state) if state.ephemeral || !state.status.is_final() => Ok(true),
        _ => Ok(!Journal::open(&dir)?.is_empty()),
    }
}

pub(super) fn reclaim_with(platform: &dyn Platform, dir: &Path, vm: &Name) -> Result<()> {
    match dir.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(e) => {
            return Err(
                Error::failed("supervise.observe", format!("cannot look at {}", dir.display())).because(e)
            );
        }
    }
    let Some(_lock) = lock_of_the_dead(dir)? else {
        return Err(Error::failed("supervise.running", format!("VM {vm} is held by a live supervisor"))
            .help("stop it first: firegopher down"));
    };
    let mut journal = Journal::open(dir)?;
    // A uid is free for others only once nothing of its VM is left.
    journal.undo(|e| !matches!(e, Effect::Uid { .. }), |e| platform.undo(e))?;
    journal.undo(|_| true, |e| platform.undo(e))?;
    for file in [JOURNAL_FILE, STATE_FILE] {
        replace::sweep(&dir.join(file)).or_failed("supervise.remove", || "cannot remove half a state")?;
    }
    remove_file(&dir.join(wire::SOCKET_FILE))
        .or_failed("supervise.remove", || "cannot remove a dead socket")?;
    let Some(mut state) = State::load(dir)? else { return Ok(()) };
    if state.ephemeral {
        supervisor::discard(dir);
    } else if !state.status.is_final() {
        state.status = Status::Failed;
        state.reason = Some(Reason::Failed);
        state.vmm = None;
        state.paused = None;
        state.error = Some("its supervisor died".to_owned());
        state.ended_ms = Some(clock::wall_ms());
        state.save(dir)?;
    }
    Ok(())
}

/// The lock of a VM's directory, `None` if a live supervisor holds it. A supervisor that was ended while it started
/// its VMM leaves the lock with a half-made child for a moment: that one is waited for.
fn lock_of_the_dead(dir: &Path) -> Result<Option<impl Sized + use<>>> {
    let until = Instant::now() + Duration::from_secs(3);
    loop {
        if let Some(lock) = supervisor::lock(dir)? {
            return Ok(Some(lock));
        }
        let lives = State::load(dir)?.is_some_and(|state| state.is_alive(dir));
        if lives || Instant::now() >= until {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What somebody who waits for a VM's end wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To wait on.
    Wait,
    /// To go. The VM ends by itself, as it was asked to.
    Leave,
    /// It to end at once.
    Kill,
}

/// The code of the error about a VM whose end was not waited for.
pub const LEFT: &str = "supervise.left";
/// The code of the error about a project whose network cannot be reached from here.
pub const HIDDEN: &str = "supervise.hidden";
/// How long a wish may go unheard.
const SLICE: Duration = Duration::from_millis(50);
/// What a supervisor may take to kill its VM and to clean up, and what the kernel may take to end a supervisor.
const ENDING: Duration = Duration::from_secs(10);

/// Stops a VM, whatever version its supervisor is of, waits for its end and reclaims what is left. `None` if there
/// was no such VM. A supervisor that is not gone after `timeout` is killed, and the VM with it.
pub fn stop(
    home: &Home,
    project: &Name,
    vm: &Name,
    kill: bool,
    timeout: Duration,
) -> Result<Option<Outcome>> {
    let wish = || if kill { Wish::Kill } else { Wish::Wait };
    stop_while(home, project, vm, timeout, &wish)
}

/// `stop`, asking all the while what is wished for.
///
/// # Errors
/// [`LEFT`] after [`Wish::Leave`].
pub fn stop_while(
    home: &Home,
    project: &Name,
    vm: &Name,
    timeout: Duration,
    wish: &dyn Fn() -> Wish,
) -> Result<Option<Outcome>> {
    let dir = home.vm(project, vm);
    let Some(state) = State::load(&dir)? else { return Ok(None) };
    let failed = || format!("cannot stop the supervisor of VM {vm}");
    if let Some(pidfd) = state.supervisor.pidfd().or_failed("supervise.stop", failed)? {
        use super::process::{send, wait};
        let mut until = Instant::now() + timeout;
        let mut asked = false;
        let mut hurried = false;
        let mut insist = false;
        loop {
            let wished = wish();
            if wished == Wish::Kill && !hurried {
                hurried = true;
                until = until.min(Instant::now() + ENDING);
                let told = Client::connect(&dir).and_then(|client| client.map_or(Ok(()), |c| c.stop(true)));
                insist = told.is_err();
            }
            if !asked || insist {
                asked = true;
                // The one request that every version understands, and that needs no connection; the second one means:
                // at once. Two that come together are one, so it is sent until it has been heard.
                send(&pidfd, libc::SIGTERM).or_failed("supervise.stop", failed)?;
            }
            let left = until.saturating_duration_since(Instant::now());
            if wait(&pidfd, left.min(SLICE)).or_failed("supervise.stop", failed)? {
                break;
            }
            if wished == Wish::Leave {
                return Err(Error::failed(LEFT, format!("VM {vm} has not ended yet")));
            }
            if left.is_zero() {
                send(&pidfd, libc::SIGKILL).or_failed("supervise.stop", failed)?;
                wait(&pidfd, ENDING).or_failed("supervise.stop", failed)?;
                break;
            }
        }
    } else if state.is_alive(&dir) {
        stop_unseen(&dir, vm, timeout, wish)?;
    }
    reclaim(home, project, vm)?;
    Ok(State::load(&dir)?.and_then(|s| s.outcome()))
}

/// Stops a VM whose supervisor runs in a pid namespace that cannot be seen from here: by its socket, and its end is
/// that of its lock.
fn stop_unseen(dir: &Path, vm: &Name, timeout: Duration, wish: &dyn Fn() -> Wish) -> Result<()> {
    let mut until = Instant::now() + timeout;
    let (mut asked, mut hurried) = (false, false);
    while supervisor::is_locked(dir) {
        let wished = wish();
        let kill = wished == Wish::Kill && !hurried;
        if (!asked || kill)
            && let Some(client) = Client::connect(dir)?
        {
            client.stop(kill)?;
            asked = true;
        }
        if kill {
            hurried = true;
            until = until.min(Instant::now() + ENDING);
        }
        if wished == Wish::Leave {
            return Err(Error::failed(LEFT, format!("VM {vm} has not ended yet")));
        }
        if Instant::now() >= until {
            let text = format!("VM {vm} does not end, and its supervisor runs in another pid namespace");
            return Err(Error::failed("supervise.stop", text)
                .help("run `firegopher down --kill` where it was started: from here it cannot be killed"));
        }
        std::thread::sleep(SLICE);
    }
    Ok(())
}

/// The network namespace of a project, as held by any of its live supervisors.
///
/// # Errors
/// [`HIDDEN`] if all of those that hold it run in pid namespaces that cannot be seen from here.
pub fn project_netns(home: &Home, project: &Name) -> Result<Option<Netns>> {
    let mut hidden = None;
    for observed in observe(home, project)?.into_iter().filter(|observed| observed.alive) {
        let Some(fd) = observed.state.netns_fd else { continue };
        let supervisor = &observed.state.supervisor;
        let pid = match supervisor.find() {
            Whereabouts::Here(pid) => pid,
            Whereabouts::Hidden => {
                hidden = Some(observed.state.vm);
                continue;
            }
            Whereabouts::Gone => continue,
        };
        let Ok(file) = std::fs::File::open(format!("/proc/{pid}/fd/{fd}")) else { continue };
        // Only now is it certain that the descriptor was that supervisor's.
        if supervisor.is_alive() {
            return Ok(Some(Netns::from_fd(OwnedFd::from(file))));
        }
    }
    match hidden {
        None => Ok(None),
        Some(vm) => {
            let text = format!("VM {vm} runs in another pid namespace, which has the network of its project");
            Err(Error::failed(HIDDEN, text)
                .help("run this where the VM was started, or stop the project's VMs first: firegopher down"))
        }
    }
}
