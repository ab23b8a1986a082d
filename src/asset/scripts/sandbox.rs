//! Where programs of packages run: in namespaces whose ids nobody on the host has, root's included, without a network,
//! a file, a key or a process of the host's, and without the capabilities that reach its kernel.

use super::ids::Ids;
use crate::error::{Context, Error, Result};
use crate::syscall::close_range;
use crate::{session_keyring, vmm::seccomp};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

/// What a program in the sandbox sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// The host's files, with the rights of an id that has none. For the host's own programs, which work in the root.
    Host,
    /// The same as whoever calls, with the sandbox's ids from 1 on: to give it its root.
    Owner,
    /// The root and nothing else.
    Root,
    /// The root with /proc, a few devices, and [`PACKAGES`] in /dev.
    System,
}

/// The directory in which a sandbox is made holds this one, its root; the ids can pass through the former.
pub(super) const ROOT: &str = "root";

/// And this one, for files that the system installs.
pub(super) const PACKAGES: &str = "packages";

/// Devices that are the host's, and harmless; and where they are put, while the root lies on /tmp. Not /dev/tty, by which
/// one types into the caller's terminal.
const DEVICES: [(&CStr, &CStr); 5] = [
    (c"/dev/null", c"/tmp/dev/null"),
    (c"/dev/zero", c"/tmp/dev/zero"),
    (c"/dev/full", c"/tmp/dev/full"),
    (c"/dev/random", c"/tmp/dev/random"),
    (c"/dev/urandom", c"/tmp/dev/urandom"),
];

/// Links in /dev.
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"/tmp/dev/fd"),
    (c"/proc/self/fd/0", c"/tmp/dev/stdin"),
    (c"/proc/self/fd/1", c"/tmp/dev/stdout"),
    (c"/proc/self/fd/2", c"/tmp/dev/stderr"),
    (c"pts/ptmx", c"/tmp/dev/ptmx"),
];

/// Capabilities over the sandbox's own files and ids (linux/capability.h), as containers have them: chown, dac_override,
/// dac_read_search, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, sys_chroot, audit_write, setfcap.
const KEPT: u64 = 0b1111_1111 | 1 << 8 | 1 << 10 | 1 << 18 | 1 << 29 | 1 << 31;

/// The steps that can fail, for the error.
const STEPS: [&str; 12] = [
    "leave the session keyring",
    "make namespaces",
    "be given ids",
    "start their first process",
    "take the ids",
    "enter the root",
    "mount /dev",
    "mount /proc",
    "give up capabilities",
    "be kept from keyrings",
    "be kept from making user namespaces",
    "close the caller's files",
];

/// Starts `command` in a sandbox in the directory `place`. It dies with this thread.
pub(super) fn spawn(mut command: Command, place: &Path, view: View, ids: &Ids) -> Result<Child> {
    let failed = || format!("cannot make a sandbox in {}", place.display());
    let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).or_failed("asset.sandbox", failed);
    let (told, tell) = pipe()?;
    let (go, start) = pipe()?;
    let entry = Entry {
        parent: std::process::id() as libc::pid_t,
        tell: tell.as_raw_fd(),
        go: go.as_raw_fd(),
        start: start.as_raw_fd(),
        view,
    };
    // The mount namespace gets its own view of where a process is, and not of what it has open.
    command.current_dir(place);
    command.process_group(0);
    // SAFETY: `enter` only makes system calls with what is prepared here: no allocation, no locks.
    unsafe { command.pre_exec(move || entry.enter()) };
    let (spawned, mapped) = std::thread::scope(|scope| {
        let mapper = scope.spawn(move || give_ids(told, start, ids, view == View::Owner));
        let spawned = command.spawn();
        // Without it nobody holds the other end for the one who waits.
        drop(tell);
        (
            spawned,
            mapper.join().unwrap_or_else(|_| (Err(Error::bug("a thread that maps ids panicked")), None)),
        )
    });
    let (mapped, broken) = mapped;
    match spawned {
        Ok(child) => Ok(child),
        Err(_) if mapped.is_err() => Err(mapped.err().unwrap_or_else(|| Error::bug("it is an error"))),
        Err(e) => {
            let step = broken.and_then(|step| STEPS.get(usize::from(step)).copied());
            let doing =
                step.map_or_else(|| format!("run {}", command.get_program().display()), str::to_owned);
            Err(Error::host("asset.sandbox", format!("maintainer scripts cannot run here: cannot {doing}"))
                .because(e)
                .help("they need user namespaces and a /proc that nothing hides parts of: in a container, run it with these allowed (`--privileged`, say); or remove `scripts=#true`"))
        }
    }
}

