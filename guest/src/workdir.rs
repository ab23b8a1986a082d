//! The workload's working directory.

use crate::failure::{Context, Failure, Result};
use crate::user::Account;
use nix::errno::Errno;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

/// Makes a working directory that is missing, the user's own, as container runtimes do for their images. Directories
/// on the way to it are root's.
pub fn make(path: &str, account: &Account, root: &Path) -> Result<()> {
    let dir = root.join(path.trim_start_matches('/'));
    // What is there, of whatever kind, is the image's.
    if dir.symlink_metadata().is_ok() {
        return Ok(());
    }
    let make = || {
        fs::create_dir_all(&dir)?;
        chown(&dir, Some(account.uid), Some(account.gid))
    };
    make().context(|| format!("making the image's working directory {path:?}"))
}

/// Why a working directory cannot be entered.
pub fn explain(path: &str, errno: Errno) -> Failure {
    let what = match errno {
        Errno::ENOENT => {
            "it is not there: set `workdir` to one that the image, a workload or a volume brings".to_owned()
        }
        Errno::ENOTDIR => "it is no directory: set `workdir` to one".to_owned(),
        Errno::EACCES => {
            "the user may not enter it: run as another `user`, or set `workdir` to another directory"
                .to_owned()
        }
        other => other.desc().to_owned(),
    };
    Failure::new(format!("cannot enter the working directory {path:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempDir, root};
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn account(uid: u32, gid: u32) -> Account {
        Account { name: None, uid, gid, groups: vec![gid], home: "/".into(), created: false }
    }

    #[test]
    fn a_working_directory_that_is_missing_is_the_users_and_what_leads_there_is_not() {
        if !root("giving a directory away") {
            return;
        }
        let dir = TempDir::new();
        make("/srv/not/there", &account(12, 34), dir.path()).unwrap();
        let owner = |path: &str| {
            let meta = fs::metadata(dir.path().join(path)).unwrap();
            (meta.is_dir(), meta.uid(), meta.gid())
        };
        assert_eq!(owner("srv/not/there"), (true, 12, 34));
        assert_eq!(owner("srv/not"), (true, 0, 0));
        make("/srv/not", &account(12, 34), dir.path()).unwrap();
        assert_eq!(owner("srv/not"), (true, 0, 0), "what is there stays as it is");
        make("/", &account(12, 34), dir.path()).unwrap();
        assert_eq!(owner(""), (true, 0, 0));
    }

    #[test]
    fn what_stands_in_the_way_is_left_alone() {
        let dir = TempDir::new();
        fs::write(dir.path().join("file"), "").unwrap();
        symlink("nowhere", dir.path().join("link")).unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        for path in ["/file", "/link"] {
            make(path, &account(uid, uid), dir.path()).unwrap();
        }
        assert!(!dir.path().join("nowhere").exists());
        let failure = make("/file/below", &account(uid, uid), dir.path()).unwrap_err().to_string();
        assert!(failure.contains("\"/file/below\""), "{failure}");
    }

    #[test]
    fn a_directory_that_cannot_be_entered_says_what_to_do() {
        for errno in [Errno::ENOENT, Errno::ENOTDIR, Errno::EACCES] {
            let text = explain("/no/where", errno).to_string();
            assert!(text.contains("\"/no/where\"") && text.contains("`workdir`"), "{text}");
        }
        assert!(explain("/x", Errno::EIO).to_string().ends_with("I/O error"));
    }
}
