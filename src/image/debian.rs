//! Puts Debian packages together: unpacks them and supplies what their maintainer scripts would, without running any.

use super::archive::{self, Entry, EntryKind, Limits, Spool};
use super::content::Content;
use super::deb;
use super::index::Index;
use super::place::Placer;
use super::tree::{Kind, Meta, Node, Tree};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Where Debian 12 and later keep what older paths name; and directories that base-files' scripts turn into links.
const LINKS: [(&str, &str); 6] = [
    ("bin", "usr/bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
    ("var/lock", "/run/lock"),
    ("var/run", "/run"),
];

/// What base-files' scripts and debootstrap create: path, mode, gid.
const DIRECTORIES: [(&str, u16, u32); 32] = [
    ("dev", 0o755, 0),
    ("etc/opt", 0o755, 0),
    ("home", 0o755, 0),
    ("media", 0o755, 0),
    ("mnt", 0o755, 0),
    ("opt", 0o755, 0),
    ("proc", 0o755, 0),
    ("root", 0o700, 0),
    ("run", 0o755, 0),
    ("run/lock", 0o1777, 0),
    ("srv", 0o755, 0),
    ("sys", 0o755, 0),
    ("tmp", 0o1777, 0),
    ("usr/bin", 0o755, 0),
    ("usr/lib", 0o755, 0),
    ("usr/lib64", 0o755, 0),
    ("usr/local", 0o755, 0),
    ("usr/local/bin", 0o755, 0),
    ("usr/local/etc", 0o755, 0),
    ("usr/local/games", 0o755, 0),
    ("usr/local/include", 0o755, 0),
    ("usr/local/lib", 0o755, 0),
    ("usr/local/sbin", 0o755, 0),
    ("usr/local/share", 0o755, 0),
    ("usr/local/src", 0o755, 0),
    ("usr/sbin", 0o755, 0),
    ("var/log", 0o755, 0),
    // 8 is mail's gid in base-passwd's list, constant in Debian.
    ("var/mail", 0o2775, 8),
    ("var/opt", 0o755, 0),
    ("var/spool", 0o755, 0),
    ("var/tmp", 0o1777, 0),
    ("etc/ssl/certs", 0o755, 0),
];

/// Copies of what packages keep as defaults; the first that exists is taken.
const DEFAULTS: [(&str, &[&str]); 7] = [
    ("etc/passwd", &["usr/share/base-passwd/passwd.master"]),
    ("etc/group", &["usr/share/base-passwd/group.master"]),
    ("etc/profile", &["usr/share/base-files/profile"]),
    ("etc/motd", &["usr/share/base-files/motd"]),
    ("root/.profile", &["usr/share/base-files/dot.profile"]),
    ("root/.bashrc", &["usr/share/base-files/dot.bashrc"]),
    ("etc/nsswitch.conf", &["usr/share/libc-bin/nsswitch.conf", "usr/share/base-files/nsswitch.conf"]),
];

const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// One unpacked package.
struct Package {
    name: String,
    /// Names that it answers to, its own first.
    provides: Vec<String>,
    /// What it needs to be there, each as the names of which one is enough.
    needs: Vec<Vec<String>>,
    entries: Vec<Entry>,
    /// The script that would run after unpacking; "" if there is none.
    postinst: String,
}

/// Merges all packages into one tree.
pub(super) fn assemble<'a>(
    debs: &[PathBuf],
    nothing: &'a Index,
    scratch_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<Placer<'a>> {
    let mut packages = unpack(debs, scratch_dir)?;
    check_whole(&packages)?;
    // The order in which they were named must not matter. What base-files says of directories is said last.
    packages.sort_by(|a, b| (a.name == "base-files", &a.name).cmp(&(b.name == "base-files", &b.name)));
    let mut placer = Placer::new(nothing);
    placer.begin("merged /usr", "/", Meta::root(0o755))?;
    for (path, target) in LINKS {
        placer.leaf(path, Meta::root(0o777), Kind::Symlink(target.into()))?;
    }
    let mut scripts = Vec::new();
    for Package { name, mut entries, postinst, .. } in packages {
        // Packages of Debian 13 bring the links themselves.
        entries.retain(|entry| match &entry.kind {
            EntryKind::Leaf(Kind::Symlink(target)) => !LINKS.contains(&(entry.path.as_str(), target)),
            _ => true,
        });
        placer.begin(&name, "/", Meta::root(0o755))?;
        archive::place(entries, &mut placer)?;
        for path in placer.replaced.drain(..) {
            warnings.push(format!("{name} replaces /{path} of another package"));
        }
        scripts.push(postinst);
    }
    supply(&mut placer, &scripts)?;
    placer.replaced.clear();
    Ok(placer)
}

