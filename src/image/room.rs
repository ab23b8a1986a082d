//! Says before anything is written that it would not fit.

use crate::error::{Error, Result};
use nix::sys::statvfs::statvfs;
use std::path::Path;

/// A file system that is filled to its last block serves nobody.
const MARGIN: u64 = 1 << 20;
/// Everything that is large is written below firegopher's home.
pub(super) const HELP: &str =
    "free some space (`firegopher gc` reclaims unused artifacts), or set FIREGOPHER_HOME to a larger disk";

/// Whether `needed` more bytes fit on the file system of `dir`; `what` is written there. A file system that does not
/// tell is believed to have room: writing tells.
///
/// # Errors
/// `image.disk-full`, naming what is needed and what is there.
pub(crate) fn check(dir: &Path, needed: u64, what: &str) -> Result<()> {
    let Ok(stat) = statvfs(dir) else { return Ok(()) };
    // Root may use the blocks that are reserved for it.
    let blocks = if nix::unistd::geteuid().is_root() { stat.blocks_free() } else { stat.blocks_available() };
    // Virtual file systems have no sizes at all.
    if stat.blocks() == 0 {
        return Ok(());
    }
    let free = blocks.saturating_mul(stat.fragment_size());
    if needed.saturating_add(MARGIN) <= free {
        return Ok(());
    }
    Err(Error::failed(
        "image.disk-full",
        format!("{what} needs {} in {}, where {} are free", bytes(needed), dir.display(), bytes(free)),
    )
    .help(HELP))
}

/// For people, rounded up.
fn bytes(n: u64) -> String {
    match n {
        n if n >= 10 << 30 => format!("{} GiB", n.div_ceil(1 << 30)),
        n => format!("{} MiB", n.div_ceil(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_with_both_sizes() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), 0, "nothing").unwrap();
        let error = check(dir.path(), 1 << 60, "the image").unwrap_err();
        assert_eq!(error.code(), "image.disk-full");
        assert!(error.to_string().starts_with("the image needs 1073741824 GiB in "), "{error}");
        assert!(error.to_string().ends_with("B are free"), "{error}");
    }

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!(bytes(1), "1 MiB");
        assert_eq!(bytes(9 << 30), "9216 MiB");
        assert_eq!(bytes((10 << 30) + 1), "11 GiB");
    }
}
