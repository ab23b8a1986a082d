//! Directories for unfinished work in `v1/tmp`: locked while their owner lives, swept once it is gone.

use super::lock::{Mode, acquire, open_lock_file, try_acquire};
use super::{Store, outside, write_failed};
use crate::error::Result;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A directory (0700) on the store's file system, removed with all it holds when dropped.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    /// The lock file that guards the sweep.
    guard: PathBuf,
    /// Its flock tells a sweep that we live.
    _lock: File,
}

impl TempDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the sweep, and the end of this process, away while something is made.
    pub(super) fn making(&self) -> io::Result<File> {
        making(&self.guard)
    }
}

impl AsRef<Path> for TempDir {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What stays is swept by the next command.
        let _ = discard(&self.path);
    }
}

/// What the names of this process's temporary directories begin with. The pid is for people: another pid namespace that
/// shares the store may have the same one.
pub(super) fn owner() -> &'static str {
    static OWNER: OnceLock<String> = OnceLock::new();
    OWNER.get_or_init(|| format!("{}-{:016x}-", std::process::id(), fastrand::u64(..)))
}

/// This process is ending: whoever still wants a temporary directory waits for that.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Lets no temporary directory be made from now on; returns once none is being made.
pub(super) fn close(tmp_lock: &Path) {
    CLOSED.store(true, Ordering::SeqCst);
    let lock = || acquire(&mut open_lock_file(tmp_lock)?, Mode::Exclusive, &|_| ());
    // Without the lock a directory made just now may stay for the next command to sweep.
    let _ = lock();
}

/// Takes the lock on making temporary directories; waits for the end of a process that is about to end.
fn making(guard: &Path) -> io::Result<File> {
    let mut file = open_lock_file(guard)?;
    acquire(&mut file, Mode::Shared, &|_| ())?;
    if CLOSED.load(Ordering::SeqCst) {
        drop(file);
        loop {
            std::thread::park();
        }
    }
    Ok(file)
}

impl Store {
    /// A new temporary directory, from which outputs are published by renaming.
    pub fn temp_dir(&self) -> Result<TempDir> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{}{}", owner(), COUNT.fetch_add(1, Ordering::Relaxed));
        let failed = |e| write_failed("making a temporary directory in the store", e);
        // Between mkdir and flock the directory looks abandoned; sweeping waits for that (`sweep`).
        let guard = self.dir("tmp.lock");
        let _making = making(&guard).map_err(failed)?;
        let mut path = self.dir("tmp").join(&name);
        // pids come again: a name may be taken by something dead.
        let mut attempt = 0_u32;
        while let Err(e) = std::fs::DirBuilder::new().mode(0o700).create(&path) {
            if e.kind() != io::ErrorKind::AlreadyExists {
                return Err(failed(e));
            }
            attempt += 1;
            path = self.dir("tmp").join(format!("{name}.{attempt}"));
        }
        let lock = File::open(&path).map_err(failed)?;
        try_acquire(&lock, Mode::Exclusive).map_err(failed)?;
        Ok(TempDir { path, guard, _lock: lock })
    }
}

/// Removes what dead processes left in `v1/tmp`.
pub(super) fn sweep(store: &Store) -> Result<()> {
    let tmp = store.dir("tmp");
    let failed = |e| write_failed(format_args!("sweeping {}", tmp.display()), e);
    let mut entries = std::fs::read_dir(&tmp).map_err(failed)?.peekable();
    if entries.peek().is_none() {
        return Ok(());
    }
    let guard = open_lock_file(&store.dir("tmp.lock")).map_err(failed)?;
    if !try_acquire(&guard, Mode::Exclusive).map_err(failed)? {
        return Ok(()); // Somebody makes a directory just now; the next command sweeps.
    }
    let mut dead = Vec::new();
    for entry in entries.flatten() {
        let Ok(file) = File::open(entry.path()) else { continue };
        if try_acquire(&file, Mode::Exclusive).unwrap_or(false) {
            dead.push((entry.path(), file));
        }
    }
    // Deleting can take seconds, and the locks we hold on the dead keep other sweeps off them.
    drop(guard);
    for (path, _lock) in dead {
        let _ = discard(&path);
    }
    Ok(())
}

/// Removes a temporary directory, and first what belongs to it outside of the store: nothing else says where that is.
pub(super) fn discard(path: &Path) -> io::Result<()> {
    outside::remove_of(path)?;
    remove_tree(path)
}

/// Removes a file or a whole tree, directories without write permission included.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let is_dir = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta.is_dir(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if !is_dir {
        return std::fs::remove_file(path);
    }
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            std::fs::remove_dir_all(path)
        }
        other => other,
    }
}

/// Gives the owner all rights on every directory below, for those who are not root.
fn open_up(dir: &Path) -> io::Result<()> {
    let mode = std::fs::symlink_metadata(dir)?.mode();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode | 0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::store::Store;
    use crate::store::testing::scratch;

    #[test]
    fn a_temporary_directory_goes_with_its_owner() {
        let s = scratch();
        let temp = s.store.temp_dir().unwrap();
        fs_err::create_dir_all(temp.path().join("a/b")).unwrap();
        fs_err::write(temp.path().join("a/b/c"), "x").unwrap();
        let path = temp.path().to_owned();
        drop(temp);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_swept_and_the_living_are_not() {
        let s = scratch();
        let alive = s.store.temp_dir().unwrap();
        let dead = s.store.dir("tmp").join("4194304-0");
        fs_err::create_dir_all(dead.join("x/y")).unwrap();
        let stray = s.store.dir("tmp").join("stray");
        fs_err::write(&stray, "x").unwrap();
        Store::open(s.store.home().clone()).unwrap();
        assert!(alive.path().exists());
        assert!(!dead.exists());
        assert!(!stray.exists());
    }
}
