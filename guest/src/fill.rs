//! A fresh volume takes over what the image has at its place, as Docker's do: content, owner and mode. Once, and wholly:
//! an attribute of its root says how far that has come, so that a boot that was cut short begins again and a later one
//! never does. Only PID 1 sees it: `trusted` attributes need CAP_SYS_ADMIN.

use crate::copy::{self, CopyError};
use crate::failure::{Context, Failure, Result};
use nix::errno::Errno;
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

/// Where a volume's root says how far it has come.
const MARK: &CStr = c"trusted.firegopher.volume";
/// What is in it is a part of what the image has, and nobody else's.
const FILLING: &[u8] = b"filling";
/// What is in it is the workload's.
const USED: &[u8] = b"used";
/// What e2fsck keeps what it finds in. Where it needs one, it makes it.
const LOST_FOUND: &str = "lost+found";

/// The directory of the image that a volume will hide, held open; `None` where the image has none.
pub struct Below(Option<OwnedFd>);

impl Below {
    /// To be called before any volume is mounted: one may hide what belongs below another.
    pub fn open(at: &Path) -> Result<Below> {
        use nix::fcntl::{OFlag, open};
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match open(at, flags, nix::sys::stat::Mode::empty()) {
            Ok(dir) => Ok(Below(Some(dir))),
            Err(Errno::ENOENT) => Ok(Below(None)),
            Err(errno) => Err(errno).context(|| format!("opening the mount point {}", at.display())),
        }
    }

    fn path(&self) -> Option<PathBuf> {
        // With the slash it is the directory, not the link to it.
        self.0.as_ref().map(|dir| PathBuf::from(format!("/proc/self/fd/{}/", dir.as_raw_fd())))
    }
}

/// Makes the volume mounted at `at` ready for a workload of this user. `subject` names it in errors.
pub fn settle(at: &Path, below: &Below, uid: u32, gid: u32, subject: &str) -> Result<()> {
    let say = |what: &str| format!("{what} {subject}");
    // What e2fsck has put there stays in sight.
    match fs::remove_dir(at.join(LOST_FOUND)) {
        Err(error)
            if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTEMPTY | libc::ENOTDIR)) =>
        {
            return Err(error).context(|| say("looking into"));
        }
        _ => {}
    }
    let mark = |mark: &[u8]| copy::set_attribute(at, MARK, mark).context(|| say("marking"));
    match copy::attribute(at, MARK).context(|| say("looking at"))?.as_deref() {
        Some(FILLING) => clear(at).context(|| say("clearing"))?,
        Some(_) => return Ok(()),
        // Of a version that marked none.
        None if !is_empty(at).context(|| say("looking into"))? => return mark(USED),
        None => {}
    }
    mark(FILLING)?;
    if fill(at, below, uid, gid, subject)? > 0 {
        // What the mark promises comes before it.
        sync(at).context(|| say("writing"))?;
    }
    mark(USED)
}

fn fill(at: &Path, below: &Below, uid: u32, gid: u32, subject: &str) -> Result<usize> {
    let Some(from) = below.path() else {
        // Of nobody else's.
        return chown(at, Some(uid), Some(gid)).map(|()| 0).context(|| format!("giving away {subject}"));
    };
    let from = from.as_path();
    let meta = fs::metadata(from).context(|| format!("looking at what the image has below {subject}"))?;
    let done = copy::content(from, at).map_err(|error| failure(at, &error, subject))?;
    copy::belongings(from, at, &meta).context(|| format!("changing the owner of {subject}"))?;
    // An empty directory of root's is there to be mounted over.
    if done == 0 && (meta.uid(), meta.gid()) == (0, 0) {
        chown(at, Some(uid), Some(gid)).context(|| format!("giving away {subject}"))?;
    }
    Ok(done)
}

fn failure(at: &Path, CopyError { path, error }: &CopyError, subject: &str) -> Failure {
    let what = format!("filling {subject} from the image");
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC) => {
            let size = nix::sys::statvfs::statvfs(at).map_or(0, |stat| stat.blocks() * stat.fragment_size());
            Failure::new(format!(
                "{what}: its {} MiB do not hold what the image has there: make it larger (`size`), or mount it \
                 where the image has less",
                size >> 20
            ))
        }
        Some(errno) => Failure::new(format!("{what}: {}: {}", at.join(path).display(), errno.desc())),
        None => Failure::new(format!("{what}: {}: {error}", at.join(path).display())),
    }
}

fn is_empty(at: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(at)?.next().transpose()?.is_none())
}

