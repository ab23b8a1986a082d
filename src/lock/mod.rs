//! `firegopher.lock`: every asset pinned by version and digest. Owns the file's format, reading and writing;
//! what the pins mean is `asset`'s.

mod file;
mod oci;
mod pin;
mod text;

pub use oci::{
    FIRST_PUBLISHED, Layer, MOST_ITEMS, MOST_PUBLISHED, OciConfig, OciImage, OciLayer, OciPin, is_digest,
    is_layer_type,
};
pub use pin::{AssetId, FilePin, FileRole, Origin, Pin, Pinned, Pins, Release};

use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

/// The lock's file name, next to the manifest.
pub const FILE_NAME: &str = "firegopher.lock";

/// The format this version reads and writes.
pub const FORMAT: i64 = 1;

/// What a lock file holds: one entry an asset, in the order of `AssetId`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    assets: BTreeMap<AssetId, Pinned>,
    /// Entries that are none: something of them lacks its BLAKE3.
    outdated: BTreeSet<AssetId>,
}

impl Lock {
    /// Larger files are no locks, in bytes.
    pub const BYTES_MAX: u64 = file::MAX_BYTES;

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

    /// An asset's packages, if it is pinned to packages.
    pub fn get(&self, id: &AssetId) -> Option<&[Pin]> {
        self.entry(id).map(|pins| pins.packages.as_slice())
    }

    /// An asset's packages with the distribution that they came from.
    pub fn entry(&self, id: &AssetId) -> Option<&Pins> {
        match self.assets.get(id) {
            Some(Pinned::Packages(pins)) => Some(pins),
            _ => None,
        }
    }

    /// What a download is pinned to.
    pub fn file(&self, id: &AssetId) -> Option<&FilePin> {
        match self.assets.get(id) {
            Some(Pinned::File(pin)) => Some(pin),
            _ => None,
        }
    }

    /// What a container image is pinned to.
    pub fn oci(&self, id: &AssetId) -> Option<&OciPin> {
        match self.assets.get(id) {
            Some(Pinned::Oci(pin)) => Some(pin),
            _ => None,
        }
    }

    /// Whatever an asset is pinned to.
    pub fn pinned(&self, id: &AssetId) -> Option<&Pinned> {
        self.assets.get(id)
    }

    /// Whether the file has an entry of the asset that pins nothing, because it was written before the lock named
    /// everything by BLAKE3.
    pub fn is_outdated(&self, id: &AssetId) -> bool {
        self.outdated.contains(id)
    }

    /// All entries, sorted by asset.
    pub fn iter(&self) -> impl Iterator<Item = (&AssetId, &Pinned)> {
        self.assets.iter()
    }

    /// Whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        self.assets.is_empty()
    }

    /// Pins an asset, replacing what was there. Packages are kept sorted by name and architecture. Packages that
    /// do not move keep the snapshot they were first found in, so that an update without news changes no file.
    ///
    /// # Errors
    /// A bug if a pin or a name could not be read back.
    pub fn set(&mut self, id: AssetId, pins: impl Into<Pinned>) -> Result<()> {
        let pins = pins.into();
        check(&id, &pins).map_err(|why| Error::bug(format!("a pin of {id} cannot be locked: {why}")))?;
        if let (Some(Pinned::Packages(before)), Pinned::Packages(now)) = (self.assets.get(&id), &pins)
            && (&before.origin, &before.packages) == (&now.origin, &now.packages)
            && !before.snapshot.is_empty()
        {
            return Ok(());
        }
        self.outdated.remove(&id);
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
        self.outdated.retain(|id| wanted(id));
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

/// An entry says of `what` something that cannot be, such as `a sha256 and a blake3 of different bytes`.
pub fn contradiction(what: impl fmt::Display, says: &str) -> Error {
    Error::failed("lock.contradiction", format!("{FILE_NAME} gives {what} {says}"))
        .help("It was edited by hand: restore it from version control, or run `firegopher update`.")
}

/// What `text::parse` and `Lock::set` both demand of an entry.
fn check(id: &AssetId, pinned: &Pinned) -> std::result::Result<(), String> {
    id.check()?;
    let fits = match pinned {
        Pinned::Packages(_) => id.is_debian(),
        Pinned::File(_) => matches!(id, AssetId::File { .. }),
        Pinned::Oci(_) => matches!(id, AssetId::Oci(_)),
    };
    if !fits {
        return Err("its pin is that of another source".to_owned());
    }
    pinned.check()
}

#[cfg(test)]
mod tests;
