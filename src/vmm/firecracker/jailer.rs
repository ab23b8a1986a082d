//! Runs the jailer and takes over the VMM that it leaves behind.

use super::stage::{API_SOCKET, CONFIG, LOG};
use crate::error::{Context, Error, Result};
use crate::syscall::{open_beneath, pidfd_open, pidfd_send_signal};
use crate::vmm::jail::name_of;
use crate::vmm::monitor::reap;
use crate::vmm::spawn::{Spawn, Spawned, spawn};
use crate::vmm::spec::{JailSpec, VmSpec};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a jailer may take; it copies the VMM's few mebibytes and makes some directories.
const PATIENCE: Duration = Duration::from_secs(30);
/// Descriptors: a drive takes one, a vsock connection another.
const MAX_FILES: u32 = 4096;
/// For what the VMM writes besides drives: nothing.
const LEAST_FILE_SIZE: u64 = 1 << 20;

/// What the jailer is told.
pub(super) struct Order<'a> {
    pub spec: &'a VmSpec,
    pub jail: &'a JailSpec,
    pub firecracker: &'a Path,
    pub jailer: &'a Path,
    /// The project's namespace. The jailer opens it by path, as it closes what it inherits.
    pub netns: Option<&'a OwnedFd>,
    /// `--cgroup-version` and what goes with it.
    pub cgroups: Vec<OsString>,
    /// Bytes of the largest drive that the VMM writes.
    pub largest: u64,
}

impl Order<'_> {
    fn argv(&self) -> Vec<OsString> {
        let mut argv: Vec<OsString> = vec![self.jailer.into()];
        let mut arg = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            argv.push(flag.into());
            argv.push(value.as_ref().to_owned());
        };
        arg("--id", &name_of(&self.spec.id, self.jail));
        arg("--exec-file", &self.firecracker);
        arg("--uid", &self.jail.uid.to_string());
        arg("--gid", &self.jail.gid.to_string());
        arg("--chroot-base-dir", &self.jail.root);
        if let Some(netns) = self.netns {
            use std::os::fd::AsRawFd;
            arg("--netns", &format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
        }
        arg("--resource-limit", &format!("no-file={MAX_FILES}"));
        // Old versions keep the guest's memory in a file without a name, for which the limit holds as well.
        let largest = self.largest.max(self.spec.memory).max(LEAST_FILE_SIZE);
        arg("--resource-limit", &format!("fsize={largest}"));
        argv.extend(self.cgroups.iter().cloned());
        argv.extend(["--new-pid-ns", "--"].map(OsString::from));
        let ours = [("--config-file", CONFIG), ("--api-sock", API_SOCKET), ("--log-path", LOG)];
        argv.extend(ours.iter().flat_map(|(flag, name)| [OsString::from(flag), format!("/{name}").into()]));
        // In the configuration, which names it too, it would come too late for what is said before that is read.
        argv.extend(["--level", "Warning"].map(OsString::from));
        argv
    }
}

/// A running VMM: a child of ours, although we did not make it.
pub(super) struct Adopted {
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// Its standard error, and the jailer's.
    pub stderr: OwnedFd,
}

