//! `firegopher run`: one throw-away VM under a name of its own, without ports; exits with the workload's code.

use super::attach::{self, Followed, How};
use super::early::Early;
use super::place::Place;
use super::{down, signals, stdin, target, up};
use crate::error::{Error, Result};
use crate::manifest::model::{Restart, Vm};
use crate::name::Name;
use crate::plan::Graph;
use crate::project::{self, Project};
use crate::step::boot::{self, BootOptions};
use crate::step::execute;
use crate::supervise::{FAILED_CODE, Wish};
use crate::ui::Ui;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The VM of the manifest; may be left away if there is only one.
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completions::vms))]
    vm: Option<String>,
    /// Run this instead of the manifest's command.
    #[arg(last = true)]
    command: Vec<String>,
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
    let signals = signals::Signals::block_all(&project.store);
    let early = Early::begin(&project);
    let guard = project.guard(&ui)?;
    // Whichever VM is meant, if it is left out, it cannot run.
    let asked =
        project.left_out.iter().position(|left| args.vm.as_deref().is_none_or(|vm| vm == left.vm.as_str()));
    if let Some(at) = asked {
        let left = project.left_out.remove(at);
        return project::verdict(vec![left], ExitCode::FAILURE);
    }
    project.left_out.clear();
    let chosen = choose(&mut project, args.vm.as_deref())?;
    project.partial = true;
    project.manifest.vms = vec![throw_away(chosen.clone(), &args.command)?];
    let host = project::host(&project.manifest);
    // By the name that its user knows it by.
    boot::check_host(&Vm { name: chosen.name, ..project.manifest.vms[0].clone() }, host)?;
    let scan = project.scan(&ui)?;
    project.pin_missing(&ui, args.locked, args.offline, false)?;
    let graph = Graph::of(&project.manifest);
    let work = project.work(&scan, args.offline, &ui);
    let done = execute(&graph, &work)?;
    ui.clear();
    let (vm, nodes) = (&project.manifest.vms[0], &graph.vms[0]);
    up::announce(&[vm], host, &ui);
    let namespace = match host.root {
        true => Some(early.namespace(&project)?),
        false => None,
    };
    let options = BootOptions { ephemeral: true, stdin: true };
    if let Some(signals) = &signals {
        signals.hold();
    }
    let client = up::spec_of(vm, nodes, &done, host, options, &work)
        .and_then(|(spec, _)| early.supervisor(false)?.begin(&spec, namespace.as_ref()))
        .inspect_err(|_| {
            // The first error is the one to tell.
            let _ = down::remove_vm(&project.home, &project.name, &vm.name, &|| Wish::Kill);
            let _ = crate::net::address::release(&project.home.project(&project.name), &vm.name);
        })?;
    drop(guard);
    // The VM's state says what it uses: its life keeps nobody from collecting the rest.
    let Project { home, name, store, manifest, .. } = project;
    drop(store);
    let vm = &manifest.vms[0];
    stdin::forward(client.try_clone()?);
    let followed = vec![Followed { name: vm.name.clone(), client, ours: true, ports: vec![] }];
    let ended = attach::follow(followed, How::InPlace, signals.as_ref())?;
    let outcome = ended.outcomes.into_iter().next().and_then(|(_, outcome)| outcome);
    let outcome = outcome.ok_or_else(|| Error::failed("run.lost", "the VM went away without an end"))?;
    down::remove_vm(&home, &name, &vm.name, &|| Wish::Kill)?;
    Ok(match ended.interrupted {
        // Stopped before there was a workload that could have had a code.
        Some(signal) if ended.early => signals::exit_code(signal),
        // Whatever it says of itself, not all of what it wrote has arrived.
        _ if ended.unwritten => ExitCode::from(FAILED_CODE),
        _ => ExitCode::from(outcome.exit_code()),
    })
}

fn choose(project: &mut Project, wanted: Option<&str>) -> Result<Vm> {
    let vms = &project.manifest.vms;
    match (wanted, vms.as_slice()) {
        (None, [only]) => Ok(only.clone()),
        (None, many) => {
            let names: Vec<&str> = many.iter().map(|vm| vm.name.as_str()).collect();
            Err(Error::usage("run.which", "the manifest has several VMs")
                .help(format!("Name one: firegopher run {}", names.join("|"))))
        }
        (Some(name), vms) => vms
            .iter()
            .find(|vm| vm.name.as_str() == name)
            .cloned()
            .ok_or_else(|| target::unknown_vm(name, vms.iter().map(|vm| vm.name.as_str()))),
    }
}

fn throw_away(mut vm: Vm, command: &[String]) -> Result<Vm> {
    let unique = crate::digest::FieldHasher::new("firegopher run v1")
        .field(std::process::id().to_le_bytes())
        .field(format!("{:?}", std::time::SystemTime::now()))
        .finish();
    vm.name = Name::new(format!("run-{}", &unique.to_hex()[..12])).map_err(Error::bug)?;
    vm.ports.clear();
    vm.restart = Restart::No;
    if !command.is_empty() {
        vm.run = command.to_vec();
    }
    Ok(vm)
}
