//! Resolves package names to exact pins, through the host's apt.

use super::apt::Apt;
use super::apt_error::{Complaints, network_error};
use super::debs;
use super::parallel::parallel;
use super::parse::{Chosen, Deb, Record, dependency_names, records, uri_line};
use super::progress::Progress;
use super::vmm_closure;
use crate::error::{Error, Result};
use crate::lock::{AssetId, Origin, Pin, Pins, Release};
use crate::store::Store;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

/// What the QEMU tree is taken from; all else follows by dependency.
const VMM_PACKAGES: &[&str] = &["qemu-system-x86"];

/// Resolves assets and fetches their packages, each asset by itself: one that fails stops no other. `found` hears of
/// each, or of several that one error befalls. A kernel is pinned to the packages with its image and modules, an image
/// to its whole closure; the VMM's closure is fetched and cut down to the packages that its tree takes a file from, so
/// that other machines fetch only these. Uses the network where the package lists are missing or old, or a package is.
///
/// # Errors
/// Usage for unknown or contradicting packages; host without apt; failed without network; those of [`super::fetch_debs`].
pub fn resolve_each(
    store: &Store,
    apt: &Apt,
    ids: &[AssetId],
    progress: &dyn Progress,
    found: &dyn Fn(&[AssetId], Result<Pins>),
) {
    let mut left = ids.to_vec();
    while let Some(first) = left.first() {
        // All that have the same sources in one go.
        let same = apt.of(first);
        let (these, others) = left.into_iter().partition(|id| same.is(&apt.of(id)));
        left = others;
        resolve_together(store, &same, &these, progress, found);
    }
}

/// As [`resolve_each`], in the order of `ids`, or the first error.
///
/// # Errors
/// As [`resolve_each`].
pub fn resolve_all(store: &Store, apt: &Apt, ids: &[AssetId], progress: &dyn Progress) -> Result<Vec<Pins>> {
    let all: RefCell<Result<BTreeMap<AssetId, Pins>>> = RefCell::new(Ok(BTreeMap::new()));
    resolve_each(store, apt, ids, progress, &|ids, pins| {
        let mut all = all.borrow_mut();
        match (&mut *all, pins) {
            (Ok(all), Ok(pins)) => all.extend(ids.iter().map(|id| (id.clone(), pins.clone()))),
            (Ok(_), Err(error)) => *all = Err(error),
            (Err(_), _) => {}
        }
    });
    let all = all.into_inner()?;
    let of =
        |id| all.get(id).cloned().ok_or_else(|| Error::bug(format!("{id} was neither pinned nor refused")));
    ids.iter().map(of).collect()
}

/// The part of [`resolve_each`] for assets of the same sources, which are those of `apt`.
fn resolve_together(
    store: &Store,
    apt: &Apt,
    ids: &[AssetId],
    progress: &dyn Progress,
    found: &dyn Fn(&[AssetId], Result<Pins>),
) {
    let Listed { origin, snapshot, closures } = match list(apt, ids, progress) {
        Ok(listed) => listed,
        Err(error) => return found(ids, Err(error)),
    };
    let mut wanted: Vec<(AssetId, Vec<Deb>)> = Vec::new();
    for (id, closure) in ids.iter().zip(closures) {
        match closure {
            Ok(debs) => wanted.push((id.clone(), debs)),
            Err(error) => found(std::slice::from_ref(id), Err(error)),
        }
    }
    let all: Vec<&Deb> = wanted.iter().flat_map(|(_, debs)| debs).collect();
    let fetched = debs::fetch_listed(store, apt, &all, progress);
    // What arrived whole before a failure is there.
    let (whole, broken): (Vec<_>, Vec<_>) =
        wanted.iter().partition(|(_, all)| all.iter().all(|deb| debs::stored(store, deb).is_some()));
    if !broken.is_empty() {
        let why = fetched.err().unwrap_or_else(|| Error::bug("packages were fetched and are not there"));
        let ids: Vec<AssetId> = broken.into_iter().map(|(id, _)| id.clone()).collect();
        found(&ids, Err(why));
    }
    for (id, debs) in whole {
        let pins = pin(store, id, debs, progress).map(|packages| Pins {
            origin: origin.clone(),
            snapshot: snapshot.clone(),
            packages,
        });
        found(std::slice::from_ref(id), pins);
    }
}

/// What the lists of some sources say.
struct Listed {
    origin: Origin,
    snapshot: Vec<Release>,
    /// Of each asset in its order.
    closures: Vec<Result<Vec<Deb>>>,
}

fn list(apt: &Apt, ids: &[AssetId], progress: &dyn Progress) -> Result<Listed> {
    // Before anything is fetched.
    apt.check_keyrings()?;
    let _lock = apt.lock(progress)?;
    let warnings = apt.update_if_stale(progress)?;
    progress.start("resolving package versions", None);
    let closures = parallel(ids, |id| Ok(resolve_locked(apt, id, &warnings)))?;
    Ok(Listed { origin: apt.origin()?, snapshot: apt.snapshot()?, closures })
}

