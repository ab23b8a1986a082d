//! Everything that would make `up` fail although it is known without building: asked by `plan`, which shows it, and by
//! `up` before anything is fetched and again before anything is stopped. A VM that cannot be started must not cost the
//! one it replaces.

mod ports;

use crate::error::{Error, Kind, Result};
use crate::manifest::model::{KernelSource, Vm, VmmSource};
use crate::name::Name;
use crate::plan::{Host, Plan, PlannedStep, Scan, StepKind};
use crate::project::Project;
use crate::step::{self, boot};
use crate::supervise::{self, Observed, Process, Whereabouts};
use crate::ui;
use crate::vmm::firecracker;
use crate::vmm::jail;
use crate::vmm::probe;
use crate::vmm::tuning::{HugePages, PAGE, huge_pages_of};

/// Why a VM cannot be started.
pub(super) struct Refusal {
    /// The VM; none if it is the lock that lacks something.
    pub(super) vm: Option<Name>,
    /// Why not, and how to mend it.
    pub(super) error: Error,
}

/// Which of the VMs that a plan starts are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// All.
    All,
    /// Those that are started whatever the steps give that have yet to run.
    Certain,
}

/// What is known of a VM that a plan starts.
struct Candidate<'a> {
    vm: &'a Vm,
    boot: &'a PlannedStep,
}

/// What makes a start fail of the VMs that `plan` starts, against what it will have stopped by then.
///
/// # Errors
/// Only if what runs elsewhere cannot be looked at.
pub(super) fn refusals(
    project: &Project,
    scan: &Scan,
    plan: &Plan,
    observed: &[Observed],
    which: Which,
) -> Result<Vec<Refusal>> {
    let candidates = candidates(project, plan, which);
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    // Whether KVM is worth anything takes some milliseconds to find out, and is asked only where it decides.
    let host = Host { root: nix::unistd::geteuid().is_root(), kvm: false };
    let stopped = stopped(plan, observed);
    // Huge pages that VMs give back, less those that are promised to the ones before.
    let mut pages: i64 = stopped.iter().copied().map(pages_of).sum();
    let mut refusals = Vec::new();
    if host.root
        && !candidates.is_empty()
        && let Err(error) = supervise::project_netns(&project.home, &project.name)
    {
        // A network that cannot be joined from here would be found out after the stops.
        refusals.push(Refusal { vm: None, error });
    }
    for Candidate { vm, .. } in candidates {
        let mut check = |result: Result<()>| {
            if let Err(error) = result {
                // One cause may be found by two checks.
                let known = refusals
                    .iter()
                    .any(|r: &Refusal| r.vm.as_ref() == Some(&vm.name) && r.error.code() == error.code());
                if !known || error.code() == ports::TAKEN {
                    refusals.push(Refusal { vm: Some(vm.name.clone()), error });
                }
            }
        };
        boot::host_refusals(vm, host).into_iter().for_each(|error| check(Err(error)));
        check(check_place(project, vm, host.root));
        check(check_versions(project, scan, plan, vm));
        check(check_memory(project, plan, vm));
        check(vm.tuning.check_host_with(vm.memory, pages));
        if vm.tuning.huge_pages == Some(HugePages::Reserved) {
            pages -= vm.memory.div_ceil(PAGE) as i64;
        }
        for port in &vm.ports {
            check(ports::check(vm, port, &stopped, project));
        }
        let ending: Vec<Process> = stopped.iter().map(|o| o.state.supervisor.clone()).collect();
        for volume in boot::volumes(vm, &project.home, &project.name) {
            check(supervise::check_volumes(&vm.name, std::slice::from_ref(&volume), &ending));
        }
    }
    Ok(refusals)
}

/// All refusals as one error, which shows each of them.
pub(super) fn refuse(mut refusals: Vec<Refusal>) -> Result<()> {
    if refusals.len() < 2 {
        return refusals.pop().map_or(Ok(()), |refusal| Err(refusal.error));
    }
    let report: Vec<String> = refusals.iter().map(|refusal| ui::render(&refusal.error)).collect();
    // What is wrong with the manifest or the command decides how the command ends, then what the host lacks.
    let rank = |refusal: &Refusal| match refusal.error.kind() {
        Kind::Usage => 0,
        Kind::Host => 1,
        Kind::Failed | Kind::Bug => 2,
    };
    refusals.sort_by_key(rank);
    Err(refusals.remove(0).error.with_report(report.join("\n")))
}

