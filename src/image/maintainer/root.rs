//! The image's tree as scripts see it: paths through links, files, owners.

use super::budget::Budget;
use crate::image::content::Content;
use crate::image::place::{MOST_LINKS, parts};
use crate::image::tree::{Kind, Meta, Node, NodeId, Tree};
use std::collections::VecDeque;
use std::io::Read as _;

/// As much as is read of a file for its words.
const MOST_TEXT: u64 = 1 << 20;

/// NAME_MAX and PATH_MAX of linux/limits.h.
const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;

/// The tree.
pub(super) struct Root<'t> {
    pub tree: &'t mut Tree,
    /// What is made belongs to this item.
    pub origin: u32,
    /// What is still granted to whoever works on the tree.
    pub budget: Budget,
    /// Where relative paths begin.
    pub cwd: String,
}

/// Where a path leads.
struct Found {
    dir: NodeId,
    name: String,
    /// `None` if nothing has the name.
    node: Option<NodeId>,
}

impl<'t> Root<'t> {
    pub fn new(tree: &'t mut Tree, origin: u32) -> Self {
        Root { tree, origin, budget: Budget::unbounded(), cwd: String::new() }
    }

    /// Follows a path; its last name only if `through`. `make` makes missing directories on the way.
    fn find(&mut self, path: &str, through: bool, make: bool) -> Option<Found> {
        // As Linux refuses them.
        if path.is_empty() || path.len() >= PATH_MAX || path.contains('\0') {
            return None;
        }
        let mut chain = vec![Tree::ROOT];
        let mut pending: VecDeque<String> = match path.starts_with('/') {
            true => parts(path),
            false => parts(&format!("{}/{path}", self.cwd)),
        };
        let mut links = 0;
        let mut last = Found { dir: Tree::ROOT, name: String::new(), node: Some(Tree::ROOT) };
        while let Some(name) = pending.pop_front() {
            if name.len() > NAME_MAX || !self.budget.take(1) {
                return None;
            }
            if name == ".." {
                if chain.len() > 1 {
                    chain.pop();
                }
                last = Found { dir: Tree::ROOT, name: String::new(), node: chain.last().copied() };
                continue;
            }
            let dir = *chain.last()?;
            let child = self.tree.child(dir, &name);
            let end = pending.is_empty();
            match child.map(|id| (id, &self.tree.node(id).kind)) {
                Some((_, Kind::Symlink(target))) if !end || through => {
                    links += 1;
                    if links > MOST_LINKS {
                        return None;
                    }
                    if target.starts_with('/') {
                        chain.truncate(1);
                    }
                    for part in parts(target).into_iter().rev() {
                        pending.push_front(part);
                    }
                    if pending.is_empty() {
                        last = Found { dir: Tree::ROOT, name: String::new(), node: chain.last().copied() };
                    }
                }
                Some((id, Kind::Dir(_))) => {
                    last = Found { dir, name, node: Some(id) };
                    chain.push(id);
                }
                Some((id, _)) => {
                    if !end {
                        return None;
                    }
                    last = Found { dir, name, node: Some(id) };
                }
                None if end => last = Found { dir, name, node: None },
                None if make => {
                    let id = self.add(dir, &name, Meta::root(0o755), Kind::Dir(Default::default()))?;
                    chain.push(id);
                }
                None => return None,
            }
        }
        Some(last)
    }

    fn add(&mut self, dir: NodeId, name: &str, meta: Meta, kind: Kind) -> Option<NodeId> {
        if !self.budget.take_entry() {
            return None;
        }
        let id = self.tree.add(Node { meta, kind, origin: self.origin });
        self.tree.link(dir, name, id);
        Some(id)
    }

    /// What is at a path, links followed.
    pub fn at(&mut self, path: &str) -> Option<NodeId> {
        self.find(path, true, false)?.node
    }

    pub fn exists(&mut self, path: &str) -> bool {
        self.at(path).is_some()
    }

    pub fn is_dir(&mut self, path: &str) -> bool {
        self.at(path).is_some_and(|id| self.tree.node(id).kind.is_dir())
    }

    pub fn is_file(&mut self, path: &str) -> bool {
        self.at(path).is_some_and(|id| matches!(self.tree.node(id).kind, Kind::File { .. }))
    }

    /// Whether a file has anything in it.
    pub fn is_full(&mut self, path: &str) -> bool {
        self.at(path).is_some_and(|id| matches!(self.tree.node(id).kind, Kind::File { size: 1.., .. }))
    }

    /// Where a link leads, as it says.
    pub fn link_at(&mut self, path: &str) -> Option<String> {
        let id = self.find(path, false, false)?.node?;
        match &self.tree.node(id).kind {
            Kind::Symlink(target) => Some(target.to_string()),
            _ => None,
        }
    }

    /// Whether anything has the name, be it a link that leads nowhere.
    pub fn has(&mut self, path: &str) -> bool {
        self.find(path, false, false).is_some_and(|found| found.node.is_some())
    }

    /// A text file.
    pub fn text(&mut self, path: &str) -> Option<String> {
        let id = self.at(path)?;
        let Kind::File { size, content } = &self.tree.node(id).kind else { return None };
        if *size > MOST_TEXT {
            return None;
        }
        let mut bytes = Vec::new();
        let mut reader = content.open(*size).ok()?;
        // Programs are no text, which their first bytes tell.
        reader.by_ref().take(512).read_to_end(&mut bytes).ok()?;
        if bytes.contains(&0) || !self.budget.take(*size as usize) {
            return None;
        }
        reader.read_to_end(&mut bytes).ok()?;
        String::from_utf8(bytes).ok()
    }

