//! update-alternatives(1): groups of programs, of which the one with the highest priority has the common name.

use super::root::Root;
use super::run::{Status, Unknown};
use std::collections::BTreeMap;

/// All groups, by name.
#[derive(Debug, Default)]
pub(super) struct Alternatives(BTreeMap<String, Group>);

#[derive(Debug)]
struct Group {
    link: String,
    candidates: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    priority: i64,
    path: String,
    slaves: Vec<Slave>,
}

#[derive(Debug, Clone, PartialEq)]
struct Slave {
    link: String,
    name: String,
    path: String,
}

const DIR: &str = "/etc/alternatives";

impl Alternatives {
    /// What the program does when it is called with `args`.
    pub fn call(&mut self, root: &mut Root<'_>, args: &[String]) -> Result<Status, Unknown> {
        let unknown = || Unknown(format!("update-alternatives {}", args.join(" ")));
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut rest = words.as_slice();
        let mut install = None;
        let mut slaves = Vec::new();
        loop {
            rest = match rest {
                [] => break,
                ["--quiet" | "--verbose" | "--force" | "--skip-auto" | "--debug", rest @ ..] => rest,
                ["--install", link, name, path, priority, rest @ ..] => {
                    install = Some((*link, *name, *path, priority.parse::<i64>().map_err(|_| unknown())?));
                    rest
                }
                ["--slave", link, name, path, rest @ ..] => {
                    let [link, name, path] = [link, name, path].map(|word| (*word).to_owned());
                    slaves.push(Slave { link, name, path });
                    rest
                }
                // Nothing was chosen by hand, and nothing old is there.
                ["--auto" | "--remove" | "--remove-all", ..] => return Ok(Some(true)),
                ["--list" | "--query" | "--display", name, ..] => {
                    return Ok(if self.0.contains_key(*name) { None } else { Some(false) });
                }
                _ => return Err(unknown()),
            };
        }
        let (link, name, path, priority) = install.ok_or_else(unknown)?;
        let whole = [link, path].iter().all(|path| path.starts_with('/')) && !name.contains('/');
        if !whole || slaves.iter().any(|slave| slave.name.contains('/')) {
            return Err(unknown());
        }
        if !root.exists(path) {
            return Ok(Some(false));
        }
        let group = self
            .0
            .entry(name.to_owned())
            .or_insert_with(|| Group { link: link.to_owned(), candidates: vec![] });
        group.candidates.retain(|candidate| candidate.path != path);
        group.candidates.push(Candidate { priority, path: path.to_owned(), slaves });
        group.link = link.to_owned();
        group.apply(root, name);
        Ok(Some(true))
    }

    /// The program that has a group's name.
    pub fn value(&self, name: &str) -> Option<&str> {
        Some(&self.0.get(name)?.best()?.path)
    }
}

impl Group {
    fn best(&self) -> Option<&Candidate> {
        // Of equals the first.
        self.candidates.iter().rev().max_by_key(|candidate| candidate.priority)
    }

    fn apply(&self, root: &mut Root<'_>, name: &str) {
        let Some(best) = self.best() else { return };
        for slave in self.candidates.iter().flat_map(|candidate| &candidate.slaves) {
            let through = format!("{DIR}/{}", slave.name);
            if root.link_at(&slave.link).as_deref() == Some(&through) {
                root.remove(&slave.link);
                root.remove(&through);
            }
        }
        link(root, &self.link, name, &best.path);
        for slave in &best.slaves {
            if root.exists(&slave.path) {
                link(root, &slave.link, &slave.name, &slave.path);
            }
        }
    }
}

fn link(root: &mut Root<'_>, link: &str, name: &str, path: &str) {
    let through = format!("{DIR}/{name}");
    // A file of a package's that has the name stays, and then nothing leads there.
    let ours = root.link_at(link).as_deref() == Some(&through);
    if ours || !root.has(link) {
        root.make_link(&through, path);
        root.make_link(link, &through);
    }
}
