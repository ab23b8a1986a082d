//! `firegopher build`: the pure steps only; needs no privileges.

use super::place::Place;
use super::{print_json, signals, target};
use crate::error::Result;
use crate::plan::Graph;
use crate::project::{Project, verdict};
use crate::step::{execute, record_last};
use crate::ui::Ui;
use serde::Serialize;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these VMs.
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completions::vms))]
    vms: Vec<String>,
    /// Fail rather than change firegopher.lock.
    #[arg(long)]
    locked: bool,
    /// Fail rather than download.
    #[arg(long)]
    offline: bool,
    /// Print every step's key and output as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Built<'a> {
    format_version: u32,
    steps: Vec<BuiltStep<'a>>,
}

#[derive(Serialize)]
struct BuiltStep<'a> {
    kind: crate::plan::StepKind,
    subject: &'a str,
    vms: &'a [crate::name::Name],
    key: crate::digest::StepKey,
    output: crate::digest::ObjectDigest,
    path: std::path::PathBuf,
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open_leaving_out(&place.manifest()?)?;
    let signals = signals::Signals::block(&project.store);
    let guard = project.guard(&ui)?;
    target::select(&mut project, &args.vms)?;
    let scan = project.scan(&ui)?;
    project.pin_missing(&ui, args.locked, args.offline, false)?;
    drop(guard);
    let (graph, done) = loop {
        let graph = Graph::of(&project.manifest);
        let done = execute(&graph, &project.work(&scan, args.offline, &ui));
        match done {
            Ok(done) => break (graph, done),
            Err(error) => project.leave_out_unbuildable(&scan, args.offline, &ui, error)?,
        }
    };
    let work = project.work(&scan, args.offline, &ui);
    record_last(&graph, &done, &[], &work)?;
    ui.clear();
    project.tell_left_out(&ui);
    drop(signals);
    match done.ran {
        0 => ui.note("Nothing to build: everything is up to date."),
        n => ui.note(&format!("Built {n} of {} steps.", graph.nodes.len())),
    }
    if args.json {
        let steps = graph.nodes.iter().enumerate().map(|(n, node)| BuiltStep {
            kind: node.task.kind(),
            subject: &node.subject,
            vms: &node.vms,
            key: done.inputs[n].key(node.task.kind()),
            output: done.outputs[n],
            path: project.store.object_path(&done.outputs[n]),
        });
        print_json(&Built { format_version: 1, steps: steps.collect() })?;
    }
    verdict(project.left_out, ExitCode::SUCCESS)
}
