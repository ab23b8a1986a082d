//! A second process a VM, which only waits: when its supervisor is killed, it cleans up after it at once.
//!
//! A VMM could be told to die with its parent (PR_SET_PDEATHSIG), but the jailer forks it and changes its uid, and
//! either clears that. A signal from the kernel (F_SETSIG on a pipe) does not end the first process of a pid
//! namespace. So somebody has to outlive the supervisor. What waits here is a fork without an exec: it shares all of
//! its memory with the supervisor. Once it is needed it becomes this very binary, even if its file was replaced.

use super::process::pidfd_open;
use super::reclaim;
use super::spec::SuperviseSpec;
use crate::error::Error;
use crate::home::Home;
use crate::name::Name;
use crate::syscall::close_range;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

/// The hidden first argument that makes this binary reclaim one VM: its home, project and name follow.
pub const ARGUMENT: &str = "__reclaim";

/// The process that waits. A supervisor that ends in order dismisses it.
#[derive(Debug)]
pub(super) struct Guard {
    pid: libc::pid_t,
}

impl Guard {
    /// Begins to guard the calling process, which supervises `spec`.
    pub fn start(spec: &SuperviseSpec) -> io::Result<Guard> {
        let supervisor = pidfd_open(std::process::id() as i32)?;
        let words = [spec.home.as_os_str(), spec.project.as_str().as_ref(), spec.vm.as_str().as_ref()];
        let mut argv = vec![c"firegopher".to_owned(), CString::new(ARGUMENT)?];
        for word in words {
            argv.push(CString::new(word.as_bytes())?);
        }
        let mut pointers: Vec<*const libc::c_char> = argv.iter().map(|word| word.as_ptr()).collect();
        pointers.push(std::ptr::null());
        // SAFETY: the child makes system calls only, on numbers and on memory that was laid out before the fork: it
        // neither allocates nor locks, so other threads do not matter.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => wait_and_become(&supervisor, &pointers),
            pid => Ok(Guard { pid }),
        }
    }

    /// There is nothing to clean up any more.
    pub fn dismiss(self) {
        // SAFETY: a child of ours that nobody else reaps, so the pid is its own; no status is asked for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// The forked process: waits for the end of `supervisor`, then executes this binary with `argv`.
fn wait_and_become(supervisor: &OwnedFd, argv: &[*const libc::c_char]) -> ! {
    let pidfd: RawFd = supervisor.as_raw_fd();
    let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
    let env = [std::ptr::null()];
    // SAFETY: as at the fork. Every pointer is to memory of this function, of its arguments or of a constant;
    // `argv` and `env` end with a null. What is closed is never used again, as this function does not return.
    unsafe {
        // Locks and sockets of the supervisor must go with it. Its log stays: what fails here is told there.
        let _ = close_range(3, pidfd as u32 - 1, false);
        let _ = close_range(pidfd as u32 + 1, u32::MAX, false);
        libc::prctl(libc::PR_SET_NAME, c"firegopher-wait".as_ptr());
        // The supervisor's handlers mean nothing here.
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        while libc::poll(&raw mut poll, 1, -1) < 1 {}
        libc::execve(c"/proc/self/exe".as_ptr(), argv.as_ptr(), env.as_ptr());
        // The next `up`, `down` or `gc` cleans up instead.
        libc::_exit(1)
    }
}

/// `main` of `firegopher __reclaim HOME PROJECT VM`. Not for people, and harmless: a VM whose supervisor lives is left
/// alone.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(2).collect();
    let result = match words.as_slice() {
        [home, project, vm] => names(project, vm)
            .map_err(Error::bug)
            .and_then(|(project, vm)| reclaim::reclaim(&Home::new(home), &project, &vm)),
        _ => Err(Error::bug("a VM is named by home, project and name")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            super::log_line(&super::journal::chain(&e));
            ExitCode::FAILURE
        }
    }
}

fn names(project: &OsString, vm: &OsString) -> Result<(Name, Name), String> {
    Ok((Name::new(project.to_string_lossy())?, Name::new(vm.to_string_lossy())?))
}
