//! Locks on files outside the store proper, by the store's rules, and the emergency exit of a process that is
//! interrupted while it has temporary directories.

use super::Store;
use super::lock::{Mode, acquire, open_lock_file, write_holder};
use super::temp::{self, discard};
use super::write_failed;
use crate::error::Result;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Holds a lock file until dropped. The file stays.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Whether `path` still leads to the file that is locked.
    pub fn is_at(&self, path: &Path) -> bool {
        super::lock::is_at(&self.0, path)
    }
}

/// Takes the lock on `path`, made if absent. After a second of waiting `on_wait` is told, once, who has it.
pub fn lock_file(path: &Path, on_wait: &dyn Fn(&str)) -> Result<FileLock> {
    let failed = |e| write_failed(format_args!("locking {}", path.display()), e);
    let mut file = open_lock_file(path).map_err(failed)?;
    acquire(&mut file, Mode::Exclusive, on_wait).map_err(failed)?;
    // Only for the message to whoever waits.
    let _ = write_holder(&mut file);
    Ok(FileLock(file))
}

/// This process's temporary directories, wherever their owners are.
#[derive(Debug, Clone)]
pub struct Temps {
    dir: PathBuf,
    lock: PathBuf,
}

impl Store {
    /// For a process that has to end at once.
    pub fn temps(&self) -> Temps {
        Temps { dir: self.dir("tmp"), lock: self.dir("tmp.lock") }
    }
}

impl Temps {
    /// Removes every temporary directory of this process and lets no more be made. Only before exiting: their
    /// owners are not asked.
    pub fn remove_all(&self) {
        temp::close(&self.lock);
        self.remove();
    }

    fn remove(&self) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(temp::owner()) {
                // Their owners may still be writing; what stays even so is swept by the next command.
                let path = entry.path();
                let _ = (0..100).try_for_each(|_| match discard(&path) {
                    Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(()),
                    other => Err(other),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::lock_file;
    use crate::store::testing::scratch;

    #[test]
    fn an_interrupted_process_leaves_no_temporary_directories() {
        let s = scratch();
        let temp = s.store.temp_dir().unwrap();
        std::fs::write(temp.path().join("x"), "x").unwrap();
        // Not `remove_all`: this process goes on to run other tests.
        s.store.temps().remove();
        assert!(!temp.path().exists());
    }

    #[test]
    fn a_lock_file_can_be_taken_again_once_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        drop(lock_file(&path, &|_| ()).unwrap());
        drop(lock_file(&path, &|_| panic!("nobody holds it")).unwrap());
    }
}
