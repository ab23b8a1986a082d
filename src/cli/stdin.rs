//! This process's standard input, on its way to a workload.

use crate::supervise::Client;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Read at once. What a workload does not take is not read from here either.
const PIECE: usize = 64 * 1024;
/// How often a job in the background looks whether the terminal is its own again.
const BACKGROUND: Duration = Duration::from_millis(300);

/// Copies standard input to the workload until either ends, on a thread of its own.
pub(super) fn forward(mut client: Client) {
    std::thread::spawn(move || {
        // A job in the background that reads its terminal is stopped, and this one would be whether or not its
        // workload reads: blocked, the read fails instead.
        let _ = SigSet::from(Signal::SIGTTIN).thread_block();
        let mut buffer = vec![0; PIECE];
        loop {
            let count = read(std::io::stdin().as_fd(), &mut buffer);
            if client.stdin(&buffer[..count]).is_err() || count == 0 {
                return;
            }
        }
    });
}

/// Waits for input; 0 at its end. An unreadable standard input is an empty one.
fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> usize {
    loop {
        match nix::unistd::read(fd, buffer) {
            Ok(count) => return count,
            Err(Errno::EINTR) => {}
            // Whoever shares it may have made it one that does not block.
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE);
            }
            Err(Errno::EIO) if in_background(fd) => std::thread::sleep(BACKGROUND),
            Err(_) => return 0,
        }
    }
}

/// Whether the terminal is another job's at the moment.
fn in_background(fd: BorrowedFd<'_>) -> bool {
    fd.is_terminal() && nix::unistd::tcgetpgrp(fd).is_ok_and(|owner| owner != nix::unistd::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn input_that_does_not_block_is_waited_for_and_a_directory_is_empty() {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            std::fs::File::from(writer).write_all(b"late").unwrap();
        });
        let mut buffer = [0; 16];
        assert_eq!(read(reader.as_fd(), &mut buffer), 4);
        assert_eq!(&buffer[..4], b"late");
        sender.join().unwrap();
        assert_eq!(read(reader.as_fd(), &mut buffer), 0, "its writer is gone");
        assert_eq!(read(std::fs::File::open("/").unwrap().as_fd(), &mut buffer), 0);
    }
}