/// Whether each package has those it needs, by name: a list that lacks one was not made by a package manager.
fn check_whole(packages: &[Package]) -> Result<()> {
    let there: HashSet<&str> = packages.iter().flat_map(|p| &p.provides).map(String::as_str).collect();
    for package in packages {
        let missing = |names: &&Vec<String>| !names.iter().any(|name| there.contains(name.as_str()));
        if let Some(names) = package.needs.iter().find(missing) {
            let text = format!(
                "the packages of the image are not whole: {} needs {}, which is not among them",
                package.name,
                names.join(" or ")
            );
            return Err(Error::failed("image.incomplete", text).help(
                "firegopher.lock was edited, or merged from two that do not go together: run `firegopher update image`",
            ));
        }
    }
    Ok(())
}

/// The clauses of a field like `Depends`, each as the names of its alternatives, without versions and architectures
/// (deb-control(5)).
fn clauses(control: &str, field: &str) -> Vec<Vec<String>> {
    let mut text = String::new();
    let mut within = false;
    for line in control.lines() {
        match line.strip_prefix([' ', '\t']) {
            Some(more) if within => text.push_str(more),
            Some(_) => {}
            None => {
                within = line.split_once(':').is_some_and(|(name, _)| name.eq_ignore_ascii_case(field));
                if within {
                    text.push_str(&line[field.len() + 1..]);
                }
            }
        }
    }
    let name =
        |alternative: &str| alternative.trim().split([' ', '(', ':']).next().unwrap_or_default().to_owned();
    let all = text.split(',').map(|clause| clause.split('|').map(name).filter(|n| !n.is_empty()).collect());
    all.filter(|names: &Vec<String>| !names.is_empty()).collect()
}

