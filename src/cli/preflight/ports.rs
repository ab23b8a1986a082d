//! Whether the ports that a VM publishes are free, or will be; and who has them if not.

use crate::error::{Error, Result};
use crate::home::Home;
use crate::manifest::model::{Port, Vm};
use crate::name::Name;
use crate::net::listeners::{self, Listener};
use crate::project::{self, Project};
use crate::supervise::{self, Observed, State};
use std::io::ErrorKind;
use std::net::SocketAddr;

/// The code for a port that somebody has.
pub(super) const TAKEN: &str = "supervise.port";

/// Whether a running VM has a port that is in the way of one that `vm` publishes.
pub(super) fn gives(old: &State, vm: &Vm) -> bool {
    let overlaps =
        |port: &Port| old.ports.iter().any(|had| listeners::overlap(had.on_host(), port.on_host()));
    vm.ports.iter().any(overlaps)
}

/// Refuses a port that `vm` could not publish once the VMs `stopped` have ended.
///
/// # Errors
/// `supervise.port`, naming who has it.
pub(super) fn check(vm: &Vm, port: &Port, stopped: &[&Observed], project: &Project) -> Result<()> {
    let wanted = port.on_host();
    let Err(error) = listeners::try_bind(wanted) else { return Ok(()) };
    if error.kind() != ErrorKind::AddrInUse {
        return Err(supervise::port_error(port, &vm.name, error));
    }
    let freed: Vec<SocketAddr> = stopped.iter().flat_map(|o| &o.state.ports).map(Port::on_host).collect();
    let others: Vec<Listener> = listeners::in_the_way(wanted)
        .into_iter()
        // No two listeners have one address: this one is that VM's.
        .filter(|listener| !freed.contains(&listener.address))
        .collect();
    let Some(first) = others.first() else {
        // Where /proc shows nobody, the kernel is believed, unless one that goes explains it.
        return match freed.iter().any(|address| listeners::overlap(*address, wanted)) {
            true => Ok(()),
            false => Err(supervise::port_error(port, &vm.name, error)),
        };
    };
    Err(taken(vm, port, first, project))
}

fn taken(vm: &Vm, port: &Port, by: &Listener, project: &Project) -> Error {
    let subject = format!("port {} of VM {}", port.on_host(), vm.name);
    let another = "publish another host port: port HOST to=GUEST";
    if let Some((other, holder)) = vm_with(by.address, &project.home) {
        if other == project.name {
            return Error::failed(TAKEN, format!("{subject} is held by VM {holder} of this project"))
                .help(format!("stop it with `firegopher down {holder}`, or name it too: `firegopher up`"));
        }
        let dir = project::claimed_by(&project.home.project(&other));
        let place = match dir {
            Some(dir) if !dir.exists() => format!(" in {}, which is gone", dir.display()),
            Some(dir) => format!(" in {}", dir.display()),
            None => String::new(),
        };
        // Its directory may hold several manifests.
        let naming = project::Naming::of(&project.home, &other);
        let stop = format!("stop it with `firegopher down --project {naming} {holder}`");
        let text = format!(
            "{subject} is held by VM {holder} of the project {}{place}",
            project::label(&project.home, &other)
        );
        return Error::failed(TAKEN, text).help(format!("{stop}, or {another}"));
    }
    match by.program() {
        Some(program) => {
            let text = format!("{subject} is held by {} (process {})", program.name, program.pid);
            Error::failed(TAKEN, text).help(format!("end that process, or {another}"))
        }
        None => Error::failed(TAKEN, format!("{subject} is taken by another process"))
            .help(format!("end that process (`ss -ltnp` names it to root), or {another}")),
    }
}

/// The running VM of this home that publishes an address, with its project.
fn vm_with(address: SocketAddr, home: &Home) -> Option<(Name, Name)> {
    let projects = std::fs::read_dir(home.root().join("state")).ok()?;
    let names = projects.flatten().filter_map(|entry| Name::new(entry.file_name().to_str()?).ok());
    names.into_iter().find_map(|project| {
        // A project that cannot be looked at is not the one to ask for.
        let observed = supervise::observe(home, &project).ok()?;
        let mut holders =
            observed.into_iter().filter(|o| o.alive && o.state.ports.iter().any(|p| p.on_host() == address));
        holders.next().map(|o| (project, o.state.vm))
    })
}
