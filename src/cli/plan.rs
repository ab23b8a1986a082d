//! `firegopher plan`: what would happen, and why. Never uses the network, changes nothing.

use super::{print, target};
use crate::error::Result;
use crate::plan::render::{self, GraphFormat};
use crate::project::{Project, verdict};
use crate::ui::Ui;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only these VMs.
    vms: Vec<String>,
    /// Print the plan as JSON.
    #[arg(long, conflicts_with = "graph")]
    json: bool,
    /// Exit with 2 if there is something to do.
    #[arg(long)]
    detailed_exitcode: bool,
    /// Draw the steps instead.
    #[arg(long, value_enum)]
    graph: Option<GraphFormat>,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open_leaving_out(dir)?;
    let selected = target::select(&mut project, &args.vms)?;
    let scan = project.scan(&ui)?;
    let plan = project.plan(&scan, &selected.observed(&project)?);
    print(&match args.graph {
        Some(format) => render::graph(&plan, format),
        None if args.json => render::json(&plan) + "\n",
        None => render::text(&plan),
    })?;
    project.tell_left_out(&ui);
    let pending = args.detailed_exitcode && plan.has_changes();
    verdict(project.left_out, if pending { ExitCode::from(2) } else { ExitCode::SUCCESS })
}
