//! Starts a VMM process with nothing of ours but what it is given: descriptors, identity, root, namespace, limits.
//! Neither the caller's keyrings nor its resource limits are.

use super::{program, rlimits, seccomp};
use crate::error::{Context, Result};
use crate::session_keyring;
use crate::syscall::{close_range, pidfd_open};
use std::ffi::{CString, OsString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What to start and how.
pub(crate) struct Spawn<'a> {
    /// argv; the first is the executable, looked up after the change of root.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(&'static str, OsString)>,
    /// Descriptors that stay open under the same numbers.
    pub keep: Vec<RawFd>,
    /// Standard input and output; they lead nowhere otherwise.
    pub stdio: Option<(OwnedFd, OwnedFd)>,
    /// Namespace to enter.
    pub netns: Option<&'a OwnedFd>,
    /// Enter an empty network namespace of its own instead.
    pub no_network: bool,
    /// Open `tasks` or `cgroup.procs` files the process writes itself into.
    pub cgroups: &'a [OwnedFd],
    /// Directory that becomes `/`.
    pub chroot: Option<PathBuf>,
    /// uid and gid to become.
    pub identity: Option<(u32, u32)>,
}

/// A started process and what it will have said on its standard error.
pub(crate) struct Spawned {
    pub child: Child,
    pub pidfd: OwnedFd,
    pub stderr: OwnedFd,
}

/// Starts it. The process dies with the calling thread.
pub(crate) fn spawn(spawn: Spawn<'_>) -> Result<Spawned> {
    let program = Path::new(&spawn.argv[0]).to_owned();
    // In a jail its path means something else.
    let outside = spawn.chroot.is_none();
    run(spawn).or_failed("vmm.spawn", || format!("cannot start {}", program.display())).map_err(|e| {
        match program::fault(&program).filter(|_| outside) {
            Some(fault) => e.help(fault.to_string()),
            None => e,
        }
    })
}

fn run(spawn: Spawn<'_>) -> io::Result<Spawned> {
    let (stderr, theirs) = io::pipe()?;
    // Bounded by the pipe: once it is full, more is dropped instead of stopping the VMM.
    for end in [stderr.as_fd(), theirs.as_fd()] {
        nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    }
    let mut command = Command::new(&spawn.argv[0]);
    command.args(&spawn.argv[1..]).env_clear().envs(spawn.env);
    match spawn.stdio {
        None => command.stdin(Stdio::null()).stdout(Stdio::null()),
        Some((input, output)) => command.stdin(input).stdout(output),
    };
    command.stderr(theirs);
    let enter = Enter {
        parent: std::process::id() as i32,
        keep: spawn.keep,
        cgroups: spawn.cgroups.iter().map(AsRawFd::as_raw_fd).collect(),
        netns: spawn.netns.map(AsRawFd::as_raw_fd),
        no_network: spawn.no_network,
        chroot: spawn.chroot.map(|dir| CString::new(dir.as_os_str().as_bytes())).transpose()?,
        identity: spawn.identity,
        descriptors: crate::descriptors::given()
            .map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard }),
    };
    // SAFETY: `enter` makes system calls only: it neither allocates nor locks, so it may run after fork.
    unsafe { command.pre_exec(move || enter.run()) };
    let mut child = command.spawn()?;
    // The child is ours and not yet reaped, so the pid is its own.
    let pidfd = pidfd_open(child.id() as i32).inspect_err(|_| {
        let _ = child.kill().and_then(|()| child.wait()); // The first error is the one to tell.
    })?;
    Ok(Spawned { child, pidfd, stderr: stderr.into() })
}

/// What happens between fork and exec, prepared so that it needs system calls only.
struct Enter {
    parent: i32,
    keep: Vec<RawFd>,
    cgroups: Vec<RawFd>,
    netns: Option<RawFd>,
    no_network: bool,
    chroot: Option<CString>,
    identity: Option<(u32, u32)>,
    descriptors: Option<libc::rlimit>,
}

