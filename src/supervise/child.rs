//! What the supervisor's process does between its exec and its VM.

use super::guard::Guard;
use super::host::Host;
use super::orders::{Orders, receive};
use super::spec::SuperviseSpec;
use super::supervisor;
use super::wire::{FromSupervisor, WIRE};
use crate::error::{Context, Error, Result};
use crate::net::netns::Netns;
use crate::syscall::close_range;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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
    let mut socket = isolate().or_failed("supervise.start", || "cannot leave the caller's session")?;
    let orders =
        receive(&mut socket).or_failed("supervise.start", || "no settings arrived on standard input")?;
    // Started early, and then there was nothing to start.
    let Some(Orders { spec, log, netns }) = orders else { return Ok(()) };
    become_silent(log).or_failed("supervise.start", || "cannot use the supervisor's log")?;
    let guard = Guard::start(&spec).or_failed("supervise.start", || "cannot fork a process that waits")?;
    let result = supervise(spec, netns.map(Netns::from_fd), socket);
    guard.dismiss();
    result
}

fn supervise(spec: SuperviseSpec, netns: Option<Netns>, mut socket: UnixStream) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failed("supervise.start", || "cannot start the supervisor's event loop")?;
    // Before anything is taken, and kept until it is looked at: a request to end is never the default action's.
    let term = {
        let _inside = runtime.enter();
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .or_failed("supervise.start", || "cannot listen for SIGTERM")?
    };
    let netns_fd = netns.as_ref().map(|ns| ns.as_fd().as_raw_fd());
    let host = Host::new(netns);
    let prepared = match supervisor::prepare(spec, &host, netns_fd) {
        Ok(prepared) => prepared,
        Err(e) => {
            // If the caller has gone, the state on disk tells it.
            let _ = socket.write_all(&FromSupervisor::refused(&e).frame());
            return Err(e);
        }
    };
    let _ = socket.write_all(&FromSupervisor::Ready { wire: WIRE }.frame());
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let first = socket
            .set_nonblocking(true)
            .and_then(|()| tokio::net::UnixStream::from_std(socket))
            .map_err(|e| Error::failed("supervise.start", "cannot serve the caller").because(e))?;
        supervisor::supervise(prepared, &host, Some(first), Some(term)).await.map(|_| ())
    })
}

/// What is said from here on is for the log alone: until the settings came, the caller's terminal was told.
fn become_silent(log: OwnedFd) -> io::Result<()> {
    // SAFETY: both descriptors are open; 2 is meant to be replaced.
    if unsafe { libc::dup2(log.as_raw_fd(), 2) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets go of everything that was the caller's but its standard error, and returns the socket that was standard input.
fn isolate() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Before anything is opened: the socket is a duplicate, so a closed standard input was an error above.
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // SAFETY: both descriptors are open; 0 is meant to be replaced.
    if unsafe { libc::dup2(null.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(null);
    // A pipe of the caller's that stayed open here would keep its reader waiting for as long as the VM runs.
    let kept = socket.as_raw_fd() as u32;
    // SAFETY: no descriptor in these ranges belongs to an object of ours; only `kept` does.
    unsafe {
        close_range(3, kept - 1, false)?;
        close_range(kept + 1, u32::MAX, false)?;
    }
    detach()?;
    // Before anything is started: the process that waits and the VMM inherit both.
    crate::session_keyring::leave()?;
    crate::vmm::raise_limits();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    std::env::set_current_dir("/")?;
    // Proxies take two descriptors a connection. With fewer they take fewer connections.
    let _ = crate::descriptors::raise();
    // A core file would hold secrets.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // SIGXFSZ: a limit on file sizes is an error of what is written, and not this process's end.
    for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGPIPE, Signal::SIGXFSZ] {
        // SAFETY: ignoring runs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    SigSet::empty().thread_set_mask()?;
    let _ = nix::sys::prctl::set_name(c"firegopher-sup");
    Ok(socket)
}

/// A session of its own, so that no terminal's signals arrive; and no child of the caller, so that nobody has to
/// reap it.
fn detach() -> io::Result<()> {
    // SAFETY: takes nothing, touches no memory.
    if unsafe { libc::setsid() } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this process has one thread, as nothing has made another yet: the child goes on as if it were the parent.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: ends at once; what the runtime would do at exit is the child's to do.
        _ => unsafe { libc::_exit(0) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session_keyring::tests::{look, session_with_key};
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    /// The test runs itself as what becomes a supervisor.
    #[test]
    fn a_supervisor_reaches_no_keyring_of_its_callers_and_outlives_a_limit_on_files() {
        const CHILD: &str = "FIREGOPHER_TEST_ISOLATED";
        const KEY: &str = "firegopher-supervisor";
        if let Some(how) = std::env::var_os(CHILD) {
            if how == "isolated" {
                drop(isolate().unwrap());
                setrlimit(Resource::RLIMIT_FSIZE, 4096, 4096).unwrap();
                let written = tempfile::tempfile().unwrap().write_all(&[0; 8192]);
                println!("written: {}", written.unwrap_err());
            }
            look(KEY);
            // What is left is a fork of a test: it must not go on with the others.
            std::process::exit(0);
        }
        let run = |how: &str| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let name = "supervise::child::tests::a_supervisor_reaches_no_keyring_of_its_callers_and_outlives_a_limit_on_files";
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", name, "--nocapture"]).env(CHILD, how);
            command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::piped());
            let output = command.spawn().unwrap().wait_with_output().unwrap();
            drop(ours);
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // A thread has a session keyring of its own, which ends with it.
        let told =
            std::thread::spawn(move || session_with_key(KEY).map(|()| (run("as it is"), run("isolated"))));
        let Some((inherited, isolated)) = told.join().unwrap() else { return };
        assert!(inherited.contains("child: found"), "it would be inherited: {inherited}");
        assert!(isolated.contains("child: ") && !isolated.contains("found"), "{isolated}");
        assert!(isolated.contains("written: File too large"), "nor does a limit on files end it: {isolated}");
    }
}
