//! `firegopher init`: a commented starter manifest.

use crate::error::{Context, Error, Result};
use crate::manifest::{FILE_NAME, STARTER};
use crate::ui::Ui;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(dir: &Path, _: &Args) -> Result<ExitCode> {
    let path = dir.join(FILE_NAME);
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = file.map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::usage("init.exists", format!("{} exists already", path.display()))
                .help("Edit it, or move it away first.")
        }
        _ => Error::failed("init.write", format!("cannot write {}", path.display())).because(e),
    })?;
    file.write_all(STARTER.as_bytes())
        .or_failed("init.write", || format!("cannot write {}", path.display()))?;
    Ui::stderr().note(&format!("Wrote {}. Edit it, then: firegopher up", path.display()));
    Ok(ExitCode::SUCCESS)
}
