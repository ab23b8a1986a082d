//! `firegopher up`: plan, build, boot, follow.

use super::attach::{self, Followed, Followings, Until};
use super::signals::Signals;
use super::{down, signals, target};
use crate::error::{Error, Result};
use crate::manifest::model::{Port, Vm, VmmSource};
use crate::name::Name;
use crate::net::netns::Netns;
use crate::plan::{self, Action, Desired, Graph, Host, Plan, StepKind, VmNodes};
use crate::project::{self, Project};
use crate::step::boot::{self, BootOptions, supervise_spec};
use crate::step::{Outputs, Work, execute, record_last};
use crate::supervise::{self, Client, Observed};
use crate::ui::Ui;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these VMs; others stay as they are.
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

pub(super) fn run(dir: &Path, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open(dir)?;
    let signals = Signals::block(&project.store);
    let guard = project.guard(&ui)?;
    let selected = target::select(&mut project, &args.vms)?;
    let scan = project.scan(&ui)?;
    project.pin_missing(&ui, args.locked, args.offline, false)?;
    let observed = selected.observed(&project)?;
    let until = if args.detach { Until::Running } else { Until::Ended };
    let plan = project.plan(&scan, &observed);
    if !plan.has_changes() {
        ui.note(&plan::render::summary(&plan));
        drop(guard);
        let running = connect_all(&project)?;
        let Project { home, name, store, .. } = project;
        drop(store);
        let ended = attach::follow(running, until, signals.as_ref(), &home, &name, &ui)?;
        return Ok(code(&ended, until));
    }
    let graph = Graph::of(&project.manifest);
    let work = project.work(&scan, args.offline, &ui);
    let done = execute(&graph, &work)?;
    ui.clear();
    // Everything is known now: what was undecided is decided.
    let plan = project.plan(&scan, &observed);
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
    };
    let followed = match boots.carry_out(&plan) {
        Ok(followed) => followed,
        Err(error) => match signals.and_then(Signals::interrupted) {
            Some(signal) => return Ok(signals::exit_code(signal)),
            None => return Err(error),
        },
    };
    drop(guard);
    // What the VMs use is in their states; whoever follows them keeps nobody from collecting the rest.
    let Project { home, name, store, .. } = project;
    drop(store);
    let ended = attach::follow(followed, until, signals, &home, &name, &ui)?;
    Ok(code(&ended, until))
}

/// `up -d` promises running VMs, `up` only that nothing went wrong.
fn code(ended: &Followings, until: Until) -> ExitCode {
    match ended.interrupted {
        Some(signal) if until == Until::Running => signals::exit_code(signal),
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
}

impl Boots<'_> {
    fn carry_out(&self, plan: &Plan) -> Result<Vec<Followed>> {
        let Project { home, name, .. } = self.project;
        // Before anything is stopped: a VM that cannot be started must not cost the one it replaces.
        for vm in &self.project.manifest.vms {
            if plan.step(StepKind::Boot, &vm.name).is_some_and(|step| step.action != Action::Keep) {
                boot::check_secrets(vm)?;
                self.check_ports(vm)?;
            }
        }
        for step in plan.steps.iter().filter(|s| s.kind == StepKind::Boot && s.action == Action::Remove) {
            let vm = &step.vms[0];
            self.ui.note(&format!("{vm} left the manifest: stopping it"));
            down::remove_vm(home, name, vm, false)?;
        }
        let namespace = self.namespace()?;
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
                    let kill = self.signals.is_some_and(Signals::pressed_twice);
                    if let Err(left) = down::remove_vm(home, name, vm, kill) {
                        self.ui.warning(&format!("could not remove {vm}: {left}"));
                    }
                }
                Err(error)
            }
        }
    }

    /// Whether the ports of `vm` are free, or held by VMs of this project, which will have given them up by then.
    fn check_ports(&self, vm: &Vm) -> Result<()> {
        let held = |port: &Port| {
            self.observed
                .iter()
                .filter(|o| o.alive)
                .any(|o| o.state.ports.iter().any(|p| (p.address, p.host) == (port.address, port.host)))
        };
        vm.ports
            .iter()
            .filter(|port| !held(port))
            .try_for_each(|p| supervise::bind_port(p, &vm.name).map(drop))
    }

    fn start_all(
        &self,
        plan: &Plan,
        namespace: Option<&Netns>,
        started: &mut Vec<Name>,
    ) -> Result<Vec<Followed>> {
        let Project { home, name, manifest, .. } = self.project;
        let mut followed = Vec::new();
        let mut booted: Vec<(&VmNodes, Desired)> = Vec::new();
        for (vm, nodes) in manifest.vms.iter().zip(&self.graph.vms) {
            if self.signals.and_then(Signals::interrupted).is_some() {
                return Err(Error::failed("up.interrupted", "interrupted before all VMs were started"));
            }
            let action = plan.step(StepKind::Boot, &vm.name).map(|s| s.action);
            if action == Some(Action::Keep) {
                followed.extend(connect(self.project, vm)?);
                continue;
            }
            if action == Some(Action::Replace) {
                self.ui.note(&format!("stopping {} to replace it", vm.name));
            }
            down::remove_vm(home, name, &vm.name, false)?;
            announce(vm, self.host, self.ui);
            let (client, desired) = self.start(vm, nodes, namespace)?;
            started.push(vm.name.clone());
            booted.push((nodes, desired));
            followed.push(Followed { name: vm.name.clone(), client, ours: true, ports: vm.ports.clone() });
        }
        let booted: Vec<(&VmNodes, &Desired)> =
            booted.iter().map(|(nodes, desired)| (*nodes, desired)).collect();
        record_last(self.graph, self.done, &booted, self.work)?;
        Ok(followed)
    }

    fn start(&self, vm: &Vm, nodes: &VmNodes, namespace: Option<&Netns>) -> Result<(Client, Desired)> {
        let (spec, desired) = spec_of(vm, nodes, self.done, self.host, BootOptions::default(), self.work)?;
        Ok((supervise::spawn(&spec, namespace)?, desired))
    }

    fn namespace(&self) -> Result<Option<Netns>> {
        if !self.host.root {
            return Ok(None);
        }
        project_namespace(self.project).map(Some)
    }
}

/// The project's namespace: of a VM that runs, else a new one. It lives as long as somebody holds it.
pub(super) fn project_namespace(project: &Project) -> Result<Netns> {
    supervise::project_netns(&project.home, &project.name)?.map_or_else(Netns::create, Ok)
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

/// The fallback is never silent.
pub(super) fn announce(vm: &Vm, host: Host, ui: &Ui) {
    if vm.vmm == VmmSource::Auto && !host.kvm {
        ui.note(&format!(
            "{}: no hardware-backed KVM here, so QEMU emulates the CPU (slower; `firegopher doctor` says why)",
            vm.name
        ));
    }
    if !host.root {
        ui.note(&format!(
            "{}: without root there is no jail and no tap; QEMU runs as you, its network restricted",
            vm.name
        ));
    }
}
