//! Removes a directory whose contents cannot be trusted: no link is followed, no depth exhausts us.

use crate::error::{Context, Error, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Names taken from a directory at a time: a hostile one may hold millions.
const BATCH: usize = 1024;

/// How often a removal begins anew because something appeared under it: two may remove the same tree.
const ATTEMPTS: u32 = 16;

/// Removes `root` and all beneath it. An absent one is no error; a mount point within it is one.
pub fn remove_tree(root: &Path) -> Result<()> {
    let fail = || format!("cannot remove {}", root.display());
    for _ in 1..ATTEMPTS {
        match attempt(root)? {
            Err(Errno::ENOTEMPTY) => {}
            done => return done.or_failed("jail.remove", fail),
        }
    }
    attempt(root)?.or_failed("jail.remove", fail)
}

/// The inner error is that of a removal under way, which may be tried again.
fn attempt(root: &Path) -> Result<nix::Result<()>> {
    let fail = || format!("cannot remove {}", root.display());
    let dir = match open(AT_FDCWD, root) {
        Ok(dir) => dir,
        Err(Errno::ENOENT) => return Ok(Ok(())),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            return Err(Error::failed("jail.remove", format!("{} is not a directory", root.display())));
        }
        Err(e) => return Err(Error::failed("jail.remove", fail()).because(e)),
    };
    if let Err(e) = empty(&dir) {
        return Ok(Err(e));
    }
    match unlinkat(AT_FDCWD, root, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT) => Ok(Ok(())),
        done => Ok(done),
    }
}

/// Empties `root` with two descriptors whatever its depth: what a subdirectory holds moves up before the
/// subdirectory is removed. What vanishes meanwhile is gone, as wanted.
fn empty(root: &OwnedFd) -> nix::Result<()> {
    let mut moved = 0_u64;
    loop {
        let names = names(root)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if unlink(root, &name)? {
                continue;
            }
            let child = match open(root, name.as_c_str()) {
                Err(Errno::ENOENT) => continue,
                child => child?,
            };
            lift(&child, root, &mut moved)?;
            match unlinkat(root, name.as_c_str(), UnlinkatFlags::RemoveDir) {
                // Somebody else lifts things up too: the next round finds them.
                Err(Errno::ENOENT | Errno::ENOTEMPTY) => {}
                done => done?,
            }
        }
    }
}

/// Empties `child`; directories in it that are not empty move to `root`, under names that are still free.
fn lift(child: &OwnedFd, root: &OwnedFd, moved: &mut u64) -> nix::Result<()> {
    loop {
        let inner = names(child)?;
        if inner.is_empty() {
            return Ok(());
        }
        for entry in inner {
            if unlink(child, &entry)? {
                continue;
            }
            loop {
                let up = CString::new(format!(".removing-{moved}")).map_err(|_| Errno::EINVAL)?;
                *moved += 1;
                let flags = nix::fcntl::RenameFlags::RENAME_NOREPLACE;
                match nix::fcntl::renameat2(child, entry.as_c_str(), root, up.as_c_str(), flags) {
                    Err(Errno::EEXIST) => {}
                    Err(Errno::ENOENT) => break,
                    // Not every kernel, file system and profile has the flag. A directory takes the place of an empty
                    // one at most.
                    Err(Errno::ENOSYS | Errno::EPERM | Errno::EINVAL) => {
                        match nix::fcntl::renameat(child, entry.as_c_str(), root, up.as_c_str()) {
                            Err(Errno::EEXIST | Errno::ENOTEMPTY | Errno::ENOTDIR) => {}
                            Err(Errno::ENOENT) => break,
                            done => break done?,
                        }
                    }
                    done => break done?,
                }
            }
        }
    }
}

/// Removes a file or an empty directory; says whether it did.
fn unlink(dir: &OwnedFd, name: &CString) -> nix::Result<bool> {
    match unlinkat(dir, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        Err(Errno::EISDIR) => {}
        Err(e) => return Err(e),
    }
    match unlinkat(dir, name.as_c_str(), UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY) => Ok(false),
        Err(e) => Err(e),
    }
}

fn open<P: ?Sized + nix::NixPath>(at: impl AsFd, path: &P) -> nix::Result<OwnedFd> {
    openat(at, path, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

fn names(dir: &OwnedFd) -> nix::Result<Vec<CString>> {
    // Opened anew: a duplicate would share the position of the last reading. A removed directory has no `.`.
    let mut listing = match open(dir, ".") {
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        again => Dir::from_fd(again?)?,
    };
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
        if names.len() == BATCH {
            break;
        }
    }
    Ok(names)
}
