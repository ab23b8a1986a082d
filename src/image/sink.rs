//! Where image bytes go: a file written in pieces of a mebibyte, holes kept as holes. A thread of its own writes the
//! pieces of all but empty images, so that reading the sources and waiting for the kernel go on side by side.

use super::holes::ZEROS;
use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use mkext4::RegionSink;
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// Small neighbouring regions are joined up to this length: 276 ms became 194 ms for 10,000 files.
const PIECE: usize = 1 << 20;
/// Pieces that wait to be written: memory for a few milliseconds.
const WAITING: usize = 4;
/// After so many bytes the disk is told to begin: publishing then waits for the last of them only.
const BATCH: u64 = 8 << 20;

struct Piece {
    offset: u64,
    bytes: Vec<u8>,
}

/// Joins neighbouring regions and leaves long runs of zeros as holes of a file that was sized beforehand.
pub(crate) struct CoalescingSink<'a> {
    start: u64,
    buffer: Vec<u8>,
    to: To<'a>,
}

enum To<'a> {
    File(&'a fs::File),
    Thread {
        pieces: SyncSender<Piece>,
        /// Buffers whose bytes were written.
        written: Receiver<Vec<u8>>,
        /// Until it was waited for.
        writer: Option<ScopedJoinHandle<'a, io::Result<()>>>,
    },
}

impl<'a> CoalescingSink<'a> {
    /// A sink for a few pieces, which leaves the disk alone.
    pub fn new(file: &'a fs::File) -> Self {
        Self::with(To::File(file))
    }

    /// A sink whose writer is a thread of `scope`.
    pub fn beside<'env>(file: &'env fs::File, scope: &'a Scope<'a, 'env>) -> Self {
        let (pieces, to_write) = sync_channel(WAITING);
        let (back, written) = channel();
        let writer = Some(scope.spawn(move || write(file, &to_write, &back)));
        Self::with(To::Thread { pieces, written, writer })
    }

    fn with(to: To<'a>) -> Self {
        CoalescingSink { start: 0, buffer: Vec::with_capacity(PIECE), to }
    }

    /// Waits until all is written.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        match self.to {
            To::File(_) => Ok(()),
            To::Thread { pieces, written, writer } => {
                drop((pieces, written));
                writer.map_or(Ok(()), wait)
            }
        }
    }

    /// Hands over what is held back.
    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        match &mut self.to {
            To::File(file) => {
                file.write_all_at(&self.buffer, self.start)?;
                self.buffer.clear();
                Ok(())
            }
            To::Thread { pieces, written, writer } => {
                let fresh = written.try_recv().unwrap_or_else(|_| Vec::with_capacity(PIECE));
                let bytes = std::mem::replace(&mut self.buffer, fresh);
                match pieces.send(Piece { offset: self.start, bytes }) {
                    Ok(()) => Ok(()),
                    // It only goes early when a write failed.
                    Err(_) => writer.take().map_or_else(|| Err(gone()), wait).and_then(|()| Err(gone())),
                }
            }
        }
    }

    fn append(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let follows = self.start + self.buffer.len() as u64 == offset;
        if !follows || self.buffer.len() + bytes.len() > PIECE {
            self.flush()?;
        }
        if self.buffer.is_empty() {
            self.start = offset;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}

fn wait(writer: ScopedJoinHandle<'_, io::Result<()>>) -> io::Result<()> {
    writer.join().unwrap_or_else(|_| Err(gone()))
}

fn gone() -> io::Error {
    io::Error::other("the image's writer has ended")
}

/// Writes pieces until there are no more or one cannot be written.
fn write(file: &fs::File, pieces: &Receiver<Piece>, back: &Sender<Vec<u8>>) -> io::Result<()> {
    let mut behind = 0;
    for Piece { offset, mut bytes } in pieces {
        file.write_all_at(&bytes, offset)?;
        behind += bytes.len() as u64;
        if behind >= BATCH {
            begin(file);
            behind = 0;
        }
        bytes.clear();
        // Nobody may want it any more.
        let _ = back.send(bytes);
    }
    if behind > 0 {
        begin(file);
    }
    Ok(())
}

/// Tells the disk to begin with what was written.
fn begin(file: &fs::File) {
    // SAFETY: the descriptor is open during the call, which touches no memory of ours. Should it fail, the disk begins
    // when it is synced.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

impl RegionSink for CoalescingSink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < ZEROS.len() {
            return self.append(offset, bytes);
        }
        // What is zero is left out: a large file's holes are holes of the image.
        for (n, chunk) in bytes.chunks(ZEROS.len()).enumerate() {
            if *chunk != ZEROS[..chunk.len()] {
                self.append(offset + (n * ZEROS.len()) as u64, chunk)?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, offset: u64, len: u64) -> io::Result<()> {
        // The padding after a file is shorter than a block: cheaper to write than to interrupt a piece for.
        if len < 4096 && self.start + self.buffer.len() as u64 == offset && self.buffer.len() < PIECE {
            self.buffer.resize(self.buffer.len() + len as usize, 0);
        }
        Ok(())
    }
}
