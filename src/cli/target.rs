//! Which VMs a command is about: all of the project, or those named on the command line.

use crate::error::{Error, Result};
use crate::name::Name;
use crate::project::{Project, verdict};
use crate::supervise::Observed;

/// The choice made on the command line.
pub(super) struct Selected {
    /// `None` is the whole project.
    only: Option<Vec<Name>>,
}

/// Narrows the project's manifest to the VMs named, if any.
pub(super) fn select(project: &mut Project, names: &[String]) -> Result<Selected> {
    if names.is_empty() {
        return Ok(Selected { only: None });
    }
    let left_out = project.left_out.iter().map(|left| &left.vm);
    let known: Vec<&str> =
        project.manifest.vms.iter().map(|vm| &vm.name).chain(left_out).map(Name::as_str).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(unknown_vm(name, known.into_iter()));
    }
    project.left_out.retain(|left| names.iter().any(|n| n == left.vm.as_str()));
    if project.left_out.len() == names.len() {
        return verdict(std::mem::take(&mut project.left_out), Selected { only: None });
    }
    project.partial = true;
    project.manifest.vms.retain(|vm| names.iter().any(|n| n == vm.name.as_str()));
    Ok(Selected { only: Some(project.manifest.vms.iter().map(|vm| vm.name.clone()).collect()) })
}

impl Selected {
    /// What is observed of the chosen VMs.
    pub(super) fn observed(&self, project: &Project) -> Result<Vec<Observed>> {
        let mut observed = project.observed()?;
        if let Some(only) = &self.only {
            observed.retain(|o| only.contains(&o.state.vm));
        }
        Ok(observed)
    }
}

/// There is no such VM; says which there are.
pub(super) fn unknown_vm<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let known: Vec<&str> = known.collect();
    let near = known.iter().map(|k| (strsim::damerau_levenshtein(name, k), k)).min().filter(|(d, _)| *d <= 2);
    let help = match (near, known.as_slice()) {
        (Some((_, near)), _) => format!("Did you mean {near}?"),
        (None, []) => "There are none; `firegopher up` starts those of the manifest.".to_owned(),
        (None, known) => format!("There are: {}.", known.join(", ")),
    };
    Error::usage("vm.unknown", format!("there is no VM named {name:?}")).help(help)
}
