//! This process's standard output and standard error as descriptors: written to without a buffer in between, whether
//! or not they block, and watched for a reader that goes away.

use crate::supervise::Stream;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// The exit code of a program that SIGPIPE ended, as shells have it.
pub(super) const CLOSED_CODE: u8 = 128 + libc::SIGPIPE as u8;

/// Runs `with` on the descriptor of an output.
pub(super) fn with<T>(stream: Stream, with: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
    match stream {
        Stream::Stdout => with(std::io::stdout().as_fd()),
        Stream::Stderr => with(std::io::stderr().as_fd()),
    }
}

/// Writes everything. Whoever shares the descriptor may have made it one that does not block: then it waits.
pub(super) fn write_all(stream: Stream, bytes: &[u8]) -> io::Result<()> {
    with(stream, |fd| write_all_to(fd, bytes))
}

fn write_all_to(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                // An error here shows again at the next write.
                let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Whether both outputs end in one place: then what order they are written in can be seen.
pub(super) fn same_place() -> bool {
    let place = |stream| {
        let stat = with(stream, |fd| nix::sys::stat::fstat(fd)).ok()?;
        Some((stat.st_dev, stat.st_ino))
    };
    // Unknown: order is kept.
    place(Stream::Stdout) == place(Stream::Stderr)
}

/// Whether an error of a write says that nobody will ever read: the other end of a pipe or a terminal has gone.
pub(super) fn is_closed(stream: Stream, error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET) => true,
        // Of a file, that is the disk's; of a terminal, that it is closed (and then it does not say what it was).
        Some(libc::EIO) => with(stream, |fd| {
            let mode = nix::sys::stat::fstat(fd).map_or(0, |stat| stat.st_mode);
            mode & libc::S_IFMT == libc::S_IFCHR
        }),
        _ => false,
    }
}

/// Waits until the reader of an output goes away, at most this long (`None`: for ever, for a file). `true` if it has.
pub(super) fn wait_closed(stream: Stream, limit: Option<Duration>) -> bool {
    with(stream, |fd| wait_closed_of(fd, limit))
}

fn wait_closed_of(fd: BorrowedFd<'_>, limit: Option<Duration>) -> bool {
    let timeout = match limit {
        Some(limit) => PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX),
        None => PollTimeout::NONE,
    };
    // POLLERR and POLLHUP are always reported.
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            Ok(1..) => return fds[0].revents().is_some_and(|e| e.intersects(GONE)),
            _ => return false,
        }
    }
}

const GONE: PollFlags = PollFlags::POLLERR.union(PollFlags::POLLHUP);

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_that_does_not_block_takes_everything_too() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let text = vec![b'x'; 4 << 20];
        let sent = text.clone();
        let writer = std::thread::spawn(move || write_all_to(ours.as_fd(), &sent));
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).unwrap();
        assert!(read == text);
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn a_reader_that_goes_away_is_noticed_without_writing() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        assert!(!wait_closed_of(writer.as_fd(), Some(Duration::from_millis(1))));
        drop(reader);
        assert!(wait_closed_of(writer.as_fd(), None));
        assert!(is_closed(Stream::Stdout, &write_all_to(writer.as_fd(), b"x").unwrap_err()));
        let file = tempfile::tempfile().unwrap();
        assert!(!wait_closed_of(file.as_fd(), Some(Duration::from_millis(1))));
    }
}
