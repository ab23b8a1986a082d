//! Images on this machine: OCI layouts, as directories or archives, and what `docker save` writes.

use super::blob::import;
use super::config;
use super::docker_archive;
use super::image::{self, MAX_DOCUMENT, Manifest, invalid};
use super::layer::{self, StoredLayer};
use super::source::{Source, blob_path};
use crate::asset::parallel::parallel;
use crate::digest::{FieldHasher, ObjectDigest, StepKey};
use crate::error::{Error, Result};
use crate::image::archive::is_compressed;
use crate::lock::{OciImage, OciPin};
use crate::store::scan::scan_file;
use crate::store::{Action, Store};
use oci_spec::image::{Descriptor, ImageIndex};
use std::path::Path;
use std::time::Instant;

/// The tag of an image in a layout (image-spec, annotations.md), and containerd's full name of it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";
/// An index may list indexes; nobody nests deeper.
const DEEPEST_INDEX: u32 = 4;

/// An image whose layers are in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// What it is made of and brings. In what `docker save` wrote without a manifest, `manifest` is the digest of
    /// the configuration: the image's id, which covers all layers.
    pub pin: OciPin,
    /// The layers, lowest first.
    pub layers: Vec<StoredLayer>,
    /// What it says of running it that no VM takes over, in words.
    pub left_out: Vec<String>,
}

/// An image, for each layer the file that holds it, and its configuration.
pub(super) struct Found {
    pub image: OciImage,
    pub files: Vec<String>,
    pub config: Vec<u8>,
}

/// Reads the image at `path` and takes its layers into the store. `tag` chooses one of several: a tag or a full name.
///
/// # Errors
/// Usage for an unknown tag, or none where one is needed; `oci.invalid`, `oci.no-platform`, `archive.*` for what
/// cannot be used; nothing of a damaged layer is published.
pub fn open_local(store: &Store, path: &Path, tag: Option<&str>) -> Result<LocalImage> {
    let temp = store.temp_dir()?;
    let source = Source::open(path, temp.path())?;
    let Found { image, files, config } = find(&source, tag)?;
    let diff_ids = config::diff_ids(&config, image.layers.len(), &source.shown())?;
    let pairs: Vec<_> = image.layers.iter().zip(&files).collect();
    let objects = parallel(&pairs, |(layer, name)| {
        let lacks = || source.lacks(&format!("the layer {}", layer.digest));
        let opened = source.file(name)?.ok_or_else(lacks)?;
        import(store, layer, opened.reader, path)
    })?;
    let pin = image.pinned(&objects);
    let layers = layer::join(&pin, &objects, diff_ids);
    Ok(LocalImage { pin, layers, left_out: config::left_out(&config) })
}

/// Reads only what the image says of itself, without its layers. What a compressed archive says, which has to be
/// unpacked for that, is remembered by its bytes.
///
/// # Errors
/// As [`open_local`].
pub fn inspect(store: &Store, path: &Path, tag: Option<&str>) -> Result<OciImage> {
    if !is_compressed(path) {
        // Nothing is unpacked: where to does not matter.
        return Ok(find(&Source::open(path, &store.home().store())?, tag)?.image);
    }
    let digest = scan_file(store, path)?.digest;
    let key = archive_key(&digest, tag);
    if let Some(image) = remembered(store, &key) {
        return Ok(image);
    }
    let began = Instant::now();
    let temp = store.temp_dir()?;
    let image = find(&Source::open(path, temp.path())?, tag)?.image;
    // Somebody may have put another archive in its place meanwhile.
    if scan_file(store, path)?.digest == digest {
        let json = serde_json::to_vec(&image).map_err(|e| Error::bug("an image is no JSON").because(e))?;
        let inputs = vec![
            ("archive".to_owned(), digest.to_hex()),
            ("tag".to_owned(), tag.unwrap_or_default().to_owned()),
        ];
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let output = store.publish_bytes(&json)?;
        store.record(
            &key,
            &Action { kind: "oci archive".to_owned(), output, inputs, millis, subject: String::new() },
        )?;
    }
    Ok(image)
}

/// The key of what an archive says of its image, or of the one with this tag.
pub(super) fn archive_key(archive: &ObjectDigest, tag: Option<&str>) -> StepKey {
    let mut hasher = FieldHasher::new("firegopher oci archive v1");
    hasher.field(archive.to_hex()).field(tag.is_some().to_string()).field(tag.unwrap_or_default());
    hasher.finish().into()
}

/// What was read of an archive before, by this version or one that wrote the same.
fn remembered(store: &Store, key: &StepKey) -> Option<OciImage> {
    let image: OciImage = serde_json::from_slice(&store.read(&store.reuse(key)?).ok()?).ok()?;
    image.check().is_ok().then_some(image)
}

