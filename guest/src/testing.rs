//! Helpers of the unit tests.

#[expect(dead_code, reason = "the guest's tests need no packages")]
#[path = "../../tests/support/skip.rs"]
mod skipping;

pub use skipping::skip;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A directory that is removed with its owner.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("firegopher-init-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether this is root; says so when it is not, so that no test passes in silence.
pub fn root(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(format!("{what} needs root"));
    }
    root
}

/// xorshift64: reproducible noise.
pub struct Noise(pub u64);

impl Noise {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Held by tests that fork without exec, and by those that wait for the end of a stream: a forked child holds a copy
/// of every descriptor until it has closed them.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `life` as PID 1 of a PID namespace with mounts of its own; how it ended. Only root can.
pub fn as_pid_1(life: impl FnOnce()) -> WaitStatus {
    as_pid_1_then(life, || true).0
}

/// The same; afterwards `look` looks at those mounts from outside of the PID namespace.
pub fn as_pid_1_then(life: impl FnOnce(), look: impl FnOnce() -> bool) -> (WaitStatus, bool) {
    let _alone = alone();
    let (status, telling) = nix::unistd::pipe().unwrap();
    // The namespace holds for children of this process only; one child makes it, its child is PID 1 in it.
    // SAFETY: the child calls nothing that another thread of the test may hold a lock of but the allocator, which
    // glibc keeps usable across fork.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            drop(telling);
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            let mut words = [0; 8];
            assert_eq!(nix::unistd::read(&status, &mut words).unwrap(), words.len(), "it told how it ended");
            let [raw, seen] = [0, 4].map(|at| i32::from_ne_bytes(words[at..at + 4].try_into().unwrap()));
            (WaitStatus::from_raw(child, raw).unwrap(), seen == 1)
        }
        ForkResult::Child => {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).unwrap();
                let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
                mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
                // SAFETY: this process has one thread.
                let raw = match unsafe { fork() }.unwrap() {
                    ForkResult::Child => {
                        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(life));
                        // SAFETY: _exit runs nothing of the test harness.
                        unsafe { libc::_exit(if lived.is_ok() { 0 } else { 99 }) }
                    }
                    ForkResult::Parent { child } => {
                        let mut raw = 0;
                        // SAFETY: the pointer is to a live integer.
                        assert_eq!(unsafe { libc::waitpid(child.as_raw(), &raw mut raw, 0) }, child.as_raw());
                        raw
                    }
                };
                let words = [raw.to_ne_bytes(), i32::from(look()).to_ne_bytes()].concat();
                nix::unistd::write(&telling, &words).unwrap();
            }));
            // SAFETY: as above.
            unsafe { libc::_exit(if outcome.is_ok() { 0 } else { 98 }) }
        }
    }
}
