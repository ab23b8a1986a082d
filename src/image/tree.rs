//! The in-memory file tree that becomes an image: an arena of inodes, so that hard links are several names of one.

use super::content::Content;
use std::collections::BTreeMap;

/// The modification time of everything whose own is no part of its identity: 1980-01-01, because zip (and so
/// Python's wheels) cannot say anything earlier.
pub(crate) const CONSTANT_TIME: i64 = 315_532_800;

/// Everything an inode carries besides its kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permission bits, special bits included (0o7777).
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Full names (`user.a`) and values, sorted by name.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Meta {
    /// Root-owned, without xattrs, at the constant time.
    pub fn root(mode: u16) -> Self {
        Meta { mode, mtime: (CONSTANT_TIME, 0), ..Meta::default() }
    }
}

/// What an inode is.
#[derive(Debug)]
pub(crate) enum Kind {
    Dir(BTreeMap<Box<str>, NodeId>),
    File { size: u64, content: Content },
    Symlink(Box<str>),
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
    Fifo,
}

impl Kind {
    pub fn is_dir(&self) -> bool {
        matches!(self, Kind::Dir(_))
    }
}

/// An inode and who put it there.
#[derive(Debug)]
pub(crate) struct Node {
    pub meta: Meta,
    pub kind: Kind,
    /// The item (archive, package, directory) that declared it: [`BASE`] for what the base already has.
    pub origin: u32,
}

/// The origin of directories that the base already has: later items never change these.
pub(crate) const BASE: u32 = 0;

/// Names an inode of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(pub u32);

/// A file tree. The root exists from the start.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    pub const ROOT: NodeId = NodeId(0);

    pub fn new(root: Meta, origin: u32) -> Self {
        Tree { nodes: vec![Node { meta: root, kind: Kind::Dir(BTreeMap::new()), origin }] }
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// The slots handed out so far, the unreachable included.
    pub fn slots(&self) -> usize {
        self.nodes.len()
    }

    /// The names in a directory; none in anything else.
    pub fn children(&self, dir: NodeId) -> impl Iterator<Item = (&str, NodeId)> {
        let map = match &self.node(dir).kind {
            Kind::Dir(map) => Some(map),
            _ => None,
        };
        map.into_iter().flatten().map(|(name, id)| (&**name, *id))
    }

    pub fn child(&self, dir: NodeId, name: &str) -> Option<NodeId> {
        match &self.node(dir).kind {
            Kind::Dir(map) => map.get(name).copied(),
            _ => None,
        }
    }

    pub fn add(&mut self, node: Node) -> NodeId {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("invariant: entry caps are far below 2^32"));
        self.nodes.push(node);
        id
    }

    /// Gives `id` a name in `dir`, in place of what had it before.
    pub fn link(&mut self, dir: NodeId, name: &str, id: NodeId) {
        match &mut self.node_mut(dir).kind {
            Kind::Dir(map) => map.insert(name.into(), id),
            _ => unreachable!("invariant: callers link into directories only"),
        };
    }

    /// Follows plain names from the root, no links: for code that knows what it placed.
    pub fn lookup(&self, path: &str) -> Option<NodeId> {
        path.split('/')
            .filter(|part| !part.is_empty())
            .try_fold(Self::ROOT, |dir, name| self.child(dir, name))
    }

    /// Visits every name under the root, depth first and sorted, parents before children.
    /// `visit` gets the parent, the name, the inode and its path without a leading '/'.
    pub fn walk<E>(
        &self,
        mut visit: impl FnMut(NodeId, &str, NodeId, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        // An explicit stack: untrusted archives control the depth.
        let mut path = String::new();
        let Kind::Dir(root) = &self.node(Self::ROOT).kind else { return Ok(()) };
        let mut stack = vec![(Self::ROOT, root.iter(), 0usize)];
        while let Some((dir, iter, length)) = stack.last_mut() {
            let (dir, length) = (*dir, *length);
            path.truncate(length);
            let Some((name, id)) = iter.next() else {
                stack.pop();
                continue;
            };
            if length > 0 {
                path.push('/');
            }
            path.push_str(name);
            visit(dir, name, *id, &path)?;
            if let Kind::Dir(children) = &self.node(*id).kind {
                stack.push((*id, children.iter(), path.len()));
            }
        }
        Ok(())
    }
}
