//! BLAKE3 of file contents. Holes are hashed as the zeros they stand for, without being read.

use crate::digest::ObjectDigest;
use crate::error::{Context, Result};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Large enough that BLAKE3 uses its widest lanes and system calls do not count.
const CHUNK: usize = 256 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The digest of a file's contents.
pub fn hash_file(path: &Path) -> Result<ObjectDigest> {
    let operate = || {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        hash_open(&mut file, meta.len(), meta.blocks(), &mut Vec::new())
    };
    Ok(operate().or_failed("store.io", || format!("cannot read {}", path.display()))?.1)
}

/// Hashes an open file from its start: bytes read (to compare with the size expected) and digest.
/// `size` and `blocks` (of 512 bytes) are from its stat; `buffer` is scratch space to reuse.
pub(super) fn hash_open(
    file: &mut File,
    size: u64,
    blocks: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<(u64, ObjectDigest)> {
    let mut hasher = blake3::Hasher::new();
    // Fewer blocks than bytes: it may have holes. Small files are quicker read than asked about.
    if size > CHUNK as u64 && blocks.saturating_mul(512) < size {
        hash_sparse(file, size, &mut hasher, buffer)?;
    }
    let wanted = usize::try_from(size).unwrap_or(CHUNK).saturating_add(1).min(CHUNK);
    if buffer.len() < wanted {
        buffer.resize(wanted, 0);
    }
    // To the end of the file as it is now, not as it was: a growing file shows itself.
    loop {
        match file.read(buffer) {
            Ok(0) => break,
            Ok(n) => _ = hasher.update(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok((hasher.count(), hasher.finalize().into()))
}

/// Hashes up to `size` bytes and leaves the position after them; does nothing where holes cannot be asked for.
fn hash_sparse(
    file: &mut File,
    size: u64,
    hasher: &mut blake3::Hasher,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let end = i64::try_from(size).map_err(io::Error::other)?;
    let mut at: i64 = 0;
    while at < end {
        let data = match lseek(&*file, at, Whence::SeekData) {
            Ok(offset) => offset.min(end),
            Err(Errno::ENXIO) => end,
            // Not every file system knows holes; the plain loop reads them as zeros.
            Err(Errno::EINVAL | Errno::ENOTSUP) => break,
            Err(e) => return Err(e.into()),
        };
        feed_zeros(hasher, (data - at).unsigned_abs());
        at = data;
        if at == end {
            break;
        }
        let hole = lseek(&*file, at, Whence::SeekHole)?.min(end);
        file.seek(SeekFrom::Start(at.unsigned_abs()))?;
        at += copy_into(file, (hole - at).unsigned_abs(), hasher, buffer)?;
        if at < hole {
            break; // It shrank meanwhile.
        }
    }
    file.seek(SeekFrom::Start(at.unsigned_abs()))?;
    Ok(())
}

fn copy_into(
    file: &mut File,
    length: u64,
    hasher: &mut blake3::Hasher,
    buffer: &mut Vec<u8>,
) -> io::Result<i64> {
    buffer.resize(CHUNK, 0);
    let mut left = length;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        match file.read(&mut buffer[..want]) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                left -= n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    i64::try_from(length - left).map_err(io::Error::other)
}

fn feed_zeros(hasher: &mut blake3::Hasher, mut length: u64) {
    while length > 0 {
        let n = usize::try_from(length).unwrap_or(ZEROS.len()).min(ZEROS.len());
        hasher.update(&ZEROS[..n]);
        length -= n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn holes_hash_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let mib = 1 << 20;
        // Data first, in the middle, at the end, and none at all.
        for data in [vec![0], vec![3], vec![7], vec![0, 2, 7], vec![]] {
            let path = dir.path().join("sparse");
            let file = File::create(&path).unwrap();
            file.set_len(8 * mib - 5).unwrap();
            let mut plain = vec![0_u8; 8 * mib as usize - 5];
            for at in data {
                let offset = at * mib + 17;
                file.write_all_at(b"firegopher", offset).unwrap();
                plain[offset as usize..offset as usize + 10].copy_from_slice(b"firegopher");
            }
            assert_eq!(hash_file(&path).unwrap(), blake3::hash(&plain).into());
        }
    }

    #[test]
    fn dense_files_of_any_size_hash_as_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let path = dir.path().join("dense");
            fs_err::write(&path, &bytes).unwrap();
            assert_eq!(hash_file(&path).unwrap(), blake3::hash(&bytes).into());
        }
    }
}
