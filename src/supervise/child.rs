//! What the supervisor's process does between its exec and its VM.

use super::guard::Guard;
use super::host::Host;
use super::machine::Platform;
use super::spec::{SuperviseSpec, wipe};
use super::supervisor;
use super::wire::{FromSupervisor, MAX_SPEC, WIRE, message};
use crate::error::{Context, Error, Result};
use crate::net::netns::Netns;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// `main` of a supervisor: what `firegopher __supervise` runs. Not for people: without a socket as its standard
/// input it does nothing.
pub fn child_main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            super::log_line(&super::journal::chain(&e));
            ExitCode::from(e.kind().exit_code())
        }
    }
}

fn run() -> Result<()> {
    crate::vmm::prepare();
    let netns_fd: Option<RawFd> = std::env::args()
        .find_map(|a| a.strip_prefix("--netns=").map(str::to_owned))
        .map(|n| n.parse().or_usage("supervise.argument", || "--netns wants a descriptor"))
        .transpose()?;
    let mut socket =
        isolate(netns_fd).or_failed("supervise.start", || "cannot leave the caller's session")?;
    // SAFETY: our caller passed this descriptor to us alone; `isolate` has left it open and made it close-on-exec.
    let netns = netns_fd.map(|fd| Netns::from_fd(unsafe { OwnedFd::from_raw_fd(fd) }));
    let spec =
        receive(&mut socket).or_failed("supervise.start", || "no settings arrived on standard input")?;
    let guard = Guard::start(&spec).or_failed("supervise.start", || "cannot fork a process that waits")?;
    let result = supervise(spec, netns, netns_fd, socket);
    guard.dismiss();
    result
}

fn supervise(
    spec: SuperviseSpec,
    netns: Option<Netns>,
    netns_fd: Option<RawFd>,
    mut socket: UnixStream,
) -> Result<()> {
    let host = Host::new(netns);
    let prepared = match supervisor::prepare(spec, &host, netns_fd) {
        Ok(prepared) => prepared,
        Err(e) => {
            // If the caller has gone, the state on disk tells it.
            let _ = socket.write_all(&message(&FromSupervisor::refused(&e)));
            return Err(e);
        }
    };
    let _ = socket.write_all(&message(&FromSupervisor::Ready { wire: WIRE }));
    watch(prepared, &host, socket)
}

fn watch(prepared: supervisor::Prepared, platform: &dyn Platform, first: UnixStream) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failed("supervise.start", || "cannot start the supervisor's event loop")?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let first = first
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(first))
            .map_err(|e| Error::failed("supervise.start", "cannot serve the caller").because(e))?;
        supervisor::supervise(prepared, platform, Some(first)).await.map(|_| ())
    })
}

/// Lets go of everything that was the caller's, and returns the socket that was standard input.
fn isolate(keep: Option<RawFd>) -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().lock().as_fd_owned()?);
    // Before anything is opened: the socket is a duplicate, so a closed standard input was an error above.
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // SAFETY: both descriptors are open; 0 is meant to be replaced.
    if unsafe { libc::dup2(null.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(null);
    // A pipe of the caller's that stayed open here would keep its reader waiting for as long as the VM runs.
    let mut kept = [Some(socket.as_raw_fd()), keep].into_iter().flatten().collect::<Vec<_>>();
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept.iter().copied().chain([RawFd::MAX]) {
        if fd > from {
            // SAFETY: no descriptor in this range belongs to an object of ours; only `kept` ones do.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
    if let Some(fd) = keep {
        // SAFETY: sets close-on-exec on an open descriptor.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    std::env::set_current_dir("/")?;
    // A core file would hold secrets.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGPIPE] {
        // SAFETY: ignoring runs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    SigSet::empty().thread_set_mask()?;
    let _ = nix::sys::prctl::set_name(c"firegopher-sup");
    Ok(socket)
}

trait AsFdOwned {
    fn as_fd_owned(&self) -> io::Result<OwnedFd>;
}

impl<T: std::os::fd::AsFd> AsFdOwned for T {
    fn as_fd_owned(&self) -> io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }
}

fn receive(socket: &mut UnixStream) -> io::Result<SuperviseSpec> {
    let mut len = [0; 4];
    socket.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > MAX_SPEC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the settings are too large"));
    }
    let mut bytes = vec![0; len as usize];
    socket.read_exact(&mut bytes)?;
    let spec = serde_json::from_slice(&bytes);
    wipe(&mut bytes);
    Ok(spec?)
}
