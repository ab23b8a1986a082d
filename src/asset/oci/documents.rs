//! The manifest and the configuration that a pin names. The lock repeats what they say so that people can read and
//! merge it; before anything is made of it, both must say the same.

use super::blob::{self, Names};
use super::config;
use super::image::{self, MANIFEST_TYPES, MAX_DOCUMENT, Manifest, digest_like, digest_of, invalid};
use super::reference::Place;
use super::registry::{Registry, Session};
use super::trouble::What;
use crate::asset::progress::Progress;
use crate::error::{Error, Result};
use crate::lock::{self, OciImage, OciPin};
use crate::store::Store;

/// An index may list indexes; nobody nests deeper.
const DEEPEST_INDEX: u32 = 4;
const ANYTHING: &str = "*/*";

/// Asks what an image is just now, keeps its documents, and says what of it no VM takes over.
pub(super) async fn ask(
    registry: &Registry<'_>,
    place: &Place,
    store: &Store,
) -> Result<(OciImage, Vec<String>)> {
    let shown = place.shown();
    let first = format!("manifests/{}", place.version());
    let mut bytes = registry.document(&first, What::Manifest, MANIFEST_TYPES, MAX_DOCUMENT).await?;
    place.check_digest(&bytes).map_err(|found| other_bytes(place, "manifest", place.version(), &found))?;
    let mut named = place.digest().map_or_else(|| digest_of(&bytes), str::to_owned);
    for _ in 0..DEEPEST_INDEX {
        let manifest = match image::manifest(&bytes, &shown)? {
            Manifest::Image(manifest) => manifest,
            Manifest::Index(index) => {
                let entry = image::for_this_platform(index.manifests(), &shown)?;
                let (digest, size) = image::descriptor(entry, &shown)?;
                blob::keep_as(store, &named, &bytes)?;
                bytes = manifest_by_digest(registry, place, &digest).await?;
                named = digest;
                check_size(place, "manifest", &bytes, size)?;
                continue;
            }
        };
        let (config_digest, size) = image::config_of(&manifest, &shown)?;
        let config = config_by_digest(registry, place, &config_digest, size).await?;
        let layers = image::layers_of(&manifest, &shown)?;
        blob::keep_as(store, &named, &bytes)?;
        blob::keep_as(store, &config_digest, &config)?;
        let said = image::image((&bytes, named), (&config, config_digest), layers, &shown)?;
        return Ok((said, config::left_out(&config)));
    }
    Err(invalid(&shown, "its indexes list each other"))
}

/// Demands that a pin says what the documents say that it names. What the store lacks of them is fetched by digest.
///
/// # Errors
/// `lock.contradiction` if it does not; those of fetching.
pub(super) fn compare<'s>(
    store: &Store,
    place: &Place,
    pin: &OciPin,
    session: &dyn Fn() -> Result<&'s Session>,
    progress: &dyn Progress,
) -> Result<()> {
    let shown = place.shown();
    let by_digest = |digest: &str| match blob::document(store, digest) {
        Some(bytes) => Ok(bytes),
        None => {
            let registry = Registry::new(session()?, progress)?;
            let bytes = super::pull::runtime()?.block_on(manifest_by_digest(&registry, place, digest))?;
            blob::keep_as(store, digest, &bytes)?;
            Ok(bytes)
        }
    };
    if meant(place, &by_digest)?.is_some_and(|meant| meant != pin.manifest) {
        return Err(contradiction(&shown, "another manifest than its reference names"));
    }
    let names = Names { digest: &pin.manifest, blake3: pin.blake3 };
    let manifest = match blob::pinned_document(store, &shown, names)? {
        Some(bytes) => bytes,
        None => by_digest(&pin.manifest)?,
    };
    let Manifest::Image(parsed) = image::manifest(&manifest, &shown)? else {
        return Err(contradiction(&shown, "an index where its manifest should be"));
    };
    // Before the configuration is asked for: only the manifest says truly which one it is.
    let (config_digest, size) = image::config_of(&parsed, &shown)?;
    if config_digest != pin.config.digest {
        return Err(contradiction(&shown, "another configuration than its manifest names"));
    }
    let layers = image::layers_of(&parsed, &shown)?;
    let locked = pin.image();
    if layers != locked.layers {
        return Err(contradiction(&shown, "other layers than its manifest names"));
    }
    let names = Names { digest: &config_digest, blake3: pin.config.blake3 };
    let config = match blob::pinned_document(store, &shown, names)? {
        Some(bytes) => bytes,
        None => {
            let registry = Registry::new(session()?, progress)?;
            let fetched = config_by_digest(&registry, place, &config_digest, size);
            let bytes = super::pull::runtime()?.block_on(fetched)?;
            blob::keep_as(store, &config_digest, &bytes)?;
            bytes
        }
    };
    let said = image::image((&manifest, pin.manifest.clone()), (&config, config_digest), layers, &shown)?;
    // What was fetched just now.
    if (said.blake3, said.config.blake3) != (locked.blake3, locked.config.blake3) {
        return Err(contradiction(&shown, "a sha256 and a blake3 of different documents"));
    }
    match said == locked {
        true => Ok(()),
        false => Err(contradiction(
            &shown,
            "another command, environment, user, directory or other ports than its configuration",
        )),
    }
}

