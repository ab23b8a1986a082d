//! Directory entries straight from getdents64(2) into one buffer for all directories: opening a stream for
//! each costs four system calls more, which shows in a warm scan.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Two system calls list most directories: the entries, and the end.
const BUFFER: usize = 64 << 10;

/// Offsets in `struct linux_dirent64` (getdents64(2)): d_ino u64, d_off i64, d_reclen u16, d_type u8, d_name.
const RECLEN: usize = 16;
const TYPE: usize = 18;
const NAME: usize = 19;

/// The reusable buffer.
pub(super) struct Lister(Vec<u64>);

impl Lister {
    pub(super) fn new() -> Self {
        // u64 for the alignment that the kernel's records have.
        Lister(vec![0; BUFFER / size_of::<u64>()])
    }

    /// Calls `each` with name and type (`DT_*`) of every entry but `.` and `..`. An error from it ends the listing.
    pub(super) fn list<E: From<Errno>>(
        &mut self,
        dir: BorrowedFd<'_>,
        mut each: impl FnMut(&[u8], u8) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            // SAFETY: the buffer is writable for BUFFER bytes and lives through the call; `dir` is open.
            let filled = unsafe {
                nix::libc::syscall(nix::libc::SYS_getdents64, dir.as_raw_fd(), self.0.as_mut_ptr(), BUFFER)
            };
            let filled = match Errno::result(filled) {
                Ok(0) => return Ok(()),
                Ok(n) => usize::try_from(n).unwrap_or(0).min(BUFFER),
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            // SAFETY: the same allocation seen as its bytes; u64 has no padding and u8 no alignment, and
            // `filled` is at most its length.
            let mut rest = unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<u8>(), filled) };
            while let Some((record, after)) = split(rest) {
                rest = after;
                let name = record[NAME..].split(|&b| b == 0).next().unwrap_or_default();
                if !matches!(name, b"." | b"..") {
                    each(name, record[TYPE])?;
                }
            }
        }
    }
}

/// The first record and what follows it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16::from_ne_bytes([*bytes.get(RECLEN)?, *bytes.get(RECLEN + 1)?]));
    if length <= NAME {
        return None;
    }
    bytes.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::os::fd::AsFd;

    #[test]
    fn a_directory_larger_than_the_buffer_is_listed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let names: BTreeSet<String> = (0..3000).map(|n| format!("{n:04}{}", "n".repeat(n % 200))).collect();
        for name in &names {
            fs_err::write(dir.path().join(name), "").unwrap();
        }
        fs_err::create_dir(dir.path().join("dir")).unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        let mut found = BTreeSet::new();
        let mut dirs = Vec::new();
        Lister::new()
            .list::<Errno>(file.as_fd(), |name, kind| {
                let name = String::from_utf8(name.to_vec()).unwrap();
                if kind == nix::libc::DT_DIR {
                    dirs.push(name)
                } else {
                    _ = found.insert(name)
                }
                Ok(())
            })
            .unwrap();
        assert_eq!(found, names);
        assert_eq!(dirs, ["dir"]);
    }

    #[test]
    fn what_is_no_directory_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Lister::new().list::<Errno>(file.as_fd(), |_, _| Ok(())), Err(Errno::ENOTDIR));
    }
}
