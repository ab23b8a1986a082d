//! Follows a running Firecracker, a child of ours although the jailer made it, through its pidfd.

use super::condition::{Condition, Reporter};
use super::words::{Listener, Said, Words};
use super::{Death, Ended, Exit};
use crate::syscall::pidfd_send_signal;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use tokio::sync::watch;

/// A process that tells how a VM ended by its exit status.
#[derive(Debug)]
pub struct ProcessMonitor {
    /// A child that nobody else reaps.
    pid: i32,
    pidfd: Exit,
    /// A second descriptor, for signals.
    kill: OwnedFd,
    pub(super) words: Words,
    pub(super) reporter: Reporter,
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
        let reporter = Reporter::new();
        Ok(ProcessMonitor { pid, kill, pidfd: Exit::New(pidfd), words, reporter, done: None })
    }

    /// Hands on what it says, and looks for what its log tells of drives.
    pub(super) fn listen(&mut self, mut listener: Listener) {
        let condition = self.reporter.condition.clone();
        let mut line = Vec::new();
        self.words.listen(Box::new(move |said, bytes| {
            if said == Said::Log {
                for piece in bytes.split_inclusive(|b| *b == b'\n') {
                    let room = LOG_LINE.saturating_sub(line.len());
                    line.extend_from_slice(&piece[..piece.len().min(room)]);
                    if piece.ends_with(b"\n") {
                        look_for_failed_request(&line, &condition);
                        line.clear();
                    }
                }
            }
            listener(said, bytes);
        }));
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

/// A line of Firecracker's log is a few hundred bytes; no more of it is looked at.
const LOG_LINE: usize = 4096;

/// Firecracker tells its guest of every request that fails and goes on; its log alone tells us
/// (`src/vmm/src/devices/virtio/block/virtio/request.rs`). It names no drive. A `SyncIo` or `AsyncIo` error ends with
/// the system's own: `Os { code: 28, kind: StorageFull, message: "No space left on device" }`.
fn look_for_failed_request(line: &[u8], condition: &watch::Sender<Condition>) {
    let text = String::from_utf8_lossy(line);
    let Some((_, failed)) = text.split_once("Failed to execute ") else { return };
    let Some((operation, why)) = failed.split_once(" virtio block request: ") else { return };
    let reason = why.rsplit_once("message: \"").and_then(|(_, rest)| rest.split('"').next());
    let operation = match operation {
        "Out" => "write",
        "In" => "read",
        other => other,
    };
    condition.send_modify(|c| c.fail(None, &operation.to_lowercase(), reason.unwrap_or(why.trim_end())));
}

fn send_kill(pidfd: &OwnedFd) -> io::Result<()> {
    pidfd_send_signal(pidfd, libc::SIGKILL).map(drop)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_failed_is_found_in_firecrackers_log() {
        let condition = watch::channel(Condition::default()).0;
        let look = |line: &str| look_for_failed_request(line.as_bytes(), &condition);
        look("2026-11-27T20:00:00.1 [web:main] Running Firecracker v1.16.1\n");
        look(
            "2026-11-27T20:00:01.2 [web:main] Failed to execute Out virtio block request: FileEngine(Sync(\
             Transfer(IOError(Os { code: 28, kind: StorageFull, message: \"No space left on device\" }))))\n",
        );
        let now = condition.borrow().clone();
        let failed = &now.failed[&None];
        assert_eq!((now.failed.len(), failed.count, failed.operation.as_str()), (1, 1, "write"));
        assert_eq!(failed.reason, "No space left on device");
    }
}
