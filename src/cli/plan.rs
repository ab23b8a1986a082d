//! `firegopher plan`: what would happen, and why, and what `up` would refuse. Never uses the network, changes nothing.

use super::place::Place;
use super::preflight::{self, Refusal, Which};
use super::{print, target};
use crate::error::Result;
use crate::image;
use crate::plan::render::{self, GraphFormat};
use crate::plan::{Action, Graph, Plan, StepKind};
use crate::project::{Project, verdict};
use crate::step::program;
use crate::terminal::Stream;
use crate::ui::Ui;
use crate::ui::page::{self, Look};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these VMs.
    #[arg(add = clap_complete::ArgValueCandidates::new(super::completions::vms))]
    vms: Vec<String>,
    /// Print the plan as JSON.
    #[arg(long, conflicts_with = "graph")]
    json: bool,
    /// Exit with 2 if there is something to do.
    #[arg(long)]
    detailed_exitcode: bool,
    /// Show every step, with the digests of what differs.
    #[arg(short, long, conflicts_with_all = ["json", "graph"])]
    verbose: bool,
    /// Draw the steps instead.
    #[arg(long, value_enum)]
    graph: Option<GraphFormat>,
}

/// Says again what was said when an image was built that will be used as it is.
fn tell_warnings(plan: &Plan, project: &Project, ui: &Ui) {
    let images =
        plan.steps.iter().filter(|step| step.kind == StepKind::Image && step.action == Action::Reuse);
    for (step, output) in images.filter_map(|step| Some((step, step.output?))) {
        for warning in image::warnings_of(&project.store.object_path(&output)) {
            ui.warning(&format!("image {}: {warning}", step.subject));
        }
    }
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open_leaving_out(&place.manifest()?)?;
    let selected = target::select(&mut project, &args.vms)?;
    let scan = project.scan(&ui)?;
    let observed = selected.observed(&project)?;
    let plan = project.plan(&scan, &observed);
    let mut refusals = preflight::refusals(&project, &scan, &plan, &observed, Which::All)?;
    refusals.extend(programs(&project, &plan));
    refusals.extend(project.check_pins().err().map(|error| Refusal { vm: None, error }));
    let look = Look { colours: Stream::Out.colours(), width: Stream::Out.width() };
    print(&match args.graph {
        Some(format) => render::graph(&plan, format),
        None if args.json => render::json(&plan, &refusals.iter().map(shown).collect::<Vec<_>>()) + "\n",
        None if args.verbose => render::text(&plan),
        None => page::page(&plan, look),
    })?;
    project.tell_left_out(&ui);
    tell_warnings(&plan, &project, &ui);
    // What `up` would refuse is refused here, after all that it would do otherwise.
    preflight::refuse(refusals)?;
    let pending = args.detailed_exitcode && plan.has_changes();
    verdict(project.left_out, if pending { ExitCode::from(2) } else { ExitCode::SUCCESS })
}

fn shown(refusal: &Refusal) -> render::Refusal<'_> {
    let Refusal { vm, error } = refusal;
    render::Refusal {
        vm: vm.as_ref(),
        code: error.code(),
        message: error.to_string(),
        help: error.help_text(),
    }
}

/// What `up` would refuse to boot, as far as the images are there.
fn programs(project: &Project, plan: &Plan) -> Vec<Refusal> {
    let graph = Graph::of(&project.manifest);
    let outputs: Vec<_> = plan.steps.iter().take(graph.nodes.len()).map(|step| step.output).collect();
    let at = project.manifest.location();
    let vms = project.manifest.vms.iter().zip(&graph.vms);
    let refused = vms.filter_map(|(vm, nodes)| {
        let checked = program::check(vm, nodes, &outputs, &project.store, &at, false);
        Some(Refusal { vm: Some(vm.name.clone()), error: checked.err()? })
    });
    refused.collect()
}
