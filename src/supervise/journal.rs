//! Owns `journal.json`: every effect on the host that must be undone, written down before it happens.

use super::process::Process;
use crate::error::{Context, Error, Result};
use crate::name::Name;
use crate::replace;
use crate::vmm::spec::JailSpec;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The file in a VM's directory.
pub const JOURNAL_FILE: &str = "journal.json";

/// Something outside of the supervisor's own memory that its death would leave behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "kebab-case")]
pub enum Effect {
    /// The VMM's process.
    Vmm {
        /// Its identity.
        process: Process,
    },
    /// A staged jail and its cgroups. Its contents belong to the VMM's uid: hostile.
    Jail {
        /// The directory that is the VMM's root, and its owner.
        jail: JailSpec,
    },
    /// A tap device in the project's network namespace.
    Tap {
        /// Its name.
        name: String,
    },
    /// A uid leased to the VM.
    Uid {
        /// The home that keeps the leases.
        home: PathBuf,
        /// The VM's project.
        project: Name,
        /// The VM.
        vm: Name,
    },
    /// A file of ours: scratch disk or socket.
    File {
        /// Where it is.
        path: PathBuf,
    },
}

/// The effects that stand now.
#[derive(Debug, Default)]
pub struct Journal {
    path: PathBuf,
    effects: Vec<Effect>,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    effects: Vec<Effect>,
}

impl Journal {
    /// The journal of a VM's directory; empty if there is none.
    pub fn open(dir: &Path) -> Result<Journal> {
        let path = dir.join(JOURNAL_FILE);
        let text =
            replace::read(&path).or_failed("supervise.journal-read", || "cannot read a VM's journal")?;
        let effects = match text {
            Some(text) => {
                let disk: OnDisk = serde_json::from_slice(&text)
                    .or_failed("supervise.journal-broken", || {
                        format!("{} is not a journal this version can read", path.display())
                    })?;
                disk.effects
            }
            None => Vec::new(),
        };
        Ok(Journal { path, effects })
    }

    /// Whether nothing stands.
    pub fn is_empty(&self) -> bool {
        self.effects.is_empty()
    }

    /// What stands, oldest first.
    pub fn into_effects(self) -> Vec<Effect> {
        self.effects
    }

    /// What stands, oldest first.
    #[cfg(test)]
    pub fn effects(&self) -> &[Effect] {
        &self.effects
    }

    /// Gives back the space that was kept for changes on a full disk.
    pub fn settle(&self) -> std::io::Result<()> {
        replace::sweep(&self.path)
    }

    /// Writes an effect down; call it before the effect happens.
    pub fn will(&mut self, effect: Effect) -> Result<()> {
        self.will_all([effect])
    }

    /// Writes effects down at once, in the order in which they will happen; call it before the first of them does.
    pub fn will_all(&mut self, effects: impl IntoIterator<Item = Effect>) -> Result<()> {
        let before = self.effects.len();
        for effect in effects {
            if !self.effects.contains(&effect) {
                self.effects.push(effect);
            }
        }
        if self.effects.len() > before { self.save() } else { Ok(()) }
    }

    /// Crosses out an effect that turned out not to be ours.
    pub fn forget(&mut self, effect: &Effect) -> Result<()> {
        self.effects.retain(|e| e != effect);
        self.save()
    }

    /// Undoes every effect that `which` selects, newest first. What cannot be undone stays in the journal and
    /// is told in the error; the rest is undone regardless.
    pub fn undo(
        &mut self,
        mut which: impl FnMut(&Effect) -> bool,
        mut undo: impl FnMut(&Effect) -> Result<()>,
    ) -> Result<()> {
        let before = self.effects.len();
        let mut failures = Vec::new();
        let mut left = Vec::new();
        for effect in std::mem::take(&mut self.effects).into_iter().rev() {
            if !which(&effect) {
                left.push(effect);
            } else if let Err(e) = undo(&effect) {
                failures.push(chain(&e));
                left.push(effect);
            }
        }
        left.reverse();
        self.effects = left;
        // Nothing was undone: what is on the disk says so already.
        if self.effects.len() < before {
            self.save()?;
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(Error::failed("supervise.clean-up", failures.join("; "))),
        }
    }

    fn save(&self) -> Result<()> {
        let disk = OnDisk { version: 1, effects: self.effects.clone() };
        let text =
            serde_json::to_vec(&disk).map_err(|e| Error::bug("a journal does not serialise").because(e))?;
        replace::replace_in_place(&self.path, &text).or_failed("supervise.journal-write", || {
            format!("cannot write {} before an effect", self.path.display())
        })
    }
}

/// An error with its causes on one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(n: &str) -> Effect {
        Effect::File { path: n.into() }
    }

    #[test]
    fn effects_are_undone_newest_first_and_failures_stay_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        for n in ["a", "b", "c"] {
            journal.will(file(n)).unwrap();
        }
        assert_eq!(Journal::open(dir.path()).unwrap().effects().len(), 3);
        let mut order = Vec::new();
        let result = journal.undo(
            |_| true,
            |e| {
                order.push(e.clone());
                if *e == file("b") { Err(Error::failed("x", "stuck")) } else { Ok(()) }
            },
        );
        assert_eq!(result.unwrap_err().to_string(), "stuck");
        assert_eq!(order, [file("c"), file("b"), file("a")]);
        assert_eq!(Journal::open(dir.path()).unwrap().effects(), [file("b")]);
    }

    #[test]
    fn what_changes_nothing_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        let written = || dir.path().join(JOURNAL_FILE).exists();
        journal.undo(|_| true, |_| Ok(())).unwrap();
        assert!(!written());
        journal.will_all(["a", "b"].map(file)).unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().effects(), ["a", "b"].map(file));
        std::fs::remove_file(dir.path().join(JOURNAL_FILE)).unwrap();
        journal.will_all(["b", "a"].map(file)).unwrap();
        journal.undo(|_| false, |_| Ok(())).unwrap();
        journal.undo(|_| true, |_| Err(Error::failed("x", "stuck"))).unwrap_err();
        assert!(!written(), "all stands as it did");
        journal.undo(|e| *e == file("a"), |_| Ok(())).unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().effects(), ["b"].map(file));
    }

    #[test]
    fn an_effect_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(dir.path()).unwrap();
        journal.will(file("a")).unwrap();
        journal.will(file("a")).unwrap();
        assert_eq!(journal.effects().len(), 1);
    }
}
