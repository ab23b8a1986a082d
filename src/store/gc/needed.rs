//! What must stay, and for whom: plain data that others fill in, closed over what the store knows.

use crate::digest::{ObjectDigest, StepKey};
use crate::name::Name;
use crate::store::VERDICT;
use crate::store::describe::digests;
use crate::store::inventory::Inventory;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

/// Who needs something.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "needs", rename_all = "kebab-case")]
pub enum User {
    /// A VM that runs reads it at every boot.
    Running {
        /// Its project.
        project: Name,
        /// Its name.
        vm: Name,
    },
    /// It is what was last built for a VM.
    Built {
        /// Its project.
        project: Name,
        /// Its name.
        vm: Name,
    },
    /// A lock file pins it.
    Pinned {
        /// The file.
        lock: PathBuf,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Running { project, vm } => write!(f, "VM {vm} of project {project}, which runs"),
            User::Built { project, vm } => write!(f, "VM {vm} of project {project}"),
            User::Pinned { lock } => write!(f, "{}", lock.display()),
        }
    }
}

/// What must stay.
#[derive(Debug, Default)]
pub struct Needed {
    /// With all who need each.
    pub objects: BTreeMap<ObjectDigest, BTreeSet<User>>,
    /// Steps whose records stay.
    pub keys: BTreeSet<StepKey>,
    /// The digests in a lock file, hexadecimal.
    pins: Vec<(PathBuf, BTreeSet<String>)>,
}

impl Needed {
    /// Says that somebody needs an object.
    pub fn object(&mut self, object: ObjectDigest, user: User) {
        self.objects.entry(object).or_default().insert(user);
    }

    /// Takes the digests in a lock file's text as pins.
    pub fn lock(&mut self, path: PathBuf, text: &str) {
        self.pins.push((path, digests(text).map(str::to_owned).collect()));
    }

    /// Adds what follows: what was fetched for the pins, and the parts of everything.
    pub fn close(&mut self, inventory: &Inventory) {
        for record in &inventory.records {
            let Some(action) = &record.action else { continue };
            // A download's own digest counts, and not what its address may look like.
            let own = action.inputs.iter().any(|(name, _)| name == "sha256");
            let inputs = action.inputs.iter().filter(|(name, _)| !own || name == "sha256");
            let named: Vec<&str> = inputs.flat_map(|(_, value)| digests(value)).collect();
            if named.is_empty() {
                continue;
            }
            // All of them: an image of another project may share most of its packages with this one.
            for (lock, pins) in &self.pins {
                if named.iter().all(|digest| pins.contains(*digest)) {
                    self.keys.insert(record.key);
                    let users = self.objects.entry(action.output).or_default();
                    users.insert(User::Pinned { lock: lock.clone() });
                }
            }
        }
        // What a lock file names as the store does is found without a record.
        for (lock, pins) in &self.pins {
            for object in pins.iter().filter_map(|pin| pin.parse::<ObjectDigest>().ok()) {
                if inventory.objects.contains_key(&object) {
                    let users = self.objects.entry(object).or_default();
                    users.insert(User::Pinned { lock: lock.clone() });
                }
            }
        }
        let parts: Vec<(ObjectDigest, BTreeSet<User>)> = self
            .objects
            .iter()
            .filter_map(|(digest, users)| Some((&inventory.objects.get(digest)?.parts, users)))
            .flat_map(|(parts, users)| parts.iter().map(|part| (*part, users.clone())))
            .collect();
        for (part, users) in parts {
            self.objects.entry(part).or_default().extend(users);
        }
        self.verdicts(inventory);
    }

    /// What was found out about objects that stay, stays: it would be found out again by the next command.
    fn verdicts(&mut self, inventory: &Inventory) {
        for record in &inventory.records {
            let Some(action) = record.action.as_ref().filter(|action| action.kind == VERDICT) else {
                continue;
            };
            let named = action.inputs.iter().flat_map(|(_, value)| digests(value));
            let about: Vec<_> = named.filter_map(|digest| digest.parse::<ObjectDigest>().ok()).collect();
            if about.is_empty() || !about.iter().all(|object| self.objects.contains_key(object)) {
                continue;
            }
            self.keys.insert(record.key);
            let users = self.objects[&about[0]].clone();
            self.objects.entry(action.output).or_default().extend(users);
        }
    }
}
