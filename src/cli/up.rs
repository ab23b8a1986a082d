//! `firegopher up`: plan, build, boot, follow.

use super::attach::{self, Followed, Followings, How};
use super::early::Early;
use super::place::Place;
use super::preflight::{self, Which};
use super::signals::Signals;
use super::{down, signals, stdio, target};
use crate::error::{Error, Result};
use crate::manifest::model::{Vm, VmmSource};
use crate::name::Name;
use crate::net::netns::Netns;
use crate::plan::{self, Action, Desired, Graph, Host, Plan, StepKind, VmNodes};
use crate::project::{self, Project};
use crate::step::boot::{BootOptions, supervise_spec};
use crate::step::{Outputs, Work, execute, record_last};
use crate::supervise::{self, Client, Observed, Wish};
use crate::ui::Ui;
use crate::vmm::probe;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these VMs; others stay as they are.
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completions::vms))]
    vms: Vec<String>,
    /// Return once the workloads run.
    #[arg(short, long)]
    detach: bool,
    /// Fail rather than change firegopher.lock.
    #[arg(long)]
    locked: bool,
    /// Fail rather than download.
    #[arg(long)]
    offline: bool,
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open_leaving_out(&place.manifest()?)?;
    let signals = Signals::block(&project.store);
    let early = Early::begin_unless_running(&project);
    let guard = project.guard(&ui)?;
    let selected = target::select(&mut project, &args.vms)?;
    let scan = project.scan(&ui)?;
    let observed = selected.observed(&project)?;
    let plan = project.plan(&scan, &observed);
    // What fails anyway is told before anything is fetched and built.
    preflight::refuse(preflight::refusals(&project, &scan, &plan, &observed, Which::Certain)?)?;
    let pinned = project.pin_missing(&ui, args.locked, args.offline, false)?;
    let plan = if pinned { project.plan(&scan, &observed) } else { plan };
    let how = if args.detach { How::Detached } else { How::Attached };
    if !plan.has_changes() {
        ui.note(&plan::render::summary(&plan));
        drop((guard, early));
        project.tell_left_out(&ui);
        let running = connect_all(&project)?;
        let left_out = std::mem::take(&mut project.left_out);
        drop(project);
        let ended = attach::follow(running, how, signals.as_ref())?;
        return project::verdict(left_out, code(&ended, how));
    }
    let planned_for = project.manifest.vms.len();
    let (graph, done) = loop {
        let graph = Graph::of(&project.manifest);
        let done = execute(&graph, &project.work(&scan, args.offline, &ui));
        match done {
            Ok(done) => break (graph, done),
            Err(error) => project.leave_out_unbuildable(&scan, args.offline, &ui, error)?,
        }
    };
    let work = project.work(&scan, args.offline, &ui);
    ui.clear();
    project.tell_left_out(&ui);
    // Everything is known now: what was undecided is decided.
    let same = project.manifest.vms.len() == planned_for;
    let decided = same && done.ran == 0 && plan.is_decided();
    let plan = if decided { plan } else { project.plan(&scan, &observed) };
    // A signal must not end this process between two VMs: what was started is stopped again first.
    let signals = signals.as_ref();
    signals.inspect(|signals| signals.hold());
    let host = project::host(&project.manifest);
    let boots = Boots {
        project: &project,
        graph: &graph,
        done: &done,
        host,
        work: &work,
        ui: &ui,
        signals,
        observed: &observed,
        early: &early,
        stopped: RefCell::default(),
    };
    let followed = match boots.carry_out(&plan) {
        Ok(followed) => followed,
        Err(error) => match signals.and_then(Signals::interrupted) {
            Some(signal) => return Ok(signals::exit_code(signal)),
            None => return Err(error),
        },
    };
    drop((guard, early));
    // What the VMs use is in their states; whoever follows them keeps nobody from collecting the rest.
    let left_out = std::mem::take(&mut project.left_out);
    drop(project);
    let ended = attach::follow(followed, how, signals)?;
    project::verdict(left_out, code(&ended, how))
}

