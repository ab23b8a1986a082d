//! Owns `state/KEY/project.json`: which directory the state belongs to, and by what that directory is known again.

use crate::error::{Context, Error, Result};
use crate::home::Home;
use crate::manifest::model::Manifest;
use crate::manifest::{self, Location};
use crate::name::Name;
use crate::replace;
use fs_err as fs;
use nix::libc;
use serde::{Deserialize, Serialize};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The file in a project's state. No name of a VM has a dot.
const FILE: &str = "project.json";

/// What is known of a project's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The directory, canonical when it was written.
    pub directory: PathBuf,
    /// The manifest's name in it; `firegopher.kdl` of those that older versions wrote.
    #[serde(default = "usual_file")]
    pub manifest: PathBuf,
    /// What the manifest calls the project; `None` also of those that older versions wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The directory itself, wherever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<Inode>,
    /// The manifest's last change: it goes along when a directory is moved to another file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edited: Option<Edited>,
}

fn usual_file() -> PathBuf {
    manifest::FILE_NAME.into()
}

/// A directory beyond its path. Inodes are reused; the time of birth tells two of them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inode {
    /// The file system's number, which may be another one after a boot of the host.
    pub device: u64,
    /// The number in it.
    pub number: u64,
    /// Nanoseconds since the epoch, where the file system knows.
    pub born: Option<i128>,
}

impl Inode {
    /// Of the directory that `path` leads to; `None` if there is none.
    pub fn of(path: &Path) -> Option<Inode> {
        let meta = std::fs::metadata(path).ok()?;
        Some(Inode { device: meta.dev(), number: meta.ino(), born: born(path) })
    }

    /// Whether both are the same directory.
    pub fn is(&self, other: &Inode) -> bool {
        self.number == other.number
            && match (self.born, other.born) {
                (Some(one), Some(two)) => one == two,
                // Where births are unknown, a number is worth something on one file system only.
                _ => self.device == other.device,
            }
    }
}

/// When the inode was made, by statx(2).
fn born(path: &Path) -> Option<i128> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path ends with a NUL, and `found` has room for what the kernel writes; both live through the call.
    let result =
        unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_BTIME, found.as_mut_ptr()) };
    if result != 0 {
        return None;
    }
    // SAFETY: zeroes are a valid statx, and the kernel has filled in the rest.
    let found = unsafe { found.assume_init() };
    (found.stx_mask & libc::STATX_BTIME != 0)
        .then(|| i128::from(found.stx_btime.tv_sec) * 1_000_000_000 + i128::from(found.stx_btime.tv_nsec))
}

/// When a manifest was last changed, and its size then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edited {
    /// Nanoseconds since the epoch.
    pub at: i128,
    /// In bytes.
    pub size: u64,
}

impl Edited {
    fn of(path: &Path) -> Option<Edited> {
        let meta = std::fs::metadata(path).ok()?;
        let at = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Some(Edited { at, size: meta.size() })
    }
}

impl Claim {
    /// What a manifest that was read would claim.
    pub fn of(manifest: &Manifest) -> Claim {
        Claim::at(&manifest.location(), manifest.project.clone())
    }

    /// What a manifest would claim that may be gone or broken. `at` is canonical.
    pub fn at(at: &Location, name: Option<Name>) -> Claim {
        Claim {
            directory: at.dir().to_owned(),
            manifest: at.file().into(),
            name,
            inode: Inode::of(at.dir()),
            edited: Edited::of(&at.path()),
        }
    }

    /// Where its manifest is, or was.
    pub fn location(&self) -> Location {
        Location::in_dir(&self.directory).with_file(self.manifest.as_os_str())
    }

    /// The claim on a state directory; `None` if there is none.
    pub fn load(state: &Path) -> Option<Claim> {
        serde_json::from_slice(&replace::read(&state.join(FILE)).ok()??).ok()
    }

