//! VMs whose supervisors died before they could clean up, in all projects.

use crate::error::Result;
use crate::home::Home;
use crate::name::Name;
use crate::project;
use crate::supervise;
use crate::ui::Ui;

/// A VM that nobody holds any more.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Lost {
    /// Its project.
    pub project: Name,
    /// Its name.
    pub vm: Name,
}

/// The VMs whose supervisors left something behind.
pub fn lost(home: &Home) -> Result<Vec<Lost>> {
    let mut all = Vec::new();
    for project in super::projects(home)? {
        for vm in super::vms(home, &project)? {
            if supervise::is_lost(home, &project, &vm)? {
                all.push(Lost { project: project.clone(), vm });
            }
        }
    }
    Ok(all)
}

/// Removes what dead supervisors left: processes, jails, cgroups, taps, leases, scratch disks. Returns the VMs it was
/// done for; one that cannot be cleaned up is warned about. Waits for commands that work on the same project.
pub fn reclaim(home: &Home, ui: &Ui) -> Result<Vec<Lost>> {
    let mut done = Vec::new();
    for Lost { project, vm } in lost(home)? {
        let _guard = project::take(home, &project, ui)?;
        // Whoever had the lock may have cleaned up, or booted it again.
        if !supervise::is_lost(home, &project, &vm)? {
            continue;
        }
        match supervise::reclaim(home, &project, &vm) {
            Ok(()) => done.push(Lost { project, vm }),
            // A throw-away VM's own command removes it, too.
            Err(_) if !supervise::is_lost(home, &project, &vm)? => {}
            Err(e) => {
                let label = project::label(home, &project);
                ui.warning(&format!("could not clean up after VM {vm} of project {label}: {e}"));
            }
        }
    }
    Ok(done)
}
