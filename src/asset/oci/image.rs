//! What an image's documents say: indexes, manifests and configurations, of OCI and of Docker.

use crate::digest::hex;
use crate::error::{Error, Result};
use crate::lock::{Layer, OciConfig, OciImage, is_digest, is_layer_type};
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

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
    if let Some(entry) = entries.iter().filter(runs).find(plain).or_else(|| entries.iter().find(runs)) {
        return Ok(entry);
    }
    if let [only] = entries
        && only.platform().is_none()
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

fn other_platform(subject: &str, platforms: &str) -> Error {
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
        return Err(invalid(subject, &format!("the digest {digest} is not of the kind sha256")));
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

/// Puts together what the documents say.
pub(super) fn image(manifest: &[u8], config: &[u8], layers: Vec<Layer>, subject: &str) -> Result<OciImage> {
    let (config, count) = configuration(config, subject)?;
    if count != layers.len() {
        let what = format!("its manifest has {} layers and its configuration {count}", layers.len());
        return Err(invalid(subject, &what));
    }
    let image =
        OciImage { manifest: digest_of(manifest), blake3: blake3::hash(manifest).into(), layers, config };
    image.check().map_err(|why| invalid(subject, &why))?;
    Ok(image)
}

/// Reads a configuration; also how many layers it says there are.
fn configuration(bytes: &[u8], subject: &str) -> Result<(OciConfig, usize)> {
    let parsed: ImageConfiguration = serde_json::from_slice(bytes)
        .map_err(|e| invalid(subject, "its configuration cannot be read").because(e))?;
    if *parsed.os() != Os::Linux || *parsed.architecture() != Arch::Amd64 {
        return Err(other_platform(subject, &format!("{}/{}", parsed.os(), parsed.architecture())));
    }
    let mut config = OciConfig {
        digest: digest_of(bytes),
        blake3: blake3::hash(bytes).into(),
        entrypoint: Vec::new(),
        cmd: Vec::new(),
        env: Vec::new(),
        user: String::new(),
        workdir: String::new(),
        ports: Vec::new(),
    };
    if let Some(said) = parsed.config() {
        config.entrypoint = said.entrypoint().clone().unwrap_or_default();
        config.cmd = said.cmd().clone().unwrap_or_default();
        config.user = said.user().clone().unwrap_or_default().trim().to_owned();
        config.workdir = said.working_dir().clone().unwrap_or_default();
        if !config.workdir.is_empty() && !config.workdir.starts_with('/') {
            config.workdir.insert(0, '/');
        }
        for variable in said.env().iter().flatten() {
            // A name without a value sets nothing in any runtime.
            let Some((name, value)) = variable.split_once('=') else { continue };
            // The last one wins, as in a container.
            config.env.retain(|(before, _)| before != name);
            config.env.push((name.to_owned(), value.to_owned()));
        }
        for port in said.exposed_ports().iter().flatten() {
            config
                .ports
                .extend(tcp_ports(port).ok_or_else(|| invalid(subject, &format!("{port:?} is no port")))?);
        }
        config.ports.sort_unstable();
        config.ports.dedup();
    }
    Ok((config, parsed.rootfs().diff_ids().len()))
}

/// The digests of the layers' tars once they are no longer compressed, lowest first, each checked to be one that is
/// known here.
pub(super) fn diff_ids(config: &[u8], subject: &str) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Document {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default)]
        diff_ids: Vec<String>,
    }
    let parsed: Document = serde_json::from_slice(config)
        .map_err(|e| invalid(subject, "its configuration cannot be read").because(e))?;
    match parsed.rootfs.diff_ids.iter().find(|digest| !is_digest(digest)) {
        Some(other) => Err(invalid(
            subject,
            &format!("a layer's digest {other:?}, uncompressed, is not of the kind sha256"),
        )),
        None => Ok(parsed.rootfs.diff_ids),
    }
}

/// What a configuration says that no VM takes over, in words, for whoever pins or builds the image.
pub(super) fn left_out(config: &[u8]) -> Vec<String> {
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "PascalCase")]
    struct Said {
        exposed_ports: BTreeMap<String, IgnoredAny>,
        volumes: BTreeMap<String, IgnoredAny>,
        stop_signal: String,
        // Docker's, which the specification of images does not know.
        healthcheck: Option<Healthcheck>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default, rename_all = "PascalCase")]
    struct Healthcheck {
        test: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Document {
        config: Option<Said>,
    }
    // Whether the image can be used at all is for others to say.
    let parsed = serde_json::from_slice::<Document>(config).ok();
    let Some(said) = parsed.and_then(|document| document.config) else { return Vec::new() };
    let mut left = Vec::new();
    let others: Vec<&str> = said
        .exposed_ports
        .keys()
        .map(String::as_str)
        .filter(|port| {
            port.split_once('/').is_some_and(|(_, protocol)| !protocol.eq_ignore_ascii_case("tcp"))
        })
        .collect();
    if !others.is_empty() {
        left.push(format!("{} is exposed and not published: only TCP is", others.join(", ")));
    }
    if !said.volumes.is_empty() {
        let paths: Vec<&str> = said.volumes.keys().map(String::as_str).collect();
        left.push(format!(
            "what is written to {} goes with the VM, unless the manifest has a `volume` there",
            paths.join(", ")
        ));
    }
    if !matches!(said.stop_signal.as_str(), "" | "15" | "TERM" | "SIGTERM") {
        left.push(format!("its stop signal {} is not sent: a VM is stopped by SIGTERM", said.stop_signal));
    }
    let test = said.healthcheck.map(|check| check.test).unwrap_or_default();
    if !test.is_empty() && test != ["NONE"] {
        left.push("its health check is not run".to_owned());
    }
    left
}

/// `80`, `80/tcp` or `8000-8010/tcp`; other protocols have none.
fn tcp_ports(text: &str) -> Option<Vec<u16>> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    if first == 0 || first > last {
        return None;
    }
    Some(if protocol.eq_ignore_ascii_case("tcp") { (first..=last).collect() } else { Vec::new() })
}

/// `sha256:…` of some bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    digest_text(Sha256::digest(bytes).as_slice())
}

/// `sha256:…` of a finished hash.
pub(super) fn digest_text(hash: &[u8]) -> String {
    format!("sha256:{}", hex(hash))
}

pub(super) fn invalid(subject: &str, what: &str) -> Error {
    Error::failed("oci.invalid", format!("{subject} is no image that can be used: {what}"))
}
