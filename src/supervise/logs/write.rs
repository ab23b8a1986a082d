//! Appends to logs and rotates them.

use super::rotated;
use crate::supervise::clock;
use crate::supervise::outcome::Stream;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Records hold at most this much text: readers need no more memory than that.
pub(super) const MAX_TEXT: usize = 16 * 1024;

/// Space is asked for in steps of this: a write that finds none would leave half a record behind.
const STEP: u64 = 32 * 1024;

/// A file that keeps its last `limit` bytes and up to as many before them.
#[derive(Debug)]
pub struct BoundedFile {
    path: PathBuf,
    file: File,
    size: u64,
    /// Up to here the disk has space for it.
    reserved: u64,
    limit: u64,
}

impl BoundedFile {
    /// Starts a log anew, dropping what an earlier VM left. Mode 0600.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        match fs::remove_file(rotated(path)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(BoundedFile { path: path.to_owned(), file: open(path)?, size: 0, reserved: 0, limit })
    }

    /// Goes on with a log, which need not exist. Mode 0600.
    pub fn resume(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        Ok(BoundedFile { path: path.to_owned(), size, file, reserved: size, limit })
    }

    /// Appends bytes that belong together, rotating first if they do not fit. After an error nothing has changed, and
    /// the next call tries again.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        if self.size > 0 && self.size + len > self.limit {
            self.rotate()?;
        }
        self.reserve(len)?;
        self.file.write_all(bytes)?;
        self.size += len;
        Ok(())
    }

    /// The new file comes first: without descriptors or space the old one stays where it is, and in use.
    fn rotate(&mut self) -> io::Result<()> {
        let mut new = self.path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let file = open(&new)?;
        fs::rename(&self.path, rotated(&self.path))
            .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
            .and_then(|()| fs::rename(&new, &self.path))
            .inspect_err(|_| {
                // The error that matters is the first one.
                let _ = fs::remove_file(&new);
            })?;
        (self.file, self.size, self.reserved) = (file, 0, 0);
        Ok(())
    }

    /// Makes sure that so many bytes more have space. Where a file system cannot, a write says so itself.
    fn reserve(&mut self, len: u64) -> io::Result<()> {
        let end = self.size + len;
        if end <= self.reserved {
            return Ok(());
        }
        for step in [end + STEP, end] {
            let mode = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let (from, size) = (self.size as libc::off_t, (step - self.size) as libc::off_t);
            match fallocate(&self.file, mode, from, size) {
                Ok(()) => self.reserved = step,
                Err(Errno::ENOSPC | Errno::EDQUOT) if step > end => continue,
                Err(e @ (Errno::ENOSPC | Errno::EDQUOT)) => return Err(e.into()),
                Err(_) => {}
            }
            return Ok(());
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open(path: &Path) -> io::Result<File> {
    // A new inode each time: a follower of the old one notices.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

/// What became of output.
#[derive(Debug)]
pub struct Written {
    /// Bytes that the file has grown by.
    pub logged: u64,
    /// Bytes of the output that are in it.
    pub taken: usize,
    /// Why the rest is not.
    pub failed: Option<io::Error>,
}

/// The workload's output.
#[derive(Debug)]
pub struct WorkloadLog {
    file: BoundedFile,
    line: Vec<u8>,
}

impl WorkloadLog {
    /// Starts a log anew.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(WorkloadLog { file: BoundedFile::create(path, limit)?, line: Vec::new() })
    }

    /// Records output as it came: whole lines, and a last piece without its newline at once.
    pub fn output(&mut self, stream: Stream, bytes: &[u8]) -> Written {
        let mut written = Written { logged: 0, taken: 0, failed: None };
        written.failed = self.append(stream, bytes, &mut written).err();
        written
    }

    fn append(&mut self, stream: Stream, bytes: &[u8], written: &mut Written) -> io::Result<()> {
        let time = clock::rfc3339(clock::wall_ms());
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, whole) = match line.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (line, false),
            };
            let mut rest = text;
            loop {
                let (now, later) = rest.split_at(rest.len().min(MAX_TEXT));
                let tag = if later.is_empty() && whole { 'F' } else { 'P' };
                self.line.clear();
                write!(self.line, "{time} {name} {tag} ")?;
                self.line.extend_from_slice(now);
                self.line.push(b'\n');
                self.file.append(&self.line)?;
                written.logged += self.line.len() as u64;
                written.taken += now.len() + usize::from(tag == 'F');
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_that_fails_loses_nothing_and_the_next_one_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = BoundedFile::create(&path, 10).unwrap();
        log.append(b"12345678").unwrap();
        // A directory with something in it is in the new file's place: it cannot be made.
        let new = dir.path().join("log.new");
        fs::create_dir(&new).unwrap();
        fs::write(new.join("x"), "").unwrap();
        for _ in 0..3 {
            log.append(b"abcdefgh").unwrap_err();
            assert_eq!(fs::read(&path).unwrap(), b"12345678");
        }
        fs::remove_dir_all(&new).unwrap();
        log.append(b"abcdefgh").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abcdefgh");
        assert_eq!(fs::read(rotated(&path)).unwrap(), b"12345678");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
