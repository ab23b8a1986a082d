//! What is to be known of a package before it is installed, and the order in which packages are.

use crate::error::{Context, Error, Result};
use crate::image::deb::{clauses, control_tar};
use fs_err as fs;
use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A package that will be installed.
pub(super) struct Package {
    pub deb: PathBuf,
    pub name: String,
    /// Of the file, in bytes.
    pub size: u64,
    /// In bytes, as the package says; 0 if it does not.
    pub installed: u64,
    /// When it was built, in seconds.
    pub built: u64,
    /// Whether others count on it without a word.
    essential: bool,
    /// Names that it answers to, its own first.
    provides: Vec<String>,
    pre_depends: Vec<Vec<String>>,
    depends: Vec<Vec<String>>,
}

impl Package {
    pub fn read(deb: &Path) -> Result<Package> {
        let text = control(deb)?;
        let size =
            fs::metadata(deb).or_failed("asset.deb", || format!("cannot read {}", deb.display()))?.len();
        let package = Package::of(deb, &text, size, built(deb)?);
        package.ok_or_else(|| {
            let message = format!("cannot read the package {}: it does not say which it is", deb.display());
            Error::failed("asset.deb", message)
        })
    }

    fn of(deb: &Path, control: &str, size: u64, built: u64) -> Option<Package> {
        let field = |name: &str| {
            let line = control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        let (name, _) = (field("Package")?, field("Version")?);
        let provided = clauses(control, "Provides").into_iter().flatten();
        // deb-control(5): in KiB.
        let installed = field("Installed-Size").and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
        Some(Package {
            deb: deb.to_owned(),
            provides: std::iter::once(name.clone()).chain(provided).collect(),
            name,
            size,
            installed: installed.saturating_mul(1024),
            built,
            essential: field("Essential").is_some_and(|value| value == "yes"),
            pre_depends: clauses(control, "Pre-Depends"),
            depends: clauses(control, "Depends"),
        })
    }

    /// The name of its file among the others'.
    pub fn file(&self) -> String {
        let safe = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let name: String = self.name.chars().map(|c| if safe(c) { c } else { '_' }).collect();
        format!("{name}.deb")
    }
}

/// The control file of a package.
fn control(deb: &Path) -> Result<String> {
    let failed = || format!("cannot read the package {}", deb.display());
    let mut archive = tar::Archive::new(control_tar(deb)?);
    for entry in archive.entries().or_failed("asset.deb", failed)? {
        let entry = entry.or_failed("asset.deb", failed)?;
        if entry.path_bytes().strip_prefix(b"./").unwrap_or(&entry.path_bytes()) != b"control" {
            continue;
        }
        let mut text = String::new();
        entry.take(1 << 20).read_to_string(&mut text).or_failed("asset.deb", failed)?;
        return Ok(text.trim_end().to_owned());
    }
    Err(Error::failed("asset.deb", format!("{}: it has no control file", failed())))
}

/// When a package was built, in seconds: the time of its first member (ar(5)).
fn built(deb: &Path) -> Result<u64> {
    let failed = || format!("cannot read the package {}", deb.display());
    let mut head = [0; 8 + 28];
    fs::File::open(deb).and_then(|mut file| file.read_exact(&mut head)).or_failed("asset.deb", failed)?;
    let text = String::from_utf8_lossy(&head[8 + 16..]);
    text.trim().parse().or_failed("asset.deb", failed)
}

/// What each package needs of the others, by index: before it is unpacked, and at all.
struct Edges {
    before: Vec<Vec<usize>>,
    all: Vec<Vec<usize>>,
}

impl Edges {
    fn of(packages: &[Package]) -> Edges {
        let mut providers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, package) in packages.iter().enumerate() {
            for name in &package.provides {
                providers.entry(name).or_default().push(at);
            }
        }
        // Of alternatives, those that are there: what could satisfy a clause comes first, whichever it is.
        let resolve = |own: usize, clauses: &[Vec<String>]| {
            let names = clauses.iter().flatten();
            let found: BTreeSet<usize> =
                names.filter_map(|name| providers.get(name.as_str())).flatten().copied().collect();
            found.into_iter().filter(|&at| at != own).collect::<Vec<_>>()
        };
        let before: Vec<_> = packages.iter().enumerate().map(|(at, p)| resolve(at, &p.pre_depends)).collect();
        let depends = packages.iter().enumerate().map(|(at, p)| resolve(at, &p.depends));
        let all = depends.zip(&before).map(|(depends, before)| [depends, before.clone()].concat()).collect();
        Edges { before, all }
    }

