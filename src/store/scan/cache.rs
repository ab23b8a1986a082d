//! The stat cache: which contents a file had when it had this stat. One file for each scanned root.
//!
//! Only entries that their scan trusted are in it, so that equal stats suffice later. Binary, little-endian,
//! in path order, with its own digest at the end; anything unexpected makes it an empty cache.

use crate::digest::ObjectDigest;
use nix::sys::stat::FileStat;
use std::fs::File;
use std::path::Path;

const MAGIC: &[u8; 8] = b"fgstat1\n";
const DIGEST: usize = 32;
/// Size, mode, inode, device, two times of 12 bytes, digest.
const FIXED: usize = 8 + 4 + 8 + 8 + 12 + 12 + DIGEST;

/// What must be equal for contents to be taken as equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) size: u64,
    /// Type and permission bits.
    pub(super) mode: u32,
    pub(super) ino: u64,
    pub(super) dev: u64,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    pub(super) ctime: (i64, u32),
    /// In units of 512 bytes; not part of the cache, for the allocation may change under equal contents.
    pub(super) blocks: Blocks,
}

/// A number that equals all others, so that it takes no part in comparing stats.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Blocks(pub(super) u64);

impl PartialEq for Blocks {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Blocks {}

impl From<FileStat> for Stat {
    fn from(stat: FileStat) -> Self {
        let nanos = |n: i64| u32::try_from(n).unwrap_or(0);
        Stat {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            ino: stat.st_ino,
            dev: stat.st_dev,
            mtime: (stat.st_mtime, nanos(stat.st_mtime_nsec)),
            ctime: (stat.st_ctime, nanos(stat.st_ctime_nsec)),
            blocks: Blocks(u64::try_from(stat.st_blocks).unwrap_or(0)),
        }
    }
}

impl Stat {
    pub(super) fn of(file: &File) -> std::io::Result<Self> {
        Ok(nix::sys::stat::fstat(file)?.into())
    }

    pub(super) fn is_file(&self) -> bool {
        self.mode & nix::libc::S_IFMT == nix::libc::S_IFREG
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.size.to_le_bytes());
        out.extend(self.mode.to_le_bytes());
        out.extend(self.ino.to_le_bytes());
        out.extend(self.dev.to_le_bytes());
        for (seconds, nanos) in [self.mtime, self.ctime] {
            out.extend(seconds.to_le_bytes());
            out.extend(nanos.to_le_bytes());
        }
    }
}

/// A loaded cache, read from front to back alongside a sorted walk.
#[derive(Default)]
pub(super) struct Cache {
    bytes: Vec<u8>,
}

/// One entry as it lies in the file.
pub(super) struct Cached<'a> {
    pub(super) path: &'a [u8],
    /// Encoded; compared as bytes.
    stat: &'a [u8],
    pub(super) digest: ObjectDigest,
}

impl Cached<'_> {
    /// Whether a file has exactly the stat that was recorded. `scratch` is reused.
    pub(super) fn has(&self, stat: &Stat, scratch: &mut Vec<u8>) -> bool {
        scratch.clear();
        stat.encode(scratch);
        self.stat == scratch.as_slice()
    }
}

impl Cache {
    pub(super) fn load(path: &Path) -> Cache {
        let Ok(mut bytes) = std::fs::read(path) else { return Cache::default() };
        let Some(length) = bytes.len().checked_sub(DIGEST) else { return Cache::default() };
        let (body, digest) = bytes.split_at(length);
        if !body.starts_with(MAGIC) || blake3::hash(body).as_bytes() != digest {
            return Cache::default();
        }
        bytes.truncate(length);
        Cache { bytes }
    }

    /// The entries, in path order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Cached<'_>> {
        let mut rest = self.bytes.get(MAGIC.len()..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let (path, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            let (fixed, after) = after.split_at_checked(FIXED)?;
            let (stat, digest) = fixed.split_last_chunk::<DIGEST>()?;
            rest = after;
            Some(Cached { path, stat, digest: ObjectDigest::new(*digest) })
        })
    }

    /// The digest in a cache of a single file.
    pub(super) fn get_only(&self, stat: &Stat) -> Option<ObjectDigest> {
        let cached = self.iter().next()?;
        cached.has(stat, &mut Vec::new()).then_some(cached.digest)
    }
}

/// The cache file of entries in path order.
pub(super) fn encode<'a>(entries: impl Iterator<Item = (&'a str, &'a Stat, ObjectDigest)>) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for (path, stat, digest) in entries {
        // Longer than PATH_MAX (limits.h): such a file is hashed every time.
        let Ok(length) = u16::try_from(path.len()) else { continue };
        out.extend(length.to_le_bytes());
        out.extend(path.as_bytes());
        stat.encode(&mut out);
        out.extend(digest.as_bytes());
    }
    let digest = blake3::hash(&out);
    out.extend(digest.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(size: u64) -> Stat {
        Stat { size, mode: 0o100644, ino: 3, dev: 4, mtime: (-5, 6), ctime: (7, 8), blocks: Blocks(9) }
    }

    #[test]
    fn a_cache_survives_its_file_and_garbage_is_an_empty_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        let digest = ObjectDigest::new([1; 32]);
        let (a, b) = (stat(1), stat(2));
        let bytes = encode([("a", &a, digest), ("b/c", &b, digest)].into_iter());
        fs_err::write(&path, &bytes).unwrap();
        let cache = Cache::load(&path);
        let entries: Vec<_> = cache.iter().collect();
        assert_eq!(entries.iter().map(|e| e.path).collect::<Vec<_>>(), [&b"a"[..], b"b/c"]);
        assert!(entries[1].has(&b, &mut Vec::new()));
        assert!(!entries[1].has(&a, &mut Vec::new()));

        for at in 0..bytes.len() {
            let mut broken = bytes.clone();
            broken[at] ^= 1;
            fs_err::write(&path, &broken).unwrap();
            assert_eq!(Cache::load(&path).iter().count(), 0);
            fs_err::write(&path, &bytes[..at]).unwrap();
            assert_eq!(Cache::load(&path).iter().count(), 0);
        }
    }

    #[test]
    fn every_field_of_a_stat_counts_but_its_blocks() {
        let base = stat(1);
        let mut bytes = Vec::new();
        base.encode(&mut bytes);
        assert_eq!(bytes.len(), FIXED - DIGEST);
        let variants = [
            Stat { size: 2, ..base },
            Stat { mode: 0o100755, ..base },
            Stat { ino: 0, ..base },
            Stat { dev: 0, ..base },
            Stat { mtime: (-5, 7), ..base },
            Stat { ctime: (8, 8), ..base },
        ];
        for variant in variants {
            let mut other = Vec::new();
            variant.encode(&mut other);
            assert_ne!(bytes, other);
            assert_ne!(base, variant);
        }
        assert_eq!(base, Stat { blocks: Blocks(0), ..base });
    }
}