/// `up -d` promises running VMs, `up` only that nothing went wrong.
fn code(ended: &Followings, how: How) -> ExitCode {
    match ended.interrupted {
        Some(signal) if how == How::Detached || ended.early => signals::exit_code(signal),
        _ if ended.closed => ExitCode::from(stdio::CLOSED_CODE),
        _ if ended.unwritten => ExitCode::FAILURE,
        _ if ended.all_well() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn connect_all(project: &Project) -> Result<Vec<Followed>> {
    project.manifest.vms.iter().filter_map(|vm| connect(project, vm).transpose()).collect()
}

/// Follows a VM that ran before, from now on; `None` if it has just gone.
fn connect(project: &Project, vm: &Vm) -> Result<Option<Followed>> {
    let Some(mut client) = Client::connect(&project.home.vm(&project.name, &vm.name))? else {
        return Ok(None);
    };
    client.attach(false)?;
    Ok(Some(Followed { name: vm.name.clone(), client, ours: false, ports: vm.ports.clone() }))
}

/// Turns the effects of a plan into running VMs.
struct Boots<'a> {
    project: &'a Project,
    graph: &'a Graph,
    done: &'a Outputs,
    host: Host,
    work: &'a Work<'a>,
    ui: &'a Ui,
    signals: Option<&'a Signals>,
    observed: &'a [Observed],
    early: &'a Early,
    /// The VMs that ran and were stopped to be replaced.
    stopped: RefCell<Vec<Name>>,
}

impl Boots<'_> {
    fn carry_out(&self, plan: &Plan) -> Result<Vec<Followed>> {
        let Project { home, name, .. } = self.project;
        // Before anything is stopped: a VM that cannot be started must not cost the one it replaces.
        let found = preflight::refusals(self.project, self.work.scan, plan, self.observed, Which::All)?;
        preflight::refuse(found)?;
        announce(&starting(self.project, plan), self.host, self.ui);
        for step in plan.steps.iter().filter(|s| s.kind == StepKind::Boot && s.action == Action::Remove) {
            let vm = &step.vms[0];
            self.ui.note(&format!("{vm} left the manifest: stopping it"));
            self.stop(vm)?;
        }
        let namespace = self.host.root.then(|| self.early.namespace(self.project)).transpose()?;
        let mut started = Vec::new();
        match self.start_all(plan, namespace.as_ref(), &mut started) {
            Ok(followed) => Ok(followed),
            Err(error) => {
                // A half-started project helps nobody: what this command started goes again.
                if !started.is_empty() {
                    let names: Vec<&str> = started.iter().map(Name::as_str).collect();
                    self.ui.note(&format!("stopping {} again", names.join(", ")));
                }
                for vm in started.iter().rev() {
                    // A second signal is in a hurry.
                    let wish = || match self.signals.is_some_and(Signals::pressed_twice) {
                        true => Wish::Kill,
                        false => Wish::Wait,
                    };
                    if let Err(left) = down::remove_vm(home, name, vm, &wish) {
                        self.ui.warning(&format!("could not remove {vm}: {left}"));
                    }
                }
                self.tell_what_is_down();
                Err(error)
            }
        }
    }

    /// Stops a VM that is replaced, once.
    fn replaced(&self, vm: &Name) -> Result<()> {
        if self.stopped.borrow().contains(vm) {
            return Ok(());
        }
        self.ui.note(&format!("stopping {vm} to replace it"));
        self.stop(vm)?;
        self.stopped.borrow_mut().push(vm.clone());
        Ok(())
    }

    /// A VM that was stopped for its successor cannot be brought back: what it was made of is replaced. But nobody
    /// shall believe that it runs.
    fn tell_what_is_down(&self) {
        let down = self.stopped.borrow();
        if !down.is_empty() {
            let names = down.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
            self.ui.warning(&format!(
                "stopped to be replaced, and not running now: {names}; `firegopher up` starts what is down"
            ));
        }
    }

    /// The stop of a VM is waited for unless somebody presses Ctrl-C: it was asked for and goes on by itself.
    fn stop(&self, vm: &Name) -> Result<()> {
        let Project { home, name, .. } = self.project;
        let wish = || match self.interrupted() {
            true => Wish::Leave,
            false => Wish::Wait,
        };
        down::remove_vm(home, name, vm, &wish).inspect_err(|error| {
            if error.code() == supervise::LEFT {
                self.ui.note(&format!("{vm} is still being stopped; `firegopher down` waits for its end"));
            }
        })
    }

    fn interrupted(&self) -> bool {
        self.signals.and_then(Signals::interrupted).is_some()
    }

    fn start_all(
        &self,
        plan: &Plan,
        namespace: Option<&Netns>,
        started: &mut Vec<Name>,
    ) -> Result<Vec<Followed>> {
        // What one VM gives up and another one takes has to be free before any of them starts: two may swap theirs.
        let stopped = preflight::stopped(plan, self.observed);
        let givers: BTreeSet<&Name> = starting(self.project, plan)
            .into_iter()
            .flat_map(|vm| preflight::givers(vm, &stopped, self.project))
            // Those that leave the manifest are stopped already.
            .filter(|vm| plan.step(StepKind::Boot, vm).is_some_and(|step| step.action != Action::Remove))
            .collect();
        for vm in givers {
            self.replaced(vm)?;
        }
        let manifest = &self.project.manifest;
        let mut followed = Vec::new();
        let mut booted: Vec<(&VmNodes, Desired)> = Vec::new();
        let mut all = manifest.vms.iter().zip(&self.graph.vms).peekable();
        while let Some((vm, nodes)) = all.next() {
            if self.interrupted() {
                return Err(Error::failed("up.interrupted", "interrupted before all VMs were started"));
            }
            let action = plan.step(StepKind::Boot, &vm.name).map(|s| s.action);
            if action == Some(Action::Keep) {
                followed.extend(connect(self.project, vm)?);
                continue;
            }
            match action {
                Some(Action::Replace) => self.replaced(&vm.name)?,
                _ => self.stop(&vm.name)?,
            }
            let (spec, desired) =
                spec_of(vm, nodes, self.done, self.host, BootOptions::default(), self.work)?;
            let waiting = self.early.supervisor(all.peek().is_some())?;
            let client = waiting.begin(&spec, namespace)?;
            started.push(vm.name.clone());
            booted.push((nodes, desired));
            followed.push(Followed { name: vm.name.clone(), client, ours: true, ports: vm.ports.clone() });
        }
        let booted: Vec<(&VmNodes, &Desired)> =
            booted.iter().map(|(nodes, desired)| (*nodes, desired)).collect();
        record_last(self.graph, self.done, &booted, self.work)?;
        Ok(followed)
    }
}

