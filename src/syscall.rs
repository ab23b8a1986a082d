//! System calls that older kernels lack and that seccomp profiles of container runtimes refuse, with ENOSYS or EPERM:
//! each has another way here, or an error that names the least kernel.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

/// More descriptors than the kernel gives anybody unless it is told otherwise (fs.nr_open).
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// What refuses a system call that is not there, or not for this process.
fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSYS | Errno::EPERM)
}

/// Opens a relative path beneath `dir` through no symbolic link and across no `..`; the empty path is `dir` itself. With
/// O_PATH a link at the end is opened as such.
pub(crate) fn open_beneath(dir: impl AsFd, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let path = if path.is_empty() { "." } else { path };
    let how =
        OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(dir.as_fd(), path, how) {
        // Linux 5.6, and not in the profiles that Docker had before 20.10.
        Err(errno) if is_refusal(errno) => open_stepwise(dir, path, flags),
        other => other,
    }
}

fn open_stepwise(dir: impl AsFd, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(Errno::EXDEV);
    }
    let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    while let Some((first, after)) = rest.split_once('/') {
        let here = at.as_ref().map_or(dir.as_fd(), |fd| fd.as_fd());
        at = Some(openat(here, first, step, Mode::empty())?);
        rest = after;
    }
    let here = at.as_ref().map_or(dir.as_fd(), |fd| fd.as_fd());
    openat(here, rest, flags, Mode::empty())
}

/// A close-on-exec pidfd of whatever process has this pid now.
///
/// # Errors
/// Those of pidfd_open(2); in words where there is no such system call.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes a pid and flags; it returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(in_words("pidfd_open", "5.3"));
    }
    // SAFETY: the call above returned this descriptor to us alone. Descriptors fit in i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends a signal through a pidfd; `false` if the process is gone.
///
/// # Errors
/// As [`pidfd_open`].
pub(crate) fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<bool> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: pidfd_send_signal takes a descriptor we own, a signal number, no siginfo and no flags.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, nothing, 0) };
    match Errno::last() {
        _ if sent == 0 => Ok(true),
        Errno::ESRCH => Ok(false),
        _ => Err(in_words("pidfd_send_signal", "5.1")),
    }
}

/// The last system call's error; where the call itself is not to be had, which kernel has it.
fn in_words(call: &str, least: &str) -> io::Error {
    match Errno::last() {
        errno if is_refusal(errno) => io::Error::other(format!(
            "there is no {call} here ({}): it needs Linux {least} or later, and a seccomp profile that allows it, \
             such as Docker's since 20.10",
            errno.desc()
        )),
        errno => errno.into(),
    }
}

/// Closes the descriptors `first` to `last`, or has an exec close them.
///
/// # Safety
/// What is closed must belong to no object that is used afterwards. Makes system calls only, so it may run between
/// fork and exec.
pub(crate) unsafe fn close_range(first: u32, last: u32, on_exec: bool) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    let flags = if on_exec { libc::CLOSE_RANGE_CLOEXEC as c_int } else { 0 };
    // SAFETY: takes numbers; the caller answers for what they name.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } == 0 {
        return Ok(());
    }
    // Linux 5.9 (5.11 for the flag, which is EINVAL before).
    match Errno::last() {
        Errno::EINVAL => {}
        errno if is_refusal(errno) => {}
        errno => return Err(errno.into()),
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live value.
    Errno::result(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    // The hard limit: descriptors stay open when the soft one is lowered.
    let end = u64::from(last).saturating_add(1).min(limit.rlim_max.min(MOST_DESCRIPTORS));
    for fd in first..u32::try_from(end).unwrap_or(last) {
        // SAFETY: as above. What is not open is EBADF, which is as well.
        unsafe {
            if on_exec {
                libc::fcntl(fd as c_int, libc::F_SETFD, libc::FD_CLOEXEC);
            } else {
                libc::close(fd as c_int);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::refused::without;
    use std::fs::File;

    const REFUSALS: [Errno; 2] = [Errno::ENOSYS, Errno::EPERM];

    #[test]
    fn nothing_is_opened_through_a_link_with_openat2_and_without() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(dir.path().join("a/b")).unwrap();
        fs_err::write(dir.path().join("a/b/f"), "x").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("b/f", dir.path().join("a/flink")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let check = || {
            for flags in [OFlag::O_RDONLY, OFlag::O_PATH] {
                assert!(open_beneath(&root, "a/b/f", flags).is_ok());
                assert!(open_beneath(&root, "", flags).is_ok());
                assert!(open_beneath(&root, "link/b/f", flags).is_err());
                assert_eq!(open_beneath(&root, "a/../../etc/passwd", flags).unwrap_err(), Errno::EXDEV);
            }
            assert_eq!(open_beneath(&root, "a/flink", OFlag::O_RDONLY).unwrap_err(), Errno::ELOOP);
            // The link itself, which leads nowhere.
            assert!(open_beneath(&root, "a/flink", OFlag::O_PATH).is_ok());
        };
        check();
        for errno in REFUSALS {
            without(&[libc::SYS_openat2], errno, check);
        }
    }

    #[test]
    fn a_kernel_without_pidfds_is_named() {
        let own = std::process::id() as i32;
        let pidfd = pidfd_open(own).unwrap();
        assert!(pidfd_send_signal(&pidfd, 0).unwrap());
        for errno in REFUSALS {
            without(&[libc::SYS_pidfd_open, libc::SYS_pidfd_send_signal], errno, || {
                let error = pidfd_open(own).unwrap_err().to_string();
                assert!(error.contains("pidfd_open") && error.contains("Linux 5.3"), "{error}");
                let error = pidfd_send_signal(&pidfd, 0).unwrap_err().to_string();
                assert!(error.contains("pidfd_send_signal") && error.contains("Linux 5.1"), "{error}");
            });
        }
        // What is no refusal stays what it is.
        let gone = pidfd_open(i32::MAX).unwrap_err();
        assert!(matches!(gone.raw_os_error(), Some(libc::ESRCH | libc::EINVAL)), "{gone}");
    }

    #[test]
    fn descriptors_are_closed_without_close_range_too() {
        for errno in REFUSALS {
            without(&[libc::SYS_close_range], errno, || {
                let (reader, writer) = io::pipe().unwrap();
                // SAFETY: this descriptor's own object is forgotten.
                let fd = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_DUPFD, 900) };
                assert!(fd >= 900);
                drop(writer);
                let flags = || {
                    // SAFETY: takes numbers.
                    unsafe { libc::fcntl(fd, libc::F_GETFD) }
                };
                assert_eq!(flags(), 0);
                // SAFETY: of this range only `fd` is open here, which no object owns.
                unsafe { close_range(fd as u32, fd as u32, true) }.unwrap();
                assert_eq!(flags(), libc::FD_CLOEXEC);
                // SAFETY: as above.
                unsafe { close_range(fd as u32, fd as u32, false) }.unwrap();
                assert_eq!(flags(), -1);
                drop(reader);
            });
        }
    }
}
