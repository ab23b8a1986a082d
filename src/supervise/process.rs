//! Identifies processes beyond their reusable pid, and signals exactly the one that is meant.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

pub(crate) use crate::syscall::{pidfd_open, pidfd_send_signal as send};

/// A process: its pid, when it started and in which boot of the host. A pid alone is reused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The pid as seen by the process that recorded it.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since the host's boot.
    pub start_time: u64,
    /// /proc/sys/kernel/random/boot_id at the time of recording.
    pub boot_id: String,
}

impl Process {
    /// The identity of a live process; fails if there is none or it is a zombie.
    pub fn of(pid: i32) -> io::Result<Process> {
        let (state, start_time) = stat(pid)?;
        if matches!(state, b'Z' | b'X') {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(Process { pid, start_time, boot_id: boot_id()? })
    }

    /// The calling process.
    pub fn current() -> io::Result<Process> {
        // getpid is at most 4194304 (PID_MAX_LIMIT).
        Process::of(std::process::id() as i32)
    }

    /// Whether this very process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        Process::of(self.pid).is_ok_and(|now| now == *self)
    }

    /// A pidfd of this very process, `None` if it is gone.
    pub fn pidfd(&self) -> io::Result<Option<OwnedFd>> {
        if !self.is_alive() {
            return Ok(None);
        }
        let fd = match pidfd_open(self.pid) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // The pid may have been reused between the two calls; the descriptor now pins it, so one look decides.
        Ok(self.is_alive().then_some(fd))
    }

    /// Sends a signal to this very process; `false` if it is gone.
    pub fn signal(&self, signal: i32) -> io::Result<bool> {
        match self.pidfd()? {
            Some(fd) => send(&fd, signal),
            None => Ok(false),
        }
    }

    /// Sends a signal and waits for the end; `true` once this process is gone.
    pub fn signal_and_wait(&self, signal: i32, timeout: Duration) -> io::Result<bool> {
        let Some(fd) = self.pidfd()? else { return Ok(true) };
        send(&fd, signal)?;
        wait(&fd, timeout)
    }
}

/// Waits until the process behind a pidfd has ended; `false` on timeout.
pub fn wait(pidfd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let until = std::time::Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}

/// State letter and start time of a pid.
fn stat(pid: i32) -> io::Result<(u8, u64)> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/PID/stat");
    // The second field is the command in parentheses and may itself hold spaces and parentheses.
    let end = text.iter().rposition(|b| *b == b')').ok_or_else(bad)?;
    let rest = String::from_utf8_lossy(&text[end + 1..]).into_owned();
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().and_then(|s| s.bytes().next()).ok_or_else(bad)?;
    // Field 22, and field 3 has just been taken.
    let start = fields.nth(18).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    Ok((state, start))
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_pid() {
        let me = Process::current().unwrap();
        assert!(me.is_alive());
        assert!(!Process { start_time: me.start_time + 1, ..me.clone() }.is_alive());
        assert!(!Process { boot_id: "other".into(), ..me.clone() }.is_alive());
        // Signal 0 only asks.
        assert!(me.signal(0).unwrap());
        assert!(!Process { start_time: 1, ..me }.signal(libc::SIGKILL).unwrap());
    }

    #[test]
    fn a_killed_child_counts_as_gone_even_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        assert!(process.signal_and_wait(libc::SIGKILL, Duration::from_secs(5)).unwrap());
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
