//! `firegopher lock`: pins every asset the manifest names.

use super::signals;
use crate::error::Result;
use crate::project::{LOCK_FILE, Project};
use crate::ui::Ui;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only check that nothing is missing.
    #[arg(long)]
    locked: bool,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<ExitCode> {
    let ui = Ui::stderr();
    let mut project = Project::open(dir)?;
    let signals = signals::Signals::block(&project.store);
    let guard = project.guard(&ui)?;
    let changed = project.pin_missing(&ui, args.locked, false, true)?;
    if changed {
        project.tell_undone(&ui)?;
    }
    drop(guard);
    ui.clear();
    drop(signals);
    ui.note(&match changed {
        true => format!("Wrote {LOCK_FILE}; check it in."),
        false => format!("{LOCK_FILE} has every pin already."),
    });
    Ok(ExitCode::SUCCESS)
}
