//! Puts Debian packages together: unpacks them and supplies what their maintainer scripts would, without running any.

use super::archive::{self, Entry, EntryKind, Limits, Spool};
use super::content::Content;
use super::deb;
use super::index::Index;
use super::maintainer::{self, Diversion, Scripts, Undone};
use super::place::Placer;
use super::tree::{Kind, Meta, Node, Tree};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
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

/// The packages whose scripts [`supply`] stands for; what is left of them is about dpkg's own lists.
const SUPPLIED: [&str; 8] =
    ["base-files", "base-passwd", "ca-certificates", "dash", "debianutils", "dpkg", "tzdata", "usrmerge"];

const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// One unpacked package.
struct Package {
    name: String,
    /// Names that it answers to, its own first.
    provides: Vec<String>,
    /// What it needs to be there, each as the names of which one is enough.
    needs: Vec<Vec<String>>,
    entries: Vec<Entry>,
    scripts: Scripts,
}

/// Merges all packages into one tree.
pub(super) fn assemble<'a>(
    debs: &[PathBuf],
    nothing: &'a Index,
    scratch_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<Placer<'a>> {
    let (placer, undone) = assemble_all(debs, nothing, scratch_dir, warnings)?;
    warnings.extend(told(&undone));
    Ok(placer)
}

/// What is left undone of the packages' scripts when none is run, as a sentence. Nothing is written but what is large,
/// without a name, to `scratch_dir`.
///
/// # Errors
/// As [`super::build_base`].
pub fn left_undone(debs: &[PathBuf], scratch_dir: &Path) -> Result<Option<String>> {
    let nothing = Index::default();
    let (_, undone) = assemble_all(debs, &nothing, scratch_dir, &mut Vec::new())?;
    Ok(told(&undone))
}

/// As [`assemble`], with what is left undone of the packages' scripts.
fn assemble_all<'a>(
    debs: &[PathBuf],
    nothing: &'a Index,
    scratch_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<(Placer<'a>, Vec<Undone>)> {
    let mut packages = unpack(debs, scratch_dir)?;
    check_whole(&packages)?;
    // The order in which they were named must not matter. What base-files says of directories is said last.
    packages.sort_by(|a, b| (a.name == "base-files", &a.name).cmp(&(b.name == "base-files", &b.name)));
    let mut placer = Placer::new(nothing);
    placer.begin("merged /usr", "/", Meta::root(0o755))?;
    for (path, target) in LINKS {
        placer.leaf(path, Meta::root(0o777), Kind::Symlink(target.into()))?;
    }
    let order = order(&packages);
    let mut scripts: Vec<Option<Scripts>> = Vec::with_capacity(packages.len());
    let mut taken: Vec<Scripts> =
        packages.iter_mut().map(|package| std::mem::take(&mut package.scripts)).collect();
    let diversions = maintainer::diversions(&taken);
    scripts.extend(taken.drain(..).map(Some));
    let mut origins = HashMap::with_capacity(scripts.len());
    for Package { name, mut entries, .. } in packages {
        divert(&mut entries, &name, &diversions);
        // Packages of Debian 13 bring the links themselves.
        entries.retain(|entry| match &entry.kind {
            EntryKind::Leaf(Kind::Symlink(target)) => !LINKS.contains(&(entry.path.as_str(), target)),
            _ => true,
        });
        placer.begin(&name, "/", Meta::root(0o755))?;
        origins.insert(placer.origin(), name.clone());
        archive::place(entries, &mut placer)?;
        for path in placer.replaced.drain(..) {
            warnings.push(format!("{name} replaces /{path} of another package"));
        }
    }
    supply(&mut placer)?;
    let scripts = order.into_iter().filter_map(|at| scripts[at].take());
    let scripts: Vec<Scripts> =
        scripts.filter(|scripts| !SUPPLIED.contains(&scripts.package.as_str())).collect();
    let origin = placer.origin();
    let mut undone = maintainer::configure(&mut placer.tree, origin, &scripts);
    maintainer::tmpfiles(&mut placer.tree, origin);
    maintainer::uncached(&mut placer.tree, &origins, &mut undone);
    placer.replaced.clear();
    Ok((placer, undone))
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
    let scripts = Scripts {
        package: name.clone(),
        preinst: text("preinst"),
        postinst: text("postinst"),
        config: decides(&text("config")),
        templates: text("templates"),
        triggers: text("triggers"),
    };
    let provided = deb::clauses(&stanza, "Provides").into_iter().flatten();
    let provides = std::iter::once(name.clone()).chain(provided).collect();
    let needs = ["Pre-Depends", "Depends"].iter().flat_map(|field| deb::clauses(&stanza, field)).collect();
    let entries = spool.read(deb::data_tar(path)?, &name, Limits::default())?;
    Ok(Package { entries, name, provides, needs, scripts })
}