fn clear(at: &Path) -> io::Result<()> {
    for entry in fs::read_dir(at)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sync(at: &Path) -> io::Result<()> {
    let dir = File::open(at)?;
    // SAFETY: the descriptor is open during the call.
    Ok(Errno::result(unsafe { libc::syncfs(dir.as_raw_fd()) }).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TempDir, root};
    use std::os::unix::fs::PermissionsExt;

    /// A directory in the place of a volume, where the host lets it be marked.
    fn volume() -> Option<TempDir> {
        let dir = TempDir::new();
        fs::create_dir(dir.path().join(LOST_FOUND)).unwrap();
        if !root("marking a volume") {
            return None;
        }
        if let Err(e) = copy::set_attribute(dir.path(), c"trusted.firegopher.try", b"") {
            crate::testing::skip(format!("no trusted attributes in the temporary directory: {e}"));
            return None;
        }
        Some(dir)
    }

    fn image() -> TempDir {
        let dir = TempDir::new();
        fs::create_dir(dir.path().join("conf")).unwrap();
        fs::write(dir.path().join("conf/file"), "of the image").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o2750)).unwrap();
        chown(dir.path(), Some(70), Some(71)).unwrap();
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn owner(dir: &Path) -> (u32, u32, u32) {
        let meta = fs::metadata(dir).unwrap();
        (meta.uid(), meta.gid(), meta.mode() & 0o7777)
    }

    #[test]
    fn a_fresh_volume_takes_over_what_the_image_has_and_never_again() {
        let Some(volume) = volume() else { return };
        let (at, image) = (volume.path(), image());
        let below = Below::open(image.path()).unwrap();
        settle(at, &below, 1000, 1001, "v").unwrap();
        assert_eq!((names(at), owner(at)), (vec!["conf".to_owned()], (70, 71, 0o2750)));
        assert_eq!(fs::read_to_string(at.join("conf/file")).unwrap(), "of the image");
        // The workload empties it and makes it somebody else's: that stands.
        fs::remove_dir_all(at.join("conf")).unwrap();
        chown(at, Some(5), Some(5)).unwrap();
        fs::create_dir(at.join(LOST_FOUND)).unwrap();
        settle(at, &below, 1000, 1001, "v").unwrap();
        assert_eq!((names(at), owner(at).0), (vec![], 5), "what e2fsck has made is out of sight again");
    }

    #[test]
    fn a_first_fill_that_was_cut_short_is_done_again() {
        let Some(volume) = volume() else { return };
        let (at, image) = (volume.path(), image());
        copy::set_attribute(at, MARK, FILLING).unwrap();
        fs::create_dir(at.join("conf")).unwrap();
        fs::write(at.join("conf/file"), "of the im").unwrap();
        fs::write(at.join("stray"), "").unwrap();
        settle(at, &Below::open(image.path()).unwrap(), 0, 0, "v").unwrap();
        assert_eq!(names(at), ["conf"]);
        assert_eq!(fs::read_to_string(at.join("conf/file")).unwrap(), "of the image");
    }

    #[test]
    fn what_an_earlier_version_or_e2fsck_has_put_into_a_volume_stays_as_it_is() {
        let Some(volume) = volume() else { return };
        let (at, image) = (volume.path(), image());
        fs::write(at.join("lost+found/#12"), "found").unwrap();
        fs::write(at.join("data"), "of before").unwrap();
        chown(at, Some(1000), Some(1000)).unwrap();
        settle(at, &Below::open(image.path()).unwrap(), 0, 0, "v").unwrap();
        assert_eq!((names(at), owner(at).0), (vec!["data".to_owned(), LOST_FOUND.to_owned()], 1000));
        assert_eq!(copy::attribute(at, MARK).unwrap().as_deref(), Some(USED));
    }

    #[test]
    fn a_volume_where_the_image_has_nothing_is_the_users() {
        let Some(volume) = volume() else { return };
        let none = Below::open(Path::new("/no/such/directory")).unwrap();
        settle(volume.path(), &none, 1000, 1001, "v").unwrap();
        assert_eq!(owner(volume.path()), (1000, 1001, 0o755));
        // Neither is an empty directory of root's anybody's.
        let (Some(other), empty) = (self::volume(), TempDir::new()) else { return };
        fs::set_permissions(empty.path(), fs::Permissions::from_mode(0o700)).unwrap();
        settle(other.path(), &Below::open(empty.path()).unwrap(), 1000, 1001, "v").unwrap();
        assert_eq!(owner(other.path()), (1000, 1001, 0o700));
    }
}
