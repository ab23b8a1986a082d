//! Puts the layers of a container image on top of each other: whiteouts, opaque directories and replaced files as the
//! OCI image specification (layer.md) has them. Unlike in other archives the last of two entries wins.

use super::archive::{self, Account, Entry, EntryKind, Limits};
use super::place::{MOST_LINKS, parts};
use super::tree::{Kind, Meta, Node, NodeId, Tree};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Begins the name of an entry that hides what a lower layer has under the rest of the name.
const WHITEOUT: &str = ".wh.";
/// Hides all that lower layers have in its directory.
const OPAQUE: &str = ".wh..wh..opq";
/// Begins the names of AUFS's own bookkeeping, of which only [`OPAQUE`] means anything.
const BOOKKEEPING: &str = ".wh..wh.";

/// Where AUFS keeps files that have several names.
const PUT_ASIDE: &str = ".wh..wh.plnk/";

/// A layer of a container image.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its blob: a tar, plain or compressed with gzip or zstd.
    pub path: PathBuf,
    /// `sha256:…` of the blob, which whoever took it in has checked.
    pub blob: String,
    /// `sha256:…` of the tar, once it is no longer compressed, if the image's configuration says it (`diff_ids`).
    pub diff_id: Option<String>,
}

impl Layer {
    /// Compares what the layer unpacks to with what it should.
    pub(super) fn check(&self, found: &str) -> Result<()> {
        let Some(wanted) = self.diff_id.as_ref().filter(|wanted| *wanted != found) else { return Ok(()) };
        let shown = self.path.display();
        Err(Error::failed(
            "oci.diff-id",
            format!("{shown} unpacks to {found}, and the image's configuration says {wanted}"),
        )
        .help("the image was made wrongly or was changed: make or fetch it again, from whom you trust"))
    }
}

/// The tree that `layers`, lowest first, make up. All of them together are held to one archive's limits.
pub(super) fn assemble(layers: &[Layer], scratch_dir: &Path, limits: Limits) -> Result<Tree> {
    let read = read_all(layers, scratch_dir, &Account::rooted(limits))?;
    let mut stack = Stack {
        tree: Tree::new(Meta::root(0o755), 0),
        name: String::new(),
        dirs: HashMap::new(),
        own: HashSet::new(),
        aside: HashMap::new(),
    };
    for (layer, entries) in layers.iter().zip(read) {
        stack.apply(layer.path.display().to_string(), entries)?;
    }
    Ok(stack.tree)
}

