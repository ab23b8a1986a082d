//! What maintainer scripts do to an image, where they say it plainly: read from the scripts, done to the tree, nothing
//! run. Alternatives, users and groups, directories, files, links, owners, questions' defaults, and what sysusers.d(5)
//! and tmpfiles.d(5) declare. What a script does beyond that is named, package by package, and left undone.

mod accounts;
mod alternatives;
mod budget;
mod commands;
mod declared;
mod libraries;
mod parse;
mod root;
mod run;
mod search;

use super::archive::clean;
use super::tree::{Meta, Tree};
use alternatives::Alternatives;
use root::Root;
use run::{Runner, Shared};
use std::collections::{BTreeSet, HashMap};

pub(super) use declared::tmpfiles;
pub(super) use libraries::uncached;

/// As long as a script of anybody's is; longer ones are named.
const MOST_TEXT: usize = 256 << 10;

/// The scripts of a package.
#[derive(Debug, Default)]
pub(super) struct Scripts {
    pub package: String,
    pub preinst: String,
    pub postinst: String,
    /// Whether it has a `config`, which may answer its own questions.
    pub config: bool,
    /// Its questions (debconf's `templates`).
    pub templates: String,
    /// Its `triggers`.
    pub triggers: String,
}

/// Where files go that another package diverts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Diversion {
    /// The path, without leading '/'.
    pub from: String,
    pub to: String,
    /// The package whose own file stays.
    pub holder: String,
}

/// What is not done of a package's scripts, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Undone {
    pub package: String,
    pub what: Vec<String>,
}

/// The diversions that scripts ask for before anything is unpacked.
pub(super) fn diversions(all: &[Scripts]) -> Vec<Diversion> {
    let mut tree = Tree::new(Meta::root(0o755), 1);
    let mut shared = shared(&mut tree, 1);
    for scripts in all.iter().filter(|scripts| scripts.preinst.contains("dpkg-divert")) {
        Runner::new(&mut shared, &scripts.package, None).follow(&bounded(&scripts.preinst), &["install"]);
    }
    // As the names of an archive's members are read: what could lead elsewhere diverts nothing.
    let plain = |path: &str| clean("a diversion", path.trim_start_matches('/').as_bytes()).ok();
    let plain = |path: &str| plain(path).filter(|path| !path.is_empty());
    let all = shared.diversions.into_iter();
    all.filter_map(|(from, to, holder)| Some(Diversion { from: plain(&from)?, to: plain(&to)?, holder }))
        .collect()
}

/// Does to the tree what the scripts would, in this order: needed packages come before those that need them. What is
/// made belongs to the item `origin`.
pub(super) fn configure(tree: &mut Tree, origin: u32, all: &[Scripts]) -> Vec<Undone> {
    let users = users_before(tree, all);
    let mut shared = shared(tree, origin);
    for (file, text) in users {
        shared.root.write(&file, &text);
    }
    declared::sysusers(&mut shared.root);
    let mut undone = Vec::new();
    for scripts in all {
        let answers = answers(&scripts.templates);
        let mut runner = Runner::new(&mut shared, &scripts.package, (!scripts.config).then_some(&answers));
        if !scripts.postinst.is_empty() {
            runner.follow(&bounded(&scripts.postinst), &["configure", ""]);
        }
        note(&mut undone, &scripts.package, runner.undone.into_set());
    }
    // What others have brought by now.
    for scripts in all.iter().filter(|scripts| !scripts.postinst.is_empty()) {
        let interests: Vec<String> =
            interests(&scripts.triggers).into_iter().filter(|path| shared.root.exists(path)).collect();
        if interests.is_empty() {
            continue;
        }
        let mut runner = Runner::new(&mut shared, &scripts.package, None);
        runner.follow(&bounded(&scripts.postinst), &["triggered", &interests.join(" ")]);
        note(&mut undone, &scripts.package, runner.undone.into_set());
    }
    undone.sort_by(|a, b| a.package.cmp(&b.package));
    undone
}

fn shared(tree: &mut Tree, origin: u32) -> Shared<'_> {
    Shared { root: Root::new(tree, origin), alternatives: Alternatives::default(), diversions: Vec::new() }
}

fn bounded(script: &str) -> String {
    match script.len() {
        0..MOST_TEXT => script.to_owned(),
        _ => "#!too-long".to_owned(),
    }
}

fn note(undone: &mut Vec<Undone>, package: &str, what: BTreeSet<String>) {
    if what.is_empty() {
        return;
    }
    let short = |text: String| text.split_whitespace().take(6).collect::<Vec<_>>().join(" ");
    let what = what.into_iter().map(short);
    match undone.iter_mut().find(|one| one.package == package) {
        Some(one) => one.what.extend(what),
        None => undone.push(Undone { package: package.to_owned(), what: what.collect() }),
    }
}

/// The lists of users and groups with those that packages make before they are unpacked. Their scripts see a system
/// without their files, so they are followed in a tree that has none.
fn users_before(tree: &mut Tree, all: &[Scripts]) -> Vec<(String, String)> {
    const FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];
    let mut real = Root::new(tree, 1);
    let lists: Vec<(&str, String)> =
        FILES.iter().filter_map(|file| Some((*file, real.text(file)?))).collect();
    let mut empty = Tree::new(Meta::root(0o755), 1);
    let mut shared = shared(&mut empty, 1);
    shared.root.make_dir("/etc", Meta::root(0o755));
    for (file, text) in &lists {
        shared.root.write(file, text);
    }
    let makes =
        |text: &str| ["adduser", "addgroup", "useradd", "groupadd"].iter().any(|name| text.contains(name));
    for scripts in all.iter().filter(|scripts| makes(&scripts.preinst)) {
        Runner::new(&mut shared, &scripts.package, None).follow(&bounded(&scripts.preinst), &["install"]);
    }
    let changed = lists.into_iter().filter_map(|(file, before)| {
        let after = shared.root.text(file)?;
        (after != before).then(|| (file.to_owned(), after))
    });
    changed.collect()
}

/// The defaults of questions, by name.
fn answers(templates: &str) -> HashMap<String, String> {
    let mut answers = HashMap::new();
    let mut name = "";
    for line in templates.lines() {
        if let Some(template) = line.strip_prefix("Template:") {
            name = template.trim();
            answers.insert(name.to_owned(), String::new());
        } else if let Some(default) = line.strip_prefix("Default:") {
            answers.insert(name.to_owned(), default.trim().to_owned());
        }
    }
    answers
}

/// The paths that a package is interested in (deb-triggers(5)).
fn interests(triggers: &str) -> Vec<String> {
    let paths = triggers.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| word.starts_with("interest"))?;
        words.next().filter(|path| path.starts_with('/')).map(str::to_owned)
    });
    paths.collect()
}

#[cfg(test)]
mod tests;
