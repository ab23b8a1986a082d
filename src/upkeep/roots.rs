//! Roots: what running VMs read, what was last built for the VMs of known projects, and what their lock files pin.

use crate::error::Result;
use crate::home::Home;
use crate::name::Name;
use crate::store::Store;
use crate::store::gc::{Needed, User};
use crate::supervise::State;
use crate::{manifest, project};
use fs_err as fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Larger lock files are none.
const LOCK_MAX: u64 = 16 << 20;

/// What must stay. Fails rather than overlook what a VM may be using.
pub fn roots(home: &Home, store: &Store) -> Result<Needed> {
    let mut needed = Needed::default();
    for name in super::projects(home)? {
        let known = Known::find(home, &name);
        if let Some(known) = &known {
            let path = known.lock.clone();
            if let Some(text) = read_some(&path) {
                needed.lock(path, &text);
            }
        }
        for vm in super::vms(home, &name)? {
            let dir = home.vm(&name, &vm);
            if let Some(state) = State::load(&dir)?.filter(|state| state.is_alive(&dir)) {
                for object in state.objects {
                    needed.object(object, User::Running { project: name.clone(), vm: vm.clone() });
                }
            }
            if known.as_ref().is_some_and(|known| known.has(&vm)) {
                built(&mut needed, store, &name, &vm);
            }
        }
    }
    Ok(needed)
}

/// The newest outputs of a VM.
fn built(needed: &mut Needed, store: &Store, project: &Name, vm: &Name) {
    let last = store.last(project, vm).unwrap_or_default();
    // What the last boot's workload was made of is what `plan` compares a running VM with.
    let mut objects: Vec<_> = last.booted.into_values().flat_map(|step| step.listings).collect();
    for step in last.steps.into_values() {
        needed.keys.insert(step.key);
        objects.extend(step.output.into_iter().chain(step.listings));
    }
    for object in objects {
        needed.object(object, User::Built { project: project.clone(), vm: vm.clone() });
    }
}

/// A project whose directory still is one.
struct Known {
    /// Its lock file.
    lock: PathBuf,
    /// The VMs of its manifest; `None` if that cannot be read now, and any VM may be one of them.
    vms: Option<Vec<Name>>,
}

impl Known {
    fn find(home: &Home, key: &Name) -> Option<Known> {
        let at = project::Claim::load(&home.project(key))?.location();
        // What cannot be looked at, as on a disk that does not answer, is there for all we know.
        let there = |file: &Path| file.try_exists().unwrap_or(true);
        if !there(&at.path()) && !there(&at.lock_path()) {
            return None;
        }
        let vms = match manifest::load_at(&at) {
            // Another project has taken its place there.
            Ok(manifest) if project::identify(home, &manifest).is_ok_and(|found| found.key != *key) => {
                return None;
            }
            Ok(manifest) => Some(manifest.vms.into_iter().map(|vm| vm.name).collect()),
            Err(_) => None,
        };
        Some(Known { lock: at.lock_path(), vms })
    }

    fn has(&self, vm: &Name) -> bool {
        self.vms.as_ref().is_none_or(|vms| vms.contains(vm))
    }
}

fn read_some(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(LOCK_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}
