//! Says before anything is downloaded that the disk would not hold it.

use crate::error::Result;
use crate::store::write_failed;
use std::path::Path;

/// Whether `bytes` more fit on the file system of `dir`. One that does not tell is believed to have room: writing
/// tells.
///
/// # Errors
/// `store.disk-full`, with what is needed and what is free.
pub(super) fn check(dir: &Path, bytes: u64) -> Result<()> {
    let Ok(disk) = nix::sys::statvfs::statvfs(dir) else { return Ok(()) };
    let free = disk.blocks_available().saturating_mul(disk.fragment_size());
    // Virtual file systems have no sizes at all.
    if disk.blocks() == 0 || bytes <= free {
        return Ok(());
    }
    let what = format!("downloading {bytes} bytes where {free} are free");
    Err(write_failed(what, std::io::Error::from_raw_os_error(nix::libc::ENOSPC)))
}
