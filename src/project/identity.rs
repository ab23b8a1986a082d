//! Which project a directory holds. A project is known again after its directory was moved or its manifest gave it
//! another name: its state and volumes stay under the key they were made with, and only what it is called changes.
//!
//! A directory is the same one by its inode and the time of its birth, else by its path. A move to another file system
//! makes new inodes, but the time of the manifest's last change goes along. Copies and clones have neither, and so are
//! projects of their own.

use super::claim::{Claim, Claimed, Standing, claims};
use crate::error::{Error, Result};
use crate::home::Home;
use crate::manifest::model::Manifest;
use crate::manifest::{self, derived_name};
use crate::name::Name;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A project as found in a home.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Names its state and volumes on the disk.
    pub key: Name,
    /// What people call it.
    pub label: Name,
    /// Where it was when it was last seen, if it has moved since.
    pub moved_from: Option<PathBuf>,
    /// What it was called then, if it has another name now.
    pub was_called: Option<Name>,
}

impl Identity {
    /// A line for people, if the project is not where it was or not called what it was.
    pub fn news(&self) -> Option<String> {
        let label = &self.label;
        match (&self.moved_from, &self.was_called) {
            (None, None) => None,
            (Some(from), None) => {
                Some(format!("project {label} was in {}: its VMs and volumes came along", from.display()))
            }
            (None, Some(old)) => {
                Some(format!("project {label} was called {old}: its VMs and volumes came along"))
            }
            (Some(from), Some(old)) => Some(format!(
                "project {label} was called {old} and was in {}: its VMs and volumes came along",
                from.display()
            )),
        }
    }
}

/// Finds the project of a manifest.
///
/// # Errors
/// `project.claimed` if the name is another directory's; `project.ambiguous` if state of two projects is in question.
pub fn identify(home: &Home, manifest: &Manifest) -> Result<Identity> {
    let here = Claim::of(manifest);
    let usual = manifest::project_name(manifest);
    // The usual case needs no look at the other projects.
    if let Some(claim) = Claim::load(&home.project(&usual))
        && (&claim.directory, &claim.manifest, &claim.name) == (&here.directory, &here.manifest, &here.name)
        && claim.inode == here.inode
    {
        return Ok(Identity { label: usual.clone(), key: usual, moved_from: None, was_called: None });
    }
    let others = claims(home);
    let search = Search {
        claims: &others,
        standing: &|claim| claim.stands(),
        holds: &|key| holds_something(home, key),
        derived: &|attempt| derived_name(manifest, attempt),
    };
    search.decide(&here)
}

/// The project that last claimed a directory or one above it, for commands that need no manifest.
pub fn claimed_at(home: &Home, dir: &Path) -> Option<Identity> {
    let all = claims(home);
    let known = |dir: &Path| {
        let inode = super::claim::Inode::of(dir);
        let by_inode = |c: &&Claimed| inode.is_some_and(|now| c.claim.is_on(&now));
        all.iter().find(by_inode).or_else(|| all.iter().find(|c| c.claim.directory == dir))
    };
    let found = dir.ancestors().find_map(known)?;
    Some(Identity {
        key: found.key.clone(),
        label: found.label().clone(),
        moved_from: None,
        was_called: None,
    })
}

/// What names a project on a command line, wherever the project is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Naming {
    /// What it is called, else its key: `NAME`.
    Usual(Name),
    /// Its key alone, which may be what another one is called by now: `key:NAME`.
    Key(Name),
}

/// What is before a key in a [`Naming`]. No name has a colon.
const BY_KEY: &str = "key:";

impl FromStr for Naming {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(BY_KEY) {
            Some(key) => Name::new(key).map(Naming::Key),
            None => Name::new(text).map(Naming::Usual),
        }
    }
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Naming::Usual(name) => f.pad(name.as_str()),
            Naming::Key(key) => write!(f, "{BY_KEY}{key}"),
        }
    }
}

impl Naming {
    /// What names the project of a key and no other one: its label, unless others are called so, too.
    pub fn of(home: &Home, key: &Name) -> Naming {
        Naming::among(&claims(home), key)
    }

