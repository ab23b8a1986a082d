//! Which entries a scan leaves out: `.git`, what is never part of a workload, the user's patterns, and the pattern files
//! of the tree, as git reads them.

use crate::error::{Context, Error, Result};
use crate::syscall::open_beneath;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A larger file is no list of patterns.
const FILE_MAX: u64 = 1 << 20;

/// Pattern files, as `.gitignore` is read by git: those in the directories from `top` down to the scanned one and in
/// all beneath it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IgnoreFiles<'a> {
    /// What they are called.
    pub name: &'a OsStr,
    /// The directory of the outermost one; holds the scanned directory, or is it. Canonical, as that is.
    pub top: &'a Path,
}

/// What is left out of one scan.
pub(super) struct Ignored<'a> {
    /// Paths from the root that are left out whatever patterns say.
    never: &'a [String],
    /// None without patterns: most workloads need only the comparison with `.git`.
    patterns: Option<Gitignore>,
    /// The name of pattern files, and those above the root.
    files: Option<(&'a OsStr, Rules)>,
}

/// The pattern files that hold in a directory, innermost first.
pub(super) type Rules = Option<Arc<FileRules>>;

/// One pattern file.
pub(super) struct FileRules {
    patterns: Gitignore,
    scope: Scope,
    outer: Rules,
}

/// Where a pattern file lies.
enum Scope {
    /// In the scan: its directory's path from the root has this length, with the slash after it.
    Within(usize),
    /// Above it: from there the root has this path.
    Above(String),
}

impl<'a> Ignored<'a> {
    pub(super) fn new(
        never: &'a [String],
        patterns: &[String],
        files: Option<IgnoreFiles<'a>>,
        root: &Path,
    ) -> Result<Self> {
        let files = files.map(|files| Ok((files.name, above(files, root)?))).transpose()?;
        if patterns.is_empty() {
            return Ok(Ignored { never, patterns: None, files });
        }
        let mut builder = GitignoreBuilder::new("");
        // git takes `a[` as a pattern that matches nothing; whoever wrote it should know.
        builder.allow_unclosed_class(false);
        for pattern in std::iter::once(".git").chain(patterns.iter().map(String::as_str)) {
            builder
                .add_line(None, pattern)
                .or_usage("scan.pattern", || format!("{pattern:?} is not a gitignore pattern"))?;
        }
        let patterns =
            builder.build().or_usage("scan.pattern", || "the ignore patterns do not fit together")?;
        Ok(Ignored { never, patterns: Some(patterns), files })
    }

    /// The rules above the root.
    pub(super) fn outermost(&self) -> Rules {
        self.files.as_ref().and_then(|(_, rules)| rules.clone())
    }

    /// The rules in a directory, given those of the one around it. `dir` is the scan's root, `path` the directory's.
    pub(super) fn enter(&self, dir: &File, path: &str, shown: &Path, outer: Rules) -> Result<Rules> {
        let Some((name, _)) = &self.files else { return Ok(outer) };
        let Some(name) = name.to_str() else { return Ok(outer) };
        let file = if path.is_empty() { name.to_owned() } else { [path, name].join("/") };
        let opened = match open_beneath(dir, &file, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            // As git does: one that is a link has no patterns.
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Ok(outer),
            other => other,
        };
        let shown = shown.join(&file);
        let opened = opened.or_failed("scan.read", || super::cannot_read(&shown))?;
        let within = if path.is_empty() { 0 } else { path.len() + 1 };
        add(File::from(opened), &shown, Scope::Within(within), outer)
    }

    /// Whether the entry `name` at the relative `path` is left out, a directory with all that it holds.
    pub(super) fn leaves_out(&self, rules: &Rules, path: &str, name: &str, is_dir: bool) -> bool {
        if self.never.iter().any(|never| never == path) {
            return true;
        }
        match &self.patterns {
            None if name == ".git" => return true,
            None => {}
            Some(patterns) => {
                let found = patterns.matched(path, is_dir);
                if !found.is_none() {
                    return found.is_ignore();
                }
            }
        }
        let mut rules = rules.as_ref();
        while let Some(file) = rules {
            let found = match &file.scope {
                Scope::Within(length) => file.patterns.matched(&path[*length..], is_dir),
                Scope::Above(prefix) => file.patterns.matched([prefix, path].join("/"), is_dir),
            };
            if !found.is_none() {
                return found.is_ignore();
            }
            rules = file.outer.as_ref();
        }
        false
    }
}

/// The pattern files in the directories above the scanned one.
fn above(files: IgnoreFiles<'_>, root: &Path) -> Result<Rules> {
    let Ok(way) = root.strip_prefix(files.top) else {
        return Err(Error::bug(format!("{} is not beneath {}", root.display(), files.top.display())));
    };
    let mut dir = PathBuf::from(files.top);
    let mut rules = None;
    let names: Vec<&OsStr> = way.iter().collect();
    for (at, name) in names.iter().enumerate() {
        let path = dir.join(files.name);
        let mut options = File::options();
        let opened =
            options.read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(&path);
        let prefix: PathBuf = names[at..].iter().collect();
        // Otherwise no file, a link, or a name that no pattern of text could match.
        if let (Ok(file), Some(prefix)) = (opened, prefix.to_str()) {
            rules = add(file, &path, Scope::Above(prefix.to_owned()), rules)?;
        }
        dir.push(name);
    }
    Ok(rules)
}

fn add(file: File, shown: &Path, scope: Scope, outer: Rules) -> Result<Rules> {
    if !file.metadata().or_failed("scan.read", || super::cannot_read(shown))?.is_file() {
        return Ok(outer);
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).or_failed("scan.read", || super::cannot_read(shown))?;
    if bytes.len() as u64 > FILE_MAX {
        let text = format!("{} is larger than 1 MiB, and no list of patterns", shown.display());
        return Err(Error::usage("scan.pattern", text));
    }
    let mut builder = GitignoreBuilder::new("");
    for line in String::from_utf8_lossy(&bytes).trim_start_matches('\u{feff}').lines() {
        // git passes over what it cannot read, too.
        let _ = builder.add_line(None, line);
    }
    let patterns =
        builder.build().or_usage("scan.pattern", || format!("{} has no patterns", shown.display()))?;
    if patterns.is_empty() {
        return Ok(outer);
    }
    Ok(Some(Arc::new(FileRules { patterns, scope, outer })))
}
