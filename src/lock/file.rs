//! Reading and replacing the lock file, never through a symbolic link.

use crate::error::{Context, Error, Result};
use fs_err as fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What temporary files are called, before six characters of tempfile's.
const TEMPORARY: &str = ".firegopher.lock.";

/// A lock of a thousand packages has 250 kB.
pub(super) const MAX_BYTES: u64 = 4 << 20;

/// The file's text, `None` if there is no file.
pub(super) fn read(path: &Path) -> Result<Option<String>> {
    // O_NONBLOCK: a fifo under this name must not hang the command.
    // Not fs_err's: its errors do not tell ELOOP.
    let opened =
        std::fs::File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => return Err(not_regular(path, "a symbolic link")),
        Err(e) => return Err(e).or_failed("lock.read", || format!("cannot read {}", path.display())),
    };
    let meta = file.metadata().or_failed("lock.read", || format!("cannot read {}", path.display()))?;
    if !meta.is_file() {
        return Err(not_regular(path, "no regular file"));
    }
    let too_large =
        || Error::usage("lock.invalid", format!("{} is larger than 4 MiB: not a lock file", path.display()));
    if meta.len() > MAX_BYTES {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .or_failed("lock.read", || format!("cannot read {}", path.display()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(too_large());
    }
    let text = String::from_utf8(bytes)
        .or_usage("lock.invalid", || format!("{} is not a lock file: it is not UTF-8", path.display()))?;
    Ok(Some(text))
}

/// Replaces the file unless it holds `text` already; whether it wrote. Mode and owner of an existing file stay.
pub(super) fn write(path: &Path, text: &str) -> Result<bool> {
    let failed = || format!("cannot write {}", path.display());
    let old = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => return Err(not_regular(path, "a symbolic link")),
        Ok(meta) if !meta.is_file() => return Err(not_regular(path, "no regular file")),
        Ok(meta) => Some(meta),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e).or_failed("lock.write", failed),
    };
    // Unreadable or garbage bytes are no reason to refuse: they are about to be replaced.
    if old.as_ref().is_some_and(|meta| meta.len() == text.len() as u64)
        && fs::read(path).is_ok_and(|bytes| bytes == text.as_bytes())
    {
        return Ok(false);
    }
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    sweep(dir);
    let mut temp = tempfile::Builder::new()
        .prefix(TEMPORARY)
        // Less the umask, as for any file that a user makes.
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .or_failed("lock.write", failed)?;
    temp.write_all(text.as_bytes()).or_failed("lock.write", failed)?;
    if let Some(old) = old {
        // Best effort: root keeps a user's file the user's; nobody else can give files away.
        let _ = std::os::unix::fs::fchown(temp.as_file(), Some(old.uid()), Some(old.gid()));
        let mode = std::fs::Permissions::from_mode(old.mode() & 0o777);
        temp.as_file().set_permissions(mode).or_failed("lock.write", failed)?;
    }
    temp.as_file().sync_data().or_failed("lock.write", failed)?;
    // rename(2) replaces a link that appeared meanwhile, it does not follow it.
    temp.persist(path).map_err(|e| e.error).or_failed("lock.write", failed)?;
    Ok(true)
}

/// Removes what a command left that was killed while it wrote. Of a writer that lives this is not: the project's lock
/// is held by whoever writes, and where it is not, a minute is ample.
fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        // The name and the six characters of tempfile's.
        let ours = name
            .to_str()
            .and_then(|name| name.strip_prefix(TEMPORARY))
            .is_some_and(|random| random.len() == 6 && random.bytes().all(|b| b.is_ascii_alphanumeric()));
        let old = || {
            let meta = fs::symlink_metadata(entry.path()).ok()?;
            let age = std::time::SystemTime::now().duration_since(meta.modified().ok()?).ok()?;
            Some(meta.is_file() && age.as_secs() >= 60)
        };
        if ours && old() == Some(true) {
            // The next one tries again.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn not_regular(path: &Path, what: &str) -> Error {
    Error::usage(
        "lock.not-a-file",
        format!("{} is {what}: the lock must be a file of its own", path.display()),
    )
    .help("replace it by the file itself")
}
