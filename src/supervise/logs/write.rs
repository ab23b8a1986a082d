//! Appends to logs and rotates them.

use super::rotated;
use crate::supervise::clock;
use crate::supervise::outcome::Stream;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Records hold at most this much text: readers need no more memory than that.
pub(super) const MAX_TEXT: usize = 16 * 1024;

/// A file that keeps its last `limit` bytes and up to as many before them.
#[derive(Debug)]
pub struct BoundedFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl BoundedFile {
    /// Starts a log anew, dropping what an earlier VM left. Mode 0600.
    pub fn create(path: &Path, limit: u64) -> io::Result<Self> {
        match fs::remove_file(rotated(path)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(BoundedFile { path: path.to_owned(), file: open(path)?, size: 0, limit })
    }

    /// Goes on with a log, which need not exist. Mode 0600.
    pub fn resume(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        Ok(BoundedFile { path: path.to_owned(), size: file.metadata()?.len(), file, limit })
    }

    /// Appends bytes that belong together, rotating first if they do not fit.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > self.limit {
            fs::rename(&self.path, rotated(&self.path))?;
            self.file = open(&self.path)?;
            self.size = 0;
        }
        self.size += bytes.len() as u64;
        self.file.write_all(bytes)
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
    /// Returns the bytes that were written to the file.
    pub fn output(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<u64> {
        let time = clock::rfc3339(clock::wall_ms());
        let name = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        let mut total = 0;
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
                total += self.line.len() as u64;
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
        Ok(total)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }
}
