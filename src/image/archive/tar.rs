//! The index of an uncompressed tar of any dialect. The walk is ours and not the `tar` crate's, which splits PAX values
//! at newlines (capabilities are binary) and reads extension headers of any length.

use super::header::{Header, NoNumber, Type};
use super::sparse::{self, Map, Said, Wrong};
use super::{Account, Budget, Entry, EntryKind, file, path};
use crate::error::{Error, Result};
use crate::image::content::Content;
use crate::image::tree::{Kind, Meta};
use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use std::io;
use std::ops::Range;
use std::sync::Arc;

const BLOCK: u64 = 512;
/// Far more than names, links and the xattrs that ext4 can hold.
const LONGEST_EXTENSION: u64 = 1 << 20;

/// Whether these bytes begin with a tar header (or with the two zero blocks of an empty archive).
pub(super) fn looks_like_header(head: &[u8]) -> bool {
    head.len() as u64 >= BLOCK && (head.iter().all(|b| *b == 0) || Header::read(head).is_some())
}

/// Reads small pieces by position through a window: seeking over contents costs nothing.
pub(super) struct Window<'a> {
    file: &'a fs::File,
    start: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// A header and the small files behind it; whatever is larger is not read here at all.
    const SIZE: usize = 4 << 10;

    /// The `length` bytes at `at`, or fewer at the end of the file.
    pub fn get(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let held = self.start..self.start + self.bytes.len() as u64;
        if !(held.contains(&at) && at + length as u64 <= held.end) {
            self.bytes.resize(length.max(Self::SIZE), 0);
            let mut filled = 0;
            while filled < self.bytes.len() {
                match self.file.read_at(&mut self.bytes[filled..], at + filled as u64) {
                    Ok(0) => break,
                    Ok(got) => filled += got,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            self.bytes.truncate(filled);
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..self.bytes.len().min(from + length)])
    }
}

/// What extension headers say about the next member.
#[derive(Debug, Default, Clone)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
    /// It is stored without its holes.
    sparse: Option<Said>,
}

/// Reads all headers of the tar that is the given range of `file`; contents stay where they are.
pub(super) fn read(
    file: Arc<fs::File>,
    range: Range<u64>,
    name: &str,
    account: &Account,
) -> Result<Vec<Entry>> {
    let unreadable = |e: io::Error| Error::failed("archive.read", format!("cannot read {name}")).because(e);
    let length = range.end;
    let mut window = Window { file: &file, start: 0, bytes: Vec::new() };
    let mut budget = Budget::new(name, account);
    let (mut global, mut next) = (Extensions::default(), None::<Extensions>);
    let (mut entries, mut at) = (Vec::new(), range.start);
    while at < length {
        let block = window.get(at, BLOCK as usize).map_err(unreadable)?;
        if (block.len() as u64) < BLOCK || at + BLOCK > length {
            return Err(truncated(name));
        }
        if block.iter().all(|byte| *byte == 0) {
            break;
        }
        let Some(header) = Header::read(block) else {
            return Err(damaged(name, "a header's checksum is wrong"));
        };
        let kind = header.kind();
        let is_extension =
            matches!(kind, Type::Pax | Type::PaxGlobal | Type::GnuLongName | Type::GnuLongLink);
        let mut size = match kind {
            // No reader believes that it has contents, whatever old writers say.
            Type::HardLink => 0,
            _ => header.size().map_err(|_| no_number(name, "size", &header.name()))?,
        };
        if !is_extension
            && kind != Type::HardLink
            && let Some(said) = next.as_ref().unwrap_or(&global).size
        {
            size = said;
        }
        let mut data = at + BLOCK;
        let mut holes = None;
        if kind == Type::GnuSparse {
            let map = sparse::old(&header, &mut window, data, length, budget.left());
            let map = map.map_err(|wrong| bad_map(name, &header.name(), account, wrong))?;
            data += map.taken;
            holes = Some(Map { taken: 0, ..map });
        }
        // The padding of the last member may be missing, its bytes may not.
        if data.checked_add(size).is_none_or(|end| end > length) {
            return Err(truncated(name));
        }
        at = data + size.checked_next_multiple_of(BLOCK).ok_or_else(|| truncated(name))?;
        if is_extension {
            if size > LONGEST_EXTENSION {
                return Err(damaged(name, "an extension header is too long"));
            }
            budget.spend(0)?;
            let bytes = window.get(data, size as usize).map_err(unreadable)?;
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            if kind == Type::PaxGlobal {
                global.parse(bytes, name)?;
                if global.sparse.is_some() {
                    return Err(damaged(name, "a global PAX header speaks of holes"));
                }
            } else {
                let next = next.get_or_insert_with(|| global.clone());
                match kind {
                    Type::GnuLongName => next.path = Some(text),
                    Type::GnuLongLink => next.link = Some(text),
                    _ => next.parse(bytes, name)?,
                }
            }
            continue;
        }
        let mut extensions = next.take().unwrap_or_else(|| global.clone());
        if let Some(said) = extensions.sparse.take() {
            let shown = said.name.clone().or_else(|| extensions.path.clone());
            let shown = shown.unwrap_or_else(|| header.name());
            let map = match kind {
                Type::File => said.map(&mut window, data, size, budget.left()),
                _ => Err(Wrong::Map("is no file that could have holes")),
            };
            holes = Some(map.map_err(|wrong| bad_map(name, &shown, account, wrong))?);
            extensions.path = Some(shown);
        }
        let mut content = Content::Slice { file: Arc::clone(&file), offset: data };
        if let Some(map) = holes {
            let extents = sparse::check(&map, data + map.taken, size - map.taken);
            let shown = || extensions.path.clone().unwrap_or_else(|| header.name());
            let extents = extents.map_err(|wrong| bad_map(name, &shown(), account, wrong))?;
            // A map could be as long as the archive: its runs count as entries do.
            budget.count(extents.len())?;
            content = Content::Sparse { file: Arc::clone(&file), extents: extents.into() };
            size = map.size;
        }
        let entry = member(&header, extensions, name, account, size, || content)?;
        if let Some(entry) = entry {
            budget.spend(size)?;
            entries.push(entry);
        }
    }
    if next.is_some() {
        return Err(truncated(name));
    }
    Ok(entries)
}

