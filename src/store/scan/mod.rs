//! Finds out what a workload holds, without reading what was read before.
//!
//! A scan walks the directory in parallel, beneath its root and never through a link, then takes digests from
//! the stat cache where it can be trusted and from the contents elsewhere. `.git` (directory or file) is left
//! out at every depth unless a pattern such as `!.git` puts it back.

mod cache;
mod clock;
mod content;
mod getdents;
mod ignored;
mod walk;

pub use ignored::IgnoreFiles;

use super::Store;
use super::uses::touch;
use crate::digest::{FieldHasher, ObjectDigest};
use crate::error::{Context, Error, Result};
use crate::listing::{Listed, ListedKind, Listing};
use cache::{Cache, Stat};
use clock::Clock;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What a scan leaves out and keeps.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanOptions<'a> {
    /// Patterns as in a `.gitignore` at the root, in order; the last that matches decides.
    pub ignore: &'a [String],
    /// Pattern files of the tree; `ignore` decides before them.
    pub files: Option<IgnoreFiles<'a>>,
    /// Paths from the root that are left out whatever patterns say, with all beneath.
    pub never: &'a [String],
    /// Keep permission bits instead of 0755 and 0644 by the owner's executable bit. Set-user-ID, set-group-ID
    /// and sticky bits are dropped either way, since owners are not kept either.
    pub keep_modes: bool,
}

/// A scanned directory.
#[derive(Debug, Clone)]
pub struct Scanned {
    /// What it holds.
    pub listing: Listing,
    /// For the user, such as special mode bits that were dropped.
    pub warnings: Vec<String>,
}

/// A scanned file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScannedFile {
    /// Of its contents.
    pub digest: ObjectDigest,
    /// In bytes.
    pub size: u64,
    /// Whether its owner may execute it.
    pub executable: bool,
}

/// Special bits of a mode: set-user-ID, set-group-ID, sticky.
const SPECIAL: u32 = 0o7000;

/// Lists a directory. Errors: `scan.missing`, `scan.not-a-directory`, `scan.pattern`, `scan.special-file` (a
/// socket, pipe or device), `scan.name` (not UTF-8), `scan.changing` (written to all the while), `scan.read`.
pub fn scan_dir(store: &Store, root: &Path, options: &ScanOptions<'_>) -> Result<Scanned> {
    let dir = open_root(root)?;
    let ignored = ignored::Ignored::new(options.never, options.ignore, options.files, root)?;
    let clock = Clock::start(store, &dir, root)?;
    let mut found = walk::walk(&dir, root, &ignored)?;
    found.sort_unstable_by(|a, b| a.path.cmp(&b.path));

    let cache_path = cache_path(store, "dir", root, options)?;
    let cache = Cache::load(&cache_path);
    let digests = content::digests(&dir, root, &mut found, &cache, &clock)?;
    if !digests.stale {
        touch(&cache_path);
    } else {
        let entries = found.iter().zip(&digests.by_entry).filter_map(|(entry, digest)| {
            let digest = (*digest)?;
            clock.trusts(&entry.stat).then_some((entry.path.as_str(), &entry.stat, digest))
        });
        // A cache that cannot be written costs time, not the scan.
        let _ = store.replace(&cache_path, &cache::encode(entries));
    }

    let mut dropped = Vec::new();
    let mut entries = Vec::with_capacity(found.len());
    for (entry, digest) in found.into_iter().zip(digests.by_entry) {
        let directory = matches!(entry.node, walk::Node::Dir);
        // Set-group-ID and sticky directories are common on hosts and mean little elsewhere.
        let special = if directory && !options.keep_modes { 0 } else { entry.stat.mode & SPECIAL };
        let mode = match entry.node {
            walk::Node::Symlink(_) => 0o777,
            _ if options.keep_modes => entry.stat.mode & 0o777,
            walk::Node::Dir => 0o755,
            walk::Node::File => {
                if entry.stat.mode & 0o100 != 0 {
                    0o755
                } else {
                    0o644
                }
            }
        };
        if special != 0 {
            dropped.push(entry.path.clone());
        }
        let kind = match entry.node {
            walk::Node::Dir => ListedKind::Dir,
            walk::Node::Symlink(target) => ListedKind::Symlink { target },
            walk::Node::File => ListedKind::File {
                size: entry.stat.size,
                digest: digest.ok_or_else(|| Error::bug("a scanned file has no digest"))?,
            },
        };
        let mode = u16::try_from(mode).map_err(|e| Error::bug("a mode exceeds its bits").because(e))?;
        entries.push(Listed { path: entry.path, mode, kind });
    }
    Ok(Scanned { listing: Listing { entries }, warnings: dropped_bits(root, &dropped) })
}

