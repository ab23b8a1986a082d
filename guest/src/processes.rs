//! All processes of the guest: the one place that reaps, and signals to all of them.

use nix::errno::Errno;
use nix::unistd::{Pid, getpgid, getpid};
use std::fs;

/// What one look at the children found.
#[derive(Debug, PartialEq, Eq)]
pub enum Reaped {
    /// This child ended with this raw wait status.
    Child(Pid, i32),
    /// Children are left, none of them ended.
    Running,
    /// No child is left; for PID 1 that is: no process but itself.
    Childless,
}

/// Takes one ended child. Nothing else in this program calls waitpid, so no status is ever taken by the wrong hand.
/// Raw statuses, as nix's type knows no real-time signals.
pub fn reap() -> Reaped {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a live integer.
        match Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }) {
            Ok(0) => return Reaped::Running,
            Ok(pid) => return Reaped::Child(Pid::from_raw(pid), status),
            Err(Errno::EINTR) => {}
            Err(_) => return Reaped::Childless,
        }
    }
}

/// Sends a signal to a process group, which may be gone.
pub fn signal_group(group: Pid, signal: i32) {
    let stops = matches!(signal, libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
    // A terminal's stop signals do nothing by default to a group whose session has no shell (setpgid(2)).
    let signal = if stops && is_default(group, signal) { libc::SIGSTOP } else { signal };
    kill(-group.as_raw(), signal);
}

/// Whether a process neither ignores nor catches a signal.
fn is_default(pid: Pid, signal: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let in_mask = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_none_or(|mask| mask >> (signal - 1) & 1 == 1)
    };
    !in_mask("SigIgn:") && !in_mask("SigCgt:")
}

/// Sends a signal to every process but PID 1.
pub fn signal_all(signal: i32) {
    // Outside of a PID namespace of our own this would be everybody's processes.
    if getpid().as_raw() == 1 {
        kill(-1, signal);
    }
}

/// Sends a signal to every process but PID 1 that is not in `group`.
pub fn signal_others(group: Pid, signal: i32) {
    if getpid().as_raw() != 1 {
        return;
    }
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for pid in entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()) {
        if pid > 1 && getpgid(Some(Pid::from_raw(pid))).is_ok_and(|g| g != group) {
            kill(pid, signal);
        }
    }
}

fn kill(target: i32, signal: i32) {
    // SAFETY: kill takes plain numbers. libc's, as nix's signal type knows no real-time signals.
    unsafe { libc::kill(target, signal) };
}