/// The VMs that `plan` starts.
fn candidates<'a>(project: &'a Project, plan: &'a Plan, which: Which) -> Vec<Candidate<'a>> {
    let all = project
        .manifest
        .vms
        .iter()
        .filter_map(|vm| Some(Candidate { vm, boot: plan.step(StepKind::Boot, &vm.name)? }));
    all.filter(|c| c.boot.action.is_change() && (which == Which::All || c.boot.unless.is_empty())).collect()
}

/// The VMs that run and that `plan` removes or replaces: they end before what needs something of theirs starts.
pub(super) fn stopped<'a>(plan: &Plan, observed: &'a [Observed]) -> Vec<&'a Observed> {
    let goes = |o: &&Observed| {
        let action = plan.step(StepKind::Boot, &o.state.vm).map(|step| step.action);
        o.alive && action.is_some_and(|action| action.is_change())
    };
    observed.iter().filter(goes).collect()
}

/// Those of `stopped` that have something that `vm` takes: a port, a volume, huge pages.
pub(super) fn givers<'a>(vm: &Vm, stopped: &[&'a Observed], project: &Project) -> Vec<&'a Name> {
    let volumes = boot::volumes(vm, &project.home, &project.name);
    let gives = |old: &&&Observed| {
        let state = &old.state;
        ports::gives(state, vm)
            || volumes.iter().any(|volume| supervise::has_volume_open(&state.supervisor, volume))
            || (vm.tuning.huge_pages == Some(HugePages::Reserved) && pages_of(old) > 0)
    };
    stopped.iter().filter(|old| old.state.vm != vm.name).filter(gives).map(|old| &old.state.vm).collect()
}

/// A jail's programs have to be executed where the home lies, and its devices opened. Only a VMM on KVM needs any; the
/// host's own QEMU stays outside.
fn check_place(project: &Project, vm: &Vm, root: bool) -> Result<()> {
    if !root || matches!(vm.vmm, VmmSource::QemuPath(_)) {
        return Ok(());
    }
    let dir = project.home.vm(&project.name, &vm.name);
    jail::check_place(&dir, false)?;
    let placed = jail::check_place(&dir, true);
    let needs_device = || matches!(vm.vmm, VmmSource::Firecracker(_)) || probe::kvm().is_usable();
    if placed.is_err() && !needs_device() { Ok(()) } else { placed }
}

/// What depends on which VMM and which kernel there are, as far as they are there.
fn check_versions(project: &Project, scan: &Scan, plan: &Plan, vm: &Vm) -> Result<()> {
    let output = |kind| plan.step(kind, &vm.name).and_then(|step| Some((step, step.output?)));
    let fetched = output(StepKind::FetchVmm).map(|(_, output)| output);
    let version = boot::planned_version(vm, fetched, &project.store, scan)?;
    let is_firecracker = matches!(vm.vmm, VmmSource::Firecracker(_));
    if is_firecracker && version.is_none() {
        return Ok(());
    }
    boot::check_devices(vm, version)?;
    if let Some(version) = version {
        firecracker::version::check(version, &step::firecracker_needs(vm))?;
    }
    match output(StepKind::FetchKernel) {
        // A package's kernel has its drivers, or was refused when it was unpacked: reading its configuration again
        // would only take time. Warnings are told when a kernel is used.
        Some((fetch, kernel)) if !matches!(vm.kernel, KernelSource::Debian(_)) => {
            step::check_kernel(vm, &fetch.subject, &project.store.object_path(&kernel), version).map(drop)
        }
        _ => Ok(()),
    }
}

/// Whether the kernel of `vm` starts in its memory, if kernel and initramfs are there. Warnings are told when they are
/// used.
fn check_memory(project: &Project, plan: &Plan, vm: &Vm) -> Result<()> {
    let output = |kind| plan.step(kind, &vm.name).and_then(|step| step.output);
    let (Some(kernel), Some(initramfs)) = (output(StepKind::FetchKernel), output(StepKind::Initramfs)) else {
        return Ok(());
    };
    let object = |digest| project.store.object_path(digest);
    step::check_memory(&project.manifest.location(), vm, &object(&kernel), &object(&initramfs)).map(drop)
}

fn pages_of(observed: &Observed) -> i64 {
    match observed.state.vmm.as_ref().map(Process::find) {
        Some(Whereabouts::Here(pid)) => huge_pages_of(pid) as i64,
        _ => 0,
    }
}
