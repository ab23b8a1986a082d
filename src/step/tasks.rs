//! What each pure step does: from its parents' objects to a published object.

use super::sources::{digest_of, downloaded, layers, pinned_debs, scanned, scanned_file, unchanged};
use super::{GUEST_INIT, Work, run_config};
use crate::asset;
use crate::asset::oci::StoredLayer;
use crate::digest::ObjectDigest;
use crate::error::{Context, Error, Result};
use crate::image::{self, BaseSource, Layer, WorkloadItem, WorkloadSource};
use crate::lock::AssetId;
use crate::manifest::is_archive;
use crate::manifest::model::{ImageSource, KernelSource, Workload, WorkloadFrom};
use crate::plan::{Node, Scan, ScannedSource, Task, image_subject};
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
    /// The digest of a tar or ext4 file, on the host or in the store.
    File(ObjectDigest),
    /// The digest of a directory's listing.
    Dir(ObjectDigest),
    /// The layers of a container image, lowest first.
    Layers(Vec<StoredLayer>),
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
                KernelSource::Url(source) => {
                    let file = downloaded(&node.task, source, work)?;
                    asset::kernel_from_path(&file, &out).map_err(|e| e.calling(&file, source))?;
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
        Task::FetchFirecracker(source, version) => {
            let temp = store.temp_dir()?;
            let out = new_dir(temp.path())?;
            let archive = downloaded(&node.task, source, work)?;
            asset::firecracker_tree(&archive, source.url(), *version, temp.path(), &out)?;
            store.publish_tree(&out)
        }
        Task::FetchImage(source) => {
            let parts = match source {
                ImageSource::Path { path, keep_modes } => match base(path, *keep_modes, work)? {
                    ScannedSource::File { digest, .. } => ImageParts::File(*digest),
                    ScannedSource::Dir { digest, .. } => ImageParts::Dir(*digest),
                },
                ImageSource::Url(source) => {
                    ImageParts::File(digest_of(&downloaded(&node.task, source, work)?)?)
                }
                ImageSource::Oci(reference) => ImageParts::Layers(registry_layers(reference, work)?),
                ImageSource::OciPath { path, tag } => {
                    let image =
                        asset::oci::open_local(work.store, &project_path(path, work), tag.as_deref())?;
                    for what in &image.left_out {
                        work.ui.note(&format!("{}: {what}", path.display()));
                    }
                    ImageParts::Layers(image.layers)
                }
                ImageSource::Debian(_) => {
                    let paths = pinned_debs(&node.task, work)?;
                    let digests = paths.iter().map(|path| digest_of(path)).collect::<Result<_>>()?;
                    ImageParts::Debs(digests)
                }
            };
            store.publish_bytes(&serde_json::to_vec(&parts).map_err(|e| Error::bug(e.to_string()))?)
        }
        Task::Image(source) => build_image(source, parents, work),
        Task::Unpack(workloads) => unpack(&node.task, workloads, parent(parents)?, work),
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
            let tar = asset::run_scripts(&paths, &temp, work.ui)?;
            image::build_base(BaseSource::Installed(&tar), &out, temp.path())?
        }
        (ImageParts::Debs(digests), _) => {
            let paths: Vec<PathBuf> = digests.iter().map(|d| work.store.object_path(d)).collect();
            image::build_base(BaseSource::Debs(&paths), &out, temp.path())?
        }
        (ImageParts::Layers(stored), _) => {
            let layers: Vec<Layer> = stored.iter().map(|layer| layer.in_store(work.store)).collect();
            let built = image::build_base(BaseSource::Layers(&layers), &out, temp.path());
            built.map_err(|error| naming(error, &layers, source))?
        }
        (ImageParts::File(_) | ImageParts::Dir(_), ImageSource::Path { path, keep_modes }) => {
            match base(path, *keep_modes, work)? {
                ScannedSource::File { path, digest, .. } => {
                    let warnings = image::build_base(base_file(path)?, &out, temp.path())?;
                    unchanged(path, *digest, work)?;
                    warnings
                }
                ScannedSource::Dir { path, listing, .. } => {
                    image::build_base(BaseSource::Dir { root: path, listing }, &out, temp.path())?
                }
            }
        }
        (ImageParts::Dir(_), _) => return Err(Error::bug("a directory came from elsewhere than this host")),
        (ImageParts::File(digest), source) => {
            let file = work.store.object_path(&digest);
            let built = image::build_base(base_file(&file)?, &out, temp.path());
            built.map_err(|e| e.calling(&file, image_subject(source)))?
        }
    };
    warnings.iter().for_each(|w| work.ui.warning(w));
    image::save_warnings(&out, &warnings)?;
    work.store.publish_tree(&out)
}