/// Reads all packages, on as many threads as there are processors: most of the time is decompression.
fn unpack(debs: &[PathBuf], scratch_dir: &Path) -> Result<Vec<Package>> {
    let pending = Mutex::new(debs.iter());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(debs.len().max(1));
    let worker = || -> Result<Vec<Package>> {
        let mut spool = Spool::new(Path::new("a package"), scratch_dir)?;
        let mut done = Vec::new();
        loop {
            let next = pending.lock().map(|mut iter| iter.next());
            match next {
                Ok(Some(path)) => done.push(read_package(path, &mut spool)?),
                _ => return Ok(done),
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut packages = Vec::with_capacity(debs.len());
        for worker in workers {
            let done = worker.join().map_err(|_| Error::bug("a thread that unpacks packages panicked"))?;
            packages.extend(done?);
        }
        Ok(packages)
    })
}

fn read_package(path: &Path, spool: &mut Spool) -> Result<Package> {
    let shown = path.display().to_string();
    let control = spool.read(deb::control_tar(path)?, &shown, Limits { total: 64 << 20, entries: 10_000 })?;
    let text = |wanted: &str| {
        let found = control.iter().find(|entry| entry.path == wanted);
        match found.map(|entry| &entry.kind) {
            Some(EntryKind::Leaf(Kind::File { size, content })) => text_of(content, *size),
            _ => String::new(),
        }
    };
    let stanza = text("control");
    let name = stanza.lines().find_map(|line| line.strip_prefix("Package:")).map(|n| n.trim().to_owned());
    let name = name
        .ok_or_else(|| Error::failed("deb.damaged", format!("{shown} does not say which package it is")))?;
    let postinst = text("postinst");
    let provided = clauses(&stanza, "Provides").into_iter().flatten();
    let provides = std::iter::once(name.clone()).chain(provided).collect();
    let needs = ["Pre-Depends", "Depends"].iter().flat_map(|field| clauses(&stanza, field)).collect();
    let entries = spool.read(deb::data_tar(path)?, &name, Limits::default())?;
    Ok(Package { entries, name, provides, needs, postinst })
}

fn text_of(content: &Content, size: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(reader) = content.open(size) {
        // Text for us only: what cannot be read here will fail again, and loudly, when it is written.
        let _ = reader.take(16 << 20).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Everything that the packages' scripts would have made, where it is not there yet.
fn supply(placer: &mut Placer<'_>, scripts: &[String]) -> Result<()> {
    placer.begin("the image's own files", "/", Meta::root(0o755))?;
    for (path, mode, gid) in DIRECTORIES {
        if path == "etc/ssl/certs" && placer.tree.lookup("usr/share/ca-certificates").is_none() {
            continue;
        }
        if placer.tree.lookup(path).is_none() {
            placer.dir(path, Meta { gid, ..Meta::root(mode) })?;
        }
    }
    for (path, sources) in DEFAULTS {
        if let Some((size, content)) = sources.iter().find_map(|source| file_at(&placer.tree, source)) {
            add(placer, path, Kind::File { size, content })?;
        }
    }
    if placer.tree.lookup("usr/lib/os-release").is_some() {
        add(placer, "etc/os-release", Kind::Symlink("../usr/lib/os-release".into()))?;
    }
    // A derivative names its parents, too.
    let origin = |name: &&str| placer.tree.lookup(&format!("etc/dpkg/origins/{name}")).is_some();
    if let Some(name) = ["ubuntu", "debian"].into_iter().find(origin) {
        add(placer, "etc/dpkg/origins/default", Kind::Symlink(name.into()))?;
    }
    add(placer, "var/spool/mail", Kind::Symlink("../mail".into()))?;
    if let Some(shell) =
        ["dash", "bash"].into_iter().find(|s| placer.tree.lookup(&format!("usr/bin/{s}")).is_some())
    {
        add(placer, "usr/bin/sh", Kind::Symlink(shell.into()))?;
    }
    let shells =
        concatenated(&placer.tree, &["usr/share/debianutils/shells", "usr/share/debianutils/shells.d"], "");
    if !shells.is_empty() {
        add(placer, "etc/shells", made(shells))?;
    }
    let certificates = concatenated(&placer.tree, &["usr/share/ca-certificates"], ".crt");
    if !certificates.is_empty() {
        add(placer, BUNDLE, made(certificates))?;
    }
    for (link, name, target) in alternatives(scripts) {
        let there = |path: &str| placer.tree.lookup(&merged(path)).is_some();
        if there(&target) && !there(&link) {
            let through = format!("etc/alternatives/{name}");
            add(placer, &through, Kind::Symlink(target.into()))?;
            add(placer, &merged(&link), Kind::Symlink(format!("/{through}").into()))?;
        }
    }
    Ok(())
}

/// Adds a file or link unless something has its name already.
fn add(placer: &mut Placer<'_>, path: &str, kind: Kind) -> Result<()> {
    if placer.tree.lookup(path).is_some() {
        return Ok(());
    }
    let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { 0o644 };
    placer.leaf(path, Meta::root(mode), kind)
}

fn made(text: String) -> Kind {
    Kind::File { size: text.len() as u64, content: Content::Bytes(text.into_bytes().into()) }
}

fn file_at(tree: &Tree, path: &str) -> Option<(u64, Content)> {
    match &tree.node(tree.lookup(path)?).kind {
        Kind::File { size, content } => Some((*size, content.clone())),
        _ => None,
    }
}

/// The texts of some files, or of all beneath a directory that end in `suffix`, sorted, each ended by a newline.
fn concatenated(tree: &Tree, paths: &[&str], suffix: &str) -> String {
    let mut text = String::new();
    for path in paths {
        let Some(top) = tree.lookup(path) else { continue };
        let mut pending = vec![(String::new(), top)];
        while let Some((name, id)) = pending.pop() {
            match tree.node(id) {
                Node { kind: Kind::Dir(_), .. } => {
                    let mut children: Vec<_> = tree.children(id).map(|(n, id)| (n.to_owned(), id)).collect();
                    children.reverse();
                    pending.extend(children);
                }
                Node { kind: Kind::File { size, content }, .. } if name.ends_with(suffix) => {
                    text.push_str(&text_of(content, *size));
                    if !text.ends_with('\n') {
                        text.push('\n');
                    }
                }
                _ => {}
            }
        }
    }
    text
}

/// A path as it really is under merged /usr, without leading '/'.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    match path.split_once('/') {
        Some(("bin" | "lib" | "lib64" | "sbin", _)) => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

/// What scripts hand to update-alternatives, as (link, name, target), the highest priority first. Only literal words
/// are understood: anything with a variable in it is passed over.
fn alternatives(scripts: &[String]) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for script in scripts {
        for line in script.replace("\\\n", " ").lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some(at) = words.iter().position(|word| *word == "--install") else { continue };
            if at == 0 || !words[at - 1].ends_with("update-alternatives") {
                continue;
            }
            let [link, name, target, priority, rest @ ..] = &words[at + 1..] else { continue };
            let Ok(priority) = priority.parse::<i64>() else { continue };
            let mut one = |link: &str, name: &str, target: &str| {
                let literal = |word: &str| !word.contains(['$', '"', '\'', '`', '*']);
                if link.starts_with('/')
                    && target.starts_with('/')
                    && [link, name, target].into_iter().all(literal)
                {
                    found.push((-priority, link.to_owned(), name.to_owned(), target.to_owned()));
                }
            };
            one(link, name, target);
            for slave in rest.chunks_exact(4).filter(|words| words[0] == "--slave") {
                one(slave[1], slave[2], slave[3]);
            }
        }
    }
    found.sort();
    found.into_iter().map(|(_, link, name, target)| (link, name, target)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_package_needs_is_read_from_its_control_file() {
        let control = "Package: a\nDepends: libc6 (>= 2.36), perl:any | perl-base (= 5),\n mawk|awk\n\
                       Description: x\n Depends: nothing\nProvides: b (= 1), c\n";
        let names = |clauses: Vec<Vec<String>>| clauses.iter().map(|c| c.join("|")).collect::<Vec<_>>();
        assert_eq!(names(clauses(control, "Depends")), ["libc6", "perl|perl-base", "mawk|awk"]);
        assert_eq!(names(clauses(control, "Provides")), ["b", "c"]);
        assert_eq!(names(clauses(control, "Pre-Depends")), [""; 0]);
    }

    #[test]
    fn a_list_that_lacks_what_one_of_it_needs_is_not_whole() {
        let package = |name: &str, provides: &[&str], needs: &[&[&str]]| Package {
            name: name.to_owned(),
            provides: [&[name], provides].concat().into_iter().map(str::to_owned).collect(),
            needs: needs.iter().map(|names| names.iter().map(|n| (*n).to_owned()).collect()).collect(),
            entries: vec![],
            postinst: String::new(),
        };
        let a = || package("a", &[], &[&["b", "virtual"], &["c"]]);
        let virtual_c = || package("c", &["virtual"], &[]);
        check_whole(&[a(), virtual_c()]).unwrap();
        let error = check_whole(&[a(), package("c", &[], &[])]).unwrap_err();
        assert_eq!(error.code(), "image.incomplete");
        assert!(error.to_string().contains("a needs b or virtual"), "{error}");
    }

    #[test]
    fn alternatives_are_read_from_scripts() {
        let script = "if x; then\n  update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5 \\\n    --slave /usr/bin/nawk nawk /usr/bin/mawk\nfi\nupdate-alternatives --install $LINK a /b 3\n";
        let low = "update-alternatives --install /usr/bin/awk awk /usr/bin/other 1\n";
        let found = alternatives(&[low.into(), script.into()]);
        let link = |l: &str, n: &str, t: &str| (l.to_owned(), n.to_owned(), t.to_owned());
        assert_eq!(
            found,
            [
                link("/usr/bin/awk", "awk", "/usr/bin/mawk"),
                link("/usr/bin/nawk", "nawk", "/usr/bin/mawk"),
                link("/usr/bin/awk", "awk", "/usr/bin/other"),
            ]
        );
    }
}
