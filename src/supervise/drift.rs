//! What of a running VM is no longer on the host as its supervisor made it.

use super::journal::{Effect, Journal};
use super::reclaim::Observed;
use super::state::{State, Status};
use crate::error::Result;
use crate::home::Home;
use crate::name::Name;
use crate::net::netns::Netns;
use crate::net::tap;

/// Something that somebody else removed from under a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Drift {
    /// The directory that its VMM runs in.
    Jail,
    /// Its network device, by name.
    Tap(String),
}

/// What is missing of a VM whose workload runs; nothing for one that boots or ends meanwhile. `namespace` is the
/// project's, see [`super::project_netns`].
///
/// # Errors
/// If the journal of the VM cannot be read, or the namespace not be entered.
pub fn drift(home: &Home, project: &Name, vm: &Observed, namespace: Option<&Netns>) -> Result<Vec<Drift>> {
    let steady = |state: &State| state.status == Status::Running && state.vmm == vm.state.vmm;
    if !vm.alive || !steady(&vm.state) {
        return Ok(Vec::new());
    }
    let dir = home.vm(project, &vm.state.vm);
    let mut missing = Vec::new();
    for effect in Journal::open(&dir)?.into_effects() {
        match effect {
            Effect::Jail { jail } if !jail.root.is_dir() => missing.push(Drift::Jail),
            Effect::Tap { name } if namespace.is_some_and(|ns| !tap::exists(ns, &name).unwrap_or(true)) => {
                missing.push(Drift::Tap(name));
            }
            _ => {}
        }
    }
    // It may have been on its way down, or into another boot.
    let still =
        missing.is_empty() || State::load(&dir)?.is_some_and(|now| steady(&now) && now.is_alive(&dir));
    Ok(if still { missing } else { Vec::new() })
}
