//! A small JSON file that several processes change: read and replaced whole, under a lock of its own.
//! Addresses and uids are leased in such books.

use crate::error::{Context, Error, Result};
use crate::replace;
use nix::fcntl::{Flock, FlockArg};
use serde::{Serialize, de::DeserializeOwned};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads the book at `path` (an absent one is the default), lets `change` alter it, and writes it back if it
/// did. Others wait meanwhile. A crash leaves the old or the new book, never half a one.
pub(crate) fn update<B, T>(path: &Path, change: impl FnOnce(&mut B) -> Result<T>) -> Result<T>
where
    B: Serialize + DeserializeOwned + Default + PartialEq + Clone,
{
    let fail = || format!("cannot update {}", path.display());
    // The book itself is replaced by rename, so the lock is held on a neighbour that stays.
    let _lock = lock(path)?;
    let before: B = match replace::read(path).or_failed("book.read", fail)? {
        Some(bytes) => serde_json::from_slice(&bytes)
            .or_failed("book.damaged", || format!("{} is damaged", path.display()))
            .map_err(|e| e.help("with no VM running it is safe to delete"))?,
        None => B::default(),
    };
    let mut after = before.clone();
    let value = change(&mut after)?;
    if after != before {
        let bytes =
            serde_json::to_vec(&after).map_err(|e| Error::bug("a book does not serialise").because(e))?;
        replace::replace(path, &bytes).or_failed("book.write", fail)?;
    }
    Ok(value)
}

fn lock(path: &Path) -> Result<Flock<std::fs::File>> {
    let lock = path.with_extension("lock");
    let open = || -> std::io::Result<_> {
        let mut options = std::fs::OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&lock)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(held) => return Ok(held),
                Err((back, nix::Error::EINTR)) => file = back,
                Err((_, e)) => return Err(e.into()),
            }
        }
    };
    open().or_failed("book.lock", || format!("cannot lock {}", lock.display()))
}