fn member(
    header: &Header,
    said: Extensions,
    archive: &str,
    account: &Account,
    size: u64,
    content: impl FnOnce() -> Content,
) -> Result<Option<Entry>> {
    let raw = said.path.unwrap_or_else(|| header.name());
    let path = path::clean_member(archive, account.name(&raw))?;
    let wrong = |field: &str| no_number(archive, field, path.as_bytes());
    let link = || said.link.clone().unwrap_or_else(|| header.link());
    let device = || header.device().map_err(|_| wrong("device number"));
    let id = |said: Option<u32>, field: Result<i64, NoNumber>| match said {
        Some(id) => Ok(id),
        None => field.ok().and_then(owner).ok_or_else(|| wrong("owner")),
    };
    let mtime = match said.mtime {
        Some(time) => time,
        None => clamp(header.mtime().map_err(|_| wrong("time"))?, 0),
    };
    let mut meta = Meta {
        mode: header.mode().map_err(|_| wrong("mode"))?,
        uid: id(said.uid, header.uid())?,
        gid: id(said.gid, header.gid())?,
        mtime,
        xattrs: said.xattrs,
    };
    meta.xattrs.sort();
    meta.xattrs.dedup_by(|a, b| a.0 == b.0);
    let kind = match header.kind() {
        Type::File | Type::GnuSparse if raw.ends_with(b"/") => EntryKind::Dir,
        Type::File | Type::GnuSparse => file(size, content()),
        Type::Dir => EntryKind::Dir,
        Type::HardLink => EntryKind::HardLink(path::clean_hard_link(archive, &path, &link())?),
        Type::Symlink => EntryKind::Leaf(Kind::Symlink(path::symlink_text(archive, &path, &link())?)),
        Type::Char => match device()? {
            // overlayfs takes such a device for a deletion (Documentation/filesystems/overlayfs.rst, whiteouts).
            (0, 0) => {
                return Err(unsupported(archive, &path, "the device 0:0, which hides files of the base"));
            }
            (major, minor) => EntryKind::Leaf(Kind::Char { major, minor }),
        },
        Type::Block => {
            let (major, minor) = device()?;
            EntryKind::Leaf(Kind::Block { major, minor })
        }
        Type::Fifo => EntryKind::Leaf(Kind::Fifo),
        Type::Label => return Ok(None),
        Type::Other(other) => {
            let what = format!("of the unknown type {:?}", char::from(other));
            return Err(unsupported(archive, &path, &what));
        }
        Type::GnuLongName | Type::GnuLongLink | Type::Pax | Type::PaxGlobal => {
            return Err(Error::bug("an extension header came to where members are"));
        }
    };
    let is_file = matches!(kind, EntryKind::Leaf(Kind::File { .. }));
    if !is_file && size != 0 {
        // Readers disagree on whether contents follow: what one skips another would unpack.
        return Err(Error::failed(
            "archive.size-lie",
            format!("{archive}: {path} declares {size} bytes of contents, which its type cannot have"),
        ));
    }
    if path.is_empty() && !matches!(kind, EntryKind::Dir) {
        return Err(damaged(archive, "a member has no name"));
    }
    Ok(Some(Entry { path, meta, kind }))
}