/// Waits for the process, gives its namespace ids, lets it go on; and hears where it failed, if it did.
fn give_ids(told: OwnedFd, start: OwnedFd, ids: &Ids, owner: bool) -> (Result<()>, Option<u8>) {
    let mut told = File::from(told);
    let mut pid = [0; 4];
    // It never got that far; what it says instead is the step.
    let hear = |told: &mut File| {
        let mut step = [0];
        told.read_exact(&mut step).ok().map(|()| step[0])
    };
    match told.read_exact(&mut pid) {
        Ok(()) if pid[3] != FAILED => {}
        Ok(()) => return (Ok(()), Some(pid[0])),
        Err(_) => return (Ok(()), None),
    }
    let mapped = ids.give(u32::from_le_bytes(pid), owner);
    if mapped.is_ok() {
        // It may be gone; then it says why.
        let _ = File::from(start).write_all(&[1]);
    } else {
        drop(start);
    }
    let mut broken = hear(&mut told);
    if broken.is_some() {
        // Of the four bytes the first is the step.
        let mut rest = [0; 3];
        if told.read_exact(&mut rest).is_err() {
            broken = None;
        }
    }
    (mapped, broken)
}

/// The last of the four bytes that say which step failed; no pid is that high.
const FAILED: u8 = 0xff;

/// What the new process does between fork and exec. Everything is made before.
struct Entry {
    parent: libc::pid_t,
    tell: RawFd,
    go: RawFd,
    start: RawFd,
    view: View,
}

type Step = std::result::Result<(), (u8, io::Error)>;

fn check(step: u8, result: libc::c_long) -> std::result::Result<libc::c_long, (u8, io::Error)> {
    if result < 0 { Err((step, io::Error::last_os_error())) } else { Ok(result) }
}

impl Entry {
    fn enter(&self) -> io::Result<()> {
        self.steps().map_err(|(step, error)| {
            let bytes = [step, 0, 0, FAILED];
            // SAFETY: four bytes that are there.
            unsafe { libc::write(self.tell, bytes.as_ptr().cast(), bytes.len()) };
            error
        })
    }

    fn steps(&self) -> Step {
        // SAFETY: system calls with constants and prepared strings, each checked.
        unsafe {
            // The caller's may hold the keys of disks and file systems.
            session_keyring::leave().map_err(|e| (0, e))?;
            let spaces = libc::CLONE_NEWUSER
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWNET
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWCGROUP;
            let pid = (libc::getpid() as u32).to_le_bytes();
            check(1, libc::unshare(spaces).into())?;
            // Our own end of what we wait for.
            libc::close(self.start);
            check(2, libc::write(self.tell, pid.as_ptr().cast(), 4) as libc::c_long)?;
            let mut byte = 0_u8;
            if libc::read(self.go, (&raw mut byte).cast(), 1) != 1 {
                return Err((2, io::Error::from_raw_os_error(libc::EPERM)));
            }
            check(1, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
            if libc::getppid() != self.parent {
                return Err((1, io::Error::from_raw_os_error(libc::ESRCH))); // It died before the line above.
            }
            let mut ends: [RawFd; 2] = [0; 2];
            check(3, libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC).into())?;
            let [parent, alive] = ends;
            let first = check(3, libc::fork().into())?;
            if first > 0 {
                wait_for(first as libc::pid_t, alive);
            }
            libc::close(alive);
            self.first_process(parent)
        }
    }