/// Runs the jailer to its end. `stdio` are the VMM's standard input and output; `doors` are cgroups that the
/// jailer does not enter by itself; `root` is the directory that becomes `/`.
pub(super) fn run(
    order: &Order<'_>,
    stdio: (OwnedFd, OwnedFd),
    doors: &[OwnedFd],
    root: &OwnedFd,
) -> Result<Adopted> {
    // The jailer's child becomes ours when the jailer ends, so this must hold until then.
    let _adopting = Subreaper::new().or_host("vmm.subreaper", || "cannot become the parent of orphans")?;
    let spawned = spawn(Spawn {
        argv: order.argv(),
        env: Vec::new(),
        keep: Vec::new(),
        stdio: Some(stdio),
        netns: None,
        no_network: false,
        cgroups: doors,
        chroot: None,
        identity: None,
    })?;
    let Spawned { mut child, pidfd, stderr } = spawned;
    let ended = ends_within(&pidfd, PATIENCE);
    if !matches!(ended, Ok(true)) {
        let _ = child.kill(); // It is told below in any case.
    }
    let status = child.wait().or_failed("vmm.jailer", || "cannot wait for the jailer")?;
    if !status.success() {
        let said = said(&stderr);
        let said = said.lines().next().map(|line| format!(": {line}")).unwrap_or_default();
        let how = match ended {
            Ok(true) => format!("failed ({status})"),
            Ok(false) => format!("did not end within {} s", PATIENCE.as_secs()),
            Err(e) => format!("cannot be waited for ({e})"),
        };
        return Err(Error::failed("vmm.jailer", format!("Firecracker's jailer {how}{said}")));
    }
    let program = order.firecracker.file_name().unwrap_or_default();
    let (pid, pidfd) = adopt(root, Path::new(program)).map_err(|e| {
        Error::failed("vmm.jailer", "the jailer ended well, but did not leave a VMM behind").because(e)
    })?;
    Ok(Adopted { pid, pidfd, stderr })
}

/// Whether the process behind `pidfd` ends in this time. A signal to this process is none of its: poll(2) is never
/// resumed by itself, whatever the handler's flags.
fn ends_within(pidfd: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up: rounded down, the last part of a millisecond would be spent spinning.
        let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}

/// The process named by the file that the jailer wrote. The VMM runs by now and owns the directory: the file
/// counts only if it is root's, as the VMM cannot make such a one, and if it names a child of ours.
fn adopt(root: &OwnedFd, program: &Path) -> io::Result<(i32, OwnedFd)> {
    let mut name = program.as_os_str().to_owned();
    name.push(".pid");
    let name = name.to_string_lossy();
    let file = File::from(open_beneath(root, &name, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?);
    let meta = file.metadata()?;
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    if !meta.is_file() || meta.uid() != 0 {
        return Err(invalid("its pid file is not the jailer's"));
    }
    let mut text = String::new();
    file.take(16).read_to_string(&mut text)?;
    let pid: i32 = text.trim().parse().map_err(|_| invalid("its pid file names no process"))?;
    let pidfd = pidfd_open(pid)?;
    // A child that nobody has reaped keeps its pid, zombie or not.
    if parent_of(pid)? != std::process::id() {
        return Err(invalid("its pid file names a process that is no child of ours"));
    }
    Ok((pid, pidfd))
}

fn parent_of(pid: i32) -> io::Result<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command may hold parentheses and spaces; state and parent follow it (proc(5)).
    let rest = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    rest.split(' ').nth(1).and_then(|ppid| ppid.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn said(stderr: &OwnedFd) -> String {
    let Ok(copy) = stderr.try_clone() else { return String::new() };
    let mut text = Vec::new();
    // It does not block: reading ends when it is empty.
    let _ = File::from(copy).take(64 << 10).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Makes this process the parent of its descendants' orphans while there is one of these.
struct Subreaper;

/// How many there are.
static ADOPTING: Mutex<usize> = Mutex::new(0);

impl Subreaper {
    fn new() -> io::Result<Subreaper> {
        let mut count = ADOPTING.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0 {
            set_subreaper(true)?;
        }
        *count += 1;
        Ok(Subreaper)
    }
}

impl Drop for Subreaper {
    fn drop(&mut self) {
        let mut count = ADOPTING.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            // Cannot fail with a flag that this kernel took before.
            let _ = set_subreaper(false);
        }
    }
}

fn set_subreaper(on: bool) -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(on)?)
}

/// Ends what was adopted when something after it fails.
pub(super) fn discard(adopted: &Adopted) {
    // It may have ended by itself.
    let _ = pidfd_send_signal(&adopted.pidfd, libc::SIGKILL);
    let _ = reap(adopted.pid);
}

#[cfg(test)]
mod tests;
