//! Starts the workload: its own session, its descriptors, its rights, its program.

use crate::caps;
use crate::environment::Environment;
use crate::failure::{Context, Failure, Result};
use crate::lookup;
use crate::user::Account;
use crate::workdir;
use firegopher_protocol::{Limit, RunConfig};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, Gid, Pid, Uid, chdir, execve, fchown, fork, pipe2, read, setsid, write};
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

/// Everything `start` needs, checked beforehand. Not `Debug`: it holds secrets.
pub struct Launch<'a> {
    argv: Vec<CString>,
    candidates: Vec<String>,
    environment: Vec<CString>,
    account: &'a Account,
    limits: &'a [Limit],
    no_new_privileges: bool,
    workdir: &'a str,
    stdin: bool,
}

/// A started workload. Its descriptors do not block.
pub struct Workload {
    /// Also its process group and session.
    pub pid: Pid,
    /// The pipe to its standard input, if it has one.
    pub stdin: Option<OwnedFd>,
    /// The pipe from its standard output.
    pub stdout: Option<OwnedFd>,
    /// The pipe from its standard error.
    pub stderr: Option<OwnedFd>,
}

impl<'a> Launch<'a> {
    /// Checks arguments and environment.
    pub fn new(config: &'a RunConfig, account: &'a Account) -> Result<Launch<'a>> {
        let environment = Environment::new(config, account);
        let program = config.argv.first().filter(|a| !a.is_empty());
        let program = program.ok_or_else(|| Failure::new("there is no command to run"))?;
        let argv: Result<Vec<CString>> = config
            .argv
            .iter()
            .enumerate()
            .map(|(n, a)| {
                CString::new(a.as_str())
                    .map_err(|_| Failure::new(format!("argument {n} of the command holds a NUL byte")))
            })
            .collect();
        Ok(Launch {
            argv: argv?,
            candidates: lookup::candidates(program, environment.get("PATH").unwrap_or_default()),
            environment: environment.to_c()?,
            account,
            limits: &config.limits,
            no_new_privileges: config.no_new_privileges,
            workdir: &config.workdir,
            stdin: config.stdin,
        })
    }

    /// Forks and executes. Returns once the program runs, or why it does not.
    pub fn start(&self) -> Result<Workload> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).context(|| "making a pipe".to_owned());
        let (stdin, our_stdin) = if self.stdin {
            let (theirs, ours) = pipe()?;
            (theirs, Some(ours))
        } else {
            let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
            (null.context(|| "opening /dev/null".to_owned())?, None)
        };
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = pipe()?;
        let (failed, failing) = pipe()?;
        // Else `/dev/stdout` could not be opened by anybody but root.
        let (uid, gid) = (Uid::from_raw(self.account.uid), Gid::from_raw(self.account.gid));
        for fd in [&stdout, &stderr].into_iter().chain(self.stdin.then_some(&stdin)) {
            fchown(fd, Some(uid), Some(gid)).context(|| "giving a pipe to the user".to_owned())?;
        }
        // SAFETY: PID 1 has one thread, so the child may allocate and lock as it likes.
        let pid = match unsafe { fork() }.context(|| "forking".to_owned())? {
            ForkResult::Parent { child } => child,
            ForkResult::Child => {
                let Err(failure) = self.run(&[&stdin, &stdout, &stderr]);
                // At most PIPE_BUF bytes: one write, never interrupted.
                let message = failure.into_message();
                let end = message.floor_char_boundary(4000);
                let _ = write(&failing, &message.as_bytes()[..end]);
                // SAFETY: _exit ends the child without running anything of the parent's.
                unsafe { libc::_exit(127) }
            }
        };
        drop((stdin, stdout, stderr, failing));
        let message = read_all(&failed);
        if !message.is_empty() {
            return Err(Failure::new(String::from_utf8_lossy(&message)));
        }
        for fd in [&our_stdout, &our_stderr].into_iter().chain(&our_stdin) {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context(|| "preparing a pipe".to_owned())?;
        }
        Ok(Workload { pid, stdin: our_stdin, stdout: Some(our_stdout), stderr: Some(our_stderr) })
    }

    /// The child's part.
    fn run(&self, stdio: &[&OwnedFd; 3]) -> Result<Infallible> {
        setsid().context(|| "making a session".to_owned())?;
        for (target, fd) in (0..).zip(stdio) {
            // SAFETY: dup2 takes plain numbers; 0 to 2 of the child are meant to be replaced.
            Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), target) })
                .context(|| "setting up standard input and output".to_owned())?;
        }
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default disposition runs no code of ours.
        unsafe { sigaction(Signal::SIGPIPE, &default) }.context(|| "resetting SIGPIPE".to_owned())?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .context(|| "resetting the signal mask".to_owned())?;
        caps::confine(self.account, self.limits, self.no_new_privileges)?;
        // As the user, who may not be let in.
        chdir(self.workdir).map_err(|errno| workdir::explain(self.workdir, errno))?;
        Err(self.execute())
    }

    /// As execvp(3): the first file that exists is the one, but one that may not be executed lets later ones try.
    fn execute(&self) -> Failure {
        let mut refused = None;
        for file in &self.candidates {
            let Ok(path) = CString::new(file.as_str()) else { continue };
            let Err(errno) = execve(&path, &self.argv, &self.environment);
            let missing = matches!(errno, Errno::ENOENT | Errno::ENOTDIR) && std::fs::metadata(file).is_err();
            match errno {
                _ if missing => {}
                Errno::EACCES => refused = refused.or(Some((file, errno))),
                _ => return Failure::new(lookup::explain(file, errno)),
            }
        }
        match (refused, self.candidates.as_slice()) {
            (Some((file, errno)), _) => Failure::new(lookup::explain(file, errno)),
            (None, [only]) if only.contains('/') => Failure::new(lookup::explain(only, Errno::ENOENT)),
            (None, tried) => {
                let name = self.argv.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
                Failure::new(format!(
                    "cannot run {name:?}: it is in none of the directories of PATH ({} tried)",
                    tried.len()
                ))
            }
        }
    }
}

fn read_all(fd: &OwnedFd) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match read(fd, &mut buffer) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(Errno::EINTR) => {}
            Err(_) => return all,
        }
    }
}