/// A VM's spec and the effects it stands for.
pub(super) fn spec_of(
    vm: &Vm,
    nodes: &VmNodes,
    done: &Outputs,
    host: Host,
    options: BootOptions,
    work: &Work<'_>,
) -> Result<(supervise::SuperviseSpec, Desired)> {
    let outputs: Vec<_> = done.outputs.iter().copied().map(Some).collect();
    let desired = plan::desired(vm, nodes, &outputs, work.scan)
        .map_err(|_| Error::bug("a VM was started before its artifacts were built"))?;
    let spec = supervise_spec(vm, nodes, done, &desired, host, options, work)?;
    Ok((spec, desired))
}

/// The VMs that a plan starts.
fn starting<'a>(project: &'a Project, plan: &Plan) -> Vec<&'a Vm> {
    let starts = |vm: &&Vm| plan.step(StepKind::Boot, &vm.name).is_some_and(|step| step.action.is_change());
    project.manifest.vms.iter().filter(starts).collect()
}

/// The fallback is never silent, nor is a KVM that is no better: once a command, whatever the number of VMs.
pub(super) fn announce(vms: &[&Vm], host: Host, ui: &Ui) {
    notices(vms, host, probe::kvm_without_hardware).iter().for_each(|notice| ui.note(notice));
}

fn notices(vms: &[&Vm], host: Host, no_hardware: impl Fn() -> Option<&'static str>) -> Vec<String> {
    let names = |is_meant: &dyn Fn(&Vm) -> bool| -> Option<String> {
        let names: Vec<&str> = vms.iter().filter(|vm| is_meant(vm)).map(|vm| vm.name.as_str()).collect();
        // Of all VMs nobody has to read the names.
        let all = names.len() == vms.len() && names.len() > 1;
        (!names.is_empty()).then(|| if all { "all VMs".to_owned() } else { names.join(", ") })
    };
    let mut notices = Vec::new();
    let on_firecracker = names(&|vm| matches!(vm.vmm, VmmSource::Firecracker(_)));
    if let Some((names, why)) = on_firecracker.and_then(|names| Some((names, no_hardware()?))) {
        notices.push(format!(
            "{names}: KVM has no hardware behind it here ({why}), and stock kernels crawl or die on it; \
             `vmm \"auto\"` takes QEMU instead"
        ));
    }
    let emulated = names(&|vm| vm.vmm == VmmSource::Auto && !host.kvm);
    notices.extend(emulated.map(|names| {
        format!("{names}: no hardware-backed KVM here, so QEMU emulates the CPU (slower; `firegopher doctor` says why)")
    }));
    let unjailed = names(&|_| !host.root);
    notices.extend(unjailed.map(|names| {
        format!("{names}: without root there is no jail and no tap; QEMU runs as you, its network restricted")
    }));
    notices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notice_about_emulation_comes_once_and_names_its_vms() {
        let text = "vm \"a\" { run \"x\" }\nvm \"b\" { run \"x\" }\nvm \"c\" { run \"x\"; vmm \"qemu\" }\n";
        let manifest = crate::manifest::parse(text, "test", std::path::Path::new("/"))
            .unwrap_or_else(|_| panic!("{text}"));
        let told = |names: &[&str], host: Host| {
            let vms: Vec<&Vm> = manifest.vms.iter().filter(|vm| names.contains(&vm.name.as_str())).collect();
            notices(&vms, host, || None)
        };
        let emulated = Host { root: true, kvm: false };
        let all = told(&["a", "b", "c"], emulated);
        assert_eq!(all.len(), 1);
        assert!(all[0].starts_with("a, b: no hardware-backed KVM"), "{all:?}");
        assert!(told(&["a", "b"], emulated)[0].starts_with("all VMs: "));
        assert!(told(&["c"], emulated).is_empty(), "QEMU was asked for");
        assert_eq!(told(&["a", "b", "c"], Host { root: false, kvm: false }).len(), 2);
        assert!(told(&["a", "b"], Host { root: true, kvm: true }).is_empty());
        assert!(told(&[], emulated).is_empty());
    }
}
