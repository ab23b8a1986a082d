//! Locks between processes: one for each step key, and the store's own (shared by users, exclusive for gc).
//! All are flock(2), which the kernel drops with the process, so nothing is left to break after a crash.

use super::{Store, write_failed};
use crate::digest::StepKey;
use crate::error::Result;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a wait stays silent.
const SILENT: Duration = Duration::from_secs(1);

/// How often a silent wait looks again.
const POLL: Duration = Duration::from_millis(10);

/// Holds a step key: nobody else works on it until this is dropped.
#[derive(Debug)]
pub struct KeyLock {
    path: PathBuf,
    _file: File,
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Removed while still held; whoever waits for this inode notices and starts over (`lock_key`).
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The store while nobody else uses it; users wait until this is dropped.
#[derive(Debug)]
pub struct Exclusive<'a> {
    store: &'a mut Store,
}

impl Deref for Exclusive<'_> {
    type Target = Store;
    fn deref(&self) -> &Store {
        self.store
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        let _ = self.store.lock.set_len(0);
        // A conversion to shared never waits: nobody else can hold the lock now.
        let _ = self.store.lock.lock_shared();
    }
}

impl Store {
    /// Waits until nobody else works on `key` and takes it. After a second of waiting `on_wait` is told, once,
    /// who has it, such as `firegopher up (pid 71)`. The one before may have done the work: look again at
    /// [`Store::action`] once the lock is held. Not re-entrant: a second lock of the same key waits for
    /// the first, in the same process too.
    pub fn lock_key(&self, key: &StepKey, on_wait: &dyn Fn(&str)) -> Result<KeyLock> {
        let path = self.dir("locks").join(key.to_hex());
        let failed = |e| write_failed(format_args!("locking {}", path.display()), e);
        let mut told = false;
        loop {
            let mut file = open_lock_file(&path).map_err(failed)?;
            let quiet = |_: &str| ();
            told |=
                acquire(&mut file, Mode::Exclusive, if told { &quiet } else { on_wait }).map_err(failed)?;
            if is_at(&file, &path) {
                let _ = write_holder(&mut file);
                return Ok(KeyLock { path, _file: file });
            }
            // The holder before us removed this file as it finished.
        }
    }

    /// Waits until no other process or thread has the store open, then keeps them out (for gc).
    pub fn lock_exclusive(&mut self, on_wait: &dyn Fn(&str)) -> Result<Exclusive<'_>> {
        let failed = |e| write_failed("locking the store", e);
        acquire(&mut self.lock, Mode::Exclusive, on_wait).map_err(failed)?;
        let _ = write_holder(&mut self.lock);
        Ok(Exclusive { store: self })
    }
}

/// Opens the store's lock file and takes its shared lock.
pub(super) fn open_shared(path: &Path, on_wait: &dyn Fn(&str)) -> Result<File> {
    let failed = |e| write_failed(format_args!("locking {}", path.display()), e);
    let mut file = open_lock_file(path).map_err(failed)?;
    acquire(&mut file, Mode::Shared, on_wait).map_err(failed)?;
    Ok(file)
}

#[derive(Clone, Copy)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

/// Takes a lock; true if it took so long that `on_wait` was told.
pub(super) fn acquire(file: &mut File, mode: Mode, on_wait: &dyn Fn(&str)) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        if try_acquire(file, mode)? {
            return Ok(false);
        }
        if start.elapsed() >= SILENT {
            break;
        }
        std::thread::sleep(POLL);
    }
    on_wait(&read_holder(file));
    loop {
        let result = match mode {
            Mode::Shared => file.lock_shared(),
            Mode::Exclusive => file.lock(),
        };
        match result {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|()| true),
        }
    }
}

/// Takes a lock if it is free.
pub(super) fn try_acquire(file: &File, mode: Mode) -> io::Result<bool> {
    let result = match mode {
        Mode::Shared => file.try_lock_shared(),
        Mode::Exclusive => file.try_lock(),
    };
    match result {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

pub(super) fn open_lock_file(path: &Path) -> io::Result<File> {
    // Not truncated: it may say who holds it.
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(held), Ok(named)) => held.ino() == named.ino() && held.dev() == named.dev(),
        _ => false,
    }
}

pub(super) fn write_holder(file: &mut File) -> io::Result<()> {
    let name = super::holders::name(std::env::args_os());
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{name} (pid {})", std::process::id())
}

/// Who has a lock: by the kernel's list, which also knows shared holders, else by what the last one wrote.
fn read_holder(file: &mut File) -> String {
    let holders = super::holders::of(file);
    if !holders.is_empty() {
        return holders.join(" and ");
    }
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(256).read_to_string(&mut text));
    if read.is_err() || text.is_empty() { "another firegopher command".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::scratch;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn key(n: u8) -> StepKey {
        StepKey::new([n; 32])
    }

    #[test]
    fn a_key_is_held_by_one_at_a_time() {
        let s = scratch();
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _lock = s.store.lock_key(&key(1), &|_| ()).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let left = fs_err::read_dir(s.store.dir("locks")).unwrap().count();
        assert_eq!(left, 0, "lock files do not pile up");
    }

    #[test]
    fn other_keys_are_free() {
        let s = scratch();
        let _one = s.store.lock_key(&key(1), &|_| ()).unwrap();
        let _two = s.store.lock_key(&key(2), &|_| panic!("waited")).unwrap();
    }

    #[test]
    fn a_long_wait_names_the_holder_once() {
        let s = scratch();
        let told = Mutex::new(Vec::new());
        let held = s.store.lock_key(&key(1), &|_| ()).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                s.store.lock_key(&key(1), &|who| told.lock().unwrap().push(who.to_owned())).unwrap();
            });
            std::thread::sleep(SILENT + Duration::from_millis(300));
            drop(held);
            waiter.join().unwrap();
        });
        let told = told.into_inner().unwrap();
        assert_eq!(told.len(), 1);
        assert!(told[0].contains(&format!("(pid {})", std::process::id())), "{told:?}");
    }

    #[test]
    fn gc_waits_for_users_and_users_wait_for_gc() {
        let mut s = scratch();
        let home = s.store.home().clone();
        let user = Store::open(home.clone()).unwrap();
        std::thread::scope(|scope| {
            let (tx, rx) = std::sync::mpsc::channel();
            let store = &mut s.store;
            let gc = scope.spawn(move || {
                let exclusive = store.lock_exclusive(&|_| ()).unwrap();
                tx.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(200));
                drop(exclusive);
            });
            assert!(rx.recv_timeout(Duration::from_millis(200)).is_err(), "a user has the store open");
            drop(user);
            rx.recv().unwrap();
            let start = Instant::now();
            Store::open(home).unwrap();
            assert!(start.elapsed() > Duration::from_millis(100));
            gc.join().unwrap();
        });
    }
}
