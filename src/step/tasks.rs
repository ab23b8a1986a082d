//! What each pure step does: from its parents' objects to a published object.

use super::{GUEST_INIT, Work, run_config};
use crate::asset::{self, Apt};
use crate::digest::ObjectDigest;
use crate::error::{Context, Error, Result};
use crate::image::{self, BaseSource, WorkloadItem, WorkloadSource};
use crate::lock::{AssetId, Pin};
use crate::manifest::model::{ImageSource, KernelSource, Workload};
use crate::plan::{Graph, Node, Scan, ScannedSource, Task, asset_of, node_inputs};
use crate::project;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What an image is made of: the output of its fetch step. Paths stay out, so that the same bytes under
/// another name rebuild nothing.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ImageParts {
    /// Debian packages, as objects, in the order of their names.
    Debs(Vec<ObjectDigest>),
    /// The digest of a tar or ext4 file on the host.
    File(ObjectDigest),
}

/// Downloads everything the graph's fetch steps lack, in one go for each set of package sources.
pub(super) fn download(graph: &Graph, work: &Work<'_>) -> Result<()> {
    let mut lacking: Vec<(AssetId, Vec<Pin>)> = Vec::new();
    for node in &graph.nodes {
        let Some(asset) = asset_of(&node.task) else { continue };
        let Some(pinned) = work.lock.entry(&asset) else { continue };
        let known = node_inputs(graph, node, &[], work.lock, work.scan, work.tools)
            .ok()
            .and_then(|inputs| work.store.action(&inputs.key(node.task.kind())))
            .is_some_and(|action| work.store.has(&action.output));
        if !known {
            if !asset::debian::have_debs(work.store, &pinned.packages) {
                apt(work).check_origin(&asset, &pinned.origin)?;
            }
            let pins = pinned.packages.iter().cloned();
            match lacking.iter_mut().find(|(other, _)| other.sources() == asset.sources()) {
                Some((_, all)) => all.extend(pins),
                None => lacking.push((asset, pins.collect())),
            }
        }
    }
    for (asset, mut pins) in lacking {
        pins.sort_by(|a, b| (&a.package, &a.version).cmp(&(&b.package, &b.version)));
        pins.dedup();
        debs(&asset, &pins, work)?;
    }
    Ok(())
}

fn apt(work: &Work<'_>) -> Apt {
    Apt::new(work.home).in_project(work.dir)
}

fn debs(asset: &AssetId, pins: &[Pin], work: &Work<'_>) -> Result<Vec<PathBuf>> {
    if work.offline && !asset::debian::have_debs(work.store, pins) {
        return Err(project::offline_error("the store lacks packages"));
    }
    asset::fetch_debs(work.store, &apt(work), asset, pins, work.ui)
}

fn pinned_debs(task: &Task, work: &Work<'_>) -> Result<Vec<PathBuf>> {
    let asset = asset_of(task).ok_or_else(|| Error::bug("a path source has no pins"))?;
    let pins = work.lock.get(&asset).ok_or_else(|| Error::bug("a fetch step ran without its pins"))?;
    debs(&asset, pins, work)
}

/// Runs a step and publishes its output.
pub(super) fn run(node: &Node, parents: &[ObjectDigest], work: &Work<'_>) -> Result<ObjectDigest> {
    let store = work.store;
    match &node.task {
        Task::FetchKernel(source) => {
            let temp = store.temp_dir()?;
            let out = new_dir(temp.path())?;
            match source {
                KernelSource::Debian(_) => asset::kernel_tree(&pinned_debs(&node.task, work)?, &out)?,
                KernelSource::Path(path) => {
                    let file = scanned_file(path, work)?;
                    asset::kernel_from_path(&file, &out)?;
                    unchanged(&file, scanned(path, work)?.digest(), work)?;
                }
            }
            store.publish_tree(&out)
        }
        Task::FetchQemu => {
            let temp = store.temp_dir()?;
            let out = new_dir(temp.path())?;
            asset::qemu_tree(&pinned_debs(&node.task, work)?, &out)?;
            store.publish_tree(&out)
        }
        Task::FetchMmdebstrap => {
            let temp = store.temp_dir()?;
            let out = new_dir(temp.path())?;
            asset::mmdebstrap_tree(&pinned_debs(&node.task, work)?, &out)?;
            store.publish_tree(&out)
        }
        Task::FetchImage(source) => {
            let parts = match source {
                ImageSource::Path(path) => ImageParts::File(scanned(path, work)?.digest()),
                ImageSource::Debian(_) => {
                    let paths = pinned_debs(&node.task, work)?;
                    let digests = paths.iter().map(|path| digest_of(path)).collect::<Result<_>>()?;
                    ImageParts::Debs(digests)
                }
            };
            store.publish_bytes(&serde_json::to_vec(&parts).map_err(|e| Error::bug(e.to_string()))?)
        }
        Task::Image(source) => build_image(source, parents, work),
        Task::Unpack(workloads) => unpack(workloads, parent(parents)?, work),
        Task::Initramfs => {
            let temp = store.temp_dir()?;
            let out = temp.path().join("init.cpio.gz");
            image::write_initramfs(GUEST_INIT, &modules(&store.object_path(&parent(parents)?))?, &out)?;
            store.publish_file(&out, false)
        }
        Task::Init(vm) => {
            let config = serde_json::to_vec_pretty(&run_config::template(vm))
                .map_err(|e| Error::bug(e.to_string()))?;
            store.publish_bytes(&config)
        }
    }
}

fn parent(parents: &[ObjectDigest]) -> Result<ObjectDigest> {
    parents.first().copied().ok_or_else(|| Error::bug("a step lacks the parent it is built from"))
}

