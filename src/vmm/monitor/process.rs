//! Follows a running Firecracker, a child of ours although the jailer made it, through its pidfd.

use super::words::{Said, Words};
use super::{Death, Ended, Exit};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// A process that tells how a VM ended by its exit status.
#[derive(Debug)]
pub struct ProcessMonitor {
    /// A child that nobody else reaps.
    pid: i32,
    pidfd: Exit,
    /// A second descriptor, for signals.
    kill: OwnedFd,
    pub(super) words: Words,
    done: Option<Ended>,
}

impl ProcessMonitor {
    /// Takes over a child that has not been reaped, and the pipes that it writes to, which do not block: its standard
    /// error first.
    pub(crate) fn new(
        pid: i32,
        pidfd: OwnedFd,
        pipes: impl IntoIterator<Item = (Said, OwnedFd)>,
    ) -> io::Result<ProcessMonitor> {
        let (kill, words) = (pidfd.try_clone()?, Words::new(pipes));
        Ok(ProcessMonitor { pid, kill, pidfd: Exit::New(pidfd), words, done: None })
    }

    pub(super) async fn ended(&mut self) -> io::Result<Ended> {
        if let Some(done) = &self.done {
            return Ok(done.clone());
        }
        self.pidfd.register()?;
        self.words.register()?;
        loop {
            tokio::select! {
                biased;
                ready = self.pidfd.wait() => break ready?,
                () = self.words.hear() => {}
            }
        }
        self.words.drain();
        let status = reap(self.pid)?;
        // 0 stands for every end that the guest chose; on x86 it has nothing but its reset.
        let done = match status.code() {
            Some(0) => Ended::GuestReset,
            _ => Ended::Died(Death { status, stderr: self.words.tail() }),
        };
        Ok(self.done.insert(done).clone())
    }

    /// Kills it: the first process of a pid namespace, and so all of them.
    pub(super) fn quit(&self) -> io::Result<()> {
        if self.done.is_none() {
            send_kill(&self.kill)?;
        }
        Ok(())
    }
}

impl Drop for ProcessMonitor {
    fn drop(&mut self) {
        // Nobody would see its end: it must not run on, nor stay a zombie.
        if self.done.is_none() && send_kill(&self.kill).is_ok() {
            let _ = reap(self.pid);
        }
    }
}

fn send_kill(pidfd: &OwnedFd) -> io::Result<()> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a descriptor we own, a signal number, no siginfo and no flags.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, nothing, 0) };
    match io::Error::last_os_error() {
        _ if sent == 0 => Ok(()),
        e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        e => Err(e),
    }
}

/// Takes a child's exit status; it has ended or is about to.
pub(crate) fn reap(pid: i32) -> io::Result<ExitStatus> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for an int for the length of the call.
        let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if got == pid {
            return Ok(ExitStatus::from_raw(status));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
