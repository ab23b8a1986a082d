//! The index of a zip archive: Unix modes and symlinks where its maker recorded them, owners from the caller.

use super::{Account, Budget, Entry, EntryKind, file, path};
use crate::error::{Error, Result};
use crate::image::content::Content;
use crate::image::tree::{Kind, Meta};
use ::zip::{CompressionMethod, DateTime, ExtraField, ZipArchive};
use fs_err as fs;
use fs_err::os::unix::fs::FileExt as _;
use std::io::{self, Read as _};
use std::sync::Arc;

const TYPE: u32 = 0o170000;
const DIRECTORY: u32 = 0o040000;
const REGULAR: u32 = 0o100000;
const SYMLINK: u32 = 0o120000;
const LONGEST_TARGET: u64 = 4095;

/// Reads the central directory of `source`; contents stay where they are.
pub(super) fn read(source: fs::File, name: &str, owner: (u32, u32), account: &Account) -> Result<Vec<Entry>> {
    let damaged = |e: ::zip::result::ZipError| {
        Error::failed("archive.damaged", format!("cannot read {name} as a zip archive")).because(e)
    };
    let shared = Arc::new(source.try_clone().map_err(|e| damaged(e.into()))?);
    let mut archive = ZipArchive::new(io::BufReader::new(source)).map_err(damaged)?;
    if archive.has_duplicate_names() {
        return Err(Error::failed("archive.duplicate", format!("{name}: a name occurs twice"))
            .help("make the archive again: which of the two is meant cannot be told"));
    }
    let mut budget = Budget::new(name, account);
    let mut entries = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(damaged)?;
        budget.spend(member.size())?;
        let raw = member.name_raw();
        let path = path::clean(name, raw)?;
        let unsupported = |what: &str| {
            Error::failed("archive.unsupported", format!("{name}: {path} is {what}, which is not read"))
        };
        if member.encrypted() {
            return Err(unsupported("encrypted").help("make the archive again without a password"));
        }
        let is_dir = raw.ends_with(b"/");
        let mode = member.unix_mode().unwrap_or(if is_dir { DIRECTORY | 0o755 } else { REGULAR | 0o644 });
        let special = special_bits(&shared, member.central_header_start())
            .map_err(|e| damaged(::zip::result::ZipError::Io(e)))?;
        let extended = member.extra_data_fields().find_map(|field| match field {
            ExtraField::ExtendedTimestamp(time) => time.mod_time(),
            _ => None,
        });
        let seconds = extended.map(i64::from).or(member.last_modified().map(utc)).unwrap_or(0);
        let meta = Meta {
            mode: (mode & 0o777 | special) as u16,
            uid: owner.0,
            gid: owner.1,
            mtime: (seconds, 0),
            xattrs: Vec::new(),
        };
        let (size, compressed) = (member.size(), member.compressed_size());
        let content = || -> Result<Content> {
            let deflated = match member.compression() {
                CompressionMethod::Stored => false,
                CompressionMethod::Deflated => true,
                other => return Err(unsupported(&format!("compressed by {other}"))),
            };
            let offset = member.data_start().ok_or_else(|| damaged(::zip::result::ZipError::FileNotFound))?;
            Ok(Content::Zip { file: Arc::clone(&shared), offset, compressed, deflated, crc: member.crc32() })
        };
        let kind = match mode & TYPE {
            _ if is_dir && size == 0 => EntryKind::Dir,
            DIRECTORY if size == 0 => EntryKind::Dir,
            SYMLINK if !is_dir => {
                let content = content()?;
                EntryKind::Leaf(Kind::Symlink(target(name, &path, &content, size)?))
            }
            0 | REGULAR if !is_dir => file(size, content()?),
            _ => return Err(unsupported("neither a file nor a directory nor a link")),
        };
        if path.is_empty() && !matches!(kind, EntryKind::Dir) {
            return Err(Error::failed("archive.damaged", format!("{name}: a member has no name")));
        }
        entries.push(Entry { path, meta, kind });
    }
    Ok(entries)
}

/// The set-user-ID, set-group-ID and sticky bits of a member, which the `zip` crate clears for those who unpack into
/// a running system. `at` is where the directory of the archive speaks of it (APPNOTE 4.3.12).
fn special_bits(file: &fs::File, at: u64) -> io::Result<u32> {
    const UNIX: u8 = 3;
    let mut header = [0; 42];
    file.read_exact_at(&mut header, at)?;
    if !header.starts_with(b"PK\x01\x02") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its directory is not where it was"));
    }
    let mode = u16::from_le_bytes([header[40], header[41]]);
    Ok(if header[5] == UNIX { u32::from(mode) & 0o7000 } else { 0 })
}

fn target(archive: &str, path: &str, content: &Content, size: u64) -> Result<Box<str>> {
    let lie = |cause| content.mismatch(path, cause);
    if size > LONGEST_TARGET {
        return Err(lie(None));
    }
    let mut reader = content.open(size).map_err(|e| lie(Some(e)))?;
    let mut bytes = vec![0; size as usize];
    reader.read_exact(&mut bytes).map_err(|e| lie(Some(e)))?;
    reader.finish().map_err(lie)?;
    path::symlink_text(archive, path, &bytes)
}

/// DOS times name no zone; UTC makes them the same everywhere.
fn utc(time: DateTime) -> i64 {
    let (year, month, day) = (i64::from(time.year()), i64::from(time.month()), i64::from(time.day()));
    // Days from 1970-01-01 in the proleptic Gregorian calendar, years counted from March.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    days * 86400 + i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second())
}