/// Whether a `config` does more than ask: what only asks leaves the defaults.
fn decides(config: &str) -> bool {
    let asks = config.is_empty() || config.starts_with("#!/bin/sh") || config.starts_with("#! /bin/sh");
    !asks || config.contains("db_set") || config.contains("db_subst")
}

fn text_of(content: &Content, size: u64) -> String {
    let mut bytes = Vec::new();
    if let Ok(reader) = content.open(size) {
        // Text for us only: what cannot be read here will fail again, and loudly, when it is written.
        let _ = reader.take(16 << 20).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What every image has that no package brings, where it is not there yet.
fn supply(placer: &mut Placer<'_>) -> Result<()> {
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
    if placer.tree.lookup("usr/share/zoneinfo/Etc/UTC").is_some() {
        add(placer, "etc/localtime", Kind::Symlink("/usr/share/zoneinfo/Etc/UTC".into()))?;
        add(placer, "etc/timezone", made("Etc/UTC\n".to_owned()))?;
    }
    let shells =
        concatenated(&placer.tree, &["usr/share/debianutils/shells", "usr/share/debianutils/shells.d"], "");
    if !shells.is_empty() {
        add(placer, "etc/shells", made(shells))?;
    }
    let certificates = concatenated(&placer.tree, &["usr/share/ca-certificates"], ".crt");
    if !certificates.is_empty() {
        add(placer, BUNDLE, made(certificates))?;
        // Where OpenSSL looks when nobody tells it; links by hash, the other way, are made by its program only.
        add(placer, "usr/lib/ssl/cert.pem", Kind::Symlink(format!("/{BUNDLE}").into()))?;
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

/// The order in which scripts run: by name, each after those that it needs.
fn order(packages: &[Package]) -> Vec<usize> {
    let mut providers: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, package) in packages.iter().enumerate() {
        for name in &package.provides {
            providers.entry(name).or_default().push(at);
        }
    }
    let mut order = Vec::with_capacity(packages.len());
    let mut seen = vec![false; packages.len()];
    for start in 0..packages.len() {
        // Once to look at what it needs, and once more when that is done.
        let mut pending = vec![(start, false)];
        while let Some((at, done)) = pending.pop() {
            if done {
                order.push(at);
                continue;
            }
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            pending.push((at, true));
            let needs = packages[at].needs.iter().rev().flatten();
            let needed = needs.filter_map(|name| providers.get(name.as_str())).flatten();
            pending.extend(needed.filter(|at| !seen[**at]).map(|at| (*at, false)));
        }
    }
    order
}

/// Gives files of a package the names that another package has diverted them to.
fn divert(entries: &mut [Entry], name: &str, diversions: &[Diversion]) {
    let mut ways: HashMap<String, &str> = HashMap::new();
    for Diversion { from, to, .. } in diversions.iter().filter(|diversion| diversion.holder != name) {
        // A path has one diversion.
        ways.entry(merged(from)).or_insert(to);
    }
    if ways.is_empty() {
        return;
    }
    for entry in entries.iter_mut() {
        if let Some(to) = ways.get(&merged(&entry.path)) {
            entry.path = (*to).into();
        }
        if let EntryKind::HardLink(target) = &mut entry.kind
            && let Some(to) = ways.get(&merged(target))
        {
            *target = (*to).into();
        }
    }
}

/// One sentence about packages whose scripts do more.
fn told(undone: &[Undone]) -> Option<String> {
    const SHOWN: usize = 6;
    let mut names: Vec<String> = undone
        .iter()
        .take(SHOWN)
        .map(|one| {
            let more = if one.what.len() > 1 { ", ..." } else { "" };
            format!("{} (`{}`{more})", one.package, one.what.first().map_or("", |what| what))
        })
        .collect();
    if undone.len() > SHOWN {
        names.push(format!("{} more", undone.len() - SHOWN));
    }
    (!names.is_empty()).then(|| {
        format!(
            "maintainer scripts do more than is done without running them, of {}: if what the workload needs is \
             missing, write `scripts=#true` behind the names of its `debian`",
            names.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_lacks_what_one_of_it_needs_is_not_whole() {
        let package = |name: &str, provides: &[&str], needs: &[&[&str]]| Package {
            name: name.to_owned(),
            provides: [&[name], provides].concat().into_iter().map(str::to_owned).collect(),
            needs: needs.iter().map(|names| names.iter().map(|n| (*n).to_owned()).collect()).collect(),
            entries: vec![],
            scripts: Scripts::default(),
        };
        let a = || package("a", &[], &[&["b", "virtual"], &["c"]]);
        let virtual_c = || package("c", &["virtual"], &[]);
        check_whole(&[a(), virtual_c()]).unwrap();
        let error = check_whole(&[a(), package("c", &[], &[])]).unwrap_err();
        assert_eq!(error.code(), "image.incomplete");
        assert!(error.to_string().contains("a needs b or virtual"), "{error}");
    }

    fn named(name: &str, needs: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            provides: vec![name.to_owned()],
            needs: needs.iter().map(|name| vec![(*name).to_owned()]).collect(),
            entries: vec![],
            scripts: Scripts::default(),
        }
    }

    #[test]
    fn scripts_run_after_those_of_what_their_package_needs() {
        let packages = [named("a", &["d", "c"]), named("b", &["a"]), named("c", &["b"]), named("d", &[])];
        // Circles are cut where they are met.
        assert_eq!(order(&packages), [3, 1, 2, 0]);
    }

    #[test]
    fn files_of_other_packages_are_diverted() {
        let file = |path: &str| Entry {
            path: path.into(),
            meta: Meta::root(0o644),
            kind: EntryKind::Leaf(Kind::Fifo),
        };
        let diversions =
            [Diversion { from: "bin/x".into(), to: "usr/bin/x.real".into(), holder: "holder".into() }];
        let paths = |name: &str| {
            let mut entries = [file("usr/bin/x"), file("bin/x"), file("usr/bin/y")];
            divert(&mut entries, name, &diversions);
            entries.map(|entry| entry.path.to_string())
        };
        assert_eq!(paths("holder"), ["usr/bin/x", "bin/x", "usr/bin/y"]);
        assert_eq!(paths("other"), ["usr/bin/x.real", "usr/bin/x.real", "usr/bin/y"]);
    }
    /// Of each package, what is left undone, with `FIREGOPHER_TEST_DEBS=DIR`: the long form, for packages of one's own.
    #[test]
    fn the_packages_of_every_image_need_no_script_to_run() {
        let scratch = tempfile::tempdir().unwrap();
        let undone = |debs: &[PathBuf]| {
            let nothing = Index::default();
            let assembled = assemble_all(debs, &nothing, scratch.path(), &mut Vec::new());
            assembled.map(|(_, undone)| undone).unwrap_or_else(|e| panic!("{e}"))
        };
        if let Some(dir) = std::env::var_os("FIREGOPHER_TEST_DEBS") {
            let entries = fs_err::read_dir(PathBuf::from(dir)).unwrap().map(|entry| entry.unwrap().path());
            let debs: Vec<PathBuf> =
                entries.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect();
            for Undone { package, what } in undone(&debs) {
                println!("{package}: {}", what.join(" | "));
            }
            return;
        }
        let Some(debs) = crate::testing::debs(crate::manifest::BASE_PACKAGES) else { return };
        assert_eq!(undone(&debs), []);
    }
}
