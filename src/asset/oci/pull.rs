//! Pins images of registries and brings their layers into the store, several at a time.

use super::blob::{self, Intake, is_stored, stored};
use super::documents;
use super::download::Download;
use super::reference::Place;
use super::registry::{Registry, Session};
use super::settings::Access;
use crate::asset::parallel::waiting;
use crate::asset::progress::Progress;
use crate::asset::room;
use crate::digest::ObjectDigest;
use crate::error::{Context, Error, Result};
use crate::lock::{Layer, OciImage, OciPin};
use crate::store::Store;

/// Asks the registry what `reference` is just now, for linux/amd64, and takes its layers into the store. Its manifest
/// and configuration are kept; what a VM takes over nothing of is told.
///
/// # Errors
/// Usage for what is no reference; `oci.unknown-registry`, `oci.unreachable`, `oci.login-needed`,
/// `oci.login-refused`, `oci.unknown-image`, `oci.no-platform`, `oci.schema-1`, `oci.invalid`; `oci.gone` for a layer
/// that is not served; `oci.digest` and `oci.size` for one that is not what it should be; `store.disk-full`.
pub fn resolve(store: &Store, reference: &str, progress: &dyn Progress) -> Result<OciPin> {
    resolve_with(store, reference, &Access::of_user(), progress)
}

/// Several of them at a time, each by itself: one that fails stops no other. `found` hears of each by its place among
/// `references`, when it is done.
pub fn resolve_each(
    store: &Store,
    references: &[&str],
    progress: &dyn Progress,
    found: &(dyn Fn(usize, Result<OciPin>) + Sync),
) {
    let access = Access::of_user();
    let all: Vec<(usize, &str)> = references.iter().copied().enumerate().collect();
    let resolve = |(index, reference): &(usize, &str)| {
        found(*index, resolve_with(store, reference, &access, progress));
        Ok(())
    };
    // What fails was told.
    let _ = waiting(&all, resolve);
}

pub(super) fn resolve_with(
    store: &Store,
    reference: &str,
    access: &Access,
    progress: &dyn Progress,
) -> Result<OciPin> {
    let (image, session) = ask_with(store, reference, access, progress)?;
    let lacking = image.layers.iter().filter(|layer| stored(store, layer).is_none()).collect();
    fetch_layers(store, lacking, &|| Ok(&session), progress)?;
    let objects = image.layers.iter().map(|layer| stored(store, layer)).collect::<Option<Vec<_>>>();
    Ok(image.pinned(&objects.ok_or_else(gone)?))
}

/// What the registry says that the image is, and the session in which it was asked.
pub(super) fn ask_with(
    store: &Store,
    reference: &str,
    access: &Access,
    progress: &dyn Progress,
) -> Result<(OciImage, Session)> {
    let place = Place::parse(reference)?;
    progress.start(&format!("resolving {}", place.shown()), None);
    let session = Session::new(place.clone(), access.logins.find(&place)?, &access.settings);
    let registry = Registry::new(&session, progress)?;
    let asked = runtime()?.block_on(documents::ask(&registry, &place, store));
    progress.end();
    let (image, left_out) = asked?;
    for what in left_out {
        progress.note(&format!("{}: {what}", place.shown()));
    }
    Ok((image, session))
}

/// The layers of `pin` in the store, lowest first. What the store lacks is downloaded from where `reference` says.
///
/// # Errors
/// As [`resolve`]; `lock.contradiction` if the pin does not say what its manifest and configuration say, or its SHA-256
/// and BLAKE3 are those of different bytes; `oci.gone`, naming `firegopher update`, for a layer that is no longer
/// served. Layers that arrived whole before a failure stay, and of others what arrived is gone on with.
pub fn fetch(
    store: &Store,
    reference: &str,
    pin: &OciPin,
    progress: &dyn Progress,
) -> Result<Vec<ObjectDigest>> {
    fetch_with(store, reference, pin, &Access::of_user(), progress)
}

pub(super) fn fetch_with(
    store: &Store,
    reference: &str,
    pin: &OciPin,
    access: &Access,
    progress: &dyn Progress,
) -> Result<Vec<ObjectDigest>> {
    let place = Place::parse(reference)?;
    let made = std::cell::OnceCell::new();
    // Reads login files and may ask credential helpers: once, and only if something is missing.
    let session = || -> Result<&Session> {
        if made.get().is_none() {
            let _ = made.set(Session::new(place.clone(), access.logins.find(&place)?, &access.settings));
        }
        made.get().ok_or_else(|| Error::bug("a session was made and is not there"))
    };
    documents::compare(store, &place, pin, &session, progress)?;
    let (shown, image) = (place.shown(), pin.image());
    let mut lacking = Vec::new();
    for (pinned, layer) in pin.layers.iter().zip(&image.layers) {
        if !is_stored(store, &shown, pinned)? {
            lacking.push(layer);
        }
    }
    fetch_layers(store, lacking, &session, progress)?;
    let object = |layer| match is_stored(store, &shown, layer)? {
        true => Ok(layer.blake3),
        false => Err(gone()),
    };
    pin.layers.iter().map(object).collect()
}

/// Fetches what the store lacks, in parallel.
fn fetch_layers<'s>(
    store: &Store,
    lacking: Vec<&Layer>,
    session: &dyn Fn() -> Result<&'s Session>,
    progress: &dyn Progress,
) -> Result<()> {
    let mut missing: Vec<&Layer> = Vec::new();
    for layer in lacking {
        if !missing.iter().any(|other| other.digest == layer.digest) {
            missing.push(layer);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let total = missing.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
    let begun = missing.iter().map(|layer| blob::begun(store, layer)).fold(0, u64::saturating_add);
    room::check(&store.home().store(), total.saturating_sub(begun))?;
    let session = session()?;
    // The longest ones first: none is left to the end alone.
    missing.sort_by_key(|layer| std::cmp::Reverse(layer.size));
    waiting(&missing, |layer| fetch_layer(store, session, layer, progress)).map(|_| ())
}

fn gone() -> Error {
    Error::bug("a layer was published and is not there")
}

fn fetch_layer(store: &Store, session: &Session, layer: &Layer, progress: &dyn Progress) -> Result<()> {
    let waiting = |who: &str| progress.note(&format!("waiting for {who}, which downloads the same layer"));
    let mut intake = Intake::open(store, layer, &waiting)?;
    // Whoever had the layer may have fetched it.
    let done = if stored(store, layer).is_some() {
        Ok(())
    } else {
        let hex = layer.digest.split_once(':').map_or("", |(_, hex)| hex);
        let what = format!("downloading {}, layer {}", session.place.shown(), hex.get(..12).unwrap_or(hex));
        progress.start(&what, Some(layer.size));
        let mut download = || {
            let registry = Registry::new(session, progress)?;
            let (place, settings) = (&session.place, &session.settings);
            let mut download = Download { registry: &registry, place, settings, layer, progress, told: 0 };
            runtime()?.block_on(download.run(&mut intake))
        };
        let done = download();
        progress.end();
        done
    };
    intake.close(done.as_ref().err());
    done
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_failed("oci.client", || "cannot prepare for asking registries")
}
