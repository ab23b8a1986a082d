//! Ends processes of a jail that nobody watches: a VMM whose supervisor died before it was written down.

use super::cgroup;
use crate::error::{Context, Error, Result};
use crate::syscall::{pidfd_open, pidfd_send_signal};
use crate::vmm::spec::JailSpec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A killed VMM gives its guest's memory back first.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills everything that runs in the jail's cgroups or has the jail as its root, and waits until it has ended.
pub(super) fn kill(jail: &JailSpec) -> Result<()> {
    let record = cgroup::journal(&jail.root);
    let roots = roots(&jail.root);
    let deadline = Instant::now() + PATIENCE;
    let say = || format!("cannot end the processes of the jail {}", jail.root.display());
    loop {
        let mut running = false;
        for pid in cgroup::members(&record) {
            running |= end(pid, || cgroup::members(&record).contains(&pid), deadline)
                .or_failed("jail.stray", say)?;
        }
        for pid in jailed(&roots) {
            running |= end(pid, || is_jailed(pid, &roots), deadline).or_failed("jail.stray", say)?;
        }
        // What it had started in the meantime is found in the next round.
        if !running {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let text =
                format!("a process of the jail {} does not end although it was killed", jail.root.display());
            return Err(Error::failed("jail.stray", text));
        }
    }
}

/// Kills one process, if it still is the one that is meant once its pid is pinned; says whether it ran.
fn end(pid: i32, is_meant: impl Fn() -> bool, deadline: Instant) -> io::Result<bool> {
    let fd = match pidfd_open(pid) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        other => other?,
    };
    if !is_meant() || is_zombie(pid) {
        return Ok(false);
    }
    pidfd_send_signal(&fd, libc::SIGKILL)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    // Once more in the next round if this is cut short.
    let _ = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout);
    // A child of ours must not stay a zombie; one of somebody else's is not ours to reap.
    let _ =
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    Ok(true)
}

/// Device and inode of the directories that are roots here: the jail itself, or for the jailer's layout
/// `PROGRAM/ID/root` in it. The levels above `root` belong to us, so no name in them is the VMM's choice.
fn roots(base: &Path) -> Vec<(u64, u64)> {
    let inside = |dir: &Path| -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        dirs.map(|e| e.path()).collect()
    };
    let ours = |dir: &Path| std::fs::symlink_metadata(dir).is_ok_and(|m| m.is_dir() && m.uid() == 0);
    let mut found = vec![base.to_owned()];
    if ours(base) {
        for id in inside(base).into_iter().filter(|dir| ours(dir)).flat_map(|program| inside(&program)) {
            if ours(&id) {
                found.push(id.join("root"));
            }
        }
    }
    found.iter().filter_map(|dir| std::fs::symlink_metadata(dir).ok()).map(|m| (m.dev(), m.ino())).collect()
}

fn jailed(roots: &[(u64, u64)]) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_jailed(*pid, roots)).collect()
}

fn is_jailed(pid: i32, roots: &[(u64, u64)]) -> bool {
    // Follows the kernel's own link; it cannot be read of a zombie.
    std::fs::metadata(format!("/proc/{pid}/root")).is_ok_and(|meta| roots.contains(&(meta.dev(), meta.ino())))
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}
