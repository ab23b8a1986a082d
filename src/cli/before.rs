//! What is checked before anything is stopped: a VM that cannot be started must not cost the one it replaces.

use crate::error::Result;
use crate::manifest::model::{Port, Vm, VmmSource};
use crate::plan::{Action, Host, Plan, StepKind};
use crate::project::{self, Project};
use crate::step::boot;
use crate::supervise::{self, Observed};
use crate::vmm::firecracker::version::Version;
use crate::vmm::jail;
use crate::vmm::tuning::{HugePages, PAGE, huge_pages_of};

/// The VMs that are not there and will be started whatever else is found: what fails for them anyway is told before
/// anything is fetched and built. Ports of the project's VMs may become free.
pub(super) fn check_new(project: &Project, observed: &[Observed]) -> Result<()> {
    let alive: Vec<&Observed> = observed.iter().filter(|o| o.alive).collect();
    let is_new = |vm: &&Vm| !alive.iter().any(|o| o.state.vm == vm.name);
    let new: Vec<&Vm> = project.manifest.vms.iter().filter(is_new).collect();
    if new.is_empty() {
        return Ok(());
    }
    let host = project::host(&project.manifest);
    new.into_iter().try_for_each(|vm| {
        boot::check_host(vm, host)?;
        check_ports(vm, &alive)
    })
}

/// The VMs that `plan` starts, against what it will have stopped by then. `version` is that of a VM's Firecracker, by
/// its place in the manifest.
pub(super) fn check(
    project: &Project,
    plan: &Plan,
    host: Host,
    observed: &[Observed],
    version: &dyn Fn(usize) -> Result<Option<Version>>,
) -> Result<()> {
    let action =
        |vm: &crate::name::Name| plan.step(StepKind::Boot, vm).map_or(Action::Keep, |step| step.action);
    let alive = observed.iter().filter(|o| o.alive);
    // Those that left the manifest go first, then each VM right before its successor starts.
    let (mut stopped, others): (Vec<&Observed>, Vec<&Observed>) =
        alive.partition(|o| action(&o.state.vm) == Action::Remove);
    // Huge pages that VMs give back, less those that are promised to the ones before.
    let mut pages: i64 = stopped.iter().copied().map(pages_of).sum();
    for (at, vm) in project.manifest.vms.iter().enumerate() {
        if action(&vm.name) == Action::Keep {
            continue;
        }
        let replaced = others.iter().copied().filter(|o| o.state.vm == vm.name);
        for old in replaced {
            pages += pages_of(old);
            stopped.push(old);
        }
        let jailed_on_kvm = match vm.vmm {
            VmmSource::Firecracker(_) => true,
            // The host's own stays outside.
            VmmSource::QemuPath(_) => false,
            _ => host.kvm,
        };
        if host.root && jailed_on_kvm {
            jail::check_place(&project.home.vm(&project.name, &vm.name))?;
        }
        boot::check_startable(vm, host, version(at)?)?;
        vm.tuning.check_host_with(vm.memory, pages)?;
        if vm.tuning.huge_pages == Some(HugePages::Reserved) {
            pages -= vm.memory.div_ceil(PAGE) as i64;
        }
        check_ports(vm, &stopped)?;
        let ending: Vec<i32> = stopped.iter().map(|o| o.state.supervisor.pid).collect();
        let volumes = boot::volumes(vm, &project.home, &project.name);
        supervise::check_volumes(&vm.name, &volumes, &ending)?;
    }
    Ok(())
}

fn pages_of(observed: &Observed) -> i64 {
    observed.state.vmm.as_ref().map_or(0, |vmm| huge_pages_of(vmm.pid)) as i64
}

/// Whether the ports of `vm` are free, or held by those that will have given them up by then.
fn check_ports(vm: &Vm, stopped: &[&Observed]) -> Result<()> {
    let held = |port: &Port| {
        let mut ports = stopped.iter().flat_map(|o| &o.state.ports);
        ports.any(|p| (p.address, p.host) == (port.address, port.host))
    };
    let mut wanted = vm.ports.iter().filter(|port| !held(port));
    wanted.try_for_each(|port| supervise::bind_port(port, &vm.name).map(drop))
}
