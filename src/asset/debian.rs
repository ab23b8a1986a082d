//! Resolves package names to exact pins and pins to .deb files in the store, through the host's apt.

use super::apt::Apt;
use super::apt_error::{Complaints, network_error};
use super::mmdebstrap;
use super::parallel::parallel;
use super::parse::{Chosen, Record, chosen, deb_name, dependency_names, records, uri_line};
use super::progress::Progress;
use super::vmm_closure;
use crate::digest::{FieldHasher, ObjectDigest, StepKey};
use crate::error::{Context, Error, Result};
use crate::lock::{AssetId, Pin, Pins};
use crate::store::{Action, Store, TempDir};
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the QEMU tree is taken from; all else follows by dependency.
const VMM_PACKAGES: &[&str] = &["qemu-system-x86"];

/// The exact packages behind an asset's names: for a kernel only those with the image (and its modules), for the
/// VMM and images the whole closure, sorted. Uses the network where the package lists are missing or old.
///
/// # Errors
/// Usage for unknown or contradicting packages; host without apt; failed without network.
pub fn resolve(apt: &Apt, id: &AssetId, progress: &dyn Progress) -> Result<Vec<Pin>> {
    let apt = &apt.of(id);
    let _lock = apt.lock(progress)?;
    let warnings = apt.update_if_stale(progress)?;
    resolve_locked(apt, id, &warnings)
}

/// Resolves several assets, each with the distribution, ready for the lock. The VMM's closure is fetched and
/// cut down to the packages that its tree takes a file from, so that other machines fetch only these.
///
/// # Errors
/// As [`resolve`] and [`fetch_debs`].
pub fn resolve_all(store: &Store, apt: &Apt, ids: &[AssetId], progress: &dyn Progress) -> Result<Vec<Pins>> {
    let apt_of = |id: &AssetId| apt.of(id);
    // Before anything is fetched.
    ids.iter().try_for_each(|id| apt.of(id).check_keyrings())?;
    let mut all: Vec<Option<Pins>> = vec![None; ids.len()];
    while let Some(first) = all.iter().position(Option::is_none) {
        // All that have the same sources in one go.
        let apt = apt.of(&ids[first]);
        let these: Vec<usize> = (first..ids.len()).filter(|&at| apt.is(&apt_of(&ids[at]))).collect();
        let (origin, snapshot, resolved) = {
            let _lock = apt.lock(progress)?;
            let warnings = apt.update_if_stale(progress)?;
            progress.start("resolving package versions", None);
            let resolved = parallel(&these, |&at| resolve_locked(&apt, &ids[at], &warnings))?;
            (apt.origin()?, apt.snapshot()?, resolved)
        };
        for (at, mut packages) in these.into_iter().zip(resolved) {
            if ids[at] == AssetId::Vmm {
                let debs = fetch_debs(store, &apt, &ids[at], &packages, progress)?;
                progress.start("finding the libraries QEMU needs", None);
                let used = vmm_closure::contributors(&debs)?;
                packages = used.into_iter().map(|index| packages[index].clone()).collect();
            }
            all[at] = Some(Pins { origin: origin.clone(), snapshot: snapshot.clone(), packages });
        }
    }
    Ok(all.into_iter().flatten().collect())
}