    /// Process 1 of its namespace, with all capabilities over the namespaces until the end. Its `parent` holds the only
    /// other end of that pipe.
    fn first_process(&self, parent: RawFd) -> Step {
        // SAFETY: system calls with constants and prepared strings, each checked.
        unsafe {
            check(4, libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
            check(4, libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
            check(4, libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
            // Away from the caller's terminal: input can be put into the terminal that a session has.
            check(3, libc::setsid().into())?;
            // A new identity clears it, so it comes after.
            check(3, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
            check_alive(parent)?;
            libc::umask(0o022);
            let name = c"localhost";
            check(4, libc::sethostname(name.as_ptr(), name.to_bytes().len()).into())?;
            let private = libc::MS_REC | libc::MS_PRIVATE;
            mount(5, None, c"/", None, private, None)?;
            // While a /proc is in sight, whatever the view.
            forbid_user_namespaces()?;
            if matches!(self.view, View::Host | View::Owner) {
                check(5, libc::chdir(c"root".as_ptr()).into())?;
            } else {
                self.enter_root()?;
            }
            // On exec rather than now: by some of them it is told what fails until then.
            close_range(3, u32::MAX, true).map_err(|e| (11, e))?;
            give_up()
        }
    }

    fn enter_root(&self) -> Step {
        // /tmp is where everybody gets to, and nothing below it is needed any more.
        let at = c"/tmp";
        mount(5, Some(c"root"), at, None, libc::MS_BIND, None)?;
        if self.view == View::System {
            devices()?;
            // While the host's own, which hides nothing, is still in sight: the kernel asks for that.
            processes()?;
        }
        // SAFETY: constants.
        unsafe {
            check(5, libc::chdir(at.as_ptr()).into())?;
            let here = c".";
            check(5, libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()))?;
            // The old root lies on the new one; nothing of it stays.
            check(5, libc::umount2(here.as_ptr(), libc::MNT_DETACH).into())?;
            check(5, libc::chdir(c"/".as_ptr()).into())?;
        }
        Ok(())
    }
}

fn devices() -> Step {
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    mount(6, Some(c"dev"), c"/tmp/dev", Some(c"tmpfs"), flags, Some(c"mode=0755,size=16m"))?;
    for (device, target) in DEVICES {
        file(target)?;
        mount(6, Some(device), target, None, libc::MS_BIND, None)?;
    }
    for (to, link) in LINKS {
        // SAFETY: two strings.
        check(6, unsafe { libc::symlink(to.as_ptr(), link.as_ptr()) }.into())?;
    }
    for (path, mode) in [(c"/tmp/dev/pts", 0o755), (c"/tmp/dev/shm", 0o1777), (c"/tmp/dev/packages", 0o755)] {
        // SAFETY: one string.
        unsafe {
            check(6, libc::mkdir(path.as_ptr(), mode).into())?;
            check(6, libc::chmod(path.as_ptr(), mode).into())?;
        }
    }
    let options = c"newinstance,ptmxmode=0666,mode=0620";
    mount(6, Some(c"devpts"), c"/tmp/dev/pts", Some(c"devpts"), flags, Some(options))?;
    mount(6, Some(c"packages"), c"/tmp/dev/packages", None, libc::MS_BIND, None)
}

fn processes() -> Step {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(7, Some(c"proc"), c"/tmp/proc", Some(c"proc"), flags, None)
}

/// A user namespace of its own would bring back, within it, what is given up below. Whichever /proc it is in, the limit is
/// that of the user namespace of who opens it.
fn forbid_user_namespaces() -> Step {
    // SAFETY: constants; the descriptor is closed.
    unsafe {
        let path = c"/proc/sys/user/max_user_namespaces";
        let file = check(10, libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC).into())? as RawFd;
        let written = libc::write(file, c"0".as_ptr().cast(), 1);
        let written = check(10, written as libc::c_long);
        libc::close(file);
        written?;
    }
    Ok(())
}

/// Fails if the other end of a pipe is gone. Parents have no number in a new pid namespace, so they are known by this.
fn check_alive(parent: RawFd) -> Step {
    let mut poll = libc::pollfd { fd: parent, events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, which outlives the call.
    match check(3, unsafe { libc::poll(&raw mut poll, 1, 0) }.into())? {
        0 => Ok(()),
        _ => Err((3, io::Error::from_raw_os_error(libc::ESRCH))),
    }
}

/// Leaves only what packages need over their own files: nothing that mounts, traces, makes devices or networks.
fn give_up() -> Step {
    // SAFETY: no pointers but to two structures that live as long as the calls.
    unsafe {
        for capability in 0..64 {
            // Above the last one it is EINVAL.
            if KEPT & (1 << capability) == 0
                && libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0
                && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL)
            {
                return Err((8, io::Error::last_os_error()));
            }
        }
        // capset(2), version 3: two words each of effective, permitted and inheritable.
        let header = [0x2008_0522_u32, 0];
        let low = (KEPT & 0xffff_ffff) as u32;
        let data = [[low, low, 0_u32], [0; 3]];
        check(8, libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()))?;
        check(8, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())?;
    }
    seccomp::forbid_keyrings().map_err(|e| (9, e))
}

fn mount(
    step: u8,
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> Step {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: strings or null.
    let result =
        unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data).cast()) };
    check(step, result.into()).map(|_| ())
}

