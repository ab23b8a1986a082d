//! Facts about whole images: built, checked with e2fsck and read back.

mod archives;
mod bases;
mod kernels;
mod layers;
mod random;

use super::index::Index;
use super::tree::Meta;
use mkext4::reader::Fs;
use mkext4::spec::Inode;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A scratch directory with an empty base index in it.
pub(super) struct Bench {
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Bench { dir: tempfile::tempdir().unwrap() }
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }
    pub fn scratch(&self) -> PathBuf {
        self.make_dir("scratch")
    }
    pub fn empty_index(&self) -> PathBuf {
        let path = self.path("index.json");
        let mut index = Index::default();
        index.insert("", super::index::Indexed::Dir(Meta::root(0o755)));
        index.save(&path).unwrap();
        path
    }
}

/// An image opened for reading, after e2fsck found nothing.
pub(super) struct Image {
    fs: Fs<std::fs::File>,
}

impl Image {
    pub fn open(path: &Path) -> Image {
        check(path);
        let fs = Fs::open(std::fs::File::open(path).unwrap()).unwrap();
        assert_eq!(fs.verify().unwrap(), []);
        Image { fs }
    }
    pub fn inode(&self, path: &str) -> Inode {
        self.fs.inode(self.number(path)).unwrap()
    }
    pub fn number(&self, path: &str) -> u32 {
        self.fs.resolve(path).unwrap_or_else(|e| panic!("{path}: {e}"))
    }
    pub fn has(&self, path: &str) -> bool {
        self.fs.resolve(path).is_ok()
    }
    pub fn read(&self, path: &str) -> Vec<u8> {
        self.fs.read_file(self.number(path)).unwrap()
    }
    pub fn target(&self, path: &str) -> String {
        String::from_utf8(self.fs.symlink_target(self.number(path)).unwrap()).unwrap()
    }
    /// type and mode, uid, gid
    pub fn owner(&self, path: &str) -> (u16, u32, u32) {
        let inode = self.inode(path);
        (inode.mode, inode.uid, inode.gid)
    }
    pub fn xattrs(&self, path: &str) -> Vec<(String, Vec<u8>)> {
        let list = self.fs.xattrs(self.number(path)).unwrap();
        list.into_iter().map(|x| (String::from_utf8(x.full_name().unwrap()).unwrap(), x.value)).collect()
    }
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = self.fs.read_dir(self.number(path)).unwrap();
        let mut names: Vec<_> = entries.into_iter().map(|e| String::from_utf8(e.name).unwrap()).collect();
        names.retain(|n| n != "." && n != "..");
        names.sort();
        names
    }
}

/// `e2fsck -fn` must find nothing to mend.
pub(super) fn check(path: &Path) {
    let Some(tool) = tool("e2fsck") else {
        println!("skipped: no e2fsck");
        return;
    };
    let out = Command::new(tool).arg("-fn").arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
}

/// An e2fsprogs tool; these are in sbin, which an ordinary user's PATH lacks.
pub(super) fn tool(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists())
}
