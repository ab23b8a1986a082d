//! Identifies processes beyond their reusable pid, and signals exactly the one that is meant.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

pub(crate) use crate::syscall::{pidfd_open, pidfd_send_signal as send};

/// The inode of the host's own pid namespace (PROC_PID_INIT_INO of linux/proc_ns.h): from there every process is seen.
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFC;

/// A process: its pid, when it started and in which boot of the host. A pid alone is reused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The pid as seen by the process that recorded it.
    pub pid: i32,
    /// Field 22 of /proc/PID/stat: clock ticks since the host's boot.
    pub start_time: u64,
    /// /proc/sys/kernel/random/boot_id at the time of recording.
    pub boot_id: String,
    /// The pid namespace in which `pid` means this process; unknown of those that older versions recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u64>,
}

/// Where a recorded process is, as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// It runs, and this is its pid here.
    Here(i32),
    /// It has ended.
    Gone,
    /// It was started in a pid namespace that cannot be seen from here, or in another boot of a host, such as a container
    /// or another host on the same directory may have: nothing is known of it.
    Hidden,
}

impl Process {
    /// The identity of a live process; fails if there is none or it is a zombie.
    pub fn of(pid: i32) -> io::Result<Process> {
        let (state, start_time) = stat(pid)?;
        if matches!(state, b'Z' | b'X') {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        Ok(Process { pid, start_time, boot_id: boot_id()?, namespace: own_namespace() })
    }

    /// The calling process.
    pub fn current() -> io::Result<Process> {
        // getpid is at most 4194304 (PID_MAX_LIMIT).
        Process::of(std::process::id() as i32)
    }

    /// Looks for this very process. A pid means something only in the namespace that it was recorded in; from an
    /// enclosing one the process is found by the pids that the kernel lists for it.
    pub fn find(&self) -> Whereabouts {
        if !boot_id().is_ok_and(|now| now == self.boot_id) {
            // The host was booted again, or this is another one, or a container with an identifier of its own.
            return Whereabouts::Hidden;
        }
        let own = own_namespace();
        if self.namespace.is_none_or(|recorded| own == Some(recorded)) && pids_are_ours() {
            return match self.started_as(self.pid) {
                true => Whereabouts::Here(self.pid),
                false => Whereabouts::Gone,
            };
        }
        match self.namespace.filter(|_| pids_are_ours()).and_then(|namespace| self.find_within(namespace)) {
            Some(pid) => Whereabouts::Here(pid),
            None if own == Some(INITIAL_NAMESPACE) => Whereabouts::Gone,
            None => Whereabouts::Hidden,
        }
    }

    /// The pid here of a process in an inner namespace.
    fn find_within(&self, namespace: u64) -> Option<i32> {
        let pids = std::fs::read_dir("/proc").ok()?.flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.find(|pid| {
            namespace_of(&pid.to_string()) == Some(namespace)
                && innermost_pid(*pid) == Some(self.pid)
                && self.started_as(*pid)
        })
    }

    /// Whether the process with this pid started when this one did. A zombie does not run.
    fn started_as(&self, pid: i32) -> bool {
        stat(pid).is_ok_and(|(state, start)| !matches!(state, b'Z' | b'X') && start == self.start_time)
    }

    /// Whether this very process still runs and can be seen from here. A zombie does not. What cannot be seen may
    /// live all the same: ask a lock.
    pub fn is_alive(&self) -> bool {
        matches!(self.find(), Whereabouts::Here(_))
    }

    /// A pidfd of this very process, `None` if it is gone or cannot be seen.
    pub fn pidfd(&self) -> io::Result<Option<OwnedFd>> {
        let Whereabouts::Here(pid) = self.find() else { return Ok(None) };
        let fd = match pidfd_open(pid) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // The pid may have been reused between the two calls; the descriptor now pins it, so one look decides.
        Ok(self.started_as(pid).then_some(fd))
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

/// The pid namespace of the calling process.
fn own_namespace() -> Option<u64> {
    namespace_of("self")
}

fn namespace_of(process: &str) -> Option<u64> {
    Some(std::fs::metadata(format!("/proc/{process}/ns/pid")).ok()?.ino())
}

/// Whether /proc shows the pids of this process's own namespace: a new one may have been entered without mounting it.
fn pids_are_ours() -> bool {
    let own = std::process::id().to_string();
    std::fs::read_link("/proc/self").is_ok_and(|shown| shown.as_os_str() == own.as_str())
}

/// The last of the pids that a process has, from this namespace inwards (`NSpid` in proc_pid_status(5)).
fn innermost_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()?.parse().ok())
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
        // As older versions recorded it.
        assert!(Process { namespace: None, ..me.clone() }.is_alive());
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

    #[test]
    fn a_pid_of_another_namespace_means_nobody_here() {
        let me = Process::current().unwrap();
        let elsewhere = Process { namespace: Some(1), ..me.clone() };
        let seen = elsewhere.find();
        let all_seen = me.namespace == Some(INITIAL_NAMESPACE);
        assert_eq!(seen, if all_seen { Whereabouts::Gone } else { Whereabouts::Hidden });
        assert!(!elsewhere.signal(libc::SIGKILL).unwrap(), "nobody is killed for it");
        // Some containers have a boot of their own.
        let foreign = Process { boot_id: "other".into(), ..me.clone() };
        assert_eq!(foreign.find(), Whereabouts::Hidden);
        assert!(!foreign.signal(libc::SIGKILL).unwrap(), "nobody is killed for it");
        assert_eq!(innermost_pid(me.pid), Some(me.pid));
    }

    #[test]
    fn a_process_in_an_inner_namespace_is_found_from_outside() {
        // Prints what the process calls itself, then waits.
        let script = "stat -L -c %i /proc/self/ns/pid; exec cat";
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command
            .args(["sh", "-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            crate::testing::skip("no unshare");
            return;
        };
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let Ok(namespace) = line.trim().parse::<u64>() else {
            crate::testing::skip("no pid namespaces for this user");
            child.wait().unwrap();
            return;
        };
        let inner = (1..).find_map(|_| {
            let pids = std::fs::read_dir("/proc").unwrap().flatten();
            let mut pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
            pids.find(|pid| {
                namespace_of(&pid.to_string()) == Some(namespace) && innermost_pid(*pid) == Some(1)
            })
        });
        let seen = Process::of(inner.unwrap()).unwrap();
        let recorded = Process { pid: 1, namespace: Some(namespace), ..seen.clone() };
        assert_eq!(recorded.find(), Whereabouts::Here(seen.pid));
        assert!(recorded.signal_and_wait(libc::SIGKILL, Duration::from_secs(30)).unwrap());
        child.wait().unwrap();
        assert!(!recorded.is_alive());
    }
}
