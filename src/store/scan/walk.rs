//! The parallel walk: getdents and fstatat on directories opened beneath the root, never through a link.

use super::cache::Stat;
use super::getdents::Lister;
use super::ignored::{Ignored, Rules};
use crate::error::{Error, Result};
use crate::syscall::open_beneath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::fstatat;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Something that is not left out.
#[derive(Debug)]
pub(super) struct Found {
    /// Relative to the root.
    pub(super) path: String,
    pub(super) stat: Stat,
    pub(super) node: Node,
}

#[derive(Debug)]
pub(super) enum Node {
    Dir,
    File,
    Symlink(String),
}

/// How many threads walk and hash: more than eight do not help a single disk or page cache.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8))
}

/// A directory that waits to be read, with the rules of the one around it.
type Waiting = (String, Rules);

/// Directories that wait to be read, and how many are waiting or being read.
struct Queue {
    state: Mutex<(Vec<Waiting>, usize)>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (Vec<Waiting>, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next directory, or None once all are done.
    fn take(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if state.1 == 0 {
                return None;
            }
            if let Some(dir) = state.0.pop() {
                return Some(dir);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Adds what a directory held and counts it as done.
    fn done(&self, subdirs: &mut Vec<Waiting>) {
        let mut state = self.lock();
        state.1 = state.1 + subdirs.len() - 1;
        state.0.append(subdirs);
        drop(state);
        self.changed.notify_all();
    }
}

/// Everything beneath `dir`, in no order. The first problem in path order is the error.
pub(super) fn walk(dir: &File, root: &Path, ignored: &Ignored<'_>) -> Result<Vec<Found>> {
    let first = (String::new(), ignored.outermost());
    let queue = Queue { state: Mutex::new((vec![first], 1)), changed: Condvar::new() };
    let worker = || {
        let mut reader = Reader { root_dir: dir, root, ignored, found: Vec::new(), problems: Vec::new() };
        let mut lister = Lister::new();
        let mut subdirs = Vec::new();
        while let Some((path, outer)) = queue.take() {
            match ignored.enter(dir, &path, root, outer) {
                Ok(rules) => {
                    if let Err(e) = reader.read(&mut lister, &path, &rules, &mut subdirs) {
                        let error = failed(&root.join(&path), e);
                        reader.problems.push((path, error));
                    }
                }
                Err(error) => reader.problems.push((path, error)),
            }
            queue.done(&mut subdirs);
        }
        (reader.found, reader.problems)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads()).map(|_| scope.spawn(worker)).collect();
        let mut parts = vec![worker()];
        parts.extend(handles.into_iter().map(|h| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p))));
        parts
    });
    let mut all = Vec::with_capacity(parts.iter().map(|(found, _)| found.len()).sum());
    let mut problems = Vec::new();
    for (found, trouble) in parts {
        all.extend(found);
        problems.extend(trouble);
    }
    match problems.into_iter().min_by(|a, b| a.0.cmp(&b.0)) {
        Some((_, error)) => Err(error),
        None => Ok(all),
    }
}

struct Reader<'a> {
    root_dir: &'a File,
    root: &'a Path,
    ignored: &'a Ignored<'a>,
    found: Vec<Found>,
    problems: Vec<(String, Error)>,
}

impl Reader<'_> {
    /// Reads one directory. Problems with its entries are noted, not returned: the others may have earlier ones.
    fn read(
        &mut self,
        lister: &mut Lister,
        path: &str,
        rules: &Rules,
        subdirs: &mut Vec<Waiting>,
    ) -> nix::Result<()> {
        let dir = open_beneath(self.root_dir, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
        lister.list(dir.as_fd(), |name, listed| {
            let Ok(text) = std::str::from_utf8(name) else {
                let shown = self.root.join(path).join(OsStr::from_bytes(name));
                let error =
                    Error::failed("scan.name", format!("the name of {} is not UTF-8", shown.display()))
                        .help("rename it, or leave its directory out with an `ignore` pattern");
                self.problems.push((path.to_owned(), error));
                return Ok(());
            };
            let full = if path.is_empty() { text.to_owned() } else { [path, text].join("/") };
            // The listing's own type saves a stat of what is left out; not every file system gives it.
            let listed_dir = (listed != nix::libc::DT_UNKNOWN).then_some(listed == nix::libc::DT_DIR);
            if listed_dir.is_some_and(|is_dir| self.ignored.leaves_out(rules, &full, text, is_dir)) {
                return Ok(());
            }
            match self.examine(dir.as_fd(), name, text, &full, rules, listed_dir) {
                Ok(Some((stat, node))) => {
                    if matches!(node, Node::Dir) {
                        subdirs.push((full.clone(), rules.clone()));
                    }
                    self.found.push(Found { path: full, stat, node });
                }
                Ok(None) => {}
                Err(error) => self.problems.push((full, error)),
            }
            Ok(())
        })
    }

    /// What an entry is; None if it is left out or gone.
    fn examine(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        text: &str,
        full: &str,
        rules: &Rules,
        listed_dir: Option<bool>,
    ) -> Result<Option<(Stat, Node)>> {
        let path = || self.root.join(full);
        let stat = match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Stat::from(stat),
            Err(Errno::ENOENT) => return Ok(None), // Removed since it was listed.
            Err(e) => return Err(failed(&path(), e)),
        };
        let kind = stat.mode & nix::libc::S_IFMT;
        let is_dir = kind == nix::libc::S_IFDIR;
        if listed_dir != Some(is_dir) && self.ignored.leaves_out(rules, full, text, is_dir) {
            return Ok(None);
        }
        let node = match kind {
            nix::libc::S_IFREG => Node::File,
            nix::libc::S_IFDIR => Node::Dir,
            nix::libc::S_IFLNK => {
                let target = readlinkat(dir, name).map_err(|e| failed(&path(), e))?;
                let target = target.into_string().map_err(|_| {
                    Error::failed("scan.name", format!("the target of {} is not UTF-8", path().display()))
                })?;
                Node::Symlink(target)
            }
            _ => return Err(special(&path(), kind)),
        };
        Ok(Some((stat, node)))
    }
}

fn failed(path: &Path, errno: Errno) -> Error {
    Error::failed("scan.read", super::cannot_read(path)).because(errno)
}

fn special(path: &Path, kind: u32) -> Error {
    let what = match kind {
        nix::libc::S_IFSOCK => "a socket",
        nix::libc::S_IFIFO => "a pipe",
        _ => "a device",
    };
    Error::failed(
        "scan.special-file",
        format!("{} is {what}, which an image cannot take over", path.display()),
    )
    .help("remove it, or leave it out with an `ignore` pattern")
}
