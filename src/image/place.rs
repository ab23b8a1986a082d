//! Decides where entries land: over a base's directories and links, over earlier items, inside the root always.

use super::index::{Index, Indexed};
use super::tree::{BASE, Kind, Meta, Node, NodeId, Tree};
use crate::error::{Error, Result};
use std::collections::{HashMap, VecDeque};

/// As many as Linux follows (MAXSYMLINKS).
pub(super) const MOST_LINKS: u32 = 40;

/// Places entries into a tree. Items are begun one after the other; later ones win.
pub(crate) struct Placer<'a> {
    pub tree: Tree,
    base: &'a Index,
    origin: u32,
    /// What the current item is called in errors.
    item: String,
    /// Metadata of directories that nobody declares.
    implicit: Meta,
    /// Where the current item's directories are, by the path as the item writes it.
    dirs: HashMap<Box<str>, Spot>,
    /// What the current item declared, by its own path: hard links name these.
    own: HashMap<Box<str>, NodeId>,
    /// Files that replaced another item's.
    pub replaced: Vec<String>,
    start: Spot,
}

/// A directory: its chain of inodes from the root, and its real path without leading '/'.
#[derive(Debug, Clone)]
struct Spot {
    chain: Vec<NodeId>,
    path: String,
}

impl Spot {
    fn root() -> Self {
        Spot { chain: vec![Tree::ROOT], path: String::new() }
    }

    fn id(&self) -> NodeId {
        *self.chain.last().expect("invariant: a chain starts with the root and only longer ones are popped")
    }

    fn enter(&mut self, name: &str, id: NodeId) {
        self.path = self.join(name);
        self.chain.push(id);
    }

    fn leave(&mut self) {
        if self.chain.len() > 1 {
            self.chain.pop();
            self.path.truncate(self.path.rfind('/').unwrap_or(0));
        }
    }

    fn join(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) }
    }
}

impl<'a> Placer<'a> {
    pub fn new(base: &'a Index) -> Self {
        // Without a base the root is anybody's to describe.
        let origin = if base.get("").is_some() { BASE } else { u32::MAX };
        Placer {
            tree: Tree::new(base.root(), origin),
            base,
            origin: BASE,
            item: String::new(),
            implicit: Meta::root(0o755),
            dirs: HashMap::new(),
            own: HashMap::new(),
            replaced: Vec::new(),
            start: Spot::root(),
        }
    }

    /// Begins an item whose paths are relative to `to` (absolute). Missing directories on the way are 0755 root's;
    /// `to` itself, if missing, gets `top`.
    pub fn begin(&mut self, item: impl Into<String>, to: &str, top: Meta) -> Result<()> {
        self.origin += 1;
        self.item = item.into();
        self.dirs.clear();
        self.own.clear();
        let before = self.tree.slots();
        let spot = self.walk(Spot::root(), parts(to))?;
        // Placed as nobody's: an entry of the item for its own root may still speak.
        if spot.chain.len() > 1 && spot.id().0 as usize >= before && self.tree.node(spot.id()).origin != BASE
        {
            self.tree.node_mut(spot.id()).meta = top;
        }
        self.start = spot;
        Ok(())
    }

    /// The item that was begun last.
    pub fn origin(&self) -> u32 {
        self.origin
    }

