//! BLAKE3 of file contents. Holes are hashed as the zeros they stand for, without being read.

use crate::digest::ObjectDigest;
use crate::error::{Context, Result};
use memmap2::MmapOptions;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Large enough that BLAKE3 uses its widest lanes and system calls do not count.
const CHUNK: usize = 256 << 10;

/// From this size on all cores hash a file together.
const SHARED: u64 = 4 << 20;
/// As much of a file is mapped at a time.
const MAPPED: u64 = 64 << 20;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The digest of the contents of a file that nobody writes to: one of the store's own.
pub fn hash_file(path: &Path) -> Result<ObjectDigest> {
    let operate = || {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        hash_sealed(&mut file, meta.len(), meta.blocks(), &mut Vec::new())
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

/// Like [`hash_open`], for a file that is sealed: nobody writes to it or cuts it short meanwhile. A large one is
/// mapped and hashed by all cores.
pub(super) fn hash_sealed(
    file: &mut File,
    size: u64,
    blocks: u64,
    buffer: &mut Vec<u8>,
) -> io::Result<(u64, ObjectDigest)> {
    if size < SHARED {
        return hash_open(file, size, blocks, buffer);
    }
    let mut hasher = blake3::Hasher::new();
    while hasher.count() < size {
        let at = hasher.count();
        let (data, end) = data_at(file, at, size)?;
        feed_zeros(&mut hasher, data - at);
        let mut from = data;
        while from < end {
            let length = (end - from).min(MAPPED);
            // SAFETY: the file is sealed, in a directory that only its owner enters: it is not cut short while it
            // is mapped, so every byte of the map is there.
            let map = unsafe { MmapOptions::new().offset(from).len(length as usize).map(&*file) }?;
            hasher.update_rayon(&map);
            from += length;
        }
    }
    Ok((hasher.count(), hasher.finalize().into()))
}

/// Where the next data at or after `at` begin and end: at `size` both, if there are none.
fn data_at(file: &File, at: u64, size: u64) -> io::Result<(u64, u64)> {
    let signed = i64::try_from(at).map_err(io::Error::other)?;
    let data = match lseek(file, signed, Whence::SeekData) {
        Ok(data) => data.unsigned_abs().min(size),
        Err(Errno::ENXIO) => return Ok((size, size)),
        // Not every file system knows holes.
        Err(Errno::EINVAL | Errno::ENOTSUP) => return Ok((at, size)),
        Err(e) => return Err(e.into()),
    };
    let end = lseek(file, data.min(i64::MAX as u64) as i64, Whence::SeekHole)?;
    Ok((data, end.unsigned_abs().min(size)))
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
            let plain: ObjectDigest = blake3::hash(&plain).into();
            assert_eq!(hash_file(&path).unwrap(), plain);
            let mut file = File::open(&path).unwrap();
            let meta = file.metadata().unwrap();
            let (size, read) = hash_open(&mut file, meta.len(), meta.blocks(), &mut Vec::new()).unwrap();
            assert_eq!((size, read), (meta.len(), plain));
        }
    }

    #[test]
    fn dense_files_of_any_size_hash_as_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (shared, mapped) = (SHARED as usize, MAPPED as usize);
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, shared - 1, shared, mapped + 4097] {
            let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let path = dir.path().join("dense");
            fs_err::write(&path, &bytes).unwrap();
            assert_eq!(hash_file(&path).unwrap(), blake3::hash(&bytes).into());
        }
    }
}
