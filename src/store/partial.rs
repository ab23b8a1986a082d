//! Downloads that are not finished: `v1/partial/KEY/`, kept when their process ends so that the next one goes on
//! where it stopped. Each belongs to whoever holds the key's lock; what nobody asks for again is swept.

use super::lock::{Mode, open_lock_file, try_acquire};
use super::temp::remove_tree;
use super::{KeyLock, Store, create_private_dir, write_failed};
use crate::digest::{ObjectDigest, StepKey};
use crate::error::Result;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How long an unfinished download waits to be gone on with.
pub const STALE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The file in a partial directory that holds what has arrived.
const BYTES: &str = "bytes";

/// An unfinished download and the right to go on with it.
#[derive(Debug)]
pub struct Partial {
    dir: PathBuf,
    _lock: KeyLock,
}

/// What a sweep or gc has to know about an unfinished download.
#[derive(Debug, Clone)]
pub struct PartialInfo {
    /// Its key.
    pub key: StepKey,
    /// What has arrived, in bytes.
    pub size: u64,
    /// When something last arrived.
    pub touched: SystemTime,
}

impl Partial {
    /// Where what arrives is written.
    pub fn bytes(&self) -> PathBuf {
        self.dir.join(BYTES)
    }

    /// Where the fetcher notes what the bytes are part of.
    pub fn note(&self) -> PathBuf {
        self.dir.join("note.json")
    }

    /// Publishes the finished bytes, whose digest was taken as they were written. The key stays held, so that what
    /// others look for when it is free can be recorded first.
    pub fn publish(&self, store: &Store, digest: &ObjectDigest) -> Result<()> {
        store.publish_hashed(&self.bytes(), digest)
    }

    /// Forgets what is left and frees the key.
    pub fn discard(self) {
        // What stays is swept once it is stale.
        let _ = remove_tree(&self.dir);
    }
}

impl Store {
    /// Takes the unfinished download of this key, which may be empty. Waits while another process or thread has
    /// it; after a second `on_wait` is told, once, who that is.
    pub fn partial(&self, key: &StepKey, on_wait: &dyn Fn(&str)) -> Result<Partial> {
        let lock = self.lock_key(key, on_wait)?;
        let dir = self.partial_dir().join(key.to_hex());
        create_private_dir(&dir)?;
        Ok(Partial { dir, _lock: lock })
    }

    /// All unfinished downloads.
    pub fn partials(&self) -> Result<Vec<PartialInfo>> {
        let dir = self.partial_dir();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(write_failed(format_args!("listing {}", dir.display()), e)),
        };
        let info = |entry: std::fs::DirEntry| {
            let key = entry.file_name().to_str()?.parse().ok()?;
            let (size, touched) = examine(&entry.path())?;
            Some(PartialInfo { key, size, touched })
        };
        Ok(entries.flatten().filter_map(info).collect())
    }

    /// Removes unfinished downloads that nobody holds and nothing was added to for `idle`; gives back how many
    /// bytes they held.
    pub fn sweep_partials(&self, idle: Duration) -> Result<u64> {
        let mut freed = 0;
        for partial in self.partials()? {
            let old = |touched| SystemTime::now().duration_since(touched).is_ok_and(|age| age >= idle);
            if !old(partial.touched) {
                continue;
            }
            let lock = self.dir("locks").join(partial.key.to_hex());
            let failed = |e| write_failed(format_args!("locking {}", lock.display()), e);
            let file = open_lock_file(&lock).map_err(failed)?;
            if !try_acquire(&file, Mode::Exclusive).map_err(failed)? {
                continue;
            }
            let dir = self.partial_dir().join(partial.key.to_hex());
            // Somebody may have gone on with it before we had the lock.
            if examine(&dir).is_some_and(|(_, touched)| old(touched)) && remove_tree(&dir).is_ok() {
                freed += partial.size;
            }
            // As `KeyLock` does: removed while held.
            let _ = std::fs::remove_file(&lock);
        }
        Ok(freed)
    }

    fn partial_dir(&self) -> PathBuf {
        self.dir("partial")
    }
}

fn examine(dir: &Path) -> Option<(u64, SystemTime)> {
    match std::fs::metadata(dir.join(BYTES)) {
        Ok(meta) => Some((meta.len(), meta.modified().ok()?)),
        Err(_) => Some((0, std::fs::metadata(dir).ok()?.modified().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::scratch;

    fn key(n: u8) -> StepKey {
        StepKey::new([n; 32])
    }

    #[test]
    fn what_has_arrived_waits_for_the_next_process() {
        let s = scratch();
        let partial = s.store.partial(&key(1), &|_| ()).unwrap();
        fs_err::write(partial.bytes(), "half").unwrap();
        drop(partial);
        Store::open(s.store.home().clone()).unwrap();
        let again = s.store.partial(&key(1), &|_| ()).unwrap();
        assert_eq!(fs_err::read(again.bytes()).unwrap(), b"half");
    }

    #[test]
    fn a_sweep_takes_what_is_stale_and_free() {
        let s = scratch();
        let held = s.store.partial(&key(1), &|_| ()).unwrap();
        let free = s.store.partial(&key(2), &|_| ()).unwrap();
        for partial in [&held, &free] {
            fs_err::write(partial.bytes(), "12345").unwrap();
        }
        drop(free);
        assert_eq!(s.store.sweep_partials(STALE).unwrap(), 0, "both are fresh");
        assert_eq!(s.store.sweep_partials(Duration::ZERO).unwrap(), 5);
        let left = s.store.partials().unwrap();
        assert_eq!(left.iter().map(|p| (p.key, p.size)).collect::<Vec<_>>(), [(key(1), 5)]);
        drop(held);
        assert_eq!(fs_err::read_dir(s.store.dir("locks")).unwrap().count(), 0, "lock files do not pile up");
    }

    #[test]
    fn a_finished_download_is_an_object_and_nothing_else() {
        let s = scratch();
        let partial = s.store.partial(&key(1), &|_| ()).unwrap();
        fs_err::write(partial.bytes(), "whole").unwrap();
        let digest = blake3::hash(b"whole").into();
        partial.publish(&s.store, &digest).unwrap();
        partial.discard();
        assert_eq!(s.store.read(&digest).unwrap(), b"whole");
        assert!(s.store.partials().unwrap().is_empty());
    }
}
