//! What `docker save`, `podman save --format docker-archive` and `skopeo copy … docker-archive:` write: a tar with a
//! manifest.json, configurations and layers.

use super::config;
use super::image::{self, MAX_DOCUMENT, digest_of, invalid};
use super::local::{Found, is_named, several, unknown_tag};
use super::source::Source;
use crate::digest::Sha;
use crate::error::{Context, Result};
use crate::lock::Layer;
use serde::Deserialize;
use std::io::Read;

const PLAIN: &str = "application/vnd.docker.image.rootfs.diff.tar";
const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// An image of the archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn find(source: &Source, list: &[u8], tag: Option<&str>) -> Result<Found> {
    let shown = source.shown();
    let list: Vec<Listed> = serde_json::from_slice(list)
        .map_err(|e| invalid(&shown, "its manifest.json cannot be read").because(e))?;
    let names = || list.iter().flat_map(|listed| listed.repo_tags.iter().flatten().cloned()).collect();
    let wanted: Vec<&Listed> = list
        .iter()
        .filter(|listed| {
            tag.is_none_or(|tag| listed.repo_tags.iter().flatten().any(|name| is_named(name, tag)))
        })
        .collect();
    let listed = match (wanted.as_slice(), tag) {
        ([only], _) => *only,
        ([], None) => return Err(invalid(&shown, "it holds no image at all")),
        ([], Some(tag)) => return Err(unknown_tag(&shown, tag, names())),
        _ => return Err(several(&shown, names())),
    };
    let config =
        source.document(&listed.config, MAX_DOCUMENT)?.ok_or_else(|| source.lacks(&listed.config))?;
    let diff_ids = config::diff_ids(&config, listed.layers.len(), &shown)?;
    let mut layers = Vec::with_capacity(listed.layers.len());
    for (index, name) in listed.layers.iter().enumerate() {
        layers.push(layer(source, name, diff_ids.get(index).and_then(Option::as_deref))?);
    }
    // The configuration lists every layer's digest: its own digest is the image's.
    let digest = digest_of(&config);
    let image = image::image((&config, digest.clone()), (&config, digest), layers, &shown)?;
    Ok(Found { image, files: listed.layers.clone(), config })
}

/// A layer's digest: known for an uncompressed one, whose blob is what the configuration names.
fn layer(source: &Source, name: &str, diff_id: Option<&str>) -> Result<Layer> {
    let shown = source.shown();
    let lacks = || source.lacks(&format!("the layer {name}"));
    let mut opened = source.file(name)?.ok_or_else(lacks)?;
    let failed = || format!("cannot read the layer {name} of {shown}");
    let mut head = Vec::with_capacity(4);
    opened.reader.by_ref().take(4).read_to_end(&mut head).or_failed("oci.read", failed)?;
    let media = match head.as_slice() {
        [0x1f, 0x8b, ..] => GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => ZSTD,
        _ => PLAIN,
    };
    let digest = if media == PLAIN
        && let Some(diff_id) = diff_id
    {
        diff_id.to_owned()
    } else {
        let mut hasher = Sha::like("sha256:");
        hasher.update(&head);
        let mut buffer = vec![0; 1 << 18];
        loop {
            match opened.reader.read(&mut buffer).or_failed("oci.read", failed)? {
                0 => break hasher.finish(),
                got => hasher.update(&buffer[..got]),
            }
        }
    };
    Ok(Layer { digest, size: opened.size, media: media.to_owned() })
}
