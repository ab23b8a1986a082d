//! Copies the content of a directory with all that belongs to it: owners, modes, times, attributes, links, special files
//! and holes. Nobody else is at work on either side: the workload has yet to be started.

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// Attributes of overlayfs's own say how the root is stacked.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Where copying failed, and why.
#[derive(Debug)]
pub struct CopyError {
    /// Relative to the source; empty for the directory itself.
    pub path: PathBuf,
    /// What the system said.
    pub error: io::Error,
}

/// Copies what is in `from` to the empty directory `to`; says how many entries that were. What is mounted below `from`
/// stays out, but for its mount point.
pub fn content(from: &Path, to: &Path) -> Result<usize, CopyError> {
    let mut copy = Copy { from, to, device: 0, links: HashMap::new(), dirs: Vec::new(), done: 0 };
    let top = at(Path::new(""), fs::metadata(from))?;
    copy.device = top.dev();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        for entry in at(&dir, fs::read_dir(from.join(&dir)))? {
            let path = dir.join(at(&dir, entry)?.file_name());
            if at(&path, copy.entry(&path))? {
                pending.push(path);
            }
        }
    }
    // What is put into a directory changes its time.
    for (path, meta) in copy.dirs.iter().rev() {
        at(path, times(&to.join(path), meta))?;
    }
    Ok(copy.done)
}

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, CopyError> {
    result.map_err(|error| CopyError { path: path.to_owned(), error })
}

struct Copy<'a> {
    from: &'a Path,
    to: &'a Path,
    /// Of the directory that is copied.
    device: u64,
    /// Where files with several names were first put.
    links: HashMap<(u64, u64), PathBuf>,
    dirs: Vec<(PathBuf, Metadata)>,
    done: usize,
}

impl Copy<'_> {
    /// Copies one entry; says whether it is a directory whose content is to follow.
    fn entry(&mut self, path: &Path) -> io::Result<bool> {
        let (from, to) = (self.from.join(path), self.to.join(path));
        let meta = fs::symlink_metadata(&from)?;
        let kind = meta.file_type();
        self.done += 1;
        if !kind.is_dir() && meta.nlink() > 1 {
            let first = self.links.entry((meta.dev(), meta.ino())).or_insert_with(|| to.clone());
            if *first != to {
                return fs::hard_link(first, &to).map(|()| false);
            }
        }
        if kind.is_dir() {
            DirBuilder::new().mode(0o700).create(&to)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&from)?, &to)?;
        } else if kind.is_file() {
            file(&from, &to, meta.len())?;
        } else {
            let (kind, device) = match () {
                () if kind.is_char_device() => (SFlag::S_IFCHR, meta.rdev()),
                () if kind.is_block_device() => (SFlag::S_IFBLK, meta.rdev()),
                () if kind.is_fifo() => (SFlag::S_IFIFO, 0),
                () => (SFlag::S_IFSOCK, 0),
            };
            mknod(&to, kind, Mode::S_IRUSR | Mode::S_IWUSR, device)?;
        }
        belongings(&from, &to, &meta)?;
        if kind.is_dir() {
            let inside = meta.dev() == self.device;
            self.dirs.push((path.to_owned(), meta));
            return Ok(inside);
        }
        times(&to, &meta)?;
        Ok(false)
    }
}

/// Gives `to` the owner, attributes and mode of `from`.
pub fn belongings(from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
    // In this order: a change of owner takes set-user-ID bits and capabilities away.
    lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    for (name, value) in attributes(from)? {
        set_attribute(to, &name, &value)?;
    }
    if !meta.file_type().is_symlink() {
        fs::set_permissions(to, meta.permissions())?;
    }
    Ok(())
}

fn times(path: &Path, meta: &Metadata) -> io::Result<()> {
    let (access, change) =
        (TimeSpec::new(meta.atime(), meta.atime_nsec()), TimeSpec::new(meta.mtime(), meta.mtime_nsec()));
    Ok(utimensat(AT_FDCWD, path, &access, &change, UtimensatFlags::NoFollowSymlink)?)
}

fn file(from: &Path, to: &Path, length: u64) -> io::Result<()> {
    let (mut from, mut to) = (File::open(from)?, File::create_new(to)?);
    to.set_len(length)?;
    let mut buffer = vec![0; 128 << 10];
    let mut done = 0;
    while done < length {
        let end = match lseek(&from, done as i64, Whence::SeekData) {
            Ok(data) => {
                done = data as u64;
                lseek(&from, data, Whence::SeekHole)? as u64
            }
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => return Ok(()),
            // This file system does not know.
            Err(Errno::EINVAL) => length,
            Err(errno) => return Err(errno.into()),
        };
        for file in [&from, &to] {
            lseek(file, done as i64, Whence::SeekSet)?;
        }
        while done < end {
            let want = (end - done).min(buffer.len() as u64) as usize;
            let got = match from.read(&mut buffer[..want]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            to.write_all(&buffer[..got])?;
            done += got as u64;
        }
    }
    Ok(())
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// All attributes of a file, which is not followed, but for overlayfs's own.
fn attributes(path: &Path) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let path = c_path(path)?;
    let list = read_all(|buffer, length| {
        // SAFETY: the path ends with a NUL, and the buffer has this length.
        unsafe { libc::llistxattr(path.as_ptr(), buffer.cast(), length) }
    });
    let list = match list {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        other => other?,
    };
    let mut all = Vec::new();
    for name in list.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if !name.to_bytes().starts_with(OVERLAY) {
            all.push((name.to_owned(), value(&path, name)?));
        }
    }
    Ok(all)
}

