//! The bytes that steps start from: Debian packages, downloads, container images, files on this host.

use super::Work;
use crate::asset::{self, Apt, http, oci};
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::lock::{self, AssetId, FilePin, FileRole, OciPin, Pin, Pinned};
use crate::manifest::model::UrlSource;
use crate::plan::{Graph, Need, Scan, ScannedSource, Task, needs, node_inputs};
use crate::project;
use std::path::{Path, PathBuf};

/// Downloads everything the graph's fetch steps lack, in one go for each kind of source.
pub(super) fn download(graph: &Graph, work: &Work<'_>) -> Result<()> {
    let mut packages: Vec<(AssetId, Vec<Pin>)> = Vec::new();
    let mut files: Vec<(&UrlSource, &FilePin)> = Vec::new();
    for node in &graph.nodes {
        let wanted = needs(&node.task);
        if wanted.is_empty() || matches!(node.task, Task::Init(_)) || done(graph, node, work) {
            continue;
        }
        for need in wanted {
            match (need.pinned(work.lock), need.source) {
                (Some(Pinned::Packages(pinned)), _) => {
                    if !asset::have_debs(work.store, &pinned.packages) {
                        apt(work).check_origin(&need.id, &pinned.origin)?;
                    }
                    let pins = pinned.packages.iter().cloned();
                    match packages.iter_mut().find(|(other, _)| other.sources() == need.id.sources()) {
                        Some((_, all)) => all.extend(pins),
                        None => packages.push((need.id, pins.collect())),
                    }
                }
                (Some(Pinned::File(pin)), Some(source))
                    if !http::is_stored(work.store, source.url(), pin)? =>
                {
                    files.push((source, pin));
                }
                // Container images are fetched by their own step, layers in parallel.
                _ => {}
            }
        }
    }
    for (asset, mut pins) in packages {
        pins.sort_by(|a, b| (&a.package, &a.version).cmp(&(&b.package, &b.version)));
        pins.dedup();
        debs(&asset, &pins, work)?;
    }
    fetch_files(&files, work)
}

/// Whether the store has the output of a step without parents already.
fn done(graph: &Graph, node: &crate::plan::Node, work: &Work<'_>) -> bool {
    node.parents.is_empty()
        && node_inputs(graph, node, &[], work.lock, work.scan, work.tools)
            .ok()
            .and_then(|inputs| work.store.action(&inputs.key(node.task.kind())))
            .is_some_and(|action| work.store.has(&action.output))
}

fn apt(work: &Work<'_>) -> Apt {
    Apt::new(work.home).in_project(work.dir)
}

fn debs(asset: &AssetId, pins: &[Pin], work: &Work<'_>) -> Result<Vec<PathBuf>> {
    if work.offline
        && let Some(names) = asset::lacking_debs(work.store, pins)
    {
        return Err(project::offline_error(&format!("the store lacks packages: {names}")));
    }
    asset::fetch_debs(work.store, &apt(work), asset, pins, work.ui)
}

/// The packages that a step is pinned to.
pub(super) fn pinned_debs(task: &Task, work: &Work<'_>) -> Result<Vec<PathBuf>> {
    let need = only_need(task)?;
    match need.pinned(work.lock) {
        Some(Pinned::Packages(pins)) => debs(&need.id, &pins.packages, work),
        _ => Err(Error::bug("a fetch step ran without its packages")),
    }
}

/// The one asset that a fetch step needs.
fn only_need(task: &Task) -> Result<Need<'_>> {
    needs(task).pop().ok_or_else(|| Error::bug("a step without pins asked for one"))
}

fn fetch_files(files: &[(&UrlSource, &FilePin)], work: &Work<'_>) -> Result<()> {
    let Some((first, _)) = files.first() else { return Ok(()) };
    if work.offline {
        return Err(project::offline_error(&format!("the store lacks {first}")));
    }
    let wanted: Vec<http::Wanted> = files
        .iter()
        .map(|(source, pin)| http::Wanted {
            urls: source.urls.clone(),
            sha256: Some(pin.sha256.clone()),
            size: Some(pin.size),
            max: pin.size,
        })
        .collect();
    let fetched = http::fetch(work.store, &wanted, work.ui)?;
    for ((source, pin), fetched) in files.iter().zip(fetched) {
        if fetched.object != pin.blake3 {
            return Err(lock::contradiction(source, "a sha256 and a blake3 of different bytes"));
        }
    }
    Ok(())
}

