//! Starts a supervisor: the same binary, in a session of its own, told what to do over a socket.

use super::client::Client;
use super::effects::private_dir;
use super::orders;
use super::spec::SuperviseSpec;
use crate::error::{Context, Error, Result};
use crate::net::netns::Netns;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The hidden first argument that makes this binary a supervisor.
pub const ARGUMENT: &str = "__supervise";
/// What a supervisor has to say beyond its VM's logs, in the VM's directory.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// Volumes are made in this time; the boot itself is not waited for.
const PREPARE: Duration = Duration::from_secs(120);

/// The first of its log, kept free on the disk.
const LOG_ROOM: libc::off_t = 16 * 1024;

/// What a supervisor inherits of its caller's environment. Not the rest: secrets come from there, and a supervisor
/// would show them in its /proc/PID/environ for as long as its VM runs.
const ENVIRONMENT: [&str; 3] = ["PATH", "TMPDIR", "RUST_BACKTRACE"];

/// A supervisor that waits to be told what for. It ends with this, unless it was told: whoever will need one soon
/// starts it early, so that its exec takes no time when it is needed.
#[derive(Debug)]
pub struct Waiting {
    socket: Option<UnixStream>,
    /// The process in between, which ends once the supervisor is nobody's child.
    between: Child,
}

impl Waiting {
    /// Starts this very binary, even if its file was replaced meanwhile.
    pub fn start() -> Result<Waiting> {
        Waiting::start_with(Path::new("/proc/self/exe"))
    }

    /// Starts another binary whose `main` calls `child_main`.
    pub fn start_with(exe: &Path) -> Result<Waiting> {
        let failed = || "cannot start a supervisor";
        let (ours, theirs) = UnixStream::pair().or_failed("supervise.spawn", failed)?;
        // Nothing is done between fork and exec, so std takes posix_spawn, which copies no page tables.
        let between = Command::new(exe)
            .arg0("firegopher")
            .arg(ARGUMENT)
            .env_clear()
            .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .or_failed("supervise.spawn", failed)?;
        Ok(Waiting { socket: Some(ours), between })
    }

    /// Tells it what to supervise and returns the connection to it, attached from the start. Returns once everything
    /// that can be checked before the boot was: its errors (a taken port, a volume in use) come back from here.
    pub fn begin(mut self, spec: &SuperviseSpec, netns: Option<&Netns>) -> Result<Client> {
        let failed = || format!("cannot start the supervisor of VM {}", spec.vm);
        let log = log(&spec.dir, failed)?;
        let socket = self.socket.take().ok_or_else(|| Error::bug("a supervisor was told twice"))?;
        orders::send(&socket, spec, log.as_fd(), netns.map(AsFd::as_fd))
            .or_failed("supervise.spawn", failed)?;
        let mut client = Client::new(socket, &spec.dir);
        if client.wait_ready(PREPARE)? {
            return Ok(client);
        }
        let said = fs::read_to_string(spec.dir.join(SUPERVISOR_LOG)).unwrap_or_default();
        let said = super::logs::escaped(said.trim_end().as_bytes());
        Err(Error::failed("supervise.spawn", format!("{}: it did not report. It said: {said}", failed())))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // One that was told nothing ends at the end of its socket.
        self.socket = None;
        // It ends right after its start, whatever becomes of the supervisor: this only reaps it.
        let _ = self.between.wait();
    }
}

/// Starts a supervisor for `spec`; see [`Waiting::begin`].
pub fn spawn(spec: &SuperviseSpec, netns: Option<&Netns>) -> Result<Client> {
    Waiting::start()?.begin(spec, netns)
}

/// `spawn` with another binary whose `main` calls `child_main`.
pub fn spawn_with(exe: &Path, spec: &SuperviseSpec, netns: Option<&Netns>) -> Result<Client> {
    Waiting::start_with(exe)?.begin(spec, netns)
}

/// The supervisor's log, emptied.
fn log(dir: &Path, failed: impl Fn() -> String) -> Result<File> {
    private_dir(dir)?;
    let log = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(dir.join(SUPERVISOR_LOG))
        .or_failed("supervise.spawn", &failed)?
        .into_file();
    log.set_len(0).or_failed("supervise.spawn", failed)?;
    // What is to be said when the disk is full needs a place. Without one it is said to followers only.
    let keep = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let _ = nix::fcntl::fallocate(&log, keep, 0, LOG_ROOM);
    Ok(log)
}
