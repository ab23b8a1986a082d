//! The content-addressed store. Nothing else writes below its directories.
//!
//! ```text
//! v1/objects/ab/abcdef…   sealed outputs: a file (0444), an executable (0555) or a tree
//! v1/actions/ab/abcdef…   step key -> output digest and inputs (JSON)
//! v1/stat/                stat caches of scanned workloads
//! v1/tmp/                 unfinished work, each directory locked by its owner; may name a directory in $TMPDIR
//! v1/partial/             downloads that are not finished
//! v1/locks/               one lock file for each step key being worked on
//! v1/quarantine/          objects found broken
//! v1/apt/                 apt's lists and caches
//! v1/lock, v1/tmp.lock    users share the first, gc has it alone; the second guards the sweep of tmp/
//! ```

mod describe;
mod dirs;
pub mod gc;
mod guard;
mod hash;
mod holders;
mod inventory;
mod lock;
mod object;
mod outside;
mod partial;
mod record;
pub mod scan;
mod temp;
mod tree;
mod uses;
pub mod verify;

pub use dirs::{create_private_dir, write_failed};
pub use guard::{FileLock, Temps, lock_file};
pub use hash::hash_file;
pub use inventory::{Area, Inventory, Object, Other, Record, allocated};
pub use lock::{Exclusive, KeyLock};
pub use outside::Outside;
pub use partial::{Partial, PartialInfo, STALE};
pub use record::{Action, Last, LastStep, VERDICT};
pub use temp::TempDir;
pub use tree::tree_digest;

use crate::digest::{ObjectDigest, StepKey};
use crate::error::Result;
use crate::home::Home;
use std::fs::File;
use std::path::PathBuf;

/// An open store. Holding one keeps gc away; several processes and threads may hold one at a time.
#[derive(Debug)]
pub struct Store {
    home: Home,
    /// `v1/lock`, shared (or exclusive while an [`Exclusive`] lives).
    lock: File,
}

impl Store {
    /// Opens the store of `home`, creating what is missing, and removes what dead processes left in `tmp/`.
    /// Waits while gc runs. Refuses a home that another user owns or can enter (`store.foreign-home`,
    /// `store.open-home`).
    pub fn open(home: Home) -> Result<Store> {
        Store::open_with(home, &|_| ())
    }

    /// Like [`Store::open`]; `on_wait` hears who is waited for, once, after a second.
    pub fn open_with(home: Home, on_wait: &dyn Fn(&str)) -> Result<Store> {
        dirs::prepare(&home)?;
        let lock = lock::open_shared(&home.store().join("lock"), on_wait)?;
        let store = Store { home, lock };
        temp::sweep(&store)?;
        Ok(store)
    }

    /// Where this store lives.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// Where an object is, or would be once published.
    pub fn object_path(&self, digest: &ObjectDigest) -> PathBuf {
        let hex = digest.to_hex();
        self.dir("objects").join(&hex[..2]).join(hex)
    }

    fn action_path(&self, key: &StepKey) -> PathBuf {
        let hex = key.to_hex();
        self.dir("actions").join(&hex[..2]).join(hex)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.home.store().join(name)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A store in a directory of its own, removed at the end.
    pub struct Scratch {
        pub store: Store,
        pub dir: tempfile::TempDir,
    }

    pub fn scratch() -> Scratch {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Home::new(dir.path().join("home"))).unwrap();
        Scratch { store, dir }
    }
}
