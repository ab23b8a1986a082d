//! Copies images: by sharing extents where the file system can, else only what is not a hole.

use fs_err as fs;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _};

/// Lets the new, empty `to` share the extents of `from`, where the file system can.
pub(crate) fn share(from: &fs::File, to: &fs::File) -> bool {
    // SAFETY: FICLONE takes a file descriptor by value and touches no memory of ours; both outlive the call.
    unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) == 0 }
}

/// Copies all of `from` into the new, empty `to`; holes stay holes. `to` gets the length of `from`.
pub(crate) fn copy(from: &fs::File, to: &fs::File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut at = 0;
    while at < length {
        let Some((start, end)) = next_data(from, at, length)? else { break };
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

/// The next run of data at or after `at`; everything, where the file system does not know.
pub(super) fn next_data(file: impl AsFd, at: u64, length: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match lseek(file.as_fd(), at as i64, Whence::SeekData) {
        Ok(start) => start as u64,
        Err(Errno::ENXIO) => return Ok(None),
        Err(Errno::EINVAL) => return Ok(Some((at, length))),
        Err(e) => return Err(e.into()),
    };
    let end = lseek(file.as_fd(), start as i64, Whence::SeekHole)? as u64;
    Ok(Some((start, end.min(length))))
}

fn copy_range(from: &fs::File, to: &fs::File, start: u64, end: u64) -> io::Result<()> {
    let (mut source, mut target) = (start as i64, start as i64);
    while (source as u64) < end {
        let want = usize::try_from(end - source as u64).unwrap_or(usize::MAX).min(1 << 30);
        // SAFETY: both offsets are valid for reads and writes during the call, and the descriptors stay open.
        let copied = Errno::result(unsafe {
            libc::copy_file_range(from.as_raw_fd(), &mut source, to.as_raw_fd(), &mut target, want, 0)
        });
        match copied {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => {
                return read_write(from, to, source as u64, end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn read_write(from: &fs::File, to: &fs::File, start: u64, end: u64) -> io::Result<()> {
    lseek(from.as_fd(), start as i64, Whence::SeekSet)?;
    lseek(to.as_fd(), start as i64, Whence::SeekSet)?;
    let (mut from, mut to) = (from, to);
    let mut buffer = vec![0; 1 << 20];
    let mut left = end - start;
    while left > 0 {
        let want = left.min(buffer.len() as u64) as usize;
        from.read_exact(&mut buffer[..want])?;
        to.write_all(&buffer[..want])?;
        left -= want as u64;
    }
    Ok(())
}
