//! Starts a supervisor: the same binary, in a session of its own, told what to do over a socket.

use super::client::Client;
use super::effects::private_dir;
use super::spec::{SuperviseSpec, wipe};
use super::wire::MAX_SPEC;
use crate::error::{Context, Error, Result};
use crate::net::netns::Netns;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The hidden first argument that makes this binary a supervisor.
pub const ARGUMENT: &str = "__supervise";
/// What a supervisor has to say beyond its VM's logs, in the VM's directory.
pub const SUPERVISOR_LOG: &str = "supervisor.log";
/// Volumes are made in this time; the boot itself is not waited for.
const PREPARE: Duration = Duration::from_secs(120);

/// What a supervisor inherits of its caller's environment. Not the rest: secrets come from there, and a supervisor
/// would show them in its /proc/PID/environ for as long as its VM runs.
const ENVIRONMENT: [&str; 3] = ["PATH", "TMPDIR", "RUST_BACKTRACE"];

/// Starts a supervisor and returns the connection to it, attached from the start. Returns once everything that can
/// be checked before the boot was: its errors (a taken port, a volume in use) come back from here.
pub fn spawn(spec: &SuperviseSpec, netns: Option<&Netns>) -> Result<Client> {
    // By this name even if the binary's file was replaced meanwhile.
    spawn_with(Path::new("/proc/self/exe"), spec, netns)
}

/// `spawn` with another binary whose `main` calls `child_main`.
pub fn spawn_with(exe: &Path, spec: &SuperviseSpec, netns: Option<&Netns>) -> Result<Client> {
    let failed = || format!("cannot start the supervisor of VM {}", spec.vm);
    private_dir(&spec.dir)?;
    let log = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(spec.dir.join(SUPERVISOR_LOG))
        .or_failed("supervise.spawn", failed)?
        .into_file();
    log.set_len(0).or_failed("supervise.spawn", failed)?;
    let (ours, theirs) = UnixStream::pair().or_failed("supervise.spawn", failed)?;
    let mut command = Command::new(exe);
    command
        .arg0("firegopher")
        .arg(ARGUMENT)
        .env_clear()
        .envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log));
    let netns = netns.map(|ns| ns.as_fd().as_raw_fd());
    if let Some(fd) = netns {
        command.arg(format!("--netns={fd}"));
    }
    // SAFETY: between fork and exec only async-signal-safe functions are called: fcntl, setsid, fork and _exit.
    unsafe { command.pre_exec(move || detach(netns)) };
    let mut child = command.spawn().or_failed("supervise.spawn", failed)?;
    // Holds the other end of the socket: without it the supervisor's death would go unnoticed.
    drop(command);
    // The process that was waited for is the one in between, see `detach`.
    child.wait().or_failed("supervise.spawn", failed)?;
    send(&ours, spec).or_failed("supervise.spawn", failed)?;
    let mut client = Client::new(ours, &spec.dir);
    if client.wait_ready(PREPARE)? {
        return Ok(client);
    }
    let said = fs::read_to_string(spec.dir.join(SUPERVISOR_LOG)).unwrap_or_default();
    let said = super::logs::escaped(said.trim_end().as_bytes());
    Err(Error::failed("supervise.spawn", format!("{}: it did not report. It said: {said}", failed())))
}

/// A session of its own, so that no terminal's signals arrive; and no child of the caller, so that nobody has to
/// reap it.
fn detach(netns: Option<i32>) -> io::Result<()> {
    if let Some(fd) = netns {
        // SAFETY: clears close-on-exec on a descriptor that the parent holds open.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: takes nothing, touches no memory.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this process has one thread, being a fork itself, and its child only goes on to exec.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: ends at once without running anything of the parent's.
        _ => unsafe { libc::_exit(0) },
    }
}

fn send(mut to: &UnixStream, spec: &SuperviseSpec) -> io::Result<()> {
    // Room beforehand: growing would leave copies of secrets in freed memory.
    let mut bytes = Vec::with_capacity(256 * 1024);
    bytes.extend_from_slice(&[0; 4]);
    serde_json::to_writer(&mut bytes, spec)?;
    let len = u32::try_from(bytes.len() - 4).ok().filter(|len| *len <= MAX_SPEC);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "its settings are too large"))?;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    let sent = to.write_all(&bytes);
    wipe(&mut bytes);
    sent
}
