//! Reads archives that nobody vouches for: what they contain is checked as a whole before anything is written.

mod hashed;
mod header;
mod path;
mod sparse;
mod tar;
mod zip;

use super::content::Content;
use super::oci::Layer;
use super::place::Placer;
use super::room;
use super::tree::{Kind, Meta};
use crate::digest::Sha;
use crate::error::{Context, Error, Result};
use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use hashed::Hashed;
use std::collections::HashMap;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

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

/// What is used up of limits that several archives, read at once, share.
#[derive(Debug)]
pub(crate) struct Account {
    limits: Limits,
    /// Names with a leading '/' begin at the root of the archive.
    rooted: bool,
    decompressed: AtomicU64,
    entries: AtomicUsize,
}

impl Account {
    pub fn new(limits: Limits) -> Self {
        Account { limits, rooted: false, decompressed: AtomicU64::new(0), entries: AtomicUsize::new(0) }
    }

    /// For layers of container images: some builders write their names from the root on, which every runtime takes
    /// for the image's root.
    pub fn rooted(limits: Limits) -> Self {
        Account { rooted: true, ..Account::new(limits) }
    }

    /// A name without the '/' that means nothing here.
    fn name<'a>(&self, raw: &'a [u8]) -> &'a [u8] {
        match raw.iter().position(|byte| *byte != b'/') {
            _ if !self.rooted => raw,
            Some(start) => &raw[start..],
            None => b"",
        }
    }

    fn too_many(&self, name: &str) -> Error {
        Error::failed(
            "archive.too-many-entries",
            format!("{name} has more than {} entries", self.limits.entries),
        )
    }

    fn decompress(&self, name: &str, bytes: usize) -> Result<()> {
        let before = self.decompressed.fetch_add(bytes as u64, Ordering::Relaxed);
        if before + bytes as u64 > self.limits.total { Err(too_big(name, self.limits)) } else { Ok(()) }
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
    Bzip2,
    Lz4,
    Zip,
}

fn detect(head: &[u8]) -> Option<Format> {
    match head {
        [0x1f, 0x8b, ..] => Some(Format::Gzip),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Format::Xz),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Format::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Format::Bzip2),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some(Format::Lz4),
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Format::Zip),
        _ if tar::looks_like_header(head) => Some(Format::Tar),
        _ => None,
    }
}

/// Reads the index of the archive at `path`. Compressed tars are unpacked once, to a nameless file in `scratch_dir`.
/// `owner` owns what has no owner of its own (members of zip archives).
pub(crate) fn read(path: &Path, scratch_dir: &Path, owner: (u32, u32), limits: Limits) -> Result<Vec<Entry>> {
    read_within(path, scratch_dir, owner, &Account::new(limits), None)
}

/// As [`read`], for one of several layers that share their limits. One that unpacks to other bytes than it should is
/// refused.
pub(super) fn read_layer(layer: &Layer, scratch_dir: &Path, account: &Account) -> Result<Vec<Entry>> {
    read_within(&layer.path, scratch_dir, (0, 0), account, Some(layer))
}

fn read_within(
    path: &Path,
    scratch_dir: &Path,
    owner: (u32, u32),
    account: &Account,
    layer: Option<&Layer>,
) -> Result<Vec<Entry>> {
    let name = path.display().to_string();
    let mut file = fs::File::open(path).or_failed("archive.open", || format!("cannot open {name}"))?;
    let unreadable = |e: io::Error| Error::failed("archive.read", format!("cannot read {name}")).because(e);
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(512).read_to_end(&mut head).map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let format = detect(&head);
    let plain = matches!(format, Some(Format::Tar | Format::Zip)) || head.is_empty();
    if let Some(layer) = layer.filter(|_| plain) {
        layer.check(&plain_digest(layer, &mut file).map_err(unreadable)?)?;
        if head.is_empty() {
            // Nothing at all is a layer of nothing.
            return Ok(Vec::new());
        }
    }
    let decompressed: Box<dyn Read> = match format {
        Some(Format::Tar) => {
            let length = file.metadata().map_err(unreadable)?.len();
            return tar::read(Arc::new(file), 0..length, &name, account);
        }
        Some(Format::Zip) => return zip::read(file, &name, owner, account),
        Some(Format::Gzip) => {
            Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(1 << 18, file)))
        }
        Some(Format::Xz) => Box::new(liblzma::read::XzDecoder::new_multi_decoder(file)),
        Some(Format::Zstd) => Box::new(zstd::stream::read::Decoder::new(file).map_err(unreadable)?),
        Some(Format::Bzip2) => {
            Box::new(bzip2::bufread::MultiBzDecoder::new(io::BufReader::with_capacity(1 << 18, file)))
        }
        Some(Format::Lz4) => Box::new(lz4_flex::frame::FrameDecoder::new(file)),
        None => return Err(unknown(&name, &file)),
    };
    if let Some(size) = declared_size(&head, path) {
        room::check(scratch_dir, size, &format!("decompressing {name}"))?;
    }
    let mut spool = Spool::new(path, scratch_dir)?;
    let Some(layer) = layer else { return spool.read_within(decompressed, &name, account) };
    let mut hashed = Hashed::new(decompressed, layer.diff_id.as_deref().unwrap_or("sha256:"))?;
    let entries = spool.read_within(&mut hashed, &name, account)?;
    layer.check(&hashed.finish()?)?;
    Ok(entries)
}