    /// Whatever `from` need, themselves included.
    fn closure(&self, from: impl IntoIterator<Item = usize>) -> BTreeSet<usize> {
        let mut found: BTreeSet<usize> = BTreeSet::new();
        let mut pending: Vec<usize> = from.into_iter().collect();
        while let Some(at) = pending.pop() {
            if found.insert(at) {
                pending.extend(&self.all[at]);
            }
        }
        found
    }
}

/// The packages, as indexes, in groups that are installed one after the other. The first is what everything else counts
/// on, and whatever that needs; before a package of a later group is unpacked, all that it needs by then (Pre-Depends)
/// is configured in an earlier one.
pub(super) fn order(packages: &[Package]) -> Vec<Vec<usize>> {
    let edges = Edges::of(packages);
    let base = edges.closure((0..packages.len()).filter(|&at| packages[at].essential));
    let mut left: BTreeSet<usize> = (0..packages.len()).filter(|at| !base.contains(at)).collect();
    let mut groups = vec![base.into_iter().collect::<Vec<_>>()];
    while !left.is_empty() {
        let ready = |at: &usize| {
            let needed = edges.closure([*at]);
            let mut left_of_them = needed.iter().filter(|at| left.contains(at));
            !left_of_them.any(|&at| edges.before[at].iter().any(|before| left.contains(before)))
        };
        let mut group: Vec<usize> = left.iter().copied().filter(ready).collect();
        if group.is_empty() {
            // A circle through Pre-Depends, which policy forbids: dpkg says what it is about.
            group = left.iter().copied().collect();
        }
        left.retain(|at| !group.contains(at));
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(control: &str) -> Package {
        Package::of(Path::new("x.deb"), &format!("Version: 1\n{control}"), 0, 0).unwrap()
    }

    fn names(packages: &[Package]) -> Vec<Vec<&str>> {
        let groups = order(packages);
        groups.iter().map(|group| group.iter().map(|&at| packages[at].name.as_str()).collect()).collect()
    }

    #[test]
    fn what_is_needed_before_unpacking_is_in_an_earlier_group() {
        let packages: Vec<Package> = [
            "Package: libc\n",
            "Package: shell\nEssential: yes\nPre-Depends: libc (>= 2)\n",
            "Package: server\nPre-Depends: common, conf (>= 1) | conf-2\nDepends: lib\n",
            "Package: common\nDepends: lib\n",
            "Package: lib\n",
            "Package: other\nProvides: conf-2 (= 1)\n",
            // Its own needs are met at once, those of what it depends on are not.
            "Package: meta\nDepends: server\n",
        ]
        .map(package)
        .into();
        assert_eq!(
            names(&packages),
            [vec!["libc", "shell"], vec!["common", "lib", "other"], vec!["server", "meta"]]
        );
    }

    #[test]
    fn chains_and_circles_end() {
        let packages: Vec<Package> = [
            "Package: c\nPre-Depends: b\n",
            "Package: b\nPre-Depends: a\n",
            "Package: a\nDepends: d\n",
            "Package: d\nDepends: a\n",
            "Package: x\nPre-Depends: y\n",
            "Package: y\nPre-Depends: x\n",
        ]
        .map(package)
        .into();
        assert_eq!(names(&packages), [vec![], vec!["a", "d"], vec!["b"], vec!["c"], vec!["x", "y"]]);
    }
}