    /// As [`Self::of`], of all the claims of a home.
    pub fn among(all: &[Claimed], key: &Name) -> Naming {
        let label = all.iter().find(|c| c.key == *key).map_or(key, Claimed::label);
        match all.iter().any(|c| c.label() == label && c.key != *key) {
            true => Naming::Key(key.clone()),
            false => Naming::Usual(label.clone()),
        }
    }
}

/// The project that is named so, wherever it is.
///
/// # Errors
/// `project.unknown`, with those that there are.
pub fn named(home: &Home, naming: &Naming) -> Result<Identity> {
    let all = claims(home);
    let (wanted, labels) = match naming {
        Naming::Usual(name) => (name, true),
        Naming::Key(key) => (key, false),
    };
    let mut by_label: Vec<&Claimed> = all.iter().filter(|c| labels && c.label() == wanted).collect();
    // A directory that is gone may have left its name to another one.
    by_label.sort_by_key(|c| c.claim.stands() == Standing::Gone);
    let identity = |key: &Name, label: &Name| Identity {
        key: key.clone(),
        label: label.clone(),
        moved_from: None,
        was_called: None,
    };
    if let Some(found) = by_label.first().copied().or_else(|| all.iter().find(|c| c.key == *wanted)) {
        return Ok(identity(&found.key, found.label()));
    }
    // State or volumes whose claim was lost.
    if home.project(wanted).is_dir() || home.volumes(wanted).is_dir() {
        return Ok(identity(wanted, wanted));
    }
    let known: Vec<String> = all.iter().map(|c| Naming::among(&all, &c.key).to_string()).collect();
    let help = match known.as_slice() {
        [] => "This home has no projects.".to_owned(),
        known => format!("There are: {}. `firegopher ps --all` lists them.", known.join(", ")),
    };
    Err(Error::usage("project.unknown", format!("there is no project {naming} in {}", home.root().display()))
        .help(help))
}

/// Whether a VM of a project runs, or it has volumes.
fn holds_something(home: &Home, key: &Name) -> bool {
    let has_volumes = std::fs::read_dir(home.volumes(key)).is_ok_and(|mut entries| entries.next().is_some());
    has_volumes || crate::supervise::observe(home, key).is_ok_and(|all| all.iter().any(|vm| vm.alive))
}

/// Decides by plain data; the closures look at the disk.
struct Search<'a> {
    claims: &'a [Claimed],
    standing: &'a dyn Fn(&Claim) -> Standing,
    /// Whether something would be lost or left alone with a key.
    holds: &'a dyn Fn(&Name) -> bool,
    /// Names for a project without one.
    derived: &'a dyn Fn(u32) -> Name,
}

impl<'a> Search<'a> {
    fn decide(&self, here: &Claim) -> Result<Identity> {
        let mine = self.mine(here);
        match &here.name {
            Some(name) => self.named(here, name, &mine),
            None => Ok(self.unnamed(here, &mine)),
        }
    }