fn new_dir(temp: &Path) -> Result<PathBuf> {
    let out = temp.join("out");
    fs::create_dir(&out).or_failed("store.temp", || "cannot make a temporary directory in the store")?;
    Ok(out)
}

fn scanned<'a>(path: &Path, work: &'a Work<'_>) -> Result<&'a ScannedSource> {
    let source = work.scan.sources.get(&Scan::file_id(path));
    source.ok_or_else(|| Error::bug(format!("{} was not scanned before its step", path.display())))
}

fn scanned_file(path: &Path, work: &Work<'_>) -> Result<PathBuf> {
    match scanned(path, work)? {
        ScannedSource::File { path, .. } | ScannedSource::Dir { path, .. } => Ok(path.clone()),
    }
}

/// The kernel's modules in load order: their names start with their position.
fn modules(kernel: &Path) -> Result<Vec<PathBuf>> {
    let dir = kernel.join("modules");
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&dir).or_failed("store.read", || "cannot list the kernel's modules")?;
    let mut paths = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .or_failed("store.read", || "cannot list the kernel's modules")?;
    paths.sort();
    Ok(paths)
}

fn build_image(source: &ImageSource, parents: &[ObjectDigest], work: &Work<'_>) -> Result<ObjectDigest> {
    let fetched = parent(parents)?;
    let parts: ImageParts = serde_json::from_slice(&work.store.read(&fetched)?)
        .map_err(|e| Error::bug(format!("the fetched image's description is unreadable: {e}")))?;
    let temp = work.store.temp_dir()?;
    let out = new_dir(temp.path())?;
    let warnings = match (parts, source) {
        (ImageParts::Debs(digests), ImageSource::Debian(set)) if set.scripts => {
            let paths: Vec<PathBuf> = digests.iter().map(|d| work.store.object_path(d)).collect();
            let tool = parents.get(1).ok_or_else(|| Error::bug("scripts shall run without their tool"))?;
            let tool = work.store.object_path(tool);
            let tar = asset::run_scripts(&tool, &paths, temp.path(), work.ui)?;
            image::build_base(BaseSource::Tar(&tar), &out, temp.path())?
        }
        (ImageParts::Debs(digests), _) => {
            let paths: Vec<PathBuf> = digests.iter().map(|d| work.store.object_path(d)).collect();
            image::build_base(BaseSource::Debs(&paths), &out, temp.path())?
        }
        (ImageParts::File(digest), ImageSource::Path(path)) => {
            let file = scanned_file(path, work)?;
            let base = if is_ext4(&file)? { BaseSource::Ext4(&file) } else { BaseSource::Tar(&file) };
            let warnings = image::build_base(base, &out, temp.path())?;
            unchanged(&file, digest, work)?;
            warnings
        }
        (ImageParts::File(_), ImageSource::Debian(_)) => {
            return Err(Error::bug("a package image came as a file"));
        }
    };
    warnings.iter().for_each(|w| work.ui.warning(w));
    work.store.publish_tree(&out)
}

fn is_ext4(path: &Path) -> Result<bool> {
    // The superblock starts at byte 1024; s_magic is 56 bytes into it (linux/ext4.h).
    let read = || {
        let mut file = fs::File::open(path)?;
        file.seek(SeekFrom::Start(1024 + 56))?;
        let mut magic = [0; 2];
        let got = file.read(&mut magic)?;
        Ok::<_, std::io::Error>(got == 2 && u16::from_le_bytes(magic) == 0xef53)
    };
    read().or_failed("image.read", || format!("cannot read the image {}", path.display()))
}

/// A file that is read long after it was hashed must still be the same.
fn unchanged(path: &Path, digest: ObjectDigest, work: &Work<'_>) -> Result<()> {
    let now = crate::store::scan::scan_file(work.store, path)?;
    if now.digest == digest {
        return Ok(());
    }
    Err(Error::failed("source.changed", format!("{} changed while it was read", path.display()))
        .help("Run the command again once nothing writes to it."))
}

fn unpack(workloads: &[Workload], base: ObjectDigest, work: &Work<'_>) -> Result<ObjectDigest> {
    let mut items = Vec::with_capacity(workloads.len());
    let mut archives = Vec::new();
    for workload in workloads {
        let source = work.scan.sources.get(&Scan::workload_id(workload));
        let source =
            source.ok_or_else(|| Error::bug(format!("{} was not scanned", workload.source.display())))?;
        let source = match source {
            ScannedSource::Dir { path, listing, .. } => WorkloadSource::Dir { root: path, listing },
            ScannedSource::File { path, digest, .. } if is_archive(path) => {
                archives.push((path, *digest));
                WorkloadSource::Archive(path)
            }
            ScannedSource::File { path, digest, executable } => {
                WorkloadSource::File { path, digest: *digest, executable: *executable }
            }
        };
        items.push(WorkloadItem { source, to: &workload.to, owner: workload.owner });
    }
    let temp = work.store.temp_dir()?;
    let out = new_dir(temp.path())?;
    let index = work.store.object_path(&base).join("index.json");
    let warnings = image::build_workload(&items, &index, &out, temp.path())?;
    for (path, digest) in archives {
        unchanged(path, digest, work)?;
    }
    warnings.iter().for_each(|w| work.ui.warning(w));
    work.store.publish_file(&out.join("workload.ext4"), false)
}

/// The digest in an object's path.
fn digest_of(object: &Path) -> Result<ObjectDigest> {
    let name = object.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    name.ok_or_else(|| Error::bug(format!("{} is not an object", object.display())))
}

/// Whether a workload file is unpacked rather than placed.
pub fn is_archive(path: &Path) -> bool {
    const ENDINGS: [&str; 8] = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst"];
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}
