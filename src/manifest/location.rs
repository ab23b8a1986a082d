//! Where a project's manifest is: found in a directory or above it, or named.

use super::FILE_NAME;
use crate::error::{Context, Error, Result};
use fs_err as fs;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A manifest: the project's directory, and the file in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    dir: PathBuf,
    file: OsString,
}

impl Location {
    /// `firegopher.kdl` in `dir`, whether it is there or not.
    pub fn in_dir(dir: &Path) -> Location {
        Location { dir: dir.to_owned(), file: FILE_NAME.into() }
    }

    /// Another file in the same directory.
    pub(crate) fn with_file(self, file: &OsStr) -> Location {
        Location { file: file.to_owned(), ..self }
    }

    /// A manifest by its path: its directory is the project's.
    ///
    /// # Errors
    /// `manifest.path` if the path ends in no name of a file, or if a directory is there.
    pub fn named(path: &Path) -> Result<Location> {
        let bad = |why: &str| Error::usage("manifest.path", format!("{} {why}", path.display()));
        if path.is_dir() {
            return Err(bad("is a directory, not a manifest").help("`-C DIR` names a project's directory"));
        }
        let file = path.file_name().ok_or_else(|| bad("names no manifest"))?.to_owned();
        let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        Ok(Location { dir: dir.to_owned(), file })
    }

    /// `firegopher.kdl` in `dir` or in the nearest directory above it that has one; in `dir` if none has.
    ///
    /// # Errors
    /// `manifest.foreign` if the nearest one above belongs to another user, who could have put it there to be run.
    pub fn find(dir: &Path) -> Result<Location> {
        let here = Location::in_dir(dir);
        if here.path().symlink_metadata().is_ok() {
            return Ok(here);
        }
        // One that cannot be resolved is reported by whoever reads the manifest.
        let Ok(full) = fs::canonicalize(dir) else { return Ok(here) };
        let above = full.ancestors().skip(1).find(|dir| dir.join(FILE_NAME).is_file());
        let Some(above) = above.map(Location::in_dir) else { return Ok(here) };
        let sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
        check_owner(&above, nix::unistd::geteuid().as_raw(), sudo)?;
        Ok(above)
    }

    /// The project's directory, as it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest's name in its directory.
    pub fn file(&self) -> &OsStr {
        &self.file
    }

    /// The manifest.
    pub fn path(&self) -> PathBuf {
        self.dir.join(&self.file)
    }

    /// The lock file that belongs to the manifest, beside it: `firegopher.lock` for `firegopher.kdl`.
    pub fn lock_name(&self) -> OsString {
        Path::new(&self.file).with_extension("lock").into_os_string()
    }

    /// The lock file's path.
    pub fn lock_path(&self) -> PathBuf {
        self.dir.join(self.lock_name())
    }

    /// The same manifest by the canonical path of its directory.
    pub fn canonical(&self) -> Result<Location> {
        let dir = fs::canonicalize(&self.dir).or_failed("manifest.unreadable", || {
            format!("cannot resolve the directory {}", self.dir.display())
        })?;
        Ok(Location { dir, file: self.file.clone() })
    }
}

/// A manifest decides what is run and read here. In the directory one stands in it is taken as a Makefile is; one above
/// may be anybody's, as in /tmp.
fn check_owner(above: &Location, user: u32, sudo: Option<u32>) -> Result<()> {
    let path = above.path();
    let meta =
        fs::metadata(&path).or_failed("manifest.unreadable", || format!("cannot read {}", path.display()))?;
    let owner = meta.uid();
    if owner == user || owner == 0 || (user == 0 && sudo == Some(owner)) {
        return Ok(());
    }
    let text = format!("{} belongs to another user (uid {owner}) and is not used from below", path.display());
    Err(Error::usage("manifest.foreign", text).help(format!(
        "`-C {}` uses it all the same; `firegopher init` writes one here",
        above.dir.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_found_in_the_nearest_directory_above() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let deep = root.join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        // Nothing above a temporary directory has one, or this machine is odd.
        assert_eq!(Location::find(&deep).unwrap(), Location::in_dir(&deep));
        fs::write(root.join(FILE_NAME), "").unwrap();
        assert_eq!(Location::find(&deep).unwrap(), Location::in_dir(&root));
        fs::write(root.join("a").join(FILE_NAME), "").unwrap();
        assert_eq!(Location::find(&deep).unwrap(), Location::in_dir(&root.join("a")));
        // A directory of that name is none.
        fs::create_dir(root.join("a/b").join(FILE_NAME)).unwrap();
        assert_eq!(Location::find(&deep).unwrap(), Location::in_dir(&root.join("a")));
    }

    #[test]
    fn a_manifest_above_that_is_somebody_elses_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(FILE_NAME), "").unwrap();
        let above = Location::in_dir(root.path());
        let owner = fs::metadata(above.path()).unwrap().uid();
        assert!(check_owner(&above, owner, None).is_ok());
        let refused = check_owner(&above, owner + 1, None).map_err(|e| e.code());
        assert_eq!(refused, if owner == 0 { Ok(()) } else { Err("manifest.foreign") });
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(above.path(), Some(65534), None).unwrap();
            assert_eq!(check_owner(&above, 0, None).unwrap_err().code(), "manifest.foreign");
            assert!(check_owner(&above, 0, Some(65534)).is_ok(), "by sudo of its owner");
        }
    }

    #[test]
    fn a_manifest_has_its_lock_beside_it() {
        let named = |path: &str| Location::named(Path::new(path)).unwrap();
        assert_eq!(named("firegopher.kdl"), Location::in_dir(Path::new(".")));
        assert_eq!(named("deploy/staging.kdl").lock_path(), Path::new("deploy/staging.lock"));
        assert_eq!(named("/x/staging").lock_path(), Path::new("/x/staging.lock"));
        assert_eq!(Location::named(Path::new("..")).unwrap_err().code(), "manifest.path");
    }
}