/// The layers of a registry's image, lowest first.
fn registry_layers(reference: &str, work: &Work<'_>) -> Result<Vec<StoredLayer>> {
    let objects = layers(reference, work)?;
    let id = AssetId::Oci(reference.to_owned());
    let pin = work.lock.oci(&id).ok_or_else(|| Error::bug(format!("{id} was not pinned before its step")))?;
    asset::oci::stored_layers(work.store, reference, pin, &objects)
}

/// Names layers as people know them: by their digests, and of which image.
fn naming(error: Error, layers: &[Layer], source: &ImageSource) -> Error {
    let image = image_subject(source);
    layers.iter().fold(error, |error, Layer { path, blob, .. }| {
        error.calling(path, format!("the layer {blob} of {image}"))
    })
}

/// A base image on this host, as it was scanned.
fn base<'a>(path: &Path, keep_modes: bool, work: &'a Work<'_>) -> Result<&'a ScannedSource> {
    let source = work.scan.sources.get(&Scan::base_id(path, keep_modes));
    source.ok_or_else(|| Error::bug(format!("{} was not scanned before its step", path.display())))
}

fn base_file(path: &Path) -> Result<BaseSource<'_>> {
    Ok(if is_ext4(path)? { BaseSource::Ext4(path) } else { BaseSource::Tar(path) })
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

fn unpack(task: &Task, workloads: &[Workload], base: ObjectDigest, work: &Work<'_>) -> Result<ObjectDigest> {
    let files = workloads
        .iter()
        .map(|workload| match &workload.source {
            WorkloadFrom::Url(source) => downloaded(task, source, work).map(Some),
            WorkloadFrom::Path(_) => Ok(None),
        })
        .collect::<Result<Vec<_>>>()?;
    let mut items = Vec::with_capacity(workloads.len());
    let mut archives = Vec::new();
    for (workload, file) in workloads.iter().zip(&files) {
        let source = match (file, &workload.source) {
            (Some(file), WorkloadFrom::Url(source)) if is_archive(source.file_name()) => {
                WorkloadSource::Archive(file)
            }
            (Some(file), _) => {
                WorkloadSource::File { path: file, digest: digest_of(file)?, executable: is_program(file)? }
            }
            (None, _) => {
                let scanned = work.scan.sources.get(&Scan::workload_id(workload));
                match scanned.ok_or_else(|| Error::bug(format!("{} was not scanned", workload.source)))? {
                    ScannedSource::Dir { path, listing, .. } => WorkloadSource::Dir { root: path, listing },
                    ScannedSource::File { path, digest, .. } if is_archive(&path.to_string_lossy()) => {
                        archives.push((path, *digest));
                        WorkloadSource::Archive(path)
                    }
                    ScannedSource::File { path, digest, executable } => {
                        WorkloadSource::File { path, digest: *digest, executable: *executable }
                    }
                }
            }
        };
        items.push(WorkloadItem { source, to: &workload.to, owner: workload.owner });
    }
    let temp = work.store.temp_dir()?;
    let out = new_dir(temp.path())?;
    let index = work.store.object_path(&base).join("index.json");
    let warnings = image::build_workload(&items, &index, &out, temp.path()).map_err(|error| {
        let downloads =
            workloads.iter().zip(&files).filter_map(|(w, file)| Some((file.as_ref()?, &w.source)));
        downloads.fold(error, |error, (file, source)| error.calling(file, source))
    })?;
    for (path, digest) in archives {
        unchanged(path, digest, work)?;
    }
    warnings.iter().for_each(|w| work.ui.warning(w));
    work.store.publish_file(&out.join("workload.ext4"), false)
}

/// Whether a downloaded file, which has no mode, is one to be executed: an ELF file or a script.
fn is_program(path: &Path) -> Result<bool> {
    let mut head = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(4).read_to_end(&mut head));
    read.or_failed("store.read", || format!("cannot read {}", path.display()))?;
    Ok(head.starts_with(b"\x7fELF") || head.starts_with(b"#!"))
}

fn project_path(path: &Path, work: &Work<'_>) -> PathBuf {
    work.dir.join(path)
}