    /// Writes it. `lasting`: nothing else leads from the manifest to its state, so it must survive a power cut.
    pub fn save(&self, state: &Path, lasting: bool) -> Result<()> {
        let failed = || format!("cannot claim {}", state.display());
        let text = serde_json::to_vec(self).map_err(|e| Error::bug(e.to_string()))?;
        replace::replace(&state.join(FILE), &text).or_failed("state.create", failed)?;
        if lasting {
            let sync = |path: &Path| fs::File::open(path).and_then(|file| file.sync_all());
            sync(&state.join(FILE)).and_then(|()| sync(state)).or_failed("state.create", failed)?;
        }
        Ok(())
    }

    /// Whether the claim is on the directory that has `inode`, wherever that is now. A snapshot of a file system has the
    /// inodes of the original, births included, on another device: it is a copy while the original is there.
    pub fn is_on(&self, inode: &Inode) -> bool {
        self.inode.is_some_and(|then| then.is(inode))
            && Inode::of(&self.directory).is_none_or(|now| now.device == inode.device || !now.is(inode))
    }

    /// Whether the directory is where the claim says, or a bind mount of it is.
    pub fn stands(&self) -> Standing {
        let path = self.location().path();
        // What cannot be looked at, as on a disk that does not answer, is there for all we know.
        if !path.try_exists().unwrap_or(true) {
            return Standing::Gone;
        }
        let manifest = manifest::load_at(&self.location());
        Standing::There { name: manifest.ok().map(|manifest| manifest.project) }
    }
}

/// What is at the place that a claim names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// No manifest any more.
    Gone,
    /// A manifest, and the name it gives now; `None` if it cannot be read.
    There {
        /// The name, if it has one.
        name: Option<Option<Name>>,
    },
}

/// A state directory of a home, by its name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Names state and volumes on the disk. It was the project's name when it was first used, and stays.
    pub key: Name,
    /// Whose it is.
    pub claim: Claim,
}

impl Claimed {
    /// What people call the project.
    pub fn label(&self) -> &Name {
        self.claim.name.as_ref().unwrap_or(&self.key)
    }
}

/// All claims of a home, by key.
pub fn claims(home: &Home) -> Vec<Claimed> {
    let Ok(entries) = std::fs::read_dir(home.states()) else { return Vec::new() };
    let claimed = |entry: std::fs::DirEntry| {
        let key = Name::new(entry.file_name().to_str()?).ok()?;
        Some(Claimed { claim: Claim::load(&entry.path())?, key })
    };
    let mut all: Vec<Claimed> = entries.flatten().filter_map(claimed).collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_known_again_after_a_move_and_not_taken_for_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        fs::create_dir(&here).unwrap();
        let before = Inode::of(&here).unwrap();
        fs::rename(&here, &there).unwrap();
        assert!(Inode::of(&there).unwrap().is(&before));
        fs::create_dir(&here).unwrap();
        assert!(!Inode::of(&here).unwrap().is(&before));
        assert_eq!(Inode::of(&dir.path().join("nowhere")), None);
    }

    #[test]
    fn an_inode_that_was_used_again_is_another_directory() {
        let inode = |device, number, born| Inode { device, number, born };
        let one = inode(1, 2, Some(3));
        assert!(one.is(&inode(9, 2, Some(3))), "a device has another number after a boot");
        assert!(!one.is(&inode(1, 2, Some(4))), "born later");
        assert!(!one.is(&inode(1, 7, Some(3))));
        assert!(one.is(&inode(1, 2, None)));
        assert!(!one.is(&inode(9, 2, None)));
    }

    #[test]
    fn claims_of_older_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), r#"{"directory":"/shop"}"#).unwrap();
        let old = Claim::load(dir.path()).unwrap();
        assert_eq!(old.location().path(), Path::new("/shop/firegopher.kdl"));
        assert_eq!((old.name.clone(), old.inode, old.edited), (None, None, None));
        let new = Claim { name: Some(Name::new("shop").unwrap()), inode: Inode::of(dir.path()), ..old };
        for lasting in [false, true] {
            new.save(dir.path(), lasting).unwrap();
            assert_eq!(Claim::load(dir.path()), Some(new.clone()));
        }
    }
}