/// A uid or gid. The last one means "unchanged" to every system call that takes one.
fn owner(id: i64) -> Option<u32> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX)
}

impl Extensions {
    /// Records are `LENGTH KEY=VALUE\n`, the length counting itself; values are any bytes.
    fn parse(&mut self, mut bytes: &[u8], archive: &str) -> Result<()> {
        let bad = || damaged(archive, "a PAX header is malformed");
        fn given(value: &[u8]) -> Option<&[u8]> {
            Some(value).filter(|value| !value.is_empty())
        }
        fn value_of<T>(
            archive: &str,
            key: &str,
            value: Option<&[u8]>,
            read: impl Fn(&[u8]) -> Option<T>,
        ) -> Result<Option<T>> {
            let bad = || damaged(archive, &format!("the {key} of a PAX header cannot be"));
            value.map(|value| read(value).ok_or_else(bad)).transpose()
        }
        // Some writers count the padding, too.
        while bytes.iter().any(|byte| *byte != 0) {
            let space = bytes.iter().position(|b| *b == b' ').ok_or_else(bad)?;
            let length: usize = parse(&bytes[..space]).ok_or_else(bad)?;
            let record = bytes.get(space + 1..length).ok_or_else(bad)?;
            bytes = &bytes[length..];
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let Ok(key) = std::str::from_utf8(key) else { continue };
            match key {
                // No value takes back what was said before: the header's own field counts (pax, "Extended Header").
                "path" => self.path = given(value).map(<[u8]>::to_vec),
                "linkpath" => self.link = given(value).map(<[u8]>::to_vec),
                "size" => self.size = value_of(archive, key, given(value), parse)?,
                "uid" => self.uid = value_of(archive, key, given(value), |text| owner(parse(text)?))?,
                "gid" => self.gid = value_of(archive, key, given(value), |text| owner(parse(text)?))?,
                "mtime" => self.mtime = value_of(archive, key, given(value), time)?,
                _ => {
                    if let Some(key) = key.strip_prefix("GNU.sparse.") {
                        self.sparse.get_or_insert_default().record(key, value).ok_or_else(bad)?;
                    } else if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        self.add_xattr(archive, name, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn add_xattr(&mut self, archive: &str, name: &str, value: &[u8]) -> Result<()> {
        if name.starts_with("trusted.overlay.") {
            return Err(Error::failed(
                "archive.unsupported",
                format!("{archive}: the attribute {name} belongs to the stack of file systems itself"),
            ));
        }
        self.xattrs.retain(|(before, _)| before != name);
        self.xattrs.push((name.to_owned(), value.to_vec()));
        Ok(())
    }
}

fn parse<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// `SECONDS[.FRACTION]`, possibly negative; the fraction counts upwards from the floor.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        seconds = seconds.checked_sub(1)?;
        nanos = 1_000_000_000 - nanos;
    }
    Some(clamp(seconds, nanos))
}

/// To what ext4 can hold: 1901 to 2446.
fn clamp(seconds: i64, nanos: u32) -> (i64, u32) {
    (seconds.clamp(-(1 << 31), (3 << 32) + (1 << 31) - 1), nanos)
}

fn no_number(archive: &str, field: &str, path: &[u8]) -> Error {
    let path: String = String::from_utf8_lossy(path).chars().take(255).collect();
    damaged(archive, &format!("the {field} of {path:?} is no number, or none that there can be"))
}

fn truncated(archive: &str) -> Error {
    Error::failed("archive.truncated", format!("{archive} ends within a member"))
        .help("it was cut short, or declares more than it has: make or fetch it again")
}

fn damaged(archive: &str, what: &str) -> Error {
    Error::failed("archive.damaged", format!("{archive} is damaged: {what}"))
}

/// The error for a map of holes that is not believed.
fn bad_map(archive: &str, raw: &[u8], account: &Account, wrong: Wrong) -> Error {
    match wrong {
        Wrong::TooMany => account.too_many(archive),
        Wrong::Io(e) => Error::failed("archive.read", format!("cannot read {archive}")).because(e),
        Wrong::Map(why) => {
            let name: String = String::from_utf8_lossy(raw).chars().take(255).collect();
            Error::failed("archive.sparse", format!("{archive}: {name:?}, stored without its holes, {why}"))
                .help("the archive is damaged or hostile: make it again, or without --sparse")
        }
    }
}

fn unsupported(archive: &str, path: &str, what: &str) -> Error {
    Error::failed("archive.unsupported", format!("{archive}: {path} is {what}"))
}