fn resolve_locked(apt: &Apt, id: &AssetId, warnings: &Complaints) -> Result<Vec<Pin>> {
    let mut args: Vec<String> = ["-y", "--print-uris"].map(String::from).to_vec();
    if let Some(suite) = id.set().and_then(|set| set.suite.as_ref()) {
        args.extend(["-t".to_owned(), suite.clone()]);
    }
    args.extend(["install", "--"].map(String::from));
    match id {
        AssetId::Vmm => args.extend(VMM_PACKAGES.iter().map(|name| (*name).to_owned())),
        AssetId::Mmdebstrap => args.extend(mmdebstrap::PACKAGES.iter().map(|name| (*name).to_owned())),
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
    if *id == AssetId::Mmdebstrap {
        found.retain(|r| mmdebstrap::uses(&r.pin.package));
    }
    let mut pins: Vec<Pin> = found.into_iter().map(|record| record.pin.clone()).collect();
    pins.sort();
    pins.dedup();
    Ok(pins)
}

/// Only what holds /boot/vmlinuz and /lib/modules: the linux-image and linux-modules packages of the closure that
/// are no metapackages, which depend on another one of them and hold nothing.
fn keep_kernel(found: &mut Vec<&Record>) {
    const META_MAX: u64 = 64 << 10;
    found.retain(|r| {
        ["linux-image-", "linux-modules-"].iter().any(|prefix| r.pin.package.starts_with(prefix))
    });
    let names: HashSet<&str> = found.iter().map(|r| r.pin.package.as_str()).collect();
    let is_meta =
        |r: &Record| r.pin.size < META_MAX && dependency_names(&r.depends).any(|name| names.contains(name));
    found.retain(|r| !is_meta(r));
    if !found.iter().any(|r| r.pin.package.starts_with("linux-image-")) {
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

fn unresolved(apt: &Apt, id: &AssetId, complaints: &Complaints, stdout: &str) -> Error {
    if let Some(name) = complaints.unknown_package() {
        let error = Error::usage(
            "asset.unknown-package",
            format!("{id}: apt has no package {name}: {}", complaints.quoted()),
        );
        return match similar(apt, name) {
            Some(near) => error.help(format!("did you mean {near}?")),
            None => error.help("check the name against this host's package sources (`apt-cache search`)"),
        };
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

/// The .deb files of `pins` in their order, as store objects. What the store lacks is downloaded in one
/// `apt-get download`, checked against size and SHA-256, and published. Give the pins of several assets at once if
/// they have the sources of `id`.
///
/// # Errors
/// Failed, naming `firegopher update`, if the archive no longer serves a pin or serves other bytes; failed
/// without network; host without apt. What arrived whole before a failure stays in the store.
pub fn fetch_debs(
    store: &Store,
    apt: &Apt,
    id: &AssetId,
    pins: &[Pin],
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>> {
    let apt = &apt.of(id);
    if !missing(store, pins).is_empty() {
        let _lock = apt.lock(progress)?;
        // Whoever held the lock may have fetched them.
        let wanted = missing(store, pins);
        if !wanted.is_empty() {
            download(store, apt, &wanted, progress)?;
        }
    }
    pins.iter()
        .map(|pin| {
            // A use, for gc.
            let _ = store.reuse(&deb_key(&pin.sha256));
            stored(store, pin)
                .ok_or_else(|| Error::bug(format!("{} was published and is not there", pin.package)))
        })
        .collect()
}

/// Whether all of `pins` are in the store, so that fetching them needs neither apt nor network.
pub fn have_debs(store: &Store, pins: &[Pin]) -> bool {
    pins.iter().all(|pin| stored(store, pin).is_some())
}

fn missing<'a>(store: &Store, pins: &'a [Pin]) -> BTreeMap<&'a str, &'a Pin> {
    pins.iter().filter(|pin| stored(store, pin).is_none()).map(|pin| (pin.sha256.as_str(), pin)).collect()
}

fn deb_key(sha256: &str) -> StepKey {
    FieldHasher::new("firegopher deb v1").field(sha256).finish().into()
}

fn stored(store: &Store, pin: &Pin) -> Option<PathBuf> {
    let output = store.action(&deb_key(&pin.sha256))?.output;
    let path = store.object_path(&output);
    fs::metadata(&path).is_ok_and(|meta| meta.len() == pin.size).then_some(path)
}

fn download(store: &Store, apt: &Apt, wanted: &BTreeMap<&str, &Pin>, progress: &dyn Progress) -> Result<()> {
    let updated = !apt.has_lists();
    if updated {
        apt.update(progress)?;
    }
    let temp = store.temp_dir()?;
    let mut said = download_once(apt, wanted.values().copied(), &temp, progress)?;
    let mut left = harvest(store, &temp, wanted)?;
    if !left.is_empty() && !updated && said.gone() {
        // Lists older than the pins, or the archive moved on since.
        apt.update(progress)?;
        said = download_once(apt, left.values().copied(), &temp, progress)?;
        left = harvest(store, &temp, &left)?;
    }
    let Some(first) = left.values().next() else { return Ok(()) };
    if said.network() {
        return Err(network_error(&format!("download {} packages", left.len()), &said));
    }
    if said.gone() {
        let names: Vec<String> =
            left.values().take(5).map(|p| format!("{} {}", p.package, p.version)).collect();
        let more = if left.len() > 5 { format!(" and {} more", left.len() - 5) } else { String::new() };
        let message = format!("the archive no longer serves {}{more}: {}", names.join(", "), said.quoted());
        return Err(Error::failed("asset.gone", message)
            .help("run `firegopher update` to pin the versions that it serves now"));
    }
    if said.is_empty() || said.other_bytes() {
        return Err(other_bytes(first));
    }
    Err(network_error(&format!("download {} {}", first.package, first.version), &said))
}

fn other_bytes(pin: &Pin) -> Error {
    let message =
        format!("the archive serves {} {} with other bytes than the lock pins", pin.package, pin.version);
    Error::failed("asset.digest", message).help(
        "if its source is trusted, `firegopher update` pins what it serves now; else find out who changed it",
    )
}

fn download_once<'a>(
    apt: &Apt,
    pins: impl Iterator<Item = &'a Pin>,
    temp: &TempDir,
    progress: &dyn Progress,
) -> Result<Complaints> {
    let mut args = vec!["download".to_owned(), "--".to_owned()];
    let mut total = 0;
    for pin in pins {
        args.push(format!("{}={}", pin.package, pin.version));
        total += pin.size;
    }
    progress.start("downloading packages", Some(total));
    let mut told = 0;
    let mut tell = |bytes: u64| {
        if bytes > told {
            progress.advance(bytes - told);
            told = bytes;
        }
    };
    let said = apt.run_with_status(&args, Some(temp.path()), &mut |percent| {
        tell((total as f64 * percent / 100.0) as u64)
    })?;
    if said.status.success() {
        tell(total);
    } else if said.complaints.is_empty() {
        return Err(Error::failed("asset.apt", format!("apt-get download ended with {}", said.status)));
    }
    Ok(said.complaints)
}

/// Publishes every downloaded file that is wanted, by its bytes and not its name; returns what is still missing.
fn harvest<'a>(
    store: &Store,
    temp: &TempDir,
    wanted: &BTreeMap<&'a str, &'a Pin>,
) -> Result<BTreeMap<&'a str, &'a Pin>> {
    let failed = || format!("cannot read {}", temp.path().display());
    let mut files = Vec::new();
    for entry in fs::read_dir(temp.path()).or_failed("asset.read", failed)? {
        let path = entry.or_failed("asset.read", failed)?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            files.push(path);
        }
    }
    let published = parallel(&files, |path| {
        let start = Instant::now();
        let sha256 = sha256(path)?;
        let Some((key, pin)) = wanted.get_key_value(sha256.as_str()) else {
            return Err(unwanted(path, wanted));
        };
        let size =
            fs::metadata(path).or_failed("asset.read", || format!("cannot read {}", path.display()))?.len();
        if size != pin.size {
            return Err(other_bytes(pin));
        }
        let output: ObjectDigest = store.publish_file(path, false)?;
        let inputs = vec![
            ("package".to_owned(), format!("{} {} {}", pin.package, pin.version, pin.arch)),
            ("sha256".to_owned(), sha256),
        ];
        let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        store.record(&deb_key(&pin.sha256), &Action { kind: "deb".to_owned(), output, inputs, millis })?;
        Ok(*key)
    })?;
    let published: HashSet<&str> = published.into_iter().collect();
    Ok(wanted.iter().filter(|(key, _)| !published.contains(*key)).map(|(key, pin)| (*key, *pin)).collect())
}

/// A file came whose bytes nobody asked for.
fn unwanted(path: &Path, wanted: &BTreeMap<&str, &Pin>) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let came = deb_name(&name);
    match wanted.values().find(|pin| came.as_ref() == Some(&chosen(pin))) {
        Some(pin) => other_bytes(pin),
        None => Error::failed("asset.digest", format!("the archive served {name}, which was not asked for")),
    }
}

pub(super) fn sha256(path: &Path) -> Result<String> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = fs::File::open(path).or_failed("asset.read", failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).or_failed("asset.read", failed)? {
            0 => break,
            n => hasher.update(&buffer[..n]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
