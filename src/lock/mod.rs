//! `firegopher.lock`: every asset pinned by version and digest. Owns the file's format, reading and writing;
//! what the pins mean is `asset`'s.

mod file;
mod pin;
mod text;

pub use pin::{AssetId, Origin, Pin, Pins, Release};

use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// The lock's file name, next to the manifest.
pub const FILE_NAME: &str = "firegopher.lock";

/// The format this version reads and writes.
pub const FORMAT: i64 = 1;

/// What a lock file holds: one entry an asset, in the order of `AssetId`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    assets: BTreeMap<AssetId, Pins>,
}

impl Lock {
    /// Reads a lock file; an absent one is an empty lock.
    ///
    /// # Errors
    /// Usage errors for a file that is not a lock: a newer format, bad TOML, bad or duplicate entries, unresolved
    /// merge conflicts, a symbolic link. Failed if it cannot be read.
    pub fn load(path: &Path) -> Result<Lock> {
        match file::read(path)? {
            None => Ok(Lock::default()),
            Some(text) => text::parse(&text, path),
        }
    }

    /// The pins of an asset, if the lock has them.
    pub fn get(&self, id: &AssetId) -> Option<&[Pin]> {
        self.assets.get(id).map(|pins| pins.packages.as_slice())
    }

    /// The pins of an asset with the distribution that they came from.
    pub fn entry(&self, id: &AssetId) -> Option<&Pins> {
        self.assets.get(id)
    }

    /// All entries, sorted by asset.
    pub fn iter(&self) -> impl Iterator<Item = (&AssetId, &Pins)> {
        self.assets.iter()
    }

    /// Whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        self.assets.is_empty()
    }

    /// Pins an asset, replacing what was there. The packages are kept sorted by name and architecture. Pins that
    /// do not move keep the snapshot they were first found in, so that an update without news changes no file.
    ///
    /// # Errors
    /// A bug if a pin or a name could not be read back.
    pub fn set(&mut self, id: AssetId, mut pins: Pins) -> Result<()> {
        pins.packages.sort();
        pins.snapshot.sort();
        pins.snapshot.dedup();
        if let Some(before) = self.assets.get(&id)
            && (&before.origin, &before.packages) == (&pins.origin, &pins.packages)
            && !before.snapshot.is_empty()
        {
            return Ok(());
        }
        check(&id, &pins).map_err(|why| Error::bug(format!("a pin of {id} cannot be locked: {why}")))?;
        self.assets.insert(id, pins);
        Ok(())
    }

    /// Forgets an asset. Whether it was there.
    pub fn remove(&mut self, id: &AssetId) -> bool {
        self.assets.remove(id).is_some()
    }

    /// Drops entries that `wanted` refuses: assets that no manifest names any more.
    pub fn retain(&mut self, mut wanted: impl FnMut(&AssetId) -> bool) {
        self.assets.retain(|id, _| wanted(id));
    }

    /// The file's text: the same for equal locks.
    pub fn render(&self) -> String {
        text::render(self)
    }

    /// Writes the lock by a temporary file and a rename; `false` if the file already says exactly this.
    ///
    /// # Errors
    /// Usage if `path` is a symbolic link or no regular file; failed if it cannot be written.
    pub fn save(&self, path: &Path) -> Result<bool> {
        file::write(path, &self.render())
    }
}

/// What `text::parse` and `Lock::set` both demand of an entry whose packages are sorted.
fn check(id: &AssetId, pins: &Pins) -> std::result::Result<(), String> {
    id.check()?;
    pins.origin.check()?;
    pins.snapshot.iter().try_for_each(Release::check)?;
    if pins.packages.is_empty() {
        return Err("no packages".to_owned());
    }
    for pin in &pins.packages {
        pin.check().map_err(|why| format!("package {:?}: {why}", pin.package))?;
    }
    for pair in pins.packages.windows(2) {
        if pair[0].package == pair[1].package && pair[0].arch == pair[1].arch {
            return Err(format!("package {:?} is there twice", pair[0].package));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
