//! The console: descriptors 0 to 2 of PID 1, and the few lines it prints there. A serial port is slow under
//! emulation (every byte leaves the guest), so a healthy boot prints nothing but the exit record.

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, IntoRawFd};

/// Points descriptors 0 to 2 at /dev/console, or at /dev/null if there is none, so that no later `open` gets a number
/// that somebody takes for standard error.
pub fn attach() {
    let fd = open("/dev/console", OFlag::O_RDWR | OFlag::O_NOCTTY, Mode::empty())
        .or_else(|_| open("/dev/null", OFlag::O_RDWR, Mode::empty()));
    let Ok(fd) = fd else { return };
    for target in 0..3 {
        // SAFETY: dup2 takes plain numbers; replacing 0 to 2 of this process is the purpose.
        unsafe { libc::dup2(fd.as_raw_fd(), target) };
    }
    if fd.as_raw_fd() > 2 {
        drop(fd);
    } else {
        // It became one of the three itself and must stay open.
        let _ = fd.into_raw_fd();
    }
}

/// Prints a line for whoever reads the console. Errors are nobody's to handle.
pub fn say(message: &str) {
    raw(&format!("firegopher: {message}"));
}

/// Prints a line as it is.
pub fn raw(line: &str) {
    let line = format!("{line}\n");
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        // SAFETY: pointer and length describe `rest`, which outlives the call.
        let written = unsafe { libc::write(2, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(written) {
            Ok(n) if n > 0 => rest = &rest[n..],
            _ => return,
        }
    }
}
