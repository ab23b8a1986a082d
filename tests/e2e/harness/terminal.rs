//! Commands on a terminal of their own.

use super::Project;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

/// Runs `args` with a terminal of its own as its controlling one; returns the terminal's other end.
pub fn on_terminal(project: &Project, args: &[&str]) -> (OwnedFd, std::process::Child) {
    let pty = nix::pty::openpty(None, None).unwrap();
    // Whoever inherited the master would keep the terminal open.
    nix::fcntl::fcntl(&pty.master, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_firegopher"));
    command.arg("-C").arg(project.path()).args(args);
    command.env("FIREGOPHER_HOME", project.home()).env("TERM", "xterm");
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end());
    // SAFETY: signal, setsid and ioctl are async-signal-safe; descriptor 0 is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_DFL);
            }
            nix::unistd::setsid()?;
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
    };
    let child = command.spawn().unwrap();
    (pty.master, child)
}

/// Reads the terminal until it shows this.
pub fn wait_shown(terminal: &OwnedFd, text: &str) -> String {
    let mut reader = File::from(terminal.try_clone().unwrap());
    let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = reader.read(&mut buffer).unwrap();
        shown.extend_from_slice(&buffer[..count]);
        let all = String::from_utf8_lossy(&shown).into_owned();
        if all.contains(text) {
            return all;
        }
    }
}

/// Waits for the command's end; its exit code.
pub fn wait_end(child: &mut std::process::Child) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(begun.elapsed() < SOON, "the command outlives its terminal");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads the terminal until its last other user has gone; all that it showed.
pub fn read_all(terminal: &OwnedFd) -> String {
    let mut reader = File::from(terminal.try_clone().unwrap());
    let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
    // A terminal without another end is an error to read from (EIO).
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&shown).into_owned()
}
