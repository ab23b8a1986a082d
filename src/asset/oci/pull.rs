//! Pins images of registries and downloads their layers: several at a time, verified while they arrive, continued
//! where a connection broke.

use super::blob::{Intake, stored};
use super::image::{self, MANIFEST_TYPES, MAX_DOCUMENT, Manifest, digest_of, invalid};
use super::login::Logins;
use super::reference::Place;
use super::registry::{Registry, Session};
use super::trouble::{Trouble, What};
use crate::asset::parallel::parallel;
use crate::asset::progress::Progress;
use crate::digest::ObjectDigest;
use crate::error::{Context, Error, Result};
use crate::lock::{OciLayer, OciPin};
use crate::store::Store;
use reqwest::StatusCode;
use reqwest::header::CONTENT_RANGE;
use std::sync::atomic::{AtomicU64, Ordering};

/// An index may list indexes; nobody nests deeper.
const DEEPEST_INDEX: u32 = 4;
const ANYTHING: &str = "*/*";

/// Asks the registry what `reference` is just now, for linux/amd64.
///
/// # Errors
/// Usage for what is no reference; `oci.unknown-registry`, `oci.unreachable`, `oci.login-needed`,
/// `oci.login-refused`, `oci.unknown-image`, `oci.no-platform`, `oci.schema-1`, `oci.invalid`, `oci.digest`.
pub fn resolve(reference: &str, progress: &dyn Progress) -> Result<OciPin> {
    resolve_as(reference, &Logins::of_user(), progress)
}

pub(super) fn resolve_as(reference: &str, logins: &Logins, progress: &dyn Progress) -> Result<OciPin> {
    let place = Place::parse(reference)?;
    progress.start(&format!("resolving {}", place.shown()), None);
    let session = Session::new(place.clone(), logins.find(&place)?);
    let registry = Registry::new(&session)?;
    runtime()?.block_on(ask(&registry, &place))
}

async fn ask(registry: &Registry<'_>, place: &Place) -> Result<OciPin> {
    let shown = place.shown();
    let first = format!("manifests/{}", place.version());
    let mut bytes = registry.document(&first, What::Manifest, MANIFEST_TYPES, MAX_DOCUMENT).await?;
    place.check_digest(&bytes).map_err(|found| other_bytes(place, "manifest", place.version(), &found))?;
    for _ in 0..DEEPEST_INDEX {
        let manifest = match image::manifest(&bytes, &shown)? {
            Manifest::Image(manifest) => manifest,
            Manifest::Index(index) => {
                let entry = image::for_this_platform(index.manifests(), &shown)?;
                let (digest, size) = image::descriptor(entry, &shown)?;
                let rest = format!("manifests/{digest}");
                bytes = registry.document(&rest, What::Manifest, MANIFEST_TYPES, MAX_DOCUMENT).await?;
                check(place, "manifest", &bytes, &digest, size)?;
                continue;
            }
        };
        let (config_digest, size) = image::config_of(&manifest, &shown)?;
        let rest = format!("blobs/{config_digest}");
        let config = registry.document(&rest, What::Blob, ANYTHING, MAX_DOCUMENT).await?;
        check(place, "configuration", &config, &config_digest, size)?;
        let layers = image::layers_of(&manifest, &shown)?;
        return image::pin(digest_of(&bytes), config_digest, &config, layers, &shown);
    }
    Err(invalid(&shown, "its indexes list each other"))
}

