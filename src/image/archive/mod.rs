//! Reads archives that nobody vouches for: what they contain is checked as a whole before anything is written.

mod path;
mod tar;
mod zip;

use super::content::Content;
use super::place::Placer;
use super::tree::{Kind, Meta};
use crate::error::{Context, Error, Result};
use fs_err as fs;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;

pub(in crate::image) use path::clean;

/// Bounds on what one archive may unpack to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of all contents together, and of the archive itself once decompressed.
    pub total: u64,
    /// Entries of any kind.
    pub entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { total: 32 << 30, entries: 4_000_000 }
    }
}

/// One member of an archive, its path clean and relative; "" is the archive's root.
#[derive(Debug)]
pub(crate) struct Entry {
    pub path: String,
    pub meta: Meta,
    pub kind: EntryKind,
}

#[derive(Debug)]
pub(crate) enum EntryKind {
    Dir,
    /// A name for another member.
    HardLink(String),
    /// Anything else.
    Leaf(Kind),
}

/// What the first bytes of a file say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Tar,
    Gzip,
    Xz,
    Zstd,
    Zip,
}

fn detect(head: &[u8]) -> Option<Format> {
    match head {
        [0x1f, 0x8b, ..] => Some(Format::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Format::Xz),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Format::Zstd),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Format::Zip),
        _ if tar::looks_like_header(head) => Some(Format::Tar),
        _ => None,
    }
}

/// Reads the index of the archive at `path`. Compressed tars are unpacked once, to a nameless file in `scratch_dir`.
/// `owner` owns what has no owner of its own (members of zip archives).
pub(crate) fn read(path: &Path, scratch_dir: &Path, owner: (u32, u32), limits: Limits) -> Result<Vec<Entry>> {
    let name = path.display().to_string();
    let mut file = fs::File::open(path).or_failed("archive.open", || format!("cannot open {name}"))?;
    let unreadable = |e: io::Error| Error::failed("archive.read", format!("cannot read {name}")).because(e);
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(512).read_to_end(&mut head).map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let decompressed: Box<dyn Read> = match detect(&head) {
        Some(Format::Tar) => {
            let length = file.metadata().map_err(unreadable)?.len();
            return tar::read(Arc::new(file), 0..length, &name, limits);
        }
        Some(Format::Zip) => return zip::read(file, &name, owner, limits),
        Some(Format::Gzip) => {
            Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(1 << 18, file)))
        }
        Some(Format::Xz) => Box::new(liblzma::read::XzDecoder::new_multi_decoder(file)),
        Some(Format::Zstd) => Box::new(zstd::stream::read::Decoder::new(file).map_err(unreadable)?),
        None => {
            return Err(Error::failed(
                "archive.unknown-format",
                format!("{name} is no archive that firegopher reads"),
            )
            .help("zip, tar, tar.gz, tar.xz and tar.zst are read"));
        }
    };
    Spool::new(path, scratch_dir)?.read(decompressed, &name, limits)
}

/// Writes those regular files of an archive that `choose` gives a place to; a later one replaces an earlier one.
pub(crate) fn files(
    path: &Path,
    scratch_dir: &Path,
    mut choose: impl FnMut(&str) -> Option<std::path::PathBuf>,
) -> Result<()> {
    for entry in read(path, scratch_dir, (0, 0), Limits::default())? {
        let EntryKind::Leaf(Kind::File { size, content }) = &entry.kind else { continue };
        let Some(to) = choose(&entry.path) else { continue };
        let mut out =
            fs::File::create(&to).or_failed("asset.write", || "cannot write a file of an archive")?;
        let copied = content.open(*size).and_then(|mut from| io::copy(&mut from, &mut out));
        match copied {
            Ok(bytes) if bytes == *size => {}
            Ok(_) => return Err(content.mismatch(&entry.path, None)),
            Err(e) => return Err(content.mismatch(&entry.path, Some(e))),
        }
    }
    Ok(())
}

/// A nameless temporary file that decompressed tars are appended to.
pub(crate) struct Spool {
    file: Arc<fs::File>,
    length: u64,
}

impl Spool {
    /// `source` is what errors about the contents name.
    pub fn new(source: &Path, scratch_dir: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(scratch_dir).or_failed("archive.spool", || {
            format!("cannot create a temporary file in {}", scratch_dir.display())
        })?;
        Ok(Spool { file: Arc::new(fs::File::from_parts(file, source)), length: 0 })
    }

    /// Spools one tar stream and reads its index.
    pub fn read(&mut self, stream: impl Read, name: &str, limits: Limits) -> Result<Vec<Entry>> {
        let start = self.length;
        self.length += spool_to(stream, &self.file, name, limits)?;
        tar::read(Arc::clone(&self.file), start..self.length, name, limits)
    }
}

fn spool_to(mut from: impl Read, mut to: &fs::File, name: &str, limits: Limits) -> Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let got = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                return Err(Error::failed("archive.damaged", format!("cannot decompress {name}")).because(e));
            }
        };
        total += got as u64;
        if total > limits.total {
            return Err(too_big(name, limits));
        }
        to.write_all(&buffer[..got]).map_err(|e| match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::failed("image.disk-full", format!("no space left to decompress {name}")).because(e)
            }
            _ => Error::failed("archive.spool", format!("cannot decompress {name} to a temporary file"))
                .because(e),
        })?;
    }
}

fn too_big(name: &str, limits: Limits) -> Error {
    Error::failed("archive.too-big", format!("{name} unpacks to more than {} MiB", limits.total >> 20))
        .help("leave out what the VM does not need, or put it on a volume")
}

/// Counts entries and bytes against the limits.
struct Budget<'a> {
    name: &'a str,
    limits: Limits,
    bytes: u64,
    entries: usize,
}

impl<'a> Budget<'a> {
    fn new(name: &'a str, limits: Limits) -> Self {
        Budget { name, limits, bytes: 0, entries: 0 }
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::failed(
                "archive.too-many-entries",
                format!("{} has more than {} entries", self.name, self.limits.entries),
            ));
        }
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limits.total { Err(too_big(self.name, self.limits)) } else { Ok(()) }
    }
}

/// Places all entries of an archive under the placer's current item.
pub(crate) fn place(entries: Vec<Entry>, name: &str, placer: &mut Placer<'_>) -> Result<()> {
    for Entry { path, meta, kind } in entries {
        match kind {
            EntryKind::Dir => placer.dir(&path, meta)?,
            EntryKind::HardLink(target) => placer.hard_link(&path, &target)?,
            EntryKind::Leaf(kind) => {
                if let Kind::Symlink(target) = &kind {
                    path::check_symlink(name, placer.start_path(), &path, target)?;
                }
                placer.leaf(&path, meta, kind)?;
            }
        }
    }
    Ok(())
}

fn file(size: u64, content: Content) -> EntryKind {
    EntryKind::Leaf(Kind::File { size, content })
}
