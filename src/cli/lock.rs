//! `firegopher lock`: pins every asset the manifest names.

use super::place::Place;
use super::signals;
use crate::error::Result;
use crate::project::Project;
use crate::ui::Ui;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only check that nothing is missing.
    #[arg(long)]
    locked: bool,
}

pub(super) fn run(place: &Place, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open(&place.manifest()?)?;
    let signals = signals::Signals::block(&project.store);
    let guard = project.guard(&ui)?;
    let changed = project.pin_missing(&ui, args.locked, false, true)?;
    if changed {
        project.tell_undone(&ui)?;
    }
    drop(guard);
    ui.clear();
    drop(signals);
    let lock_file = project.lock_name();
    ui.note(&match changed {
        true => format!("Wrote {lock_file}; check it in."),
        false => format!("{lock_file} has every pin already."),
    });
    Ok(ExitCode::SUCCESS)
}
