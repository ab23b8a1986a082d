//! The index of a base image: its directories and symlinks, so that a workload can be placed over the base
//! without reading it. Compact JSON, sorted, deterministic.

use super::superblock;
use super::tree::{Kind, Meta, Node, NodeId, Tree};
use crate::digest::hex;
use crate::error::{Context, Error, Result};
use fs_err as fs;
use mkext4::reader::Fs;
use mkext4::spec::inode::{FileType, Inode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::path::Path;

const FORMAT: u32 = 1;

/// What the index says about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Indexed {
    Dir(Meta),
    Symlink(String),
}

/// A base's directories and symlinks by path, without leading '/'; the root is "".
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Index(HashMap<String, Indexed>);

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    /// path, mode, uid, gid, mtime in seconds.
    dirs: Vec<(String, u16, u32, u32, i64)>,
    /// path, target.
    links: Vec<(String, String)>,
    /// path, attribute, value in hexadecimal.
    #[serde(default)]
    xattrs: Vec<(String, String, String)>,
}

impl Index {
    pub fn get(&self, path: &str) -> Option<&Indexed> {
        self.0.get(path)
    }

    pub fn insert(&mut self, path: impl Into<String>, entry: Indexed) {
        self.0.insert(path.into(), entry);
    }

    /// The root directory's metadata.
    pub fn root(&self) -> Meta {
        match self.get("") {
            Some(Indexed::Dir(meta)) => meta.clone(),
            _ => Meta::root(0o755),
        }
    }

    pub fn of_tree(tree: &Tree) -> Index {
        let mut index = Index::default();
        index.insert("", Indexed::Dir(tree.node(Tree::ROOT).meta.clone()));
        let done: Result<(), Infallible> = tree.walk(|_, _, id: NodeId, path| {
            let Node { meta, kind, .. } = tree.node(id);
            match kind {
                Kind::Dir(_) => index.insert(path, Indexed::Dir(meta.clone())),
                Kind::Symlink(target) => index.insert(path, Indexed::Symlink(target.to_string())),
                _ => {}
            }
            Ok(())
        });
        match done {
            Ok(()) => index,
        }
    }

    /// Reads the directories and symlinks of an ext4 image of the user's.
    pub fn of_ext4(image: &Path) -> Result<Index> {
        let code = "image.ext4-unreadable";
        let say = || format!("cannot read {} as an ext4 file system", image.display());
        let file = fs::File::open(image).or_failed(code, say)?;
        superblock::check(&file)?;
        let fs = Fs::open(file.into_parts().0).or_failed(code, say)?;
        let mut index = Index::default();
        let mut seen = HashSet::new();
        let mut pending = vec![(mkext4::spec::ROOT_INO, String::new())];
        while let Some((ino, path)) = pending.pop() {
            // A damaged or hostile image may name a directory twice, or within itself.
            if !seen.insert(ino) {
                return Err(Error::failed(
                    code,
                    format!("{}: the directory /{path} has two names", image.display()),
                )
                .help("check the image with `e2fsck -fn`"));
            }
            let inode = fs.inode(ino).or_failed(code, say)?;
            index.insert(path.clone(), Indexed::Dir(meta_of(&fs, ino, &inode).or_failed(code, say)?));
            for entry in fs.read_dir(ino).or_failed(code, say)? {
                if entry.inode == 0 || entry.name == b"." || entry.name == b".." {
                    continue;
                }
                let Ok(name) = String::from_utf8(entry.name) else { continue };
                if path.is_empty() && name == "lost+found" {
                    continue;
                }
                let child = if path.is_empty() { name } else { format!("{path}/{name}") };
                // File types are told by the inode: not every file system records them in the directory.
                let known = entry.file_type;
                if !matches!(known, 0 | mkext4::spec::file_type::DIR | mkext4::spec::file_type::SYMLINK) {
                    continue;
                }
                match fs.inode(entry.inode).or_failed(code, say)?.file_type() {
                    FileType::Dir => pending.push((entry.inode, child)),
                    FileType::Symlink => {
                        let target = fs.symlink_target(entry.inode).or_failed(code, say)?;
                        if let Ok(target) = String::from_utf8(target) {
                            index.insert(child, Indexed::Symlink(target));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(index)
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let mut document =
            Document { format: FORMAT, dirs: Vec::new(), links: Vec::new(), xattrs: Vec::new() };
        for (path, entry) in self.0.iter().collect::<BTreeMap<_, _>>() {
            match entry {
                Indexed::Dir(meta) => {
                    document.dirs.push((path.clone(), meta.mode, meta.uid, meta.gid, meta.mtime.0));
                    for (name, value) in &meta.xattrs {
                        document.xattrs.push((path.clone(), name.clone(), hex(value)));
                    }
                }
                Indexed::Symlink(target) => document.links.push((path.clone(), target.clone())),
            }
        }
        let bytes =
            serde_json::to_vec(&document).map_err(|e| Error::bug("an index is not JSON").because(e))?;
        fs::write(path, bytes).or_failed("image.write", || format!("cannot write {}", path.display()))
    }

    pub fn load(path: &Path) -> Result<Index> {
        let bad = || format!("cannot read the base's index {}", path.display());
        let bytes = fs::read(path).or_failed("image.index", bad)?;
        let document: Document = serde_json::from_slice(&bytes).or_failed("image.index", bad)?;
        if document.format != FORMAT {
            return Err(Error::failed(
                "image.index",
                format!("{}: unknown format {}", bad(), document.format),
            ));
        }
        let mut index = Index(HashMap::with_capacity(document.dirs.len() + document.links.len()));
        for (path, mode, uid, gid, seconds) in document.dirs {
            index
                .insert(path, Indexed::Dir(Meta { mode, uid, gid, mtime: (seconds, 0), xattrs: Vec::new() }));
        }
        for (path, target) in document.links {
            index.insert(path, Indexed::Symlink(target));
        }
        for (dir, name, value) in document.xattrs {
            if let (Some(Indexed::Dir(meta)), Some(value)) = (index.0.get_mut(&dir), unhex(&value)) {
                meta.xattrs.push((name, value));
            }
        }
        Ok(index)
    }
}

fn meta_of(fs: &Fs<std::fs::File>, ino: u32, inode: &Inode) -> mkext4::Result<Meta> {
    let mut xattrs = Vec::new();
    for entry in fs.xattrs(ino)? {
        // Access lists are stored in a form of their own that cannot be given back through a plain name.
        if let Some(Ok(name)) = entry.full_name().map(String::from_utf8)
            && !name.starts_with("system.")
        {
            xattrs.push((name, entry.value));
        }
    }
    xattrs.sort();
    let (seconds, _) = Inode::timestamp(inode.mtime, inode.mtime_extra);
    Ok(Meta { mode: inode.mode & 0o7777, uid: inode.uid, gid: inode.gid, mtime: (seconds, 0), xattrs })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