    /// The claims on this very manifest. Inodes are stronger than paths: two directories may have been swapped.
    fn mine(&self, here: &Claim) -> Vec<&'a Claimed> {
        let same_file = self.claims.iter().filter(|c| c.claim.manifest == here.manifest);
        let by_inode: Vec<&Claimed> =
            same_file.clone().filter(|c| here.inode.is_some_and(|now| c.claim.is_on(&now))).collect();
        if by_inode.is_empty() {
            return same_file.filter(|c| c.claim.directory == here.directory).collect();
        }
        by_inode
    }

    fn named(&self, here: &Claim, name: &Name, mine: &[&'a Claimed]) -> Result<Identity> {
        if let Some(same) = mine.iter().find(|c| c.label() == name) {
            return Ok(self.identity(same, here, None));
        }
        let chosen = self.choose(mine);
        let owner = self.claims.iter().filter(|c| c.label() == name && !mine.contains(c));
        let mut left_behind = None;
        for owner in owner {
            match (self.standing)(&owner.claim) {
                Standing::Gone => left_behind = left_behind.or(Some(owner)),
                // It has another name by now.
                Standing::There { name: Some(now) } if now.as_ref().unwrap_or(&owner.key) != name => {}
                Standing::There { .. } => return Err(claimed(name, &owner.claim)),
            }
        }
        match (chosen, left_behind) {
            (None, None) => Ok(self.fresh(name.clone(), Some(name))),
            // A project that moved takes its name along.
            (None, Some(owner)) => Ok(self.identity(owner, here, None)),
            (Some(chosen), Some(owner)) if (self.holds)(&owner.key) => match (self.holds)(&chosen.key) {
                false => Ok(self.identity(owner, here, None)),
                true => Err(ambiguous(name, chosen, owner, &Naming::among(self.claims, &owner.key))),
            },
            (Some(chosen), _) => Ok(self.identity(chosen, here, Some(name.clone()))),
        }
    }

    fn unnamed(&self, here: &Claim, mine: &[&'a Claimed]) -> Identity {
        let usual = (self.derived)(0);
        let same =
            mine.iter().find(|c| c.key == usual).or_else(|| mine.iter().find(|c| c.claim.name.is_none()));
        if let Some(chosen) = same.copied().or_else(|| self.choose(mine)) {
            return self.identity(chosen, here, None);
        }
        // Moved from another file system: the only one that is gone and was last edited at this very instant.
        let moved: Vec<&Claimed> = self
            .claims
            .iter()
            .filter(|c| c.claim.name.is_none() && c.claim.manifest == here.manifest)
            .filter(|c| c.claim.edited.is_some() && c.claim.edited == here.edited)
            .filter(|c| (self.standing)(&c.claim) == Standing::Gone)
            .collect();
        match moved.as_slice() {
            [only] => self.identity(only, here, None),
            _ => self.fresh(usual, None),
        }
    }

    /// Of several, the one that holds something.
    fn choose(&self, mine: &[&'a Claimed]) -> Option<&'a Claimed> {
        match mine {
            [] | [_] => mine.first().copied(),
            several => several.iter().find(|c| (self.holds)(&c.key)).or(several.first()).copied(),
        }
    }

    fn identity(&self, found: &Claimed, here: &Claim, called: Option<Name>) -> Identity {
        let label = here.name.clone().unwrap_or_else(|| found.key.clone());
        let was = found.label().clone();
        // A bind mount of the directory is no move.
        let moved = found.claim.directory != here.directory
            && super::claim::Inode::of(&found.claim.directory).zip(here.inode).is_none_or(|(a, b)| !a.is(&b));
        Identity {
            key: found.key.clone(),
            moved_from: moved.then(|| found.claim.directory.clone()),
            was_called: (called.is_some() || was != label).then_some(was),
            label,
        }
    }

    /// A project that is new to this home: its name is its key unless that is another one's.
    fn fresh(&self, usual: Name, label: Option<&Name>) -> Identity {
        let taken = |key: &Name| self.claims.iter().any(|c| c.key == *key);
        let mut key = usual;
        for attempt in 0.. {
            if !taken(&key) {
                break;
            }
            key = (self.derived)(attempt);
        }
        Identity { label: label.unwrap_or(&key).clone(), key, moved_from: None, was_called: None }
    }
}

fn claimed(name: &Name, owner: &Claim) -> Error {
    let text = format!("the project name {name} belongs to {}", owner.directory.display());
    Error::usage("project.claimed", text)
        .help("Give one of the two another name with `project \"name\"` in its firegopher.kdl.")
}

fn ambiguous(name: &Name, here: &Claimed, owner: &Claimed, naming: &Naming) -> Error {
    let text = format!(
        "this directory's project, called {} until now, and the project {name} that was in {} both have VMs or volumes",
        here.label(),
        owner.claim.directory.display()
    );
    Error::usage("project.ambiguous", text).help(format!(
        "Keep the name {}, or give another one that is free. If what {name} has is of no use any more: \
         firegopher down --project {naming} --volumes",
        here.label(),
    ))
}

#[cfg(test)]
mod tests;
