//! What the whole home needs and what lies about in it, across all projects: the roots that gc and verify respect, and
//! VMs whose supervisors died.

mod leftovers;
mod roots;

#[cfg(test)]
mod tests;

pub use leftovers::{Lost, lost, reclaim};
pub use roots::roots;

use crate::error::{Error, Result};
use crate::home::Home;
use crate::name::Name;
use fs_err as fs;
use std::io;
use std::path::Path;

/// The projects that have state in a home, sorted.
pub fn projects(home: &Home) -> Result<Vec<Name>> {
    names(&home.states())
}

/// The projects that have volumes in a home, sorted.
pub fn with_volumes(home: &Home) -> Result<Vec<Name>> {
    names(&home.root().join("volumes"))
}

/// The VMs that have a directory in a project, sorted.
fn vms(home: &Home, project: &Name) -> Result<Vec<Name>> {
    names(&home.project(project))
}

/// The directories in `dir` whose names are ours; none if it is absent.
fn names(dir: &Path) -> Result<Vec<Name>> {
    let list = || {
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = Name::new(entry.file_name().to_string_lossy().into_owned());
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                names.extend(name.ok());
            }
        }
        names.sort();
        Ok(names)
    };
    list().map_err(|e: io::Error| Error::failed("upkeep.list", "cannot list the projects").because(e))
}
