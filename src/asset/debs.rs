//! Takes .deb files into the store, through the host's apt: by the SHA-256 that an archive lists, and by both digests of
//! a pin.

use super::apt::Apt;
use super::apt_error::{Complaints, network_error};
use super::named::{Named, sha256};
use super::parallel::parallel;
use super::parse::{Deb, chosen, deb_name};
use super::progress::Progress;
use crate::digest::{FieldHasher, ObjectDigest, StepKey};
use crate::error::{Context, Error, Result};
use crate::lock::{self, AssetId, Pin};
use crate::store::{Action, Store, TempDir};
use fs_err as fs;
use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The .deb files of `pins` in their order, as store objects. What the store lacks is downloaded in one
/// `apt-get download`, checked against size and SHA-256, and published. Give the pins of several assets at once if
/// they have the sources of `id`.
///
/// # Errors
/// Failed, naming `firegopher update`, if the archive no longer serves a pin or serves other bytes; failed
/// without network; host without apt; `lock.contradiction` if a pin's SHA-256 and BLAKE3 are those of different bytes.
/// What arrived whole before a failure stays in the store.
pub fn fetch_debs(
    store: &Store,
    apt: &Apt,
    id: &AssetId,
    pins: &[Pin],
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>> {
    let lacking = || {
        let mut lacking = Vec::new();
        for pin in pins {
            if !is_stored(store, pin)? {
                lacking.push(Deb::from(pin));
            }
        }
        Ok(lacking)
    };
    fetch(store, &apt.of(id), &lacking, progress)?;
    pins.iter()
        .map(|pin| {
            // A use, for gc.
            let _ = store.reuse(&deb_key(&pin.sha256));
            match is_stored(store, pin)? {
                true => Ok(store.object_path(&pin.blake3)),
                false => Err(Error::bug(format!("{} was published and is not there", pin.package))),
            }
        })
        .collect()
}

/// Whether fetching `pins` needs neither apt nor network: all of them are in the store, or contradict what is.
pub fn have_debs(store: &Store, pins: &[Pin]) -> bool {
    !pins.iter().any(|pin| lacks(store, pin))
}

/// The packages that fetching `pins` has to download, in words; `None` if [`have_debs`].
pub fn lacking_debs(store: &Store, pins: &[Pin]) -> Option<String> {
    let lacking: Vec<&str> =
        pins.iter().filter(|pin| lacks(store, pin)).map(|pin| pin.package.as_str()).collect();
    (!lacking.is_empty()).then(|| first_few(&lacking))
}

fn lacks(store: &Store, pin: &Pin) -> bool {
    matches!(is_stored(store, pin), Ok(false))
}

/// At most five names; the rest are counted.
fn first_few(names: &[impl Borrow<str>]) -> String {
    let shown = names.len().min(5);
    let more = if names.len() > shown { format!(" and {} more", names.len() - shown) } else { String::new() };
    format!("{}{more}", names[..shown].join(", "))
}

/// As [`fetch_debs`], for packages whose SHA-256 alone is known. They have the sources of `apt`.
pub(super) fn fetch_listed(store: &Store, apt: &Apt, debs: &[&Deb], progress: &dyn Progress) -> Result<()> {
    let lacking = || Ok(debs.iter().filter(|deb| stored(store, deb).is_none()).copied().cloned().collect());
    fetch(store, apt, &lacking, progress)?;
    for deb in debs {
        // A use, for gc.
        let _ = store.reuse(&deb_key(&deb.sha256));
    }
    Ok(())
}

/// Fetches what is lacking.
fn fetch(
    store: &Store,
    apt: &Apt,
    lacking: &dyn Fn() -> Result<Vec<Deb>>,
    progress: &dyn Progress,
) -> Result<()> {
    if lacking()?.is_empty() {
        return Ok(());
    }
    let _lock = apt.lock(progress)?;
    // Whoever held the lock may have fetched them.
    let wanted = lacking()?;
    if wanted.is_empty() {
        return Ok(());
    }
    let wanted = wanted.iter().map(|deb| (deb.sha256.as_str(), deb)).collect();
    download(store, apt, &wanted, progress)
}

fn deb_key(sha256: &str) -> StepKey {
    FieldHasher::new("firegopher deb v1").field(sha256).finish().into()
}

/// What a record says of a package.
fn inputs(Deb { package, version, arch, sha256, .. }: &Deb) -> Vec<(String, String)> {
    vec![("package".to_owned(), format!("{package} {version} {arch}")), ("sha256".to_owned(), sha256.clone())]
}

/// Whether the store has what is pinned.
fn is_stored(store: &Store, pin: &Pin) -> Result<bool> {
    let named =
        Named { key: deb_key(&pin.sha256), sha: &pin.sha256, blake3: pin.blake3, size: Some(pin.size) };
    let what = format_args!("the package {}", pin.package);
    let says = inputs(&Deb::from(pin));
    let known = store.action(&named.key).filter(|known| known.output == pin.blake3);
    if let Some((_, other)) = known.iter().flat_map(|known| &known.inputs).find(|known| !says.contains(known))
    {
        return Err(lock::contradiction(what, &format!("the digests of {other}")));
    }
    named.is_stored(store, &what, || ("deb", says))
}

/// What the store has of a package whose SHA-256 alone is known.
pub(super) fn stored(store: &Store, deb: &Deb) -> Option<ObjectDigest> {
    let output = store.action(&deb_key(&deb.sha256))?.output;
    fs::metadata(store.object_path(&output)).is_ok_and(|meta| meta.len() == deb.size).then_some(output)
}

fn download(store: &Store, apt: &Apt, wanted: &BTreeMap<&str, &Deb>, progress: &dyn Progress) -> Result<()> {
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
    // One package that no list knows keeps apt-get from downloading the others.
    let refused = said.clone();
    let mut gone: Vec<&Deb> = Vec::new();
    loop {
        let all = left.values().copied();
        let unlisted: Vec<&Deb> = all.filter(|deb| said.unlisted(&deb.package, &deb.version)).collect();
        if unlisted.is_empty() {
            break;
        }
        gone.extend(unlisted);
        left.retain(|_, deb| !gone.contains(deb));
        if !left.is_empty() {
            said = download_once(apt, left.values().copied(), &temp, progress)?;
            left = harvest(store, &temp, &left)?;
        }
    }
    if !gone.is_empty() {
        return Err(no_longer_served(&gone, &refused));
    }
    let Some(first) = left.values().next() else { return Ok(()) };
    if said.network() {
        return Err(network_error(&format!("download {} packages", left.len()), &said));
    }
    if said.gone() {
        return Err(no_longer_served(&left.values().copied().collect::<Vec<&Deb>>(), &said));
    }
    if said.is_empty() || said.other_bytes() {
        return Err(other_bytes(first));
    }
    Err(network_error(&format!("download {} {}", first.package, first.version), &said))
}

fn no_longer_served(debs: &[&Deb], said: &Complaints) -> Error {
    let names: Vec<String> = debs.iter().map(|p| format!("{} {}", p.package, p.version)).collect();
    let message = format!("the archive no longer serves {}: {}", first_few(&names), said.quoted());
    Error::failed("asset.gone", message)
        .help("run `firegopher update` to pin the versions that it serves now")
}

fn other_bytes(Deb { package, version, .. }: &Deb) -> Error {
    let message =
        format!("the archive serves {package} {version} with other bytes than are listed or pinned");
    Error::failed("asset.digest", message).help(
        "if its source is trusted, `firegopher update` pins what it serves now; else find out who changed it",
    )
}

fn download_once<'a>(
    apt: &Apt,
    debs: impl Iterator<Item = &'a Deb>,
    temp: &TempDir,
    progress: &dyn Progress,
) -> Result<Complaints> {
    let mut args = vec!["download".to_owned(), "--".to_owned()];
    let mut total = 0;
    for deb in debs {
        args.push(format!("{}={}", deb.package, deb.version));
        total += deb.size;
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
    wanted: &BTreeMap<&'a str, &'a Deb>,
) -> Result<BTreeMap<&'a str, &'a Deb>> {
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
        let Some((key, deb)) = wanted.get_key_value(sha256.as_str()) else {
            return Err(unwanted(path, wanted));
        };
        let size =
            fs::metadata(path).or_failed("asset.read", || format!("cannot read {}", path.display()))?.len();
        if size != deb.size {
            return Err(other_bytes(deb));
        }
        let output = store.publish_file(path, false)?;
        let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let action =
            Action { kind: "deb".to_owned(), output, inputs: inputs(deb), millis, subject: String::new() };
        store.record(&deb_key(&deb.sha256), &action)?;
        Ok(*key)
    })?;
    let published: HashSet<&str> = published.into_iter().collect();
    Ok(wanted.iter().filter(|(key, _)| !published.contains(*key)).map(|(key, deb)| (*key, *deb)).collect())
}

/// A file came whose bytes nobody asked for.
fn unwanted(path: &Path, wanted: &BTreeMap<&str, &Deb>) -> Error {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let came = deb_name(&name);
    match wanted.values().find(|deb| came.as_ref() == Some(&chosen(deb))) {
        Some(deb) => other_bytes(deb),
        None => Error::failed("asset.digest", format!("the archive served {name}, which was not asked for")),
    }
}