/// Whether the store has all of an image, so that fetching it needs no network.
pub fn have(store: &Store, reference: &str, pin: &OciPin) -> bool {
    let Ok(place) = Place::parse(reference) else { return false };
    let here = |digest: &str| {
        blob::document(store, digest).ok_or_else(|| Error::failed("oci.gone", "the store lacks a document"))
    };
    let documents = [(&pin.manifest, pin.blake3), (&pin.config.digest, pin.config.blake3)];
    let shown = place.shown();
    let kept =
        |(digest, blake3): (&String, _)| blob::pinned_document(store, &shown, Names { digest, blake3 });
    // A contradiction is told without a network, too.
    meant(&place, &here).is_ok()
        && documents.into_iter().all(|document| !matches!(kept(document), Ok(None)))
        && pin.layers.iter().all(|layer| !matches!(blob::is_stored(store, &shown, layer), Ok(false)))
}

/// The manifest that a reference by digest means: itself, or what its index has for this platform.
fn meant(place: &Place, by_digest: &dyn Fn(&str) -> Result<Vec<u8>>) -> Result<Option<String>> {
    let shown = place.shown();
    let Some(mut digest) = place.digest().map(str::to_owned) else { return Ok(None) };
    for _ in 0..DEEPEST_INDEX {
        match image::manifest(&by_digest(&digest)?, &shown)? {
            Manifest::Image(_) => return Ok(Some(digest)),
            Manifest::Index(index) => {
                let entry = image::for_this_platform(index.manifests(), &shown)?;
                digest = image::descriptor(entry, &shown)?.0;
            }
        }
    }
    Err(invalid(&shown, "its indexes list each other"))
}

fn contradiction(shown: &str, what: &str) -> Error {
    lock::contradiction(format_args!("the image {shown}"), what)
}

async fn manifest_by_digest(registry: &Registry<'_>, place: &Place, digest: &str) -> Result<Vec<u8>> {
    let rest = format!("manifests/{digest}");
    let bytes = registry.document(&rest, What::Manifest, MANIFEST_TYPES, MAX_DOCUMENT).await?;
    check_digest(place, "manifest", &bytes, digest)?;
    Ok(bytes)
}

async fn config_by_digest(
    registry: &Registry<'_>,
    place: &Place,
    digest: &str,
    size: u64,
) -> Result<Vec<u8>> {
    let rest = format!("blobs/{digest}");
    let bytes = registry.document(&rest, What::Blob, ANYTHING, MAX_DOCUMENT).await?;
    check_digest(place, "configuration", &bytes, digest)?;
    check_size(place, "configuration", &bytes, size)?;
    Ok(bytes)
}

fn check_digest(place: &Place, what: &str, bytes: &[u8], digest: &str) -> Result<()> {
    let found = digest_like(digest, bytes);
    if found == digest { Ok(()) } else { Err(other_bytes(place, what, digest, &found)) }
}

fn check_size(place: &Place, what: &str, bytes: &[u8], size: u64) -> Result<()> {
    if bytes.len() as u64 == size {
        return Ok(());
    }
    let lie = format!("its {what} has {} bytes, and what names it says {size}", bytes.len());
    Err(invalid(&place.shown(), &lie))
}

fn other_bytes(place: &Place, what: &str, wanted: &str, found: &str) -> Error {
    let message = format!(
        "the registry {} serves other bytes for {}: its {what} should be {wanted} and is {found}",
        place.registry(),
        place.shown()
    );
    Error::failed("oci.digest", message)
        .help("somebody on the way or the registry itself changes them: do not use it before you know who")
}