    /// Whether a directory is at the absolute path `to` already.
    pub fn is_dir(&mut self, to: &str) -> bool {
        let mut spot = Spot::root();
        let mut pending = parts(to);
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                spot.leave();
                continue;
            }
            let found = self.tree.child(spot.id(), &name).map(|id| match &self.tree.node(id).kind {
                Kind::Dir(_) => Ok(id),
                Kind::Symlink(target) => Err(Some(target.to_string())),
                _ => Err(None),
            });
            let target = match (found, self.base.get(&spot.join(&name))) {
                (Some(Ok(id)), _) => {
                    spot.enter(&name, id);
                    continue;
                }
                (Some(Err(target)), _) => target,
                (None, Some(Indexed::Dir(meta))) => {
                    let (meta, parent) = (meta.clone(), spot.id());
                    let id = self.add_dir(parent, &name, meta, BASE);
                    spot.enter(&name, id);
                    continue;
                }
                (None, Some(Indexed::Symlink(target))) => Some(target.clone()),
                (None, None) => None,
            };
            links += 1;
            match target {
                Some(target) if links <= MOST_LINKS => follow(&mut spot, &mut pending, &target),
                _ => return false,
            }
        }
        true
    }

    /// A directory of the item's: merged with what is there; the base's own keeps its metadata.
    pub fn dir(&mut self, path: &str, meta: Meta) -> Result<()> {
        if path.is_empty() {
            let id = self.start.id();
            return self.declare_dir(id, path, meta);
        }
        let (mut spot, name) = self.parent_of(path)?;
        if is_lost_found(&spot, name) {
            // Every ext4 file system brings its own; archives of mounted ones contain it.
            return Ok(());
        }
        self.step(&mut spot, name, Some(path))?;
        let id = spot.id();
        self.dirs.insert(path.into(), spot);
        self.declare_dir(id, path, meta)
    }

    fn declare_dir(&mut self, id: NodeId, path: &str, meta: Meta) -> Result<()> {
        if let Some(before) = self.own.insert(path.into(), id) {
            // Some archivers repeat a directory; nothing is ambiguous as long as both say the same.
            let same = before == id && (self.tree.node(id).origin == BASE || self.tree.node(id).meta == meta);
            return if same { Ok(()) } else { Err(self.duplicate(path)) };
        }
        let node = self.tree.node_mut(id);
        if node.origin != BASE {
            node.meta = meta;
            node.origin = self.origin;
        }
        Ok(())
    }

    /// Anything but a directory.
    pub fn leaf(&mut self, path: &str, meta: Meta, kind: Kind) -> Result<()> {
        let node = Node { meta, kind, origin: self.origin };
        let (parent, name) = self.room_for(path)?;
        let id = self.tree.add(node);
        self.tree.link(parent, name, id);
        self.own.insert(path.into(), id);
        Ok(())
    }

    /// Another name for a file that the item declared as `target`.
    pub fn hard_link(&mut self, path: &str, target: &str) -> Result<()> {
        let id = match self.own.get(target) {
            Some(id) if !self.tree.node(*id).kind.is_dir() => *id,
            _ => {
                return Err(Error::failed(
                    "archive.hard-link",
                    format!(
                        "{}: {path} is a hard link to {target}, which is no earlier file of it",
                        self.item
                    ),
                ));
            }
        };
        let (parent, name) = self.room_for(path)?;
        self.tree.link(parent, name, id);
        self.own.insert(path.into(), id);
        Ok(())
    }

    /// Makes sure that `path` may be given to a file, and where.
    fn room_for<'p>(&mut self, path: &'p str) -> Result<(NodeId, &'p str)> {
        if self.own.contains_key(path) {
            return Err(self.duplicate(path));
        }
        let (spot, name) = self.parent_of(path)?;
        if is_lost_found(&spot, name) {
            return Err(self.reserved());
        }
        let real = spot.join(name);
        let there = self.tree.child(spot.id(), name).map(|id| self.tree.node(id));
        let is_dir = match there {
            Some(node) if node.origin == self.origin && !node.kind.is_dir() => {
                return Err(self.duplicate(path));
            }
            Some(node) => node.kind.is_dir(),
            None => matches!(self.base.get(&real), Some(Indexed::Dir(_))),
        };
        if is_dir {
            return Err(Error::failed(
                "image.replaces-directory",
                format!("{}: {path} would replace the directory /{real}", self.item),
            )
            .help("choose another `to`, or rename the file"));
        }
        if there.is_some() {
            self.replaced.push(real);
        }
        Ok((spot.id(), name))
    }

    fn duplicate(&self, path: &str) -> Error {
        Error::failed("archive.duplicate", format!("{}: {path} occurs twice", self.item))
            .help("make the archive again: which of the two is meant cannot be told")
    }

    /// The directory above an entry, and the entry's own name.
    fn parent_of<'p>(&mut self, path: &'p str) -> Result<(Spot, &'p str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if dir.is_empty() {
            return Ok((self.start.clone(), name));
        }
        if let Some(spot) = self.dirs.get(dir) {
            return Ok((spot.clone(), name));
        }
        let mut spot = self.start.clone();
        for part in dir.split('/') {
            self.step(&mut spot, part, Some(path))?;
        }
        self.dirs.insert(dir.into(), spot.clone());
        Ok((spot, name))
    }

    /// One plain name down, through links of the base and of earlier items, making directories as needed.
    fn step(&mut self, spot: &mut Spot, name: &str, path: Option<&str>) -> Result<()> {
        let here = std::mem::replace(spot, Spot::root());
        *spot = self.walk_for(here, VecDeque::from([name.to_owned()]), path)?;
        Ok(())
    }

    fn walk(&mut self, spot: Spot, pending: VecDeque<String>) -> Result<Spot> {
        self.walk_for(spot, pending, None)
    }

    fn walk_for(
        &mut self,
        mut spot: Spot,
        mut pending: VecDeque<String>,
        path: Option<&str>,
    ) -> Result<Spot> {
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                spot.leave();
                continue;
            }
            if is_lost_found(&spot, &name) {
                return Err(self.reserved());
            }
            let dir = spot.id();
            let target = match self.tree.child(dir, &name) {
                Some(id) => {
                    let node = self.tree.node(id);
                    let own = node.origin == self.origin;
                    match &node.kind {
                        Kind::Dir(_) => {
                            spot.enter(&name, id);
                            continue;
                        }
                        Kind::Symlink(_) if own => return Err(self.through_link(&spot.join(&name), path)),
                        Kind::Symlink(target) => target.to_string(),
                        _ if own => return Err(self.through_file(&spot.join(&name), path)),
                        _ => {
                            // A directory of a later item takes the place of an earlier item's file.
                            self.replaced.push(spot.join(&name));
                            let (meta, origin) = (self.implicit.clone(), self.origin);
                            let id = self.add_dir(dir, &name, meta, origin);
                            spot.enter(&name, id);
                            continue;
                        }
                    }
                }
                None => match self.base.get(&spot.join(&name)) {
                    Some(Indexed::Symlink(target)) => target.clone(),
                    Some(Indexed::Dir(meta)) => {
                        let meta = meta.clone();
                        let id = self.add_dir(dir, &name, meta, BASE);
                        spot.enter(&name, id);
                        continue;
                    }
                    None => {
                        let (meta, origin) = (self.implicit.clone(), self.origin);
                        let id = self.add_dir(dir, &name, meta, origin);
                        spot.enter(&name, id);
                        continue;
                    }
                },
            };
            links += 1;
            if links > MOST_LINKS {
                return Err(Error::failed(
                    "image.link-loop",
                    format!("{}: too many symbolic links at /{}", self.item, spot.join(&name)),
                ));
            }
            follow(&mut spot, &mut pending, &target);
        }
        Ok(spot)
    }

    fn add_dir(&mut self, parent: NodeId, name: &str, meta: Meta, origin: u32) -> NodeId {
        let id = self.tree.add(Node { meta, kind: Kind::Dir(Default::default()), origin });
        self.tree.link(parent, name, id);
        id
    }

    fn reserved(&self) -> Error {
        Error::failed("image.reserved-name", format!("{}: /lost+found belongs to the file system", self.item))
            .help("leave it out")
    }

    fn through_link(&self, link: &str, path: Option<&str>) -> Error {
        Error::failed(
            "archive.through-link",
            format!(
                "{}: {} goes through /{link}, a link of the same archive",
                self.item,
                path.unwrap_or(link)
            ),
        )
        .help("make the archive again with the files at their real places")
    }

    fn through_file(&self, file: &str, path: Option<&str>) -> Error {
        Error::failed(
            "archive.through-file",
            format!("{}: {} is beneath /{file}, which is not a directory", self.item, path.unwrap_or(file)),
        )
    }
}

fn is_lost_found(spot: &Spot, name: &str) -> bool {
    spot.chain.len() == 1 && name == "lost+found"
}

/// Continues at a link's target. Above the root is the root, as in the guest.
fn follow(spot: &mut Spot, pending: &mut VecDeque<String>, target: &str) {
    if target.starts_with('/') {
        *spot = Spot::root();
    }
    for part in parts(target).into_iter().rev() {
        pending.push_front(part);
    }
}

/// The names of a path; empty ones and "." dropped, ".." kept.
pub(super) fn parts(path: &str) -> VecDeque<String> {
    path.split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned).collect()
}