impl Enter {
    fn run(&self) -> io::Result<()> {
        // SAFETY: each call gets numbers, or pointers to data that `self` or a constant owns; all are
        // async-signal-safe system calls.
        unsafe {
            for &procs in &self.cgroups {
                // "0" is the writer (cgroup v1 and v2); after a fork it is the process's only thread.
                ok(libc::write(procs, c"0".as_ptr().cast(), 1) as c_int)?;
            }
            if let Some(ns) = self.netns {
                ok(libc::setns(ns, libc::CLONE_NEWNET))?;
            } else if self.no_network {
                ok(libc::unshare(libc::CLONE_NEWNET))?;
            }
            // Signals of the terminal are for the supervisor to translate.
            ok(libc::setsid())?;
            libc::umask(0o077);
            if let Some(root) = &self.chroot {
                ok(libc::chroot(root.as_ptr()))?;
                ok(libc::chdir(c"/".as_ptr()))?;
            }
            rlimits::raise();
            // A core would hold the guest's memory, secrets included.
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            ok(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
            // What holds for us is for proxies.
            if let Some(limit) = &self.descriptors {
                ok(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const *limit))?;
            }
            // As the one who starts it, who pays for the new one.
            session_keyring::leave()?;
            if let Some((uid, gid)) = self.identity {
                // The raw calls: glibc's wrappers signal all threads and take locks.
                ok(libc::syscall(libc::SYS_setgroups, 0_usize, std::ptr::null::<libc::gid_t>()) as c_int)?;
                ok(libc::syscall(libc::SYS_setresgid, gid, gid, gid) as c_int)?;
                ok(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as c_int)?;
            }
            // A change of identity clears it, so it comes after. A dead supervisor never leaves a VM.
            ok(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            if libc::getppid() != self.parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH)); // It died before the line above.
            }
            ok(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            seccomp::forbid_keyrings()?;
            // Close on exec rather than now: std reports a failed exec through a descriptor of its own.
            close_range(3, u32::MAX, true)?;
            for &fd in &self.keep {
                ok(libc::fcntl(fd, libc::F_SETFD, 0))?;
            }
        }
        Ok(())
    }
}

fn ok(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session_keyring::tests::{looking_for, session_with_key};
    use std::io::Read;

    /// What a program prints that is started as a VMM is.
    fn printed(argv: Vec<OsString>, env: Vec<(&'static str, OsString)>) -> String {
        let (mut printed, output) = io::pipe().unwrap();
        let input = std::fs::File::open("/dev/null").unwrap();
        let spawned = spawn(Spawn {
            argv,
            env,
            keep: Vec::new(),
            stdio: Some((input.into(), output.into())),
            netns: None,
            no_network: false,
            cgroups: &[],
            chroot: None,
            identity: None,
        });
        let mut child = spawned.unwrap().child;
        let mut text = String::new();
        printed.read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        text
    }

    #[test]
    fn a_vmm_reaches_no_keyring_of_its_callers() {
        let look = || {
            session_with_key("firegopher-vmm").map(|()| {
                let (argv, env) = looking_for("firegopher-vmm");
                printed(argv, env)
            })
        };
        // A thread has a session keyring of its own, which ends with it.
        let Some(told) = std::thread::spawn(look).join().unwrap() else { return };
        assert!(told.contains("child: Operation not permitted"), "keyctl is not for VMMs: {told}");
    }

    #[test]
    fn a_callers_soft_limits_do_not_reach_a_vmm() {
        let told = std::thread::spawn(|| {
            // Of a process of its own, as limits are a process's.
            let script =
                "ulimit -St 7; ulimit -Sf 100; exec \"$0\" --exact vmm::spawn::tests::limits --nocapture";
            let exe = std::env::current_exe().unwrap();
            let run =
                Command::new("sh").args(["-c", script]).arg(exe).env("FIREGOPHER_TEST_LIMITS", "1").output();
            String::from_utf8_lossy(&run.unwrap().stdout).into_owned()
        });
        let told = told.join().unwrap();
        let line = |name: &str| told.lines().find(|line| line.starts_with(name)).expect(&told).to_owned();
        assert!(line("Max cpu time").contains("unlimited"), "{told}");
        assert!(line("Max file size").contains("unlimited"), "{told}");
    }

    /// The limits of what a process with limits starts. Not a test by itself.
    #[test]
    fn limits() {
        if std::env::var_os("FIREGOPHER_TEST_LIMITS").is_some() {
            let own = std::fs::read_to_string("/proc/self/limits").unwrap();
            assert!(!own.contains("Max file size             unlimited            unlimited"), "{own}");
            print!("{}", printed(["/bin/cat", "/proc/self/limits"].map(Into::into).into(), Vec::new()));
        }
    }
}
