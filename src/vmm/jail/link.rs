//! Puts files into a jail: by hard link where the file system allows, read-only ones by copy elsewhere.

use crate::error::{Context, Error, Result};
use crate::vmm::spec::JailSpec;
use fs_err as fs;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// How a file is placed.
#[derive(Clone, Copy)]
pub(in crate::vmm) enum Place<'a> {
    /// The VMM only reads it; others may share it.
    Shared,
    /// The VMM writes it, so it is this jail's own. Never copied: writes would be lost with the copy.
    Owned(&'a JailSpec),
}

/// Places one regular file and returns the bytes that had to be copied: 0 where a link did. A link in `from`'s last
/// component is refused.
pub(in crate::vmm) fn place(from: &Path, to: &Path, how: Place<'_>) -> Result<u64> {
    let fail = || format!("cannot put {} into the jail", from.display());
    // Opened once and linked by descriptor: what is checked is what is placed.
    let file = open(from, matches!(how, Place::Owned(_))).or_failed("jail.place", fail)?;
    if let Place::Owned(jail) = how {
        fchown(&file, Some(jail.uid), Some(jail.gid)).or_failed("jail.place", fail)?;
        file.set_permissions(PermissionsExt::from_mode(0o600)).or_failed("jail.place", fail)?;
    }
    match (link(&file, to), how) {
        (Ok(()), _) => Ok(0),
        (Err(e), Place::Owned(_)) => {
            let error = Error::failed("jail.place", fail()).because(io::Error::from(e));
            Err(match e {
                nix::Error::EXDEV => error.help(
                    "a writable drive must be on the file system of the jail: \
                    keep FIREGOPHER_HOME on one file system",
                ),
                _ => error,
            })
        }
        // Another file system, one without links, or a file with all the links it may have.
        (
            Err(nix::Error::EXDEV | nix::Error::EPERM | nix::Error::EMLINK | nix::Error::EOPNOTSUPP),
            Place::Shared,
        ) => copy(&file, to).or_failed("jail.copy", fail),
        (Err(e), Place::Shared) => Err(Error::failed("jail.place", fail()).because(e)),
    }
}

/// Places every file of a flat directory. Links within it are resolved; what leaves it is refused.
pub(super) fn place_all(from: &Path, to: &Path) -> Result<()> {
    let fail = || format!("cannot read {}", from.display());
    for entry in fs::read_dir(from).or_failed("jail.place", fail)? {
        let entry = entry.or_failed("jail.place", fail)?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type().or_failed("jail.place", fail)?;
        if kind.is_symlink() {
            let name = fs::read_link(entry.path()).or_failed("jail.place", fail)?;
            if name.components().count() != 1 || name.file_name().is_none() {
                return Err(Error::failed(
                    "jail.place",
                    format!("{} leads out of its directory", entry.path().display()),
                ));
            }
            place(&from.join(name), &target, Place::Shared)?;
        } else if kind.is_file() {
            place(&entry.path(), &target, Place::Shared)?;
        }
    }
    Ok(())
}

fn open(path: &Path, write: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // NONBLOCK: a FIFO must not hang us before it is refused.
    options.read(true).write(write).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"))
    }
}

fn link(file: &File, to: &Path) -> nix::Result<()> {
    let from = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW;
    nix::unistd::linkat(nix::fcntl::AT_FDCWD, from.as_str(), nix::fcntl::AT_FDCWD, to, follow)
}

/// Copies data and mode, sharing extents or keeping holes where the file system can.
fn copy(from: &File, to: &Path) -> io::Result<u64> {
    let meta = from.metadata()?;
    let out = OpenOptions::new().write(true).create_new(true).open(to)?;
    // Readable by the VMM, writable by nobody.
    out.set_permissions(PermissionsExt::from_mode(meta.permissions().mode() & 0o111 | 0o444))?;
    // SAFETY: FICLONE takes a descriptor, no pointer.
    if unsafe { libc::ioctl(out.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) } == 0 {
        return Ok(meta.len());
    }
    out.set_len(meta.len())?;
    let (mut input, mut output) = (from.try_clone()?, out);
    let mut at = 0;
    while at < meta.len() {
        let data = match seek(&input, at, libc::SEEK_DATA) {
            Ok(data) => data,
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => break, // Only a hole is left.
            Err(e) => return Err(e),
        };
        at = seek(&input, data, libc::SEEK_HOLE)?;
        input.seek(SeekFrom::Start(data))?;
        output.seek(SeekFrom::Start(data))?;
        // Between files this is copy_file_range(2).
        io::copy(&mut io::Read::take(&mut input, at - data), &mut output)?;
    }
    Ok(meta.len())
}

fn seek(file: &File, at: u64, whence: i32) -> io::Result<u64> {
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: lseek takes numbers only.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}
