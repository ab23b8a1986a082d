//! Runs one of apt's programs to its end: hears all it says, and ends it with us or when the disk stays full.

use super::apt_error::Complaints;
use super::parse::download_percent;
use crate::error::{Context, Error, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// Of what a child says on its stderr, so many of the last bytes are kept: scripts of packages may say anything.
const KEPT: usize = 1 << 20;
/// More on its stdout is an error: what is read there counts as a whole.
const MOST: u64 = 256 << 20;

/// What a child said.
pub(super) struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    /// The end of it, if it was long.
    pub stderr: String,
    pub complaints: Complaints,
}

/// Runs `command` to its end; `status_pipe` is heard for the percentage of what is being downloaded.
pub(super) fn collect(
    mut command: Command,
    program: &str,
    dir: &Path,
    status_pipe: Option<(OwnedFd, OwnedFd)>,
    on_percent: &mut dyn FnMut(f64),
) -> Result<Said> {
    let failed = || format!("cannot run {program}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let inherit = status_pipe.as_ref().map(|(_, write)| write.as_raw_fd());
    die_with_us(&mut command, inherit);
    let child = command.spawn().or_failed("asset.apt-run", failed)?;
    hear(child, program, dir, status_pipe, on_percent)
}

/// Hears all that a child says, to its end.
pub(super) fn hear(
    mut child: Child,
    program: &str,
    dir: &Path,
    status_pipe: Option<(OwnedFd, OwnedFd)>,
    on_percent: &mut dyn FnMut(f64),
) -> Result<Said> {
    let failed = || format!("cannot run {program}");
    // Our copy of the write end goes, so that reading ends with the child.
    let status_read = status_pipe.map(|(read, _write)| read);
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let pid = nix::unistd::Pid::from_raw(child.id() as libc::pid_t);
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let (stdout, stderr, full) = std::thread::scope(|scope| {
        // apt's http method waits for ever once the disk is full, and apt for it.
        let full = scope.spawn(move || {
            let full = stays_full(dir, &is_done);
            if full {
                // Not reaped yet, so the pid is still its own. Its methods end with it, and whoever is in a group of
                // its own takes the group along.
                let leads = nix::unistd::getpgid(Some(pid)) == Ok(pid);
                let whom = if leads { nix::unistd::Pid::from_raw(-pid.as_raw()) } else { pid };
                let _ = nix::sys::signal::kill(whom, nix::sys::signal::Signal::SIGKILL);
            }
            full
        });
        let out = scope.spawn(|| out.map_or_else(|| Some(String::new()), |out| whole(out, MOST)));
        let err = scope.spawn(|| err.map(end).unwrap_or_default());
        if let Some(read) = status_read {
            for line in BufReader::new(File::from(read)).lines().map_while(Result::ok) {
                if let Some(percent) = download_percent(&line) {
                    on_percent(percent);
                }
            }
        }
        let said = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
        drop(done);
        (said.0, said.1, full.join().unwrap_or(false))
    });
    let status = child.wait().or_failed("asset.apt-run", failed)?;
    let Some(stdout) = stdout else {
        return Err(Error::failed(
            "asset.apt-run",
            format!("{program} prints more than {} MiB, which cannot be right", MOST >> 20),
        ));
    };
    let mut complaints = Complaints::from_stderr(&stderr);
    if full {
        complaints.extend(Complaints::from_stderr("E: No space left on device"));
    }
    Ok(Said { status, complaints, stdout, stderr })
}

/// Whether the disk of `dir` has been full for seconds before `done` was closed.
fn stays_full(dir: &Path, done: &std::sync::mpsc::Receiver<()>) -> bool {
    const PATIENCE: u32 = 6;
    let mut full = 0;
    while let Err(RecvTimeoutError::Timeout) = done.recv_timeout(Duration::from_millis(500)) {
        let room = nix::sys::statvfs::statvfs(dir).is_ok_and(|fs| fs.blocks_available() > 0);
        full = if room { 0 } else { full + 1 };
        if full == PATIENCE {
            return true;
        }
    }
    false
}

/// All that a pipe gives, or nothing if it is more than `most`.
fn whole(pipe: impl Read, most: u64) -> Option<String> {
    let mut bytes = Vec::new();
    // What could be read is what there is to say.
    let _ = pipe.take(most + 1).read_to_end(&mut bytes);
    (bytes.len() as u64 <= most).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// The last [`KEPT`] bytes that a pipe gives.
fn end(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What could be read is what there is to say.
    while pipe.by_ref().take(KEPT as u64).read_to_end(&mut bytes).is_ok_and(|read| read > 0) {
        bytes.drain(..bytes.len().saturating_sub(KEPT));
    }
    bytes.drain(..bytes.len().saturating_sub(KEPT));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The child is killed when the thread that waits for it is gone, and keeps `inherit` open.
fn die_with_us(command: &mut Command, inherit: Option<RawFd>) {
    let parent = std::process::id() as libc::pid_t;
    // SAFETY: only prctl, getppid and fcntl run between fork and exec: async-signal-safe, no allocation, no locks.
    unsafe {
        command.pre_exec(move || {
            let done = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
                // We may have died before prctl took effect.
                && libc::getppid() == parent
                && inherit.is_none_or(|fd| libc::fcntl(fd, libc::F_SETFD, 0) == 0);
            if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_endless_complaints_the_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo out; echo 'the end' >&2"]);
        let said = collect(command, "sh", dir.path(), None, &mut |_| ()).unwrap();
        assert!(said.status.success());
        assert_eq!((said.stdout.as_str(), said.stderr.len()), ("out\n", KEPT));
        assert!(said.stderr.ends_with("xthe end\n"));
        assert_eq!(end(&b"short"[..]), "short");
    }

    #[test]
    fn output_is_whole_or_an_error() {
        assert_eq!(whole(&b"four"[..], 4).as_deref(), Some("four"));
        assert_eq!(whole(std::io::repeat(b'x'), 4), None);
    }
}
