//! Replaces small files whole: readers see the old or the new one, never half of one. For files that have one writer
//! at a time and describe what ends with the host's boot, so that nothing waits for a disk.

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Writes a file of mode 0600 beside its name and puts it in its place. After a power failure it may be empty: readers
/// take that for an absent one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let tmp = beside(path);
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        file.write_all(bytes)?;
        drop(file);
        // A rename over a file makes ext4 write the new one out at once, some milliseconds each time
        // (auto_da_alloc in ext4(5)); an exchange does not.
        match renameat2(AT_FDCWD, &tmp, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => fs::remove_file(&tmp),
            // There is none yet, or this file system cannot.
            Err(_) => fs::rename(&tmp, path),
        }
    };
    write().inspect_err(|_| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&tmp);
    })
}

/// Both of the files that [`replace_in_place`] keeps have room for this.
const ROOM: u64 = 8 * 1024;

/// `replace` for a file that has to be replaced on a full disk, too: what was replaced stays beside it, and the next
/// writing goes there, to blocks that it has already. `sweep` removes it in the end.
pub(crate) fn replace_in_place(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let tmp = beside(path);
    let open = || fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&tmp);
    let mut file = open()?;
    reserve(file.file());
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)?;
    reserve(file.file());
    drop(file);
    match renameat2(AT_FDCWD, &tmp, AT_FDCWD, path, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(()),
        // There is none yet, or this file system cannot.
        Err(_) => {
            fs::rename(&tmp, path)?;
            // Without it the next writing needs space, as any does.
            open().map(|file| reserve(file.file())).or(Ok(()))
        }
    }
}

/// Takes space for `ROOM` bytes where the disk has it and the file system can.
fn reserve(file: &std::fs::File) {
    let _ = fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, ROOM as libc::off_t);
}

/// Removes what a writer that was killed has left beside such a file. Nobody else may be writing it.
pub(crate) fn sweep(path: &Path) -> io::Result<()> {
    match fs::remove_file(beside(path)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

/// The bytes of such a file; `None` if there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes).filter(|bytes| !bytes.is_empty())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_unreadable_to_others() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("book.json");
        assert_eq!(read(&path).unwrap(), None);
        for text in [&b"a long first text"[..], b"short", b"another"] {
            replace(&path, text).unwrap();
            assert_eq!(read(&path).unwrap().as_deref(), Some(text));
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // Killed before it was in its place.
        fs::write(dir.path().join("book.json.tmp"), "half").unwrap();
        for _ in 0..2 {
            sweep(&path).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_full_disk_takes_what_replaces_a_file_in_place() {
        crate::testing::on_small_disk(256 << 10, |disk| {
            let path = disk.join("state.json");
            replace_in_place(&path, b"first").unwrap();
            let mut filler = fs::File::create(disk.join("filler")).unwrap();
            while filler.write_all(&[0; 4096]).is_ok() {}
            assert!(fs::write(disk.join("more"), "x").is_err(), "the disk is not full");
            for n in 0..10 {
                let text = [b'a' + n].repeat(if n % 2 == 0 { 6000 } else { 100 });
                replace_in_place(&path, &text).unwrap();
                assert!(read(&path).unwrap().unwrap() == text);
            }
            sweep(&path).unwrap();
            assert_eq!(read(&path).unwrap().unwrap().len(), 100);
        });
    }

    #[test]
    fn an_empty_one_counts_as_absent() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), b"").unwrap();
        assert_eq!(read(&dir.path().join("x")).unwrap(), None);
    }
}
