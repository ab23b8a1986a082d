//! What an image's documents say: indexes and manifests, of OCI and of Docker.

use super::config;
use crate::digest::Sha;
use crate::error::{Error, Result};
use crate::lock::{Layer, OciImage, is_digest, is_layer_type};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// As much as registries take for a manifest (4 MiB, distribution-spec); configurations are held to it too.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// What registries are asked for: images and indexes of OCI and of Docker, and schema 1 to be able to name it.
pub(super) const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1";

/// A manifest, or a choice of several.
#[derive(Debug)]
pub(super) enum Manifest {
    Image(Box<ImageManifest>),
    Index(Box<ImageIndex>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<i64>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
}

/// Reads a manifest or index of the image `subject`.
pub(super) fn manifest(bytes: &[u8], subject: &str) -> Result<Manifest> {
    let bad = |e: serde_json::Error| invalid(subject, "its manifest cannot be read").because(e);
    let shape: Shape = serde_json::from_slice(bytes).map_err(bad)?;
    let media = shape.media_type.as_deref().unwrap_or_default();
    if shape.schema_version == Some(1) || media.starts_with("application/vnd.docker.distribution.manifest.v1")
    {
        return Err(Error::failed(
            "oci.schema-1",
            format!("{subject} is stored in Docker's old format (manifest schema 1), which is not read"),
        )
        .help("push the image again with a current tool, which writes schema 2 or OCI"));
    }
    if shape.schema_version != Some(2) {
        return Err(invalid(subject, "its manifest has no schema version 2"));
    }
    let is_image = shape.layers.is_some() || shape.config.is_some();
    // A document that is both could be read one way here and another way elsewhere (CVE-2021-41190).
    if shape.manifests.is_some() && is_image {
        return Err(invalid(subject, "its manifest is an index and an image at once"));
    }
    let says_index = media.ends_with("image.index.v1+json") || media.ends_with("manifest.list.v2+json");
    let says_image = media.ends_with("image.manifest.v1+json") || media.ends_with("manifest.v2+json");
    if (says_index && is_image) || (says_image && shape.manifests.is_some()) {
        return Err(invalid(subject, "its manifest is not of the type that it declares"));
    }
    if !media.is_empty() && !says_index && !says_image {
        return Err(invalid(subject, &format!("its manifest is of the type {media}, which is no image")));
    }
    if shape.manifests.is_some() {
        Ok(Manifest::Index(serde_json::from_slice(bytes).map_err(bad)?))
    } else {
        Ok(Manifest::Image(serde_json::from_slice(bytes).map_err(bad)?))
    }
}

/// The entry of an index that runs here.
pub(super) fn for_this_platform<'a>(entries: &'a [Descriptor], subject: &str) -> Result<&'a Descriptor> {
    let runs = |entry: &&Descriptor| {
        entry.platform().as_ref().is_some_and(|p| *p.os() == Os::Linux && *p.architecture() == Arch::Amd64)
    };
    // An entry that demands the newest processors is not what an emulated one should get.
    let plain = |entry: &&Descriptor| {
        let variant = entry.platform().as_ref().and_then(|p| p.variant().as_deref());
        matches!(variant, None | Some("" | "v1"))
    };
    // Signatures and other things about an image are listed beside it, and say what they are.
    let of_image = |entry: &&Descriptor| entry.artifact_type().is_none();
    let of_image: Vec<&Descriptor> = entries.iter().filter(of_image).collect();
    let runnable = || of_image.iter().copied().filter(runs);
    if let Some(entry) = runnable().find(plain).or_else(|| runnable().next()) {
        return Ok(entry);
    }
    let named = |p: &oci_spec::image::Platform| {
        !p.os().to_string().is_empty() || !p.architecture().to_string().is_empty()
    };
    if let [only] = of_image.as_slice()
        && !only.platform().as_ref().is_some_and(named)
    {
        // The configuration will tell.
        return Ok(only);
    }
    let mut platforms: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform().as_ref())
        .map(|p| format!("{}/{}", p.os(), p.architecture()))
        // Attestations are filed under this.
        .filter(|name| name != "unknown/unknown")
        .collect();
    platforms.sort();
    platforms.dedup();
    Err(other_platform(subject, &platforms.join(", ")))
}

pub(super) fn other_platform(subject: &str, platforms: &str) -> Error {
    let has = if platforms.is_empty() {
        "says for none what it is for".to_owned()
    } else {
        format!("is for {platforms}")
    };
    Error::failed("oci.no-platform", format!("{subject} {has}, and VMs run linux/amd64"))
        .help("name an image that is built for linux/amd64")
}

/// The digest and size of a document or layer, the digest checked to be one that is known here.
pub(super) fn descriptor(entry: &Descriptor, subject: &str) -> Result<(String, u64)> {
    let digest = entry.digest().to_string();
    if !is_digest(&digest) {
        return Err(invalid(
            subject,
            &format!("the digest {digest} is neither of the kind sha256 nor sha512"),
        ));
    }
    Ok((digest, entry.size()))
}

/// The configuration that a manifest names: digest and size.
pub(super) fn config_of(manifest: &ImageManifest, subject: &str) -> Result<(String, u64)> {
    let (digest, size) = descriptor(manifest.config(), subject)?;
    let media = manifest.config().media_type().to_string();
    let known =
        ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
    if !known.contains(&media.as_str()) {
        return Err(invalid(subject, &format!("it holds {media}, which is no container image")));
    }
    if size > MAX_DOCUMENT {
        return Err(invalid(subject, &format!("its configuration has {size} bytes, and 4 MiB is the most")));
    }
    Ok((digest, size))
}

/// The layers that a manifest names, lowest first.
pub(super) fn layers_of(manifest: &ImageManifest, subject: &str) -> Result<Vec<Layer>> {
    let layer = |entry: &Descriptor| {
        let (digest, size) = descriptor(entry, subject)?;
        let media = entry.media_type().to_string();
        if !is_layer_type(&media) {
            let error = invalid(subject, &format!("a layer is of the type {media}, which is not read"));
            return Err(if media.ends_with("+encrypted") {
                error.help("decrypt the image first; firegopher holds no keys of images")
            } else {
                error
            });
        }
        Ok(Layer { digest, size, media })
    };
    manifest.layers().iter().map(layer).collect()
}

/// Puts together what the documents say, which have these digests.
pub(super) fn image(
    (manifest, manifest_digest): (&[u8], String),
    (config, config_digest): (&[u8], String),
    layers: Vec<Layer>,
    subject: &str,
) -> Result<OciImage> {
    // As many as there are layers, or none.
    config::diff_ids(config, layers.len(), subject)?;
    let config = config::config(config, config_digest, subject)?;
    let image = OciImage { manifest: manifest_digest, blake3: blake3::hash(manifest).into(), layers, config };
    image.check().map_err(|why| invalid(subject, &why))?;
    Ok(image)
}

/// `sha256:…` of some bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    digest_like("sha256:", bytes)
}

/// Whether `digest`, a SHA-256 or a SHA-512, is that of the bytes.
pub(super) fn is_of(digest: &str, bytes: &[u8]) -> bool {
    digest_like(digest, bytes) == digest
}

/// The digest of some bytes, of the same kind as another.
pub(super) fn digest_like(other: &str, bytes: &[u8]) -> String {
    let mut sha = Sha::like(other);
    sha.update(bytes);
    sha.finish()
}

pub(super) fn invalid(subject: &str, what: &str) -> Error {
    Error::failed("oci.invalid", format!("{subject} is no image that can be used: {what}"))
}
