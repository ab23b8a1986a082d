//! Creates and guards the store's directories, and words the errors of writing into them.

use crate::error::{Error, Result};
use crate::home::{Home, guard};
use std::fmt::Display;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Subdirectories of `v1/`.
const SUBDIRS: [&str; 6] = ["objects", "actions", "stat", "tmp", "locks", "quarantine"];

/// Creates `path` and its missing parents, each 0700. An existing directory is left as it is.
pub fn create_private_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| write_failed(format_args!("creating {}", path.display()), e))
}

/// The error for a write that failed: `store.disk-full` with help when space or quota ran out, else `store.io`.
/// `what` completes "… failed", such as `creating /x/y`.
pub fn write_failed(what: impl Display, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::failed(
            "store.disk-full",
            format!("{what} failed: no space left"),
        )
        .help(
            "nothing was published; free some space (`firegopher gc` reclaims unused objects) and run again",
        ),
        _ => Error::failed("store.io", format!("{what} failed")),
    }
    .because(error)
}

/// Creates the home and the store's directories and checks that they are ours alone.
pub(super) fn prepare(home: &Home) -> Result<()> {
    create_private_dir(home.root()).map_err(|e| match e.help_text() {
        Some(_) => e,
        None => e.help("firegopher keeps its store there; FIREGOPHER_HOME names another directory"),
    })?;
    guard(home.root())?;
    for name in SUBDIRS {
        let dir = home.store().join(name);
        // mkdir of what exists is cheap, but a stat is cheaper and this runs at every start.
        if !dir.is_dir() {
            create_private_dir(&dir)?;
        }
    }
    guard(&home.store())
}

/// Makes the names in `dir` survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    std::fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| write_failed(format_args!("syncing {}", dir.display()), e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_home_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep/home");
        Store::open(Home::new(&root)).unwrap();
        for path in [root.clone(), root.join("v1"), root.join("v1/objects")] {
            assert_eq!(fs_err::metadata(path).unwrap().mode() & 0o7777, 0o700);
        }
    }

    #[test]
    fn a_home_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = Store::open(Home::new(dir.path())).unwrap_err();
        assert_eq!(error.code(), "store.open-home");
        assert!(error.help_text().unwrap().contains("chmod 700"));
    }

    #[test]
    fn the_home_of_another_user_is_refused() {
        if !nix::unistd::geteuid().is_root() {
            crate::testing::skip("giving a directory away needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65534), None).unwrap();
        let error = Store::open(Home::new(dir.path())).unwrap_err();
        assert_eq!(error.code(), "store.foreign-home");
        assert!(error.to_string().contains("65534"), "{error}");
    }

    #[test]
    fn a_full_disk_has_its_own_error() {
        let full = write_failed("writing x", io::Error::from_raw_os_error(nix::libc::ENOSPC));
        assert_eq!(full.code(), "store.disk-full");
        assert!(full.help_text().is_some());
        let other = write_failed("writing x", io::Error::from_raw_os_error(nix::libc::EIO));
        assert_eq!(other.code(), "store.io");
    }
}