/// What a layer that is not compressed is by its configuration's kind of digest: most often what its blob is.
fn plain_digest(layer: &Layer, file: &mut fs::File) -> io::Result<String> {
    let kind = |digest: &str| digest.split(':').next().map(str::to_owned);
    let Some(wanted) = layer.diff_id.as_deref().filter(|wanted| kind(wanted) != kind(&layer.blob)) else {
        return Ok(layer.blob.clone());
    };
    let mut sha = Sha::like(wanted);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            got => sha.update(&buffer[..got]),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(sha.finish())
}

/// Whether reading the archive at `path` means unpacking it first. What cannot be read is told by whoever reads it.
pub(crate) fn is_compressed(path: &Path) -> bool {
    let mut head = Vec::new();
    // A pipe would wait for its other end.
    let is_file = fs::metadata(path).is_ok_and(|meta| meta.is_file());
    let read =
        is_file && fs::File::open(path).is_ok_and(|file| file.take(512).read_to_end(&mut head).is_ok());
    read && !matches!(detect(&head), None | Some(Format::Tar | Format::Zip))
}

/// What a compressed file says it unpacks to: a hint, which may lie, to find out early that there is no room.
fn declared_size(head: &[u8], path: &Path) -> Option<u64> {
    match detect(head)? {
        // ISIZE of RFC 1952: of the last member alone, and modulo 4 GiB.
        Format::Gzip => {
            let file = fs::File::open(path).ok()?;
            let mut size = [0; 4];
            file.read_exact_at(&mut size, file.metadata().ok()?.len().checked_sub(4)?).ok()?;
            Some(u64::from(u32::from_le_bytes(size)))
        }
        Format::Zstd => zstd::zstd_safe::get_frame_content_size(head).ok()?,
        _ => None,
    }
}

/// What else is given as a root file system: where something stands, what, and what it is.
const OTHERS: &[(u64, &[u8], &str)] = &[
    (0, b"hsqs", "a squashfs image: unpack it with `unsquashfs` and give the directory"),
    (0, b"QFI\xfb", "a qcow2 disk: give the root file system in it, as an ext4 image, a tar or a directory"),
    (0, b"KDMV", "a VMDK disk: give the root file system in it, as an ext4 image, a tar or a directory"),
    (0, b"XFSB", "an XFS image: give its files, as a tar or a directory"),
    (0x10040, b"_BHRfS_M", "a btrfs image: give its files, as a tar or a directory"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS image: give its files, as a tar or a directory"),
    (0x8001, b"CD001", "an ISO 9660 image: give the root file system in it, as a tar or a directory"),
    (512, b"EFI PART", "a disk with partitions: give the root partition alone, as an ext4 image"),
    (510, b"\x55\xaa", "a disk with partitions: give the root partition alone, as an ext4 image"),
    (0, b"070701", "a cpio archive: unpack it and give the directory"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it and give the directory"),
    (0, b"\x5d\0\0", "compressed by lzma, or no archive: make it a tar.xz"),
    (0, b"\x1f\x9d", "compressed by compress: make it a tar.gz"),
    (
        0,
        b"<",
        "a page of HTML or XML, as servers send in place of a file: fetch it again, by `firegopher update` if it is pinned",
    ),
];

fn unknown(name: &str, file: &fs::File) -> Error {
    let is = |(at, magic, _): &&(u64, &[u8], &str)| {
        let mut bytes = vec![0; magic.len()];
        file.read_exact_at(&mut bytes, *at).is_ok() && bytes == *magic
    };
    let error =
        Error::failed("archive.unknown-format", format!("{name} is no archive that firegopher reads"));
    match OTHERS.iter().find(is) {
        Some((_, _, what)) => error.help(format!("it is {what}")),
        None => {
            error.help("zip and tar are read, the latter also compressed by gzip, xz, zstd, bzip2 or lz4")
        }
    }
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
        self.read_within(stream, name, &Account::new(limits))
    }

    fn read_within(&mut self, stream: impl Read, name: &str, account: &Account) -> Result<Vec<Entry>> {
        let start = self.length;
        self.length += spool_to(stream, &self.file, name, account)?;
        tar::read(Arc::clone(&self.file), start..self.length, name, account)
    }
}

fn spool_to(mut from: impl Read, mut to: &fs::File, name: &str, account: &Account) -> Result<u64> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut buffer = vec![0; 1 << 20];
    // A large file's zeros are no more than holes here, too: those that the cursor has yet to go past.
    let (mut total, mut zeros) = (0, 0_u64);
    let unwritten = |e: io::Error| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let error = Error::failed("image.disk-full", format!("no space left to decompress {name}"));
            error.help(room::HELP).because(e)
        }
        _ => {
            Error::failed("archive.spool", format!("cannot decompress {name} to a temporary file")).because(e)
        }
    };
    loop {
        let got = match from.read(&mut buffer) {
            Ok(0) if zeros == 0 => return Ok(total),
            Ok(0) => {
                let end = skip(&mut to, zeros).map_err(unwritten)?;
                to.set_len(end).map_err(unwritten)?;
                return Ok(total);
            }
            Ok(got) => got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                let error = Error::failed("archive.damaged", format!("cannot decompress {name}")).because(e);
                return Err(error.help("it was cut short or is damaged: make or fetch it again"));
            }
        };
        total += got as u64;
        account.decompress(name, got)?;
        if buffer[..got].chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()]) {
            zeros += got as u64;
            continue;
        }
        if zeros > 0 {
            skip(&mut to, zeros).map_err(unwritten)?;
            zeros = 0;
        }
        to.write_all(&buffer[..got]).map_err(unwritten)?;
    }
}