/// An empty file, to mount something on.
fn file(path: &CStr) -> Step {
    // SAFETY: one string; the descriptor is closed.
    unsafe {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC;
        let file = check(6, libc::open(path.as_ptr(), flags, 0o666).into())?;
        libc::close(file as RawFd);
    }
    Ok(())
}

/// Ends as `first`, the first process of the namespace, does. `alive` stays open until then.
fn wait_for(first: libc::pid_t, alive: RawFd) -> ! {
    // SAFETY: no pointers but to one integer; nothing that owns a descriptor is used any more.
    unsafe {
        // Whoever waits for a pipe of ours waits for the namespace.
        let _ = close_range(3, alive as u32 - 1, false);
        let _ = close_range(alive as u32 + 1, u32::MAX, false);
        let mut status = 0;
        while libc::waitpid(first, &raw mut status, 0) != first {
            if io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
                libc::_exit(125);
            }
        }
        libc::_exit(if libc::WIFEXITED(status) {
            libc::WEXITSTATUS(status)
        } else {
            128 + libc::WTERMSIG(status)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::process::Stdio;

    /// What a shell of the host's prints in a sandbox, which ends with what is given first.
    fn started(script: &str) -> Option<((tempfile::TempDir, Ids), Child)> {
        if !nix::unistd::geteuid().is_root() {
            crate::testing::skip("scripts run here as root only");
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        fs_err::create_dir(place.path().join(ROOT)).unwrap();
        fs_err::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let ids = Ids::of_this_user().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = spawn(command, place.path(), View::Host, &ids).unwrap();
        Some(((place, ids), child))
    }

    #[test]
    fn every_view_has_a_session_of_its_own_and_makes_no_user_namespace() {
        let script = "read -r pid name state parent group session rest < /proc/self/stat\n\
                      echo $((group - pid)) $((session - pid))\n\
                      unshare --user true 2>/dev/null && echo made\n";
        let Some((_place, child)) = started(script) else { return };
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0 0\n");
    }

    #[test]
    fn a_sandbox_ends_with_the_group_of_who_waits_for_it() {
        let Some((_place, mut child)) = started("echo up; exec sleep 1000") else { return };
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        let (closed, is_closed) = std::sync::mpsc::channel();
        std::thread::spawn(move || closed.send(io::copy(&mut stdout, &mut io::sink()).unwrap()));
        let group = nix::unistd::Pid::from_raw(child.id() as libc::pid_t);
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        // The program holds the other end as long as it lives.
        assert_eq!(is_closed.recv_timeout(std::time::Duration::from_secs(60)), Ok(0));
    }

    #[test]
    fn a_first_process_knows_that_its_parent_died_before() {
        let (parent, alive) = io::pipe().unwrap();
        assert!(check_alive(parent.as_raw_fd()).is_ok());
        drop(alive);
        let (step, error) = check_alive(parent.as_raw_fd()).unwrap_err();
        assert_eq!((step, error.raw_os_error()), (3, Some(libc::ESRCH)));
    }
}