/// The pins of an asset whose packages are in the store.
fn pin(store: &Store, id: &AssetId, debs: &[Deb], progress: &dyn Progress) -> Result<Vec<Pin>> {
    let pin = |deb: &Deb| {
        let blake3 = debs::stored(store, deb);
        let gone = || Error::bug(format!("{} was fetched and is not there", deb.package));
        Ok(deb.clone().pinned(blake3.ok_or_else(gone)?))
    };
    let pins = debs.iter().map(pin).collect::<Result<Vec<Pin>>>()?;
    if *id != AssetId::Vmm {
        return Ok(pins);
    }
    progress.start("finding the libraries QEMU needs", None);
    let paths: Vec<PathBuf> = pins.iter().map(|pin| store.object_path(&pin.blake3)).collect();
    let used = vmm_closure::contributors(&paths)?;
    Ok(used.into_iter().map(|index| pins[index].clone()).collect())
}

/// The exact packages behind an asset's names, sorted. The caller holds apt's lock.
fn resolve_locked(apt: &Apt, id: &AssetId, warnings: &Complaints) -> Result<Vec<Deb>> {
    let mut args: Vec<String> = ["-y", "--print-uris"].map(String::from).to_vec();
    if let Some(suite) = id.set().and_then(|set| set.suite.as_ref()) {
        args.extend(["-t".to_owned(), suite.clone()]);
    }
    args.extend(["install", "--"].map(String::from));
    match id {
        AssetId::Vmm => args.extend(VMM_PACKAGES.iter().map(|name| (*name).to_owned())),
        AssetId::Kernel(set) | AssetId::Image(set) => {
            // A system whose scripts run is whole: they count on what is essential, as its distribution says it.
            if set.scripts {
                // usr-is-merged, where there is one, saves what would merge /usr by perl.
                args.extend(["?essential", "?exact-name(usr-is-merged)"].map(String::from));
            }
            args.extend(set.packages.iter().map(ToString::to_string));
        }
        AssetId::File { .. } | AssetId::Oci(_) => {
            return Err(Error::bug(format!("{id} does not come as packages")));
        }
    }
    let said = apt.run("apt-get", &args)?;
    if !said.status.success() {
        let mut complaints = said.complaints;
        complaints.extend(warnings.clone());
        return Err(unresolved(apt, id, &complaints, &said.stdout));
    }
    let closure: Vec<Chosen> = said.stdout.lines().filter_map(uri_line).collect();
    if closure.is_empty() {
        return Err(Error::bug(format!("apt-get resolved {id} to no package at all")));
    }
    literal(apt, id, &closure, &said.stdout)?;
    let known = show(apt, &closure)?;
    let record = |c: &Chosen| {
        known.get(c).ok_or_else(|| {
            Error::failed(
                "asset.no-digest",
                format!("apt knows no SHA-256 of {} {} for {}", c.package, c.version, c.arch),
            )
            .help("the archive that serves it publishes none, so it cannot be pinned")
        })
    };
    let mut found = closure.iter().map(record).collect::<Result<Vec<&Record>>>()?;
    if let AssetId::Kernel(set) = id {
        keep_kernel(&mut found);
        if found.is_empty() {
            return Err(Error::usage("asset.no-kernel", format!("the package {set} brings no kernel image"))
                .help("name a package such as linux-image-cloud-amd64"));
        }
    }
    let mut debs: Vec<Deb> = found.into_iter().map(|record| record.deb.clone()).collect();
    debs.sort();
    debs.dedup();
    Ok(debs)
}

/// Only what holds /boot/vmlinuz and /lib/modules: the linux-image and linux-modules packages of the closure that
/// are no metapackages, which depend on another one of them and hold nothing.
fn keep_kernel(found: &mut Vec<&Record>) {
    const META_MAX: u64 = 64 << 10;
    found.retain(|r| {
        ["linux-image-", "linux-modules-"].iter().any(|prefix| r.deb.package.starts_with(prefix))
    });
    let names: HashSet<&str> = found.iter().map(|r| r.deb.package.as_str()).collect();
    let is_meta =
        |r: &Record| r.deb.size < META_MAX && dependency_names(&r.depends).any(|name| names.contains(name));
    found.retain(|r| !is_meta(r));
    if !found.iter().any(|r| r.deb.package.starts_with("linux-image-")) {
        found.clear();
    }
}

/// `apt-cache show` of exact versions.
fn show(apt: &Apt, closure: &[Chosen]) -> Result<HashMap<Chosen, Record>> {
    let mut args = vec!["show".to_owned(), "--no-all-versions".to_owned(), "--".to_owned()];
    args.extend(closure.iter().map(|c| format!("{}={}", c.package, c.version)));
    let said = apt.run("apt-cache", &args)?;
    if !said.status.success() {
        return Err(network_error("read the package lists", &said.complaints));
    }
    Ok(records(&said.stdout))
}