/// Reads all indexes, compressed layers side by side and the largest first.
fn read_all(layers: &[Layer], scratch_dir: &Path, account: &Account) -> Result<Vec<Vec<Entry>>> {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|index| {
        std::cmp::Reverse(fs_err::metadata(&layers[*index].path).map_or(0, |meta| meta.len()))
    });
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(layers.len()));
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get()).min(8).min(layers.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = archive::read_layer(&layers[*index], scratch_dir, account);
                    let failed = result.is_err();
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((*index, result));
                    if failed {
                        // Nobody will want the rest.
                        next.store(order.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The layers so far.
struct Stack {
    tree: Tree,
    /// The current layer, for errors.
    name: String,
    /// Where the directories that entries name are, links followed; forgotten when a link or directory goes away.
    dirs: HashMap<Box<str>, NodeId>,
    /// The names (directory and name in it) that the current layer has given, and those on the way to them.
    own: HashSet<(NodeId, Box<str>)>,
    /// The files that the current layer has put aside, by their paths.
    aside: HashMap<Box<str>, NodeId>,
}

impl Stack {
    fn apply(&mut self, name: String, entries: Vec<Entry>) -> Result<()> {
        self.name = name;
        self.dirs.clear();
        self.own.clear();
        self.aside.clear();
        // In the archive's order: a directory that takes a link's place must do so before whiteouts are looked up
        // in it, or they would hide what is behind the link.
        for entry in entries {
            match is_marker(&entry.path) {
                true if entry.path.starts_with(PUT_ASIDE) => self.put_aside(entry),
                true => self.whiteout(&entry.path)?,
                false => self.place(entry)?,
            }
        }
        Ok(())
    }

    /// Keeps a file of which AUFS has several names: hard links of its layer name it, and nothing else does.
    fn put_aside(&mut self, Entry { path, meta, kind }: Entry) {
        if let EntryKind::Leaf(kind @ Kind::File { .. }) = kind {
            let id = self.tree.add(Node { meta, kind, origin: 0 });
            self.aside.insert(path.into(), id);
        }
    }

    fn whiteout(&mut self, path: &str) -> Result<()> {
        let (dir, name) = split(path);
        let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(()) };
        if name.starts_with(BOOKKEEPING) && name != OPAQUE {
            return Ok(());
        }
        if matches!(hidden, "" | "." | "..") {
            return Err(Error::failed(
                "archive.whiteout",
                format!("{}: the whiteout {path} names nothing that could be hidden", self.name),
            ));
        }
        let Some(dir) = self.find_dir(dir, path, false)? else { return Ok(()) };
        let names = if name == OPAQUE { self.names(dir) } else { vec![hidden.into()] };
        self.hide(dir, names);
        self.dirs.clear();
        Ok(())
    }

    /// Takes names away unless the current layer has given them: whiteouts hide what is below their layer, never what
    /// is in it, wherever in the archive they stand. Of a directory that stays the rest is looked at.
    fn hide(&mut self, dir: NodeId, names: Vec<Box<str>>) {
        // An explicit stack: untrusted archives control the depth.
        let mut pending = vec![(dir, names)];
        while let Some((dir, names)) = pending.pop() {
            for name in names {
                let Some(id) = self.tree.child(dir, &name) else { continue };
                let key = (dir, name);
                if self.own.contains(&key) {
                    pending.push((id, self.names(id)));
                } else if let Kind::Dir(children) = &mut self.tree.node_mut(dir).kind {
                    children.remove(&key.1);
                }
            }
        }
    }

    fn names(&self, dir: NodeId) -> Vec<Box<str>> {
        self.tree.children(dir).map(|(name, _)| name.into()).collect()
    }

    fn place(&mut self, Entry { path, meta, kind }: Entry) -> Result<()> {
        let (dir, name) = split(&path);
        let parent = self.found(dir, &path)?;
        if name.is_empty() {
            // Only a directory can be the root: the archive reader has seen to that.
            self.tree.node_mut(Tree::ROOT).meta = meta;
            return Ok(());
        }
        let there = self.tree.child(parent, name);
        if parent == Tree::ROOT && name == "lost+found" {
            // Every ext4 file system brings its own; images made from mounted ones contain it.
            return if matches!(kind, EntryKind::Dir) { Ok(()) } else { Err(self.reserved()) };
        }
        let id = match kind {
            EntryKind::Dir => match there.filter(|id| self.tree.node(*id).kind.is_dir()) {
                Some(id) => {
                    self.own.insert((parent, name.into()));
                    self.tree.node_mut(id).meta = meta;
                    return Ok(());
                }
                None => self.tree.add(Node { meta, kind: Kind::Dir(Default::default()), origin: 0 }),
            },
            EntryKind::Leaf(kind) => self.tree.add(Node { meta, kind, origin: 0 }),
            EntryKind::HardLink(target) => self.link_target(&path, &target)?,
        };
        self.own.insert((parent, name.into()));
        if there.is_some_and(|id| matches!(self.tree.node(id).kind, Kind::Dir(_) | Kind::Symlink(_))) {
            self.dirs.clear();
        }
        self.tree.link(parent, name, id);
        Ok(())
    }

    /// The file that a hard link names, of this layer or a lower one.
    fn link_target(&mut self, path: &str, target: &str) -> Result<NodeId> {
        let (dir, name) = split(target);
        let dir = self.find_dir(dir, path, false)?;
        let id = match self.aside.get(target) {
            Some(id) => Some(*id),
            None => dir.and_then(|dir| self.tree.child(dir, name)),
        };
        id.filter(|id| !self.tree.node(*id).kind.is_dir()).ok_or_else(|| {
            Error::failed(
                "archive.hard-link",
                format!(
                    "{}: {path} is a hard link to {target}, which is no file of this layer or one below it",
                    self.name
                ),
            )
        })
    }

    /// The directory `dir`, made if it is missing, for the entry `path`.
    fn found(&mut self, dir: &str, path: &str) -> Result<NodeId> {
        let found = self.find_dir(dir, path, true)?;
        Ok(found.expect("invariant: a directory that may be made is found or an error"))
    }

    /// Follows `dir` from the root, through links, which cannot lead out of it.
    fn find_dir(&mut self, dir: &str, path: &str, make: bool) -> Result<Option<NodeId>> {
        if dir.is_empty() {
            return Ok(Some(Tree::ROOT));
        }
        if make && let Some(id) = self.dirs.get(dir) {
            return Ok(Some(*id));
        }
        let mut chain = vec![Tree::ROOT];
        // Names below the chain that are not there: a link may go through one and up again.
        let mut missing: Vec<String> = Vec::new();
        let mut pending = parts(dir);
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            let here = *chain.last().expect("invariant: the root is never popped");
            if name == ".." {
                // Above the root is the root, as in the guest.
                if missing.pop().is_none() && chain.len() > 1 {
                    chain.pop();
                }
                continue;
            }
            if make && missing.is_empty() && here == Tree::ROOT && name == "lost+found" {
                return Err(self.reserved());
            }
            let child = if missing.is_empty() { self.tree.child(here, &name) } else { None };
            let Some(id) = child else {
                missing.push(name);
                continue;
            };
            if make {
                self.own.insert((here, name.as_str().into()));
            }
            match &self.tree.node(id).kind {
                Kind::Dir(_) => chain.push(id),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Error::failed(
                            "image.link-loop",
                            format!("{}: too many symbolic links on the way to {path}", self.name),
                        ));
                    }
                    if target.starts_with('/') {
                        chain.truncate(1);
                    }
                    for part in parts(target).into_iter().rev() {
                        pending.push_front(part);
                    }
                }
                _ if make => {
                    return Err(Error::failed(
                        "archive.through-file",
                        format!("{}: {path} is beneath {name}, which is not a directory", self.name),
                    ));
                }
                _ => return Ok(None),
            }
        }
        let mut id = *chain.last().expect("invariant: the root is never popped");
        if !make {
            return Ok(missing.is_empty().then_some(id));
        }
        for name in missing {
            let (meta, kind) = (Meta::root(0o755), Kind::Dir(Default::default()));
            let made = self.tree.add(Node { meta, kind, origin: 0 });
            self.tree.link(id, &name, made);
            self.own.insert((id, name.into()));
            id = made;
        }
        self.dirs.insert(dir.into(), id);
        Ok(Some(id))
    }

    fn reserved(&self) -> Error {
        Error::failed("image.reserved-name", format!("{}: /lost+found belongs to the file system", self.name))
            .help("build the image without it")
    }
}

/// Whether an entry is no file but says something about lower layers, or is below AUFS's bookkeeping.
fn is_marker(path: &str) -> bool {
    split(path).1.starts_with(WHITEOUT) || path.split('/').any(|part| part.starts_with(BOOKKEEPING))
}

/// The directory's path and the last name; both empty for the root.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}