fn find(source: &Source, tag: Option<&str>) -> Result<Found> {
    // Recent versions of Docker write both; the layout says more.
    if let Some(index) = source.document("index.json", MAX_DOCUMENT)? {
        return find_in_layout(source, &index, tag);
    }
    if source.is_archive()
        && let Some(list) = source.document("manifest.json", MAX_DOCUMENT)?
    {
        return docker_archive::find(source, &list, tag);
    }
    Err(Error::usage("oci.unknown-format", format!("{} holds no container image", source.shown())).help(
        "an OCI layout has a file index.json, and what `docker save` writes has manifest.json; a plain root \
         file system is taken by `path`",
    ))
}

fn find_in_layout(source: &Source, index: &[u8], tag: Option<&str>) -> Result<Found> {
    let shown = source.shown();
    let Manifest::Index(index) = image::manifest(index, &shown)? else {
        return Err(invalid(&shown, "its index.json is no index"));
    };
    let mut chosen = choose(&index, tag, &shown)?;
    for _ in 0..DEEPEST_INDEX {
        let (digest, size) = image::descriptor(&chosen, &shown)?;
        let bytes = source.blob(&digest, size, MAX_DOCUMENT)?;
        let manifest = match image::manifest(&bytes, &shown)? {
            Manifest::Image(manifest) => manifest,
            Manifest::Index(index) => {
                chosen = image::for_this_platform(index.manifests(), &shown)?.clone();
                continue;
            }
        };
        let (config_digest, size) = image::config_of(&manifest, &shown)?;
        let config = source.blob(&config_digest, size, MAX_DOCUMENT)?;
        let layers = image::layers_of(&manifest, &shown)?;
        let files = layers.iter().map(|layer| blob_path(&layer.digest)).collect();
        let image = image::image((&bytes, digest), (&config, config_digest), layers, &shown)?;
        return Ok(Found { image, files, config });
    }
    Err(invalid(&shown, "its indexes list each other"))
}

/// The entry of a layout's index that is meant.
fn choose(index: &ImageIndex, tag: Option<&str>, shown: &str) -> Result<Descriptor> {
    let entries = index.manifests();
    let names = |entry: &Descriptor| -> Vec<String> {
        let annotation = |key| entry.annotations().as_ref().and_then(|all| all.get(key)).cloned();
        [annotation(REF_NAME), annotation(FULL_NAME)].into_iter().flatten().collect()
    };
    let mut wanted: Vec<Descriptor> = entries
        .iter()
        .filter(|entry| tag.is_none_or(|tag| names(entry).iter().any(|name| is_named(name, tag))))
        .cloned()
        .collect();
    wanted.dedup_by(|a, b| a.digest() == b.digest());
    match (wanted.as_slice(), tag) {
        ([only], _) => return Ok(only.clone()),
        ([], None) => return Err(invalid(shown, "it holds no image at all")),
        ([], Some(tag)) => return Err(unknown_tag(shown, tag, entries.iter().flat_map(names).collect())),
        _ => {}
    }
    // One image for several platforms may be listed without an index of its own.
    let mut tags: Vec<Vec<String>> = wanted.iter().map(names).collect();
    tags.dedup();
    if tags.len() == 1 && wanted.iter().all(|entry| entry.platform().is_some()) {
        return image::for_this_platform(&wanted, shown).cloned();
    }
    Err(several(shown, tags.into_iter().flatten().collect()))
}

/// Whether `name`, a tag or a full name, is what the user calls `tag`.
pub(super) fn is_named(name: &str, tag: &str) -> bool {
    name == tag
        || name.rsplit_once(':').is_some_and(|(image, last)| {
            last == tag || (image == tag && !last.contains('/')) || name.ends_with(&format!("/{tag}"))
        })
}

pub(super) fn unknown_tag(shown: &str, tag: &str, mut names: Vec<String>) -> Error {
    names.sort();
    names.dedup();
    let error = Error::usage("oci.unknown-tag", format!("{shown} holds no image named {tag}"));
    if names.is_empty() {
        error.help("its images have no names: leave the tag out")
    } else {
        error.help(format!("it holds {}", names.join(", ")))
    }
}

pub(super) fn several(shown: &str, mut names: Vec<String>) -> Error {
    names.sort();
    names.dedup();
    let error = Error::usage("oci.several-images", format!("{shown} holds several images"));
    if names.is_empty() {
        error.help("they have no names to choose by: make a layout with only one of them")
    } else {
        error.help(format!("say which one by its tag: {}", names.join(", ")))
    }
}
