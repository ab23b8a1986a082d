//! Publishes finished outputs and checks them. Nothing else writes under objects/.
//!
//! An output becomes an object in one rename, after its bytes are on the disk: whatever moment a process is
//! killed at, objects/ holds whole objects only. Since the name is the digest, publishing twice is no conflict.

use super::dirs::sync_dir;
use super::hash::{hash_file, hash_sealed};
use super::temp::remove_tree;
use super::tree::{Visit, digest_with, tree_digest};
use super::uses::touch;
use super::{Store, create_private_dir, write_failed};
use crate::digest::ObjectDigest;
use crate::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

const SEALED: u32 = 0o444;
const SEALED_EXECUTABLE: u32 = 0o555;

impl Store {
    /// Whether an object is there.
    pub fn has(&self, digest: &ObjectDigest) -> bool {
        self.object_path(digest).symlink_metadata().is_ok()
    }

    /// The bytes of a file object, checked against its digest: `store.missing` or `store.corrupt` otherwise.
    pub fn read(&self, digest: &ObjectDigest) -> Result<Vec<u8>> {
        let path = self.object_path(digest);
        let bytes = fs_err::read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => missing(digest).because(e),
            _ => Error::failed("store.io", format!("cannot read the object {}", digest.short())).because(e),
        })?;
        if ObjectDigest::from(blake3::hash(&bytes)) != *digest {
            return Err(Error::failed("store.corrupt", format!("the object {} is damaged", path.display()))
                .help("`firegopher verify` takes it out, and the next run makes it anew"));
        }
        Ok(bytes)
    }

    /// Publishes bytes as a file.
    pub fn publish_bytes(&self, bytes: &[u8]) -> Result<ObjectDigest> {
        let digest = ObjectDigest::from(blake3::hash(bytes));
        if self.has(&digest) {
            touch(&self.object_path(&digest));
            return Ok(digest);
        }
        let temp = self.temp_dir()?;
        let path = temp.path().join("bytes");
        let write = || {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(bytes)?;
            file.set_permissions(Permissions::from_mode(SEALED))?;
            file.sync_all()
        };
        write().map_err(|e| write_failed(format_args!("writing the object {}", digest.short()), e))?;
        self.install(&path, &digest)?;
        Ok(digest)
    }

    /// Publishes a file that lies in a temporary directory of this store; the file is consumed. One content is
    /// one object: published both ways, it is executable.
    pub fn publish_file(&self, path: &Path, executable: bool) -> Result<ObjectDigest> {
        let failed = |e| write_failed(format_args!("publishing {}", path.display()), e);
        let seal = || {
            let mut file = File::options()
                .read(true)
                .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
                .open(path)?;
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            // Sealed before it is hashed: what is hashed is what stays.
            let mode = if executable { SEALED_EXECUTABLE } else { SEALED };
            file.set_permissions(Permissions::from_mode(mode))?;
            let (_, digest) = hash_sealed(&mut file, meta.len(), meta.blocks(), &mut Vec::new())?;
            if !self.has(&digest) {
                // Not fdatasync, which may leave out the mode.
                file.sync_all()?;
            }
            Ok(digest)
        };
        let digest = seal().map_err(failed)?;
        if !self.install(path, &digest)? && executable {
            let object = self.object_path(&digest);
            if object.metadata().map_err(failed)?.mode() & 0o111 == 0 {
                fs_err::set_permissions(&object, Permissions::from_mode(SEALED_EXECUTABLE))
                    .map_err(failed)?;
            }
        }
        Ok(digest)
    }

    /// Publishes a file of this store's file system whose digest was taken as its bytes were written, by its only
    /// writer; the file is consumed.
    pub(super) fn publish_hashed(&self, path: &Path, digest: &ObjectDigest) -> Result<()> {
        let failed = |e| write_failed(format_args!("publishing {}", path.display()), e);
        if !self.has(digest) {
            let file = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path);
            let seal = |file: File| {
                file.set_permissions(Permissions::from_mode(SEALED))?;
                // Not fdatasync, which may leave out the mode.
                file.sync_all()
            };
            file.and_then(seal).map_err(failed)?;
        }
        self.install(path, digest)?;
        Ok(())
    }

    /// Publishes a directory that lies in a temporary directory of this store as one object; it is consumed.
    /// Its files become 0444 or, with the owner's executable bit, 0555, and its directories 0755. Hard links
    /// to files outside it must not exist: they would be sealed too.
    pub fn publish_tree(&self, dir: &Path) -> Result<ObjectDigest> {
        let mut sealed = Vec::new();
        let digest = digest_with(dir, &mut |visit| match visit {
            Visit::File(path, file, meta) => {
                sealed.push(path.to_owned());
                let mode = if meta.mode() & 0o100 != 0 { SEALED_EXECUTABLE } else { SEALED };
                file.set_permissions(Permissions::from_mode(mode))
            }
            // 0755 inside a home that is 0700; read-only directories could be neither renamed nor removed.
            Visit::Dir(path) => {
                sealed.push(path.to_owned());
                std::fs::set_permissions(path, Permissions::from_mode(0o755))
            }
        })?;
        if !self.has(&digest) {
            sync_together(&sealed)?;
        }
        self.install(dir, &digest)?;
        Ok(digest)
    }

    /// Moves something sealed to its place, or removes it if the object is there already (false).
    fn install(&self, from: &Path, digest: &ObjectDigest) -> Result<bool> {
        let to = self.object_path(digest);
        let shard = to.parent().expect("invariant: object_path has a shard directory");
        let failed = |e| write_failed(format_args!("publishing the object {}", digest.short()), e);
        if !shard.is_dir() {
            create_private_dir(shard)?;
            sync_dir(&self.dir("objects"))?;
        }
        // A download may have its server's time.
        touch(from);
        let new = rename_new(from, &to).map_err(failed)?;
        if new {
            sync_dir(shard)?;
        } else {
            touch(&to);
            remove_tree(from).map_err(failed)?;
        }
        Ok(new)
    }

    /// Whether an object's bytes still have its digest. `store.missing` if there is none.
    pub fn verify_object(&self, digest: &ObjectDigest) -> Result<bool> {
        let path = self.object_path(digest);
        let meta = path.symlink_metadata().map_err(|e| missing(digest).because(e))?;
        if meta.is_dir() {
            // A tree with something in it that no tree may hold is broken too, not an error of verifying.
            return match tree_digest(&path) {
                Err(e) if e.code() == "store.special-file" => Ok(false),
                found => Ok(found? == *digest),
            };
        }
        Ok(meta.is_file() && hash_file(&path)? == *digest)
    }

    /// Takes an object out of the store, into quarantine/, and says where it is now.
    pub fn quarantine(&self, digest: &ObjectDigest) -> Result<PathBuf> {
        let failed = |e| write_failed(format_args!("moving the object {} to quarantine", digest.short()), e);
        let dir = self.dir("quarantine");
        for attempt in 0_u32.. {
            let to = match attempt {
                0 => dir.join(digest.to_hex()),
                n => dir.join(format!("{digest}.{n}")),
            };
            if rename_new(&self.object_path(digest), &to).map_err(failed)? {
                // It stays there for a while from now on.
                touch(&to);
                return Ok(to);
            }
        }
        Err(Error::bug("quarantine/ holds four billion copies of one object"))
    }

    /// All objects, sorted.
    pub fn objects(&self) -> Result<Vec<ObjectDigest>> {
        let objects = self.dir("objects");
        let mut all = Vec::new();
        for entry in walkdir::WalkDir::new(&objects).min_depth(2).max_depth(2) {
            let entry = entry.or_failed("store.io", || format!("cannot list {}", objects.display()))?;
            // Names that are no digests are not ours.
            all.extend(entry.file_name().to_str().and_then(|name| name.parse::<ObjectDigest>().ok()));
        }
        all.sort_unstable();
        Ok(all)
    }
}

/// Syncs files and directories several at a time: what is asked for together shares the journal's commits.
fn sync_together(paths: &[PathBuf]) -> Result<()> {
    const WORKERS: usize = 8;
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(|e| write_failed(format_args!("syncing {}", path.display()), e))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..WORKERS.min(paths.len())).map(|_| scope.spawn(work)).collect();
        let done = work();
        others.into_iter().fold(done, |done, other| {
            let other = other.join().unwrap_or_else(|_| Err(Error::bug("syncing panicked")));
            done.and(other)
        })
    })
}

fn missing(digest: &ObjectDigest) -> Error {
    Error::failed("store.missing", format!("the store has no object {}", digest.short()))
}

/// Renames unless the target exists (false).
fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => return Ok(true),
        Err(Errno::EEXIST | Errno::ENOTEMPTY) => return Ok(false),
        // Some file systems do not know the flag, and some profiles refuse the call. A plain rename replaces a file by the same bytes, and
        // never a directory that holds something.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => {}
        Err(e) => return Err(e.into()),
    }
    if to.symlink_metadata().is_ok() {
        return Ok(false);
    }
    match std::fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
