//! Digests of the files that a walk found: from the cache if nothing speaks against it, else by reading them.

use super::cache::{Cache, Stat};
use super::clock::Clock;
use super::walk::{Found, Node, threads};
use crate::digest::ObjectDigest;
use crate::error::{Context, Error, Result};
use crate::store::hash::hash_open;
use crate::syscall::open_beneath;
use nix::fcntl::OFlag;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

pub(super) struct Digests {
    /// For each entry of the walk; None for what is not a file.
    pub(super) by_entry: Vec<Option<ObjectDigest>>,
    /// Whether the cache on disk lacks something worth having, or holds something that is gone.
    pub(super) stale: bool,
}

/// Digests all files of a walk sorted by path, and corrects the stats of those that changed since the walk.
pub(super) fn digests(
    dir: &File,
    root: &Path,
    found: &mut [Found],
    cache: &Cache,
    clock: &Clock,
) -> Result<Digests> {
    let mut by_entry = vec![None; found.len()];
    let mut missing = Vec::new();
    let mut scratch = Vec::new();
    let mut stale = false;
    // Both sides are in path order: one pass finds what they share.
    let mut cached = cache.iter().peekable();
    for (index, entry) in found.iter().enumerate() {
        if !matches!(entry.node, Node::File) {
            continue;
        }
        while cached.next_if(|c| c.path < entry.path.as_bytes()).is_some() {
            stale = true; // Gone from the directory.
        }
        match cached.next_if(|c| c.path == entry.path.as_bytes()) {
            Some(hit) if hit.has(&entry.stat, &mut scratch) => by_entry[index] = Some(hit.digest),
            other => {
                stale |= other.is_some();
                missing.push(index);
            }
        }
    }
    stale |= cached.next().is_some();

    for (index, stat, digest) in read_all(dir, root, found, &missing)? {
        stale |= clock.trusts(&stat);
        found[index].stat = stat;
        by_entry[index] = Some(digest);
    }
    Ok(Digests { by_entry, stale })
}

type Read = (usize, Stat, ObjectDigest);

fn read_all(dir: &File, root: &Path, found: &[Found], missing: &[usize]) -> Result<Vec<Read>> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut read = Vec::new();
        let mut buffer = Vec::new();
        while let Some(&index) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            let entry = &found[index];
            match read_one(dir, root, entry, &mut buffer) {
                Ok((stat, digest)) => read.push((index, stat, digest)),
                Err(e) => {
                    next.store(missing.len(), Ordering::Relaxed);
                    return Err((index, e));
                }
            }
        }
        Ok(read)
    };
    if missing.len() < 2 {
        return worker().map_err(|(_, e)| e);
    }
    let parts: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads()).map(|_| scope.spawn(worker)).collect();
        let mut parts = vec![worker()];
        parts.extend(handles.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p))));
        parts
    });
    let mut all = Vec::with_capacity(missing.len());
    let mut first: Option<(usize, Error)> = None;
    for part in parts {
        match part {
            Ok(read) => all.extend(read),
            Err(e) => {
                if first.as_ref().is_none_or(|f| e.0 < f.0) {
                    first = Some(e);
                }
            }
        }
    }
    match first {
        Some((_, error)) => Err(error),
        None => Ok(all),
    }
}

fn read_one(dir: &File, root: &Path, entry: &Found, buffer: &mut Vec<u8>) -> Result<(Stat, ObjectDigest)> {
    let open = || open_beneath(dir, &entry.path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(File::from);
    let path = || root.join(&entry.path);
    let mut file = open().or_failed("scan.read", || super::cannot_read(&path()))?;
    stable(&mut file, &path, buffer, || open().map_err(io::Error::from))
}

/// Digests an open file, again if it changed while it was read; `reopen` opens what its path names by then.
pub(super) fn hash_stable(
    file: &mut File,
    path: &Path,
    reopen: impl Fn() -> io::Result<File>,
) -> Result<(Stat, ObjectDigest)> {
    stable(file, &|| path.to_owned(), &mut Vec::new(), reopen)
}

fn stable(
    file: &mut File,
    path: &dyn Fn() -> std::path::PathBuf,
    buffer: &mut Vec<u8>,
    reopen: impl Fn() -> io::Result<File>,
) -> Result<(Stat, ObjectDigest)> {
    for retry in [true, false] {
        if let Some(read) = once(file, buffer).or_failed("scan.read", || super::cannot_read(&path()))? {
            return Ok(read);
        }
        if retry {
            *file = reopen().or_failed("scan.read", || super::cannot_read(&path()))?;
        }
    }
    Err(Error::failed("scan.changing", format!("{} changed while it was read", path().display()))
        .help("stop what writes to it, or leave it out with an `ignore` pattern"))
}

/// None if the file is not the same afterwards.
fn once(file: &mut File, buffer: &mut Vec<u8>) -> io::Result<Option<(Stat, ObjectDigest)>> {
    let before = Stat::of(file)?;
    if !before.is_file() {
        return Ok(None); // Replaced by something else since it was found.
    }
    let (read, digest) = hash_open(file, before.size, before.blocks.0, buffer)?;
    let after = Stat::of(file)?;
    Ok((before == after && read == before.size).then_some((before, digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file opened past its first byte: reading it gives less than its size, as if it had just shrunk.
    fn shrunk(path: &Path) -> io::Result<File> {
        let mut file = File::open(path)?;
        io::Read::read_exact(&mut file, &mut [0; 1])?;
        Ok(file)
    }

    #[test]
    fn a_file_that_changes_once_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs_err::write(&path, "text").unwrap();
        let mut file = shrunk(&path).unwrap();
        let (stat, digest) = hash_stable(&mut file, &path, || File::open(&path)).unwrap();
        assert_eq!((stat.size, digest), (4, blake3::hash(b"text").into()));
    }

    #[test]
    fn a_file_that_never_rests_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs_err::write(&path, "text").unwrap();
        let error = hash_stable(&mut shrunk(&path).unwrap(), &path, || shrunk(&path)).unwrap_err();
        assert_eq!(error.code(), "scan.changing");
        assert!(error.to_string().contains(path.to_str().unwrap()));
    }

    #[test]
    fn a_write_during_the_reading_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs_err::write(&path, vec![0; 64 << 20]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(25));
        let mut file = File::open(&path).unwrap();
        let reading = std::sync::atomic::AtomicBool::new(true);
        let mut seen = false;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let file = File::options().write(true).open(&path).unwrap();
                while reading.load(Ordering::Relaxed) {
                    // Same bytes, same size: only the times tell.
                    std::os::unix::fs::FileExt::write_all_at(&file, &[0], 0).unwrap();
                }
            });
            // The writer may not get a turn at first.
            for _ in 0..100 {
                io::Seek::rewind(&mut file).unwrap();
                seen = once(&mut file, &mut Vec::new()).unwrap().is_none();
                if seen {
                    break;
                }
            }
            reading.store(false, Ordering::Relaxed);
        });
        assert!(seen);
    }
}