fn check(place: &Place, what: &str, bytes: &[u8], digest: &str, size: u64) -> Result<()> {
    let found = digest_of(bytes);
    if found != digest {
        return Err(other_bytes(place, what, digest, &found));
    }
    if bytes.len() as u64 != size {
        let lie = format!("its {what} has {} bytes, and its manifest says {size}", bytes.len());
        return Err(invalid(&place.shown(), &lie));
    }
    Ok(())
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

/// The layers of `pin` in the store, lowest first. What the store lacks is downloaded from where `reference` says.
///
/// # Errors
/// As [`resolve`]; `oci.gone`, naming `firegopher update`, for a layer that is no longer served; `oci.digest` and
/// `oci.size` for one that is not what it should be. Layers that arrived whole before a failure stay.
pub fn fetch(
    store: &Store,
    reference: &str,
    pin: &OciPin,
    progress: &dyn Progress,
) -> Result<Vec<ObjectDigest>> {
    fetch_as(store, reference, pin, &Logins::of_user(), progress)
}

pub(super) fn fetch_as(
    store: &Store,
    reference: &str,
    pin: &OciPin,
    logins: &Logins,
    progress: &dyn Progress,
) -> Result<Vec<ObjectDigest>> {
    let place = Place::parse(reference)?;
    let mut missing: Vec<&OciLayer> = Vec::new();
    for layer in &pin.layers {
        if stored(store, layer).is_none() && !missing.iter().any(|other| other.digest == layer.digest) {
            missing.push(layer);
        }
    }
    if !missing.is_empty() {
        let login = logins.find(&place)?;
        let total = missing.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        progress.start(&format!("downloading {}", place.shown()), Some(total));
        let session = Session::new(place, login);
        // The longest ones first: none is left to the end alone.
        missing.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        parallel(&missing, |layer| {
            let _lock = store.lock_key(&super::blob::key(&layer.digest), &|who| {
                progress.note(&format!("waiting for {who}, which downloads the same layer"));
            })?;
            // Whoever held the lock may have fetched it.
            match stored(store, layer) {
                Some(_) => progress.advance(layer.size),
                None => runtime()?.block_on(download(
                    &Registry::new(&session)?,
                    &session.place,
                    store,
                    layer,
                    progress,
                ))?,
            }
            Ok(())
        })?;
    }
    let found =
        |layer| stored(store, layer).ok_or_else(|| Error::bug("a layer was published and is not there"));
    pin.layers.iter().map(found).collect()
}

async fn download(
    registry: &Registry<'_>,
    place: &Place,
    store: &Store,
    layer: &OciLayer,
    progress: &dyn Progress,
) -> Result<()> {
    let told = AtomicU64::new(0);
    let mut intake = Intake::new(store, layer)?;
    let mut tried = 0;
    loop {
        tried += 1;
        let before = intake.got;
        match receive(registry, place, layer, &mut intake, &told, progress).await {
            Ok(()) => break,
            Err(trouble) => {
                if intake.got > before {
                    // It does move: only standing still uses the tries up.
                    tried = 1;
                }
                let Some(wait) = trouble.wait(tried) else { return Err(*trouble.error) };
                progress.note(&format!("{}; trying again", trouble.error));
                tokio::time::sleep(wait).await;
            }
        }
    }
    match intake.finish()? {
        Ok(_) => Ok(()),
        Err(why) => {
            let message = format!(
                "the registry {} serves a layer of {} that is not what its manifest names ({}): {why}",
                place.registry(),
                place.shown(),
                layer.digest
            );
            Err(Error::failed("oci.digest", message).help(
                "somebody on the way or the registry itself changes it: do not use it before you know who",
            ))
        }
    }
}

/// Receives what is missing, in one answer.
async fn receive(
    registry: &Registry<'_>,
    place: &Place,
    layer: &OciLayer,
    intake: &mut Intake<'_>,
    told: &AtomicU64,
    progress: &dyn Progress,
) -> Result<(), Trouble> {
    let rest = format!("blobs/{}", layer.digest);
    let mut response = registry.get(&rest, What::Blob, ANYTHING, intake.got).await?;
    if intake.got > 0 && !continues(&response, intake.got) {
        intake.restart().map_err(Trouble::lasting)?;
    }
    let lie = || {
        let message = format!(
            "the registry {} serves a layer of {} with more than the {} bytes that its manifest names ({})",
            place.registry(),
            place.shown(),
            layer.size,
            layer.digest
        );
        Trouble::lasting(
            Error::failed("oci.size", message).help(
                "somebody on the way or the registry itself changes it: do not use it before you know who",
            ),
        )
    };
    if response.content_length().is_some_and(|length| !intake.fits(length)) {
        return Err(lie());
    }
    while let Some(chunk) = response.chunk().await.map_err(|e| Trouble::of_client(e, place))? {
        if !intake.fits(chunk.len() as u64) {
            return Err(lie());
        }
        intake.take(&chunk).map_err(Trouble::lasting)?;
        // After a restart the same bytes come again, and a bar does not go back.
        let before = told.fetch_max(intake.got, Ordering::Relaxed);
        progress.advance(intake.got.saturating_sub(before));
    }
    if intake.got < layer.size && response.content_length().is_none() {
        let message = format!("the registry {} breaks off a layer of {}", place.registry(), place.shown());
        return Err(Trouble::passing(Error::failed("oci.unreachable", message).help("try again later")));
    }
    Ok(())
}

/// Whether an answer begins at `offset`.
fn continues(response: &reqwest::Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failed("oci.client", || "cannot prepare for asking registries")
}