fn value(path: &CStr, name: &CStr) -> io::Result<Vec<u8>> {
    read_all(|buffer, length| {
        // SAFETY: path and name end with a NUL, and the buffer has this length.
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), length) }
    })
}

/// The value of an attribute; `None` if there is none.
pub fn attribute(path: &Path, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    match value(&c_path(path)?, name) {
        Err(e) if e.raw_os_error() == Some(libc::ENODATA) => Ok(None),
        other => other.map(Some),
    }
}

/// Sets an attribute of a file, which is not followed.
pub fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: path and name end with a NUL, and the value has this length.
    let set = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks for a length first, then for the bytes.
fn read_all(mut call: impl FnMut(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    let length = |got: isize| usize::try_from(got).map_err(|_| io::Error::last_os_error());
    let mut buffer = vec![0; length(call(std::ptr::null_mut(), 0))?];
    if !buffer.is_empty() {
        let got = length(call(buffer.as_mut_ptr(), buffer.len()))?;
        buffer.truncate(got);
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempDir, root};
    use std::fs::Permissions;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    #[test]
    fn everything_that_belongs_to_a_file_is_copied() {
        if !root("giving files away") {
            return;
        }
        let (source, target) = (TempDir::new(), TempDir::new());
        let (from, to) = (source.path(), target.path());
        fs::create_dir_all(from.join("dir/deeper")).unwrap();
        fs::write(from.join("dir/file"), "text").unwrap();
        lchown(from.join("dir/file"), Some(12), Some(34)).unwrap();
        fs::set_permissions(from.join("dir/file"), Permissions::from_mode(0o4751)).unwrap();
        fs::hard_link(from.join("dir/file"), from.join("dir/deeper/same")).unwrap();
        symlink("nowhere", from.join("link")).unwrap();
        lchown(from.join("link"), Some(56), Some(78)).unwrap();
        mknod(&from.join("pipe"), SFlag::S_IFIFO, Mode::S_IRUSR, 0).unwrap();
        mknod(&from.join("null"), SFlag::S_IFCHR, Mode::S_IRUSR, libc::makedev(1, 3)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
        fs::set_permissions(from.join("dir"), Permissions::from_mode(0o1770)).unwrap();
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // Where the host of the test lets nobody set it, the end-to-end test has to do.
        let capable = set_attribute(&from.join("dir/file"), c"security.capability", &capability).is_ok();
        let attributed = set_attribute(&from.join("dir"), c"trusted.test", b"value").is_ok();
        let large = File::create(from.join("large")).unwrap();
        large.set_len(8 << 20).unwrap();
        large.write_all_at(b"middle", 4 << 20).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for name in ["large", "dir/file", "dir"] {
            File::open(from.join(name)).unwrap().set_modified(time).unwrap();
        }

        assert_eq!(content(from, to).unwrap(), 9);

        for name in ["dir", "dir/file", "dir/deeper/same", "link", "pipe", "null", "socket", "large"] {
            let facts = |root: &Path| {
                let meta = fs::symlink_metadata(root.join(name)).unwrap();
                (meta.mode(), meta.uid(), meta.gid(), meta.rdev(), meta.len(), meta.mtime())
            };
            let same = if name == "dir" { facts(from).0 == facts(to).0 } else { facts(from) == facts(to) };
            assert!(same, "{name}: {:?} {:?}", facts(from), facts(to));
        }
        assert_eq!(fs::symlink_metadata(to.join("dir")).unwrap().mtime(), 1_000_000_000);
        let inode = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
        assert_eq!(inode("dir/file"), inode("dir/deeper/same"));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("nowhere"));
        assert_eq!(fs::read(to.join("large")).unwrap(), fs::read(from.join("large")).unwrap());
        assert!(fs::metadata(to.join("large")).unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
        if capable {
            let copied = attribute(&to.join("dir/file"), c"security.capability").unwrap();
            assert_eq!(copied.as_deref(), Some(&capability[..]));
        }
        if attributed {
            assert_eq!(attribute(&to.join("dir"), c"trusted.test").unwrap().as_deref(), Some(&b"value"[..]));
        }
        assert_eq!(attribute(&to.join("dir"), c"user.none").ok().flatten(), None);
    }

    #[test]
    fn a_failure_names_the_entry() {
        let (source, target) = (TempDir::new(), TempDir::new());
        fs::create_dir(source.path().join("dir")).unwrap();
        fs::write(target.path().join("dir"), "in the way").unwrap();
        let failed = content(source.path(), target.path()).unwrap_err();
        assert_eq!((failed.path.to_str(), failed.error.raw_os_error()), (Some("dir"), Some(libc::EEXIST)));
    }
}