    /// The names in a directory.
    pub fn names(&mut self, path: &str) -> Vec<String> {
        let Some(id) = self.at(path) else { return Vec::new() };
        let names: Vec<String> = self.tree.children(id).map(|(name, _)| name.to_owned()).collect();
        let bytes = names.iter().map(|name| name.len() + size_of::<String>()).sum();
        if self.budget.take(bytes) { names } else { Vec::new() }
    }

    /// Makes a directory and those above it; one that is there stays as it is. `false` if something else is there.
    pub fn make_dir(&mut self, path: &str, meta: Meta) -> bool {
        let Some(found) = self.find(path, true, true) else { return false };
        match found.node {
            Some(id) => self.tree.node(id).kind.is_dir(),
            None => self.add(found.dir, &found.name, meta, Kind::Dir(Default::default())).is_some(),
        }
    }

    /// Writes a file, as `>` does: one that is there keeps its owner and mode.
    pub fn write(&mut self, path: &str, text: &str) -> bool {
        // Of what is written over, the tree keeps the bytes.
        if !self.budget.take(text.len()) {
            return false;
        }
        let content = Content::Bytes(text.as_bytes().into());
        self.put(path, text.len() as u64, content, None)
    }

    fn put(&mut self, path: &str, size: u64, content: Content, meta: Option<Meta>) -> bool {
        let Some(found) = self.find(path, true, false) else { return false };
        let kind = Kind::File { size, content };
        match found.node {
            Some(id) if self.tree.node(id).kind.is_dir() => false,
            Some(id) => {
                let meta = meta.unwrap_or_else(|| self.tree.node(id).meta.clone());
                // A hard link's other names keep what they have.
                self.add(found.dir, &found.name, meta, kind).is_some()
            }
            None => {
                let meta = meta.unwrap_or_else(|| Meta::root(0o644));
                self.add(found.dir, &found.name, meta, kind).is_some()
            }
        }
    }

    /// Copies a file with its mode, and with its owner if `keep`.
    pub fn copy(&mut self, from: &str, to: &str, keep: bool) -> bool {
        let Some(id) = self.at(from) else { return false };
        let node = self.tree.node(id);
        let Kind::File { size, content } = &node.kind else { return false };
        let meta = if keep { node.meta.clone() } else { Meta::root(node.meta.mode & 0o777) };
        let (size, content) = (*size, content.clone());
        let to = self.target(from, to);
        self.put(&to, size, content, Some(meta))
    }

    /// Where a copy goes: into `to` if that is a directory.
    pub fn target(&mut self, from: &str, to: &str) -> String {
        match self.is_dir(to) {
            true => format!("{to}/{}", from.rsplit('/').next().unwrap_or_default()),
            false => to.to_owned(),
        }
    }

    /// Gives a file another name, in place of what has that, be it a link. `false` if it has it already.
    pub fn rename(&mut self, from: &str, to: &str) -> bool {
        let Some(Found { dir, name, node: Some(id) }) = self.find(from, false, false) else { return false };
        let Some(found) = self.find(to, false, false) else { return false };
        let node = self.tree.node(id);
        let Kind::File { size, content } = &node.kind else { return false };
        let (meta, kind) = (node.meta.clone(), Kind::File { size: *size, content: content.clone() });
        if (dir, &name) == (found.dir, &found.name)
            || found.node.is_some_and(|id| self.tree.node(id).kind.is_dir())
        {
            return false;
        }
        let done = self.add(found.dir, &found.name, meta, kind).is_some();
        if done {
            self.remove(from);
        }
        done
    }

    /// Makes a link in place of a link that may be there.
    pub fn make_link(&mut self, path: &str, target: &str) -> bool {
        if target.is_empty() || target.len() >= PATH_MAX || target.contains('\0') {
            return false;
        }
        let Some(found) = self.find(path, false, true) else { return false };
        match found.node {
            Some(id) if !matches!(self.tree.node(id).kind, Kind::Symlink(_)) => false,
            _ => {
                let kind = Kind::Symlink(target.into());
                self.budget.take(target.len())
                    && self.add(found.dir, &found.name, Meta::root(0o777), kind).is_some()
            }
        }
    }

    /// Removes whatever has a name, with all beneath it.
    pub fn remove(&mut self, path: &str) {
        let Some(Found { dir, name, node: Some(_) }) = self.find(path, false, false) else { return };
        if let Kind::Dir(children) = &mut self.tree.node_mut(dir).kind {
            children.remove(name.as_str());
        }
    }

    /// Changes owner, group or mode of what is at a path and, if `deep`, beneath it. Nothing there: `false`.
    pub fn change(&mut self, path: &str, deep: bool, change: &dyn Fn(&mut Meta, bool)) -> bool {
        self.change_at(path, deep, false, change)
    }

    /// As [`Root::change`], with links changed themselves if `links`, and not what they lead to.
    pub fn change_at(
        &mut self,
        path: &str,
        deep: bool,
        links: bool,
        change: &dyn Fn(&mut Meta, bool),
    ) -> bool {
        let through = !links || path.ends_with('/');
        let Some(top) = self.find(path, through, false).and_then(|found| found.node) else { return false };
        let mut pending = vec![top];
        while let Some(id) = pending.pop() {
            if !self.budget.take(size_of::<NodeId>()) {
                return false;
            }
            let node = self.tree.node_mut(id);
            let is_dir = node.kind.is_dir();
            if links || !matches!(node.kind, Kind::Symlink(_)) {
                change(&mut node.meta, is_dir);
            }
            if deep {
                pending.extend(self.tree.children(id).map(|(_, id)| id));
            }
        }
        true
    }
}
