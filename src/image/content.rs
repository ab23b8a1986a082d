//! Where the bytes of a regular file come from, and the proof that they are the bytes that were announced.

use super::holes::ZEROS;
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::syscall::open_beneath;
use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use nix::fcntl::OFlag;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

/// The source of a file's bytes; its length stands beside it in the tree.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// Made here.
    Bytes(Arc<[u8]>),
    /// A run of an uncompressed archive or a spool file.
    Slice { file: Arc<fs::File>, offset: u64 },
    /// The same without its holes; the runs are in order and apart.
    Sparse { file: Arc<fs::File>, extents: Arc<[Extent]> },
    /// A deflated member of a zip archive; stored members are slices with a checksum.
    Zip { file: Arc<fs::File>, offset: u64, compressed: u64, deflated: bool, crc: u32 },
    /// A file of a scanned directory.
    Beneath { dir: Arc<OwnedFd>, shown: Arc<PathBuf>, path: Box<str>, digest: ObjectDigest },
    /// A file of the host's.
    Host { path: PathBuf, digest: ObjectDigest },
}

/// A run of a file that is stored without its holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Where it belongs in the file.
    pub at: u64,
    /// In bytes, at least 1.
    pub length: u64,
    /// Where it is in the archive.
    pub offset: u64,
}

/// Reads one file's bytes and knows afterwards whether they were right.
pub(crate) struct ContentReader<'a> {
    inner: Box<dyn Input + 'a>,
    check: Check,
    /// The first error, kept because the image writer only passes on its text.
    failed: Option<io::Error>,
    ended: bool,
}

enum Check {
    None,
    Blake3 { hasher: Box<blake3::Hasher>, expected: ObjectDigest },
    Crc { hasher: flate2::Crc, expected: u32 },
}

/// Bytes to be read once, some of which nobody wants to see.
trait Input: Read + Send {
    /// Goes on behind the next `bytes`.
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let mut buffer = [0; 8192];
        let mut left = bytes;
        while left > 0 {
            let want = left.min(buffer.len() as u64) as usize;
            self.read_exact(&mut buffer[..want])?;
            left -= want as u64;
        }
        Ok(())
    }
}

impl Input for &[u8] {}

impl<R: io::BufRead + Send> Input for flate2::bufread::DeflateDecoder<R> {}

impl Input for std::fs::File {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.seek(SeekFrom::Current(bytes)).map(drop)
    }
}

impl Input for SliceReader<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.offset += bytes;
        self.left = self.left.saturating_sub(bytes);
        Ok(())
    }
}

impl Input for SparseReader<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.at += bytes;
        Ok(())
    }
}

/// Reads a run of a file by position, so that one open file serves many readers.
pub(crate) struct SliceReader<'a> {
    pub file: &'a fs::File,
    pub offset: u64,
    pub left: u64,
}

impl Read for SliceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let got = self.file.read_at(&mut buffer[..want], self.offset)?;
        self.offset += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

/// Reads runs of a file with the zeros between and behind them.
pub(super) struct SparseReader<'a> {
    file: &'a fs::File,
    /// Those that are not behind `at`.
    extents: &'a [Extent],
    at: u64,
    size: u64,
}

impl<'a> SparseReader<'a> {
    /// Reads the file of `size` bytes that `extents` of `file` make up, from `at` on.
    pub fn new(file: &'a fs::File, extents: &'a [Extent], at: u64, size: u64) -> Self {
        let done = extents.partition_point(|run| run.at + run.length <= at);
        SparseReader { file, extents: &extents[done..], at, size }
    }
}

impl Read for SparseReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.extents.first().is_some_and(|run| self.at >= run.at + run.length) {
            self.extents = &self.extents[1..];
        }
        let wanted = |until: u64| (until - self.at).min(buffer.len() as u64) as usize;
        let got = match self.extents.first() {
            Some(run) if run.at <= self.at => {
                let want = wanted(run.at + run.length);
                self.file.read_at(&mut buffer[..want], run.offset + (self.at - run.at))?
            }
            next => {
                let want = wanted(next.map_or(self.size, |run| run.at));
                buffer[..want].fill(0);
                want
            }
        };
        self.at += got as u64;
        Ok(got)
    }
}

