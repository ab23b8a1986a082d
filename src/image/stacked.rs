//! Looks into built images as the guest will see them, one stacked over the other, without mounting.

use crate::error::{Context, Result};
use fs_err as fs;
use mkext4::reader::{DirEntry, FileExtent, Fs};
use mkext4::spec::inode::{FileType, Inode};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

/// As many links as Linux follows (MAXSYMLINKS of linux/namei.h).
const LINKS: u32 = 40;

/// Read-only images, the lowest first.
pub struct Stacked {
    layers: Vec<Layer>,
}

struct Layer {
    fs: Fs<std::fs::File>,
    /// The names in directories that were looked into.
    dirs: RefCell<HashMap<u32, Rc<Names>>>,
}

/// The inodes in a directory by their names.
type Names = HashMap<Vec<u8>, u32>;

/// Where a path leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// Nothing has this name.
    Nothing,
    /// The way there leads through something that is no directory.
    NotThere,
    /// It leads to where something else is mounted, or in a circle.
    Unknown,
    /// An inode.
    Inode(Entry<'a>),
}

/// An inode of one of the images.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    layer: &'a Layer,
    inode: u32,
}

impl std::fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "inode {}", self.inode)
    }
}

impl PartialEq for Entry<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.layer, other.layer) && self.inode == other.inode
    }
}

impl Eq for Entry<'_> {}

impl Stacked {
    /// Opens images, the lowest first.
    ///
    /// # Errors
    /// `image.ext4-unreadable`.
    pub fn open(images: &[&Path]) -> Result<Stacked> {
        let open = |path: &&Path| {
            let say = || format!("cannot read {} as an ext4 file system", path.display());
            let file = fs::File::open(path).or_failed("image.ext4-unreadable", say)?;
            let fs = Fs::open(file.into_parts().0).or_failed("image.ext4-unreadable", say)?;
            Ok(Layer { fs, dirs: RefCell::default() })
        };
        Ok(Stacked { layers: images.iter().map(open).collect::<Result<_>>()? })
    }

    /// Follows an absolute path, links included. `hidden` says at which real paths something is mounted.
    ///
    /// # Errors
    /// The images'.
    pub fn find(&self, path: &str, hidden: &dyn Fn(&str) -> bool) -> mkext4::Result<Found<'_>> {
        Ok(match self.walk(path, hidden)? {
            End::Nothing(_) => Found::Nothing,
            End::NotThere => Found::NotThere,
            End::Unknown => Found::Unknown,
            End::Leaf(_, entry) => Found::Inode(entry),
            End::Dir(_, dirs) => {
                let top = dirs.iter().enumerate().rev().find_map(|(at, dir)| Some((at, (*dir)?)));
                top.map_or(Found::Nothing, |(at, inode)| {
                    Found::Inode(Entry { layer: &self.layers[at], inode })
                })
            }
        })
    }

    /// The names in a directory, of all layers; none in anything else.
    ///
    /// # Errors
    /// The images'.
    pub fn names(&self, path: &str, hidden: &dyn Fn(&str) -> bool) -> mkext4::Result<Vec<String>> {
        let End::Dir(_, dirs) = self.walk(path, hidden)? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for (layer, dir) in self.layers.iter().zip(dirs) {
            let Some(dir) = dir else { continue };
            all.extend(layer.names(dir)?.keys().filter_map(|name| String::from_utf8(name.clone()).ok()));
        }
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// Where a path really is, once the links in it are followed. What is not there would be made in the last directory
    /// that is.
    ///
    /// # Errors
    /// The images'.
    pub fn real(&self, path: &str) -> mkext4::Result<String> {
        Ok(match self.walk(path, &|_| false)? {
            End::Nothing(real) | End::Dir(real, _) | End::Leaf(real, _) => real,
            End::NotThere | End::Unknown => path.to_owned(),
        })
    }

    fn walk(&self, path: &str, hidden: &dyn Fn(&str) -> bool) -> mkext4::Result<End<'_>> {
        let mut pending: Vec<String> = parts(path).rev().map(str::to_owned).collect();
        // The directories that the path so far is made of: a name, and what each layer has there.
        let mut chain: Vec<(String, Dirs)> = Vec::new();
        let root: Dirs = self.layers.iter().map(|_| Some(mkext4::spec::ROOT_INO)).collect();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                chain.pop();
                continue;
            }
            let here = chain.last().map_or(&root, |(_, dirs)| dirs);
            let full = joined(&chain, Some(&name));
            if hidden(&full) {
                return Ok(End::Unknown);
            }
            let Some((at, number, merged)) = self.child(here, &name)? else {
                // What is mounted below it has its mount point made.
                let mut path = full;
                for name in pending.iter().rev() {
                    path = path + "/" + name;
                    if hidden(&path) {
                        return Ok(End::Unknown);
                    }
                }
                return Ok(End::Nothing(path));
            };
            let layer = &self.layers[at];
            match layer.fs.inode(number)?.file_type() {
                FileType::Dir => chain.push((name, merged)),
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS {
                        return Ok(End::Unknown);
                    }
                    let target = String::from_utf8_lossy(&layer.fs.symlink_target(number)?).into_owned();
                    if target.starts_with('/') {
                        chain.clear();
                    }
                    pending.extend(parts(&target).rev().map(str::to_owned));
                }
                _ if pending.is_empty() => return Ok(End::Leaf(full, Entry { layer, inode: number })),
                _ => return Ok(End::NotThere),
            }
        }
        let real = joined(&chain, None);
        Ok(End::Dir(real, chain.pop().map_or(root, |(_, dirs)| dirs)))
    }

    /// What has this name in a directory: its layer and inode, and if it is a directory what each layer has there.
    fn child(&self, dirs: &Dirs, name: &str) -> mkext4::Result<Option<(usize, u32, Dirs)>> {
        let mut decided = None;
        let mut merged = vec![None; self.layers.len()];
        // The highest layer that has the name decides; directories below a directory are merged with it.
        for (at, dir) in dirs.iter().enumerate().rev() {
            let Some(dir) = dir else { continue };
            let layer = &self.layers[at];
            let Some(number) = layer.names(*dir)?.get(name.as_bytes()).copied() else { continue };
            let is_dir = layer.fs.inode(number)?.file_type() == FileType::Dir;
            if is_dir {
                merged[at] = Some(number);
            }
            decided = decided.or(Some((at, number)));
            // What is below a file is hidden, and so is all that is below a directory's file.
            if !is_dir {
                break;
            }
        }
        Ok(decided.map(|(at, number)| (at, number, merged)))
    }
}

