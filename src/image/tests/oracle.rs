//! What other programs make of the same bytes: GNU tar unpacks, the kernel mounts, and both trees are compared entry
//! by entry. Nothing of our own readers takes part.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// All that `lstat`, `readlink`, `read` and `lgetxattr` tell of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fact {
    /// With the file type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: u64,
    pub size: u64,
    pub time: (i64, i64),
    /// The first of its names, where it has several.
    pub same_as: Option<String>,
    /// Digest of contents, or a link's target.
    pub content: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

pub(super) type Facts = BTreeMap<String, Fact>;

/// The facts of all that is below `root`, which is "".
pub(super) fn facts(root: &Path) -> Facts {
    let mut facts = Facts::new();
    let mut first: HashMap<u64, String> = HashMap::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if name == "lost+found" || name.starts_with("lost+found/") {
            continue;
        }
        let meta = path.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let content = if kind.is_symlink() {
            std::fs::read_link(path).unwrap().to_str().unwrap().to_owned()
        } else if kind.is_file() {
            blake3::hash(&std::fs::read(path).unwrap()).to_string()
        } else {
            String::new()
        };
        let mut same_as = None;
        if !kind.is_dir() && meta.nlink() > 1 {
            let first = first.entry(meta.ino()).or_insert_with(|| name.clone());
            same_as = Some(first.clone());
        }
        let fact = Fact {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            device: meta.rdev(),
            // A directory's is its file system's affair.
            size: if kind.is_dir() { 0 } else { meta.size() },
            time: (meta.mtime(), meta.mtime_nsec()),
            same_as,
            content,
            xattrs: xattrs(path),
        };
        facts.insert(name, fact);
    }
    facts
}

/// Every difference, at most some.
#[track_caller]
pub(super) fn assert_same(found: &Facts, wanted: &Facts) {
    let names: std::collections::BTreeSet<&String> = found.keys().chain(wanted.keys()).collect();
    let differences: Vec<String> = names
        .into_iter()
        .filter(|name| found.get(*name) != wanted.get(*name))
        .map(|name| format!("{name:?}:\n  found  {:?}\n  wanted {:?}", found.get(name), wanted.get(name)))
        .collect();
    let some = differences.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
    assert!(differences.is_empty(), "{} differences:\n{some}", differences.len());
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut names = vec![0_u8; 64 << 10];
    // SAFETY: the path ends in NUL, and the buffer has the length that is given.
    let length = unsafe { libc::llistxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(length).unwrap_or(0));
    let mut found = BTreeMap::new();
    for name in names.split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let c_name = CString::new(name).unwrap();
        let mut value = vec![0_u8; 64 << 10];
        // SAFETY: both strings end in NUL, and the buffer has the length that is given.
        let length = unsafe {
            libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        value.truncate(usize::try_from(length).expect("it was listed"));
        found.insert(String::from_utf8(name.to_vec()).unwrap(), value);
    }
    found
}

/// Why these programs cannot be asked here. Tried once, by mounting a real image: loop devices may be there and mounts
/// forbidden.
pub(super) fn lacking() -> Option<&'static str> {
    static WHY: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    WHY.get_or_init(try_out).as_deref()
}

fn try_out() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root can unpack owners and mount".to_owned());
    }
    let tar = Command::new("tar").arg("--version").output();
    if !tar.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("GNU tar")) {
        return Some("no GNU tar".to_owned());
    }
    let dir = tempfile::tempdir().unwrap();
    let (image, at) = (dir.path().join("image"), dir.path().join("mounted"));
    crate::image::create_empty(&image, 32 << 20, crate::image::Role::Scratch).unwrap();
    match Mounted::try_new(&image, &at) {
        Ok(_) => None,
        Err(why) => Some(format!("no image can be mounted: {why}")),
    }
}

/// Unpacks by GNU tar, with all it can restore.
pub(super) fn unpack(tar: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let args = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore", "-xpf"];
    let out = Command::new("tar").arg("-C").arg(to).args(args).arg(tar).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Packs a tree by GNU tar, in the order in which its directories list.
pub(super) fn pack(tree: &Path, tar: &Path) {
    let args = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=pax", "-cf"];
    let out = Command::new("tar").arg("-C").arg(tree).args(args).arg(tar).arg(".").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// An image that the kernel has mounted read-only, until dropped.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub fn new(image: &Path, at: &Path) -> Mounted {
        super::check(image);
        Mounted::try_new(image, at).unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_new(image: &Path, at: &Path) -> Result<Mounted, String> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        let out = mount.args(["-t", "ext4", "-o", "loop,ro"]).arg(image).arg(at).output();
        match out {
            Ok(out) if out.status.success() => Ok(Mounted(at.to_owned())),
            Ok(out) => Err(String::from_utf8_lossy(&out.stderr).trim().to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