impl Content {
    /// Opens the bytes for one sequential read of `size` bytes.
    pub fn open(&self, size: u64) -> io::Result<ContentReader<'_>> {
        let (inner, check): (Box<dyn Input>, _) = match self {
            Content::Bytes(bytes) => (Box::new(&bytes[..]), Check::None),
            Content::Slice { file, offset } => {
                (Box::new(SliceReader { file, offset: *offset, left: size }), Check::None)
            }
            Content::Sparse { file, extents } => {
                (Box::new(SparseReader::new(file, extents, 0, size)), Check::None)
            }
            Content::Zip { file, offset, compressed, deflated, crc } => {
                let raw = SliceReader { file, offset: *offset, left: *compressed };
                let check = Check::Crc { hasher: flate2::Crc::new(), expected: *crc };
                if *deflated {
                    let raw = io::BufReader::with_capacity(64 << 10, raw);
                    (Box::new(flate2::bufread::DeflateDecoder::new(raw)), check)
                } else {
                    (Box::new(raw), check)
                }
            }
            Content::Beneath { digest, .. } => (Box::new(self.open_file()?), Check::blake3(*digest)),
            Content::Host { digest, .. } => (Box::new(self.open_file()?), Check::blake3(*digest)),
        };
        Ok(ContentReader { inner, check, failed: None, ended: false })
    }

    /// The file of the host's that holds these bytes and nothing else.
    pub(super) fn open_file(&self) -> io::Result<std::fs::File> {
        match self {
            // O_NONBLOCK: a pipe put in the file's place must not stop the build.
            Content::Beneath { dir, path, .. } => {
                let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
                Ok(open_beneath(dir.as_ref(), path, flags)?.into())
            }
            Content::Host { path, .. } => std::fs::File::open(path),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The error for bytes that are not what was announced; `path` is the file's path in the image.
    pub fn mismatch(&self, path: &str, cause: Option<io::Error>) -> Error {
        let changed = |shown: String| {
            if cause.as_ref().is_some_and(|e| !is_change(e)) {
                return Error::failed("image.read", format!("cannot read {shown}"));
            }
            Error::failed("image.changed", format!("{shown} changed while it was read"))
                .help("let whatever writes to it finish, then try again")
        };
        let error = match self {
            Content::Beneath { shown, path, .. } => changed(shown.join(&**path).display().to_string()),
            Content::Host { path, .. } => changed(path.display().to_string()),
            Content::Zip { file, .. } => Error::failed(
                "archive.size-lie",
                format!(
                    "{}: the contents of {path} are not what the archive declares",
                    file.path().display()
                ),
            )
            .help("the archive is damaged or hostile: make it again"),
            Content::Slice { file, .. } | Content::Sparse { file, .. } => {
                Error::failed("archive.truncated", format!("{} ends within {path}", file.path().display()))
            }
            Content::Bytes(_) => Error::bug(format!("the contents made for {path} have another length")),
        };
        match cause {
            Some(cause) => error.because(cause),
            None => error,
        }
    }
}

impl Check {
    fn blake3(expected: ObjectDigest) -> Self {
        Check::Blake3 { hasher: Box::new(blake3::Hasher::new()), expected }
    }
}

/// Whether an error of opening or reading means that something else has taken the file's place.
fn is_change(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(code) => {
            matches!(
                code,
                libc::ENOENT
                    | libc::ENOTDIR
                    | libc::ELOOP
                    | libc::EXDEV
                    | libc::ENXIO
                    | libc::EISDIR
                    | libc::EAGAIN
            )
        }
        None => true,
    }
}

impl ContentReader<'_> {
    /// Whether an unfinished read ended because of the contents: their error, or their early end.
    pub fn fault(&mut self) -> Option<Option<io::Error>> {
        match self.failed.take() {
            Some(error) => Some(Some(error)),
            None => self.ended.then_some(None),
        }
    }

    /// Goes on behind the next `bytes`, which are zeros: they count as such, whatever the source has there by now.
    pub fn skip_zeros(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = match &mut self.check {
            Check::None => self.inner.skip(bytes),
            Check::Blake3 { hasher, .. } => {
                let mut left = bytes;
                while left > 0 {
                    let some = left.min(ZEROS.len() as u64);
                    hasher.update(&ZEROS[..some as usize]);
                    left -= some;
                }
                self.inner.skip(bytes)
            }
            // The checksum says what they were.
            Check::Crc { .. } => {
                let copied = io::copy(&mut io::Read::take(&mut *self, bytes), &mut io::sink())?;
                return if copied == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        };
        skipped.map_err(|e| {
            let kind = e.kind();
            self.failed = Some(e);
            kind.into()
        })
    }

    /// After the last byte: whether the contents are what was announced.
    pub fn finish(mut self) -> Result<(), Option<io::Error>> {
        if let Some(error) = self.failed.take() {
            return Err(Some(error));
        }
        // Bytes beyond the declared size are a lie too; those of a grown file are not part of its listing.
        if matches!(self.check, Check::Crc { .. }) && self.inner.read(&mut [0]).map_err(Some)? != 0 {
            return Err(None);
        }
        let right = match &self.check {
            Check::None => true,
            Check::Blake3 { hasher, expected } => ObjectDigest::from(hasher.finalize()) == *expected,
            Check::Crc { hasher, expected } => hasher.sum() == *expected,
        };
        if right && !self.ended { Ok(()) } else { Err(None) }
    }
}

impl Read for ContentReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = match self.inner.read(buffer) {
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                let kind = e.kind();
                self.failed = Some(e);
                return Err(kind.into());
            }
        };
        self.ended |= got == 0 && !buffer.is_empty();
        match &mut self.check {
            Check::None => {}
            Check::Blake3 { hasher, .. } => {
                hasher.update(&buffer[..got]);
            }
            Check::Crc { hasher, .. } => hasher.update(&buffer[..got]),
        }
        Ok(got)
    }
}