/// Moves the cursor on; where it is then.
fn skip(file: &mut &fs::File, bytes: u64) -> io::Result<u64> {
    file.seek(SeekFrom::Current(i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?))
}

fn too_big(name: &str, limits: Limits) -> Error {
    Error::failed("archive.too-big", format!("{name} unpacks to more than {} MiB", limits.total >> 20))
        .help("leave out what the VM does not need, or put it on a volume")
}

/// Counts entries and bytes against the limits.
struct Budget<'a> {
    name: &'a str,
    account: &'a Account,
    bytes: u64,
}

impl<'a> Budget<'a> {
    fn new(name: &'a str, account: &'a Account) -> Self {
        Budget { name, account, bytes: 0 }
    }

    /// How many entries there may still be.
    fn left(&self) -> usize {
        self.account.limits.entries.saturating_sub(self.account.entries.load(Ordering::Relaxed))
    }

    fn count(&mut self, entries: usize) -> Result<()> {
        let before = self.account.entries.fetch_add(entries, Ordering::Relaxed);
        match before.saturating_add(entries) > self.account.limits.entries {
            true => Err(self.account.too_many(self.name)),
            false => Ok(()),
        }
    }

    fn spend(&mut self, bytes: u64) -> Result<()> {
        let limits = self.account.limits;
        self.count(1)?;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > limits.total { Err(too_big(self.name, limits)) } else { Ok(()) }
    }
}

/// Places all entries of an archive under the placer's current item.
pub(crate) fn place(entries: Vec<Entry>, placer: &mut Placer<'_>) -> Result<()> {
    for Entry { path, meta, kind } in entries {
        match kind {
            EntryKind::Dir => placer.dir(&path, meta)?,
            EntryKind::HardLink(target) => placer.hard_link(&path, &target)?,
            EntryKind::Leaf(kind) => placer.leaf(&path, meta, kind)?,
        }
    }
    Ok(())
}

fn file(size: u64, content: Content) -> EntryKind {
    EntryKind::Leaf(Kind::File { size, content })
}

/// Where the contents of an archive's regular file lie.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    content: Content,
    /// In bytes.
    pub size: u64,
}

impl Located {
    /// Reads the contents.
    pub fn open(&self) -> io::Result<impl Read + '_> {
        self.content.open(self.size)
    }
}

/// The regular files of a tar by their paths, those behind links within it included. Of two with one path the last
/// counts, as for `tar -x`.
pub(crate) fn locate(path: &Path, scratch_dir: &Path) -> Result<HashMap<String, Located>> {
    let mut files = HashMap::new();
    let mut links = Vec::new();
    for Entry { path, kind, .. } in read(path, scratch_dir, (0, 0), Limits::default())? {
        match kind {
            EntryKind::Leaf(Kind::File {
                size,
                content: content @ (Content::Slice { .. } | Content::Sparse { .. }),
            }) => {
                files.insert(path, Located { content, size });
            }
            EntryKind::Leaf(Kind::Symlink(target)) => {
                let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                if let Some(target) = path::join(dir, &target) {
                    links.push((path, target));
                }
            }
            EntryKind::HardLink(target) => links.push((path, target)),
            _ => {}
        }
    }
    // A link to a link is found once its target is: archives list few, and no chain is longer than the list.
    while !links.is_empty() {
        let before = links.len();
        links.retain(|(path, target)| match files.get(target).cloned() {
            Some(found) => {
                files.insert(path.clone(), found);
                false
            }
            None => true,
        });
        if links.len() == before {
            break;
        }
    }
    Ok(files)
}