/// Digests one file, through a symbolic link if the path is one. Errors as [`scan_dir`].
pub fn scan_file(store: &Store, path: &Path) -> Result<ScannedFile> {
    let open = || File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
    let mut file = open().map_err(|e| cannot_open(path, e))?;
    let stat = Stat::of(&file).or_failed("scan.read", || cannot_read(path))?;
    if !stat.is_file() {
        return Err(Error::usage("scan.not-a-file", format!("{} is not a regular file", path.display())));
    }
    let real = std::fs::canonicalize(path).or_failed("scan.read", || cannot_read(path))?;
    let cache_path = cache_path_of(store, "file", &real, &ScanOptions::default());
    let cached = Cache::load(&cache_path).get_only(&stat);
    let (stat, digest) = match cached {
        Some(digest) => {
            touch(&cache_path);
            (stat, digest)
        }
        None => {
            // The time is taken before the first byte is read; what is cached needs none.
            let parent = real.parent().unwrap_or(Path::new("/"));
            let dir = File::open(parent).or_failed("scan.read", || cannot_read(parent))?;
            let clock = Clock::start(store, &dir, parent)?;
            let (stat, digest) = content::hash_stable(&mut file, path, open)?;
            if clock.trusts(&stat) {
                let _ = store.replace(&cache_path, &cache::encode(std::iter::once(("", &stat, digest))));
            }
            (stat, digest)
        }
    };
    Ok(ScannedFile { digest, size: stat.size, executable: stat.mode & 0o100 != 0 })
}

fn open_root(root: &Path) -> Result<File> {
    let dir = File::open(root).map_err(|e| cannot_open(root, e))?;
    if !dir.metadata().or_failed("scan.read", || cannot_read(root))?.is_dir() {
        return Err(Error::usage("scan.not-a-directory", format!("{} is not a directory", root.display())));
    }
    Ok(dir)
}

fn cannot_open(path: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::usage("scan.missing", format!("{} does not exist", path.display()))
        }
        _ => Error::failed("scan.read", cannot_read(path)),
    }
    .because(error)
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

/// One cache for each root and set of patterns: two workloads that share a root do not push each other out.
fn cache_path(store: &Store, kind: &str, root: &Path, options: &ScanOptions<'_>) -> Result<PathBuf> {
    let real = std::fs::canonicalize(root).or_failed("scan.read", || cannot_read(root))?;
    Ok(cache_path_of(store, kind, &real, options))
}

/// `cache_path` of a canonical path.
fn cache_path_of(store: &Store, kind: &str, real: &Path, options: &ScanOptions<'_>) -> PathBuf {
    let mut name = FieldHasher::new("firegopher stat cache v1");
    name.field(kind).field(real.as_os_str().as_bytes());
    for pattern in options.ignore {
        name.field(pattern);
    }
    if let Some(files) = options.files {
        name.field("files").field(files.name.as_bytes()).field(files.top.as_os_str().as_bytes());
    }
    store.dir("stat").join(&name.finish().to_hex()[..32])
}

fn dropped_bits(root: &Path, dropped: &[String]) -> Vec<String> {
    let Some(first) = dropped.first() else { return Vec::new() };
    let first = root.join(first);
    let others = match dropped.len() - 1 {
        0 => String::new(),
        1 => " and 1 other".to_owned(),
        n => format!(" and {n} others"),
    };
    vec![format!("set-user-ID, set-group-ID or sticky bits are left out: {}{others}", first.display())]
}

#[cfg(test)]
mod tests;
