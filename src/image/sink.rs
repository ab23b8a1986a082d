//! Where image bytes go: a file written in pieces of a mebibyte, holes kept as holes.

use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use mkext4::RegionSink;
use std::io;
use std::os::fd::AsRawFd as _;

/// Small neighbouring regions are joined up to this length: 276 ms became 194 ms for 10,000 files.
const PIECE: usize = 1 << 20;
/// Shorter runs of zeros within a file are written: holes cost extents.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// After so many bytes the disk is told to begin: publishing then waits for the last of them only.
const BATCH: u64 = 8 << 20;

/// Joins neighbouring regions and leaves long runs of zeros as holes of a file that was sized beforehand.
pub(crate) struct CoalescingSink<'a> {
    file: &'a fs::File,
    start: u64,
    buffer: Vec<u8>,
    /// What was written since the disk was told.
    behind: u64,
}

impl<'a> CoalescingSink<'a> {
    pub fn new(file: &'a fs::File) -> Self {
        CoalescingSink { file, start: 0, buffer: Vec::with_capacity(PIECE), behind: 0 }
    }

    /// Writes what is still held back.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_all_at(&self.buffer, self.start)?;
            self.wrote(self.buffer.len());
            self.buffer.clear();
        }
        Ok(())
    }

    /// Leaves out what is zero: a large file's holes are holes of the image.
    fn write_sparse(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut from = 0;
        for (n, chunk) in bytes.chunks(ZEROS.len()).enumerate() {
            let at = n * ZEROS.len();
            if *chunk == ZEROS[..chunk.len()] {
                self.file.write_all_at(&bytes[from..at], offset + from as u64)?;
                self.wrote(at - from);
                from = at + chunk.len();
            }
        }
        self.file.write_all_at(&bytes[from..], offset + from as u64)?;
        self.wrote(bytes.len() - from);
        Ok(())
    }

    /// Writes what is held back, and lets the disk begin with the rest.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.begin();
        Ok(())
    }

    fn wrote(&mut self, length: usize) {
        self.behind += length as u64;
        if self.behind >= BATCH {
            self.begin();
        }
    }

    fn begin(&mut self) {
        if self.behind > 0 {
            self.behind = 0;
            // SAFETY: the descriptor is open during the call, which touches no memory of ours. Should it fail, the
            // disk begins when it is synced.
            unsafe { libc::sync_file_range(self.file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
        }
    }

    fn make_room(&mut self, offset: u64, length: usize) -> io::Result<()> {
        let follows = self.start + self.buffer.len() as u64 == offset;
        if !follows || self.buffer.len() + length > PIECE {
            self.flush()?;
        }
        if self.buffer.is_empty() {
            self.start = offset;
        }
        Ok(())
    }
}

impl RegionSink for CoalescingSink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < ZEROS.len() {
            self.make_room(offset, bytes.len())?;
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.flush()?;
        self.write_sparse(offset, bytes)
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        // The padding after a file is shorter than a block: cheaper to write than to interrupt a piece for.
        if len < 4096 && self.start + self.buffer.len() as u64 == offset && self.buffer.len() < PIECE {
            self.buffer.resize(self.buffer.len() + len as usize, 0);
        }
        Ok(())
    }
}