/// What each layer has of one directory.
type Dirs = Vec<Option<u32>>;

enum End<'a> {
    /// With the real path of what is not there.
    Nothing(String),
    NotThere,
    Unknown,
    /// With its real path, as below.
    Leaf(String, Entry<'a>),
    Dir(String, Dirs),
}

fn joined(chain: &[(String, Dirs)], name: Option<&str>) -> String {
    let names = chain.iter().map(|(name, _)| name.as_str()).chain(name);
    names.fold(String::new(), |path, name| path + "/" + name)
}

impl Layer {
    fn names(&self, dir: u32) -> mkext4::Result<Rc<Names>> {
        if let Some(names) = self.dirs.borrow().get(&dir) {
            return Ok(Rc::clone(names));
        }
        let listed = self.fs.read_dir(dir)?.into_iter().filter(|entry| entry.inode != 0);
        let names = Rc::new(listed.map(|DirEntry { inode, name, .. }| (name, inode)).collect());
        self.dirs.borrow_mut().insert(dir, Rc::clone(&names));
        Ok(names)
    }
}

impl Entry<'_> {
    fn inode(&self) -> mkext4::Result<Inode> {
        self.layer.fs.inode(self.inode)
    }

    /// Whether it is a directory.
    ///
    /// # Errors
    /// The image's.
    pub fn is_dir(&self) -> mkext4::Result<bool> {
        Ok(self.inode()?.file_type() == FileType::Dir)
    }

    /// Whether it is a regular file that somebody may execute.
    ///
    /// # Errors
    /// The image's.
    pub fn is_executable(&self) -> mkext4::Result<bool> {
        Ok(self.inode()?.mode & 0o111 != 0)
    }

    /// A regular file's bytes, to be read in pieces; `None` of anything else.
    ///
    /// # Errors
    /// The image's.
    pub fn open(&self) -> mkext4::Result<Option<Contents<'_>>> {
        let inode = self.inode()?;
        if inode.file_type() != FileType::Regular {
            return Ok(None);
        }
        let extents = self.layer.fs.extents(self.inode, &inode)?;
        Ok(Some(Contents { fs: &self.layer.fs, inode, extents }))
    }
}

/// The bytes of a regular file.
pub struct Contents<'a> {
    fs: &'a Fs<std::fs::File>,
    inode: Inode,
    extents: Vec<FileExtent>,
}

impl Contents<'_> {
    /// In bytes.
    pub fn size(&self) -> u64 {
        self.inode.size
    }

    /// At most `length` bytes from `offset` on; fewer where the file ends.
    ///
    /// # Errors
    /// The image's.
    pub fn read(&self, offset: u64, length: usize) -> mkext4::Result<Vec<u8>> {
        let left = self.inode.size.saturating_sub(offset);
        let mut bytes = vec![0; length.min(usize::try_from(left).unwrap_or(usize::MAX))];
        let got = self.fs.read_file_at(&self.inode, &self.extents, offset, &mut bytes)?;
        bytes.truncate(got);
        Ok(bytes)
    }
}

/// The names of a path; empty ones and "." dropped, ".." kept.
fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "."))
}
