//! `firegopher init`: a commented starter manifest for what is in the directory.

use super::place::Place;
use super::starter::starter;
use crate::error::{Context, Error, Result};
use crate::manifest::FILE_NAME;
use crate::ui::Ui;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(place: &Place, _: &Args) -> Result<ExitCode> {
    let path = place.dir.join(place.file.as_deref().unwrap_or(Path::new(FILE_NAME)));
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = file.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::usage("init.exists", format!("{} exists already", path.display()))
                .help("Edit it, or move it away first.")
        }
        _ => Error::failed("init.write", format!("cannot write {}", path.display())).because(e),
    })?;
    let (text, kind) = starter(path.parent().unwrap_or(Path::new(".")));
    file.write_all(text.as_bytes()).or_failed("init.write", || format!("cannot write {}", path.display()))?;
    let shown = path.strip_prefix("./").unwrap_or(&path);
    let kind = kind.map(|kind| format!(" for {kind}")).unwrap_or_default();
    Ui::stderr().note(&format!("Wrote {}{kind}. Edit it, then: firegopher up", shown.display()));
    Ok(ExitCode::SUCCESS)
}