/// Refuses what apt took for more than a package's name: `curl-` removes, `curl+` installs, and a name with a dot or a
/// plus that no package has is a regular expression.
fn literal(apt: &Apt, id: &AssetId, closure: &[Chosen], stdout: &str) -> Result<()> {
    let wanted = id.set().into_iter().flat_map(|set| &set.packages);
    for name in wanted.map(|wanted| wanted.name.as_str()) {
        // A virtual package of which there is but one.
        let instead = format!("instead of '{name}'");
        if closure.iter().any(|chosen| chosen.package == name)
            || stdout.lines().any(|line| line.ends_with(&instead))
        {
            continue;
        }
        return Err(unknown(
            apt,
            id,
            name,
            "names are meant as they stand, without apt's own signs and patterns",
        ));
    }
    Ok(())
}

fn unknown(apt: &Apt, id: &AssetId, name: &str, why: &str) -> Error {
    let error = Error::usage("asset.unknown-package", format!("{id}: apt has no package {name}: {why}"));
    match similar(apt, name) {
        Some(near) => error.help(format!("did you mean {near}?")),
        None => error.help("check the name against this host's package sources (`apt-cache search`)"),
    }
}

/// What apt says of a virtual package: who provides it, sorted.
fn providers(stdout: &str, name: &str) -> Vec<String> {
    let head = format!("Package {name} is a virtual package provided by:");
    let lines = stdout.lines().skip_while(|line| line.trim() != head).skip(1);
    let names =
        lines.take_while(|line| line.starts_with(' ')).filter_map(|line| line.split_whitespace().next());
    let mut names: Vec<String> = names.map(super::parse::printable).collect();
    names.sort();
    names.dedup();
    names
}

fn unresolved(apt: &Apt, id: &AssetId, complaints: &Complaints, stdout: &str) -> Error {
    if let Some(name) = complaints.unknown_package() {
        let providers = providers(stdout, name);
        if let Some(first) = providers.first() {
            const SHOWN: usize = 8;
            let more = providers.len().saturating_sub(SHOWN);
            let shown = providers[..providers.len() - more].join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Error::usage(
                "asset.virtual-package",
                format!("{id}: {name} is a virtual package, provided by {shown}{more}"),
            )
            .help(format!("name the one that you want, such as \"{first}\""));
        }
        return unknown(apt, id, name, &complaints.quoted());
    }
    if complaints.unknown_suite() {
        let suite = id.set().and_then(|set| set.suite.as_deref()).unwrap_or_default();
        let known = apt.suites();
        let error =
            Error::usage("asset.unknown-suite", format!("{id}: no package source has the suite {suite}"));
        let near = nearest(suite, known.iter().map(String::as_str));
        let of =
            if id.sources().is_empty() { "this host's sources have" } else { "the image's sources have" };
        return error.help(match near {
            Some(near) => format!("did you mean {near}? {of} {}", known.join(", ")),
            None => format!("{of} {}; another one needs a line in the sources", known.join(", ")),
        });
    }
    if let Some((name, version)) = complaints.unknown_version() {
        let error = Error::usage(
            "asset.unknown-version",
            format!("{id}: no package source has version {version} of {name}"),
        );
        let known = versions(apt, name);
        return error.help(match known.as_slice() {
            [] => "there is none of that name at all".to_owned(),
            some => format!("there is {}", some.join(", ")),
        });
    }
    if let Some(at) = stdout.find("The following packages have unmet dependencies:") {
        let said: Vec<&str> =
            stdout[at..].lines().skip(1).take_while(|l| l.starts_with(' ')).map(str::trim).take(5).collect();
        return Error::usage(
            "asset.unsatisfiable",
            format!("{id}: the packages do not go together: {}", said.join("; ")),
        )
        .help("these packages conflict, or this host's sources lack something they need");
    }
    network_error(&format!("resolve {id}"), complaints)
}

/// The nearest known package name.
fn similar(apt: &Apt, name: &str) -> Option<String> {
    let prefix = name.get(..2)?;
    let said = apt.run("apt-cache", &["pkgnames", "--", prefix]).ok()?;
    nearest(name, said.stdout.lines()).map(str::to_owned)
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|known| (strsim::damerau_levenshtein(name, known), known));
    let (distance, best) = scored.min()?;
    (distance <= 2.max(name.len() / 6)).then_some(best)
}

/// The versions of a package that the lists know, newest first.
fn versions(apt: &Apt, name: &str) -> Vec<String> {
    let Ok(said) = apt.run("apt-cache", &["madison", "--", name]) else { return Vec::new() };
    let mut found: Vec<String> = Vec::new();
    for version in said.stdout.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim) {
        if !found.iter().any(|seen| seen == version) {
            found.push(version.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_provides_a_virtual_package_is_read_from_what_apt_says() {
        let said = "Reading package lists...\nPackage a is a virtual package provided by:\n  b 1\n  c 2 (= 3)\n  b 0\n\n\
                    Package awk is a virtual package provided by:\n  mawk 1.3\n";
        assert_eq!(providers(said, "a"), ["b", "c"]);
        assert_eq!(providers(said, "awk"), ["mawk"]);
        assert_eq!(providers(said, "other"), [""; 0]);
    }
}