/// A download that a step of `task` needs, or the member that is meant in it: a file in the store.
pub(super) fn downloaded(task: &Task, source: &UrlSource, work: &Work<'_>) -> Result<PathBuf> {
    let need = needs(task).into_iter().find(|need| need.source == Some(source));
    let need = need.ok_or_else(|| Error::bug(format!("nothing needs {source}")))?;
    let Some(Pinned::File(pin)) = need.pinned(work.lock) else {
        return Err(Error::bug(format!("{source} was not pinned before its step")));
    };
    if !http::is_stored(work.store, source.url(), pin)? {
        fetch_files(&[(source, pin)], work)?;
    }
    let path = work.store.object_path(&pin.blake3);
    match &source.member {
        None => Ok(path),
        Some(member) => {
            let member =
                http::member(work.store, &path, member).map_err(|e| e.calling(&path, source.url()))?;
            Ok(work.store.object_path(&member))
        }
    }
}

/// The layers of a registry's image, lowest first.
pub(super) fn layers(reference: &str, work: &Work<'_>) -> Result<Vec<ObjectDigest>> {
    let id = AssetId::Oci(reference.to_owned());
    let pin: &OciPin =
        work.lock.oci(&id).ok_or_else(|| Error::bug(format!("{id} was not pinned before its step")))?;
    if work.offline && !oci::have(work.store, reference, pin) {
        return Err(project::offline_error(&format!("the store lacks parts of {reference}")));
    }
    oci::fetch(work.store, reference, pin, work.ui)
}

/// Hears what some assets are pinned to, or why they cannot be. They are several if they are of one download.
pub type Found<'a> = dyn Fn(&[AssetId], Result<Pinned>) + Sync + 'a;

/// Resolves downloads and container images for the lock, several at a time. `found` hears of each when it is done; what
/// fails stops no other.
pub fn resolve(needs: &[&Need<'_>], store: &crate::store::Store, ui: &crate::ui::Ui, found: &Found<'_>) {
    let mut images: Vec<(&AssetId, &str)> = Vec::new();
    let mut files: Vec<(Vec<AssetId>, http::Wanted)> = Vec::new();
    for need in needs {
        match (&need.id, need.source) {
            (AssetId::Oci(reference), _) => images.push((&need.id, reference)),
            (AssetId::File { role, .. }, Some(source)) => {
                let max = source.max.unwrap_or_else(|| most(*role));
                let (urls, sha256) = (source.urls.clone(), source.sha256.clone());
                // Members of one archive come in one download.
                match files.iter_mut().find(|(_, other)| other.urls == urls && other.sha256 == sha256) {
                    Some((ids, wanted)) => {
                        ids.push(need.id.clone());
                        wanted.max = wanted.max.min(max);
                    }
                    None => {
                        files.push((vec![need.id.clone()], http::Wanted { urls, sha256, size: None, max }))
                    }
                }
            }
            _ => {}
        }
    }
    let references: Vec<&str> = images.iter().map(|(_, reference)| *reference).collect();
    let (ids, wanted): (Vec<Vec<AssetId>>, Vec<http::Wanted>) = files.into_iter().unzip();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            oci::resolve_each(store, &references, ui, &|index, pin| {
                found(std::slice::from_ref(images[index].0), pin.map(Pinned::Oci));
            });
        });
        http::fetch_each(store, &wanted, ui, &|index, file| found(&ids[index], file.map(pin_of)));
    });
}

fn pin_of(fetched: http::Fetched) -> Pinned {
    Pinned::File(FilePin { size: fetched.size, sha256: fetched.sha256, blake3: fetched.object })
}

/// The most that a download may have, in bytes, where neither a pin nor `max` of the manifest says so: far more than
/// anything of its kind, and less than what would fill a disk unnoticed.
fn most(role: FileRole) -> u64 {
    match role {
        FileRole::Kernel | FileRole::Vmm => 1 << 30,
        FileRole::Image | FileRole::Workload => 64 << 30,
    }
}

pub(super) fn scanned<'a>(path: &Path, work: &'a Work<'_>) -> Result<&'a ScannedSource> {
    let source = work.scan.sources.get(&Scan::file_id(path));
    source.ok_or_else(|| Error::bug(format!("{} was not scanned before its step", path.display())))
}

pub(super) fn scanned_file(path: &Path, work: &Work<'_>) -> Result<PathBuf> {
    match scanned(path, work)? {
        ScannedSource::File { path, .. } | ScannedSource::Dir { path, .. } => Ok(path.clone()),
    }
}

/// A file that is read long after it was hashed must still be the same.
pub(super) fn unchanged(path: &Path, digest: ObjectDigest, work: &Work<'_>) -> Result<()> {
    let now = crate::store::scan::scan_file(work.store, path)?;
    if now.digest == digest {
        return Ok(());
    }
    Err(Error::failed("source.changed", format!("{} changed while it was read", path.display()))
        .help("Run the command again once nothing writes to it."))
}

/// The digest in an object's path.
pub(super) fn digest_of(object: &Path) -> Result<ObjectDigest> {
    let name = object.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    name.ok_or_else(|| Error::bug(format!("{} is not an object", object.display())))
}
