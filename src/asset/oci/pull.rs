//! Pins images of registries and brings their layers into the store, several at a time.

use super::blob::{self, Intake, stored};
use super::documents;
use super::download::Download;
use super::reference::Place;
use super::registry::{Registry, Session};
use super::settings::Access;
use crate::asset::parallel::parallel;
use crate::asset::progress::Progress;
use crate::asset::room;
use crate::digest::ObjectDigest;
use crate::error::{Context, Error, Result};
use crate::lock::{OciLayer, OciPin};
use crate::store::Store;

/// Asks the registry what `reference` is just now, for linux/amd64. Its manifest and configuration are kept; what a
/// VM takes over nothing of is told.
///
/// # Errors
/// Usage for what is no reference; `oci.unknown-registry`, `oci.unreachable`, `oci.login-needed`,
/// `oci.login-refused`, `oci.unknown-image`, `oci.no-platform`, `oci.schema-1`, `oci.invalid`, `oci.digest`.
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
    let _ = parallel(&all, resolve);
}

pub(super) fn resolve_with(
    store: &Store,
    reference: &str,
    access: &Access,
    progress: &dyn Progress,
) -> Result<OciPin> {
    let place = Place::parse(reference)?;
    progress.start(&format!("resolving {}", place.shown()), None);
    let session = Session::new(place.clone(), access.logins.find(&place)?, &access.settings);
    let registry = Registry::new(&session)?;
    let asked = runtime()?.block_on(documents::ask(&registry, &place, store));
    progress.end();
    let (pin, left_out) = asked?;
    for what in left_out {
        progress.note(&format!("{}: {what}", place.shown()));
    }
    Ok(pin)
}

/// The layers of `pin` in the store, lowest first. What the store lacks is downloaded from where `reference` says.
///
/// # Errors
/// As [`resolve`]; `lock.contradiction` if the pin does not say what its manifest and configuration say; `oci.gone`,
/// naming `firegopher update`, for a layer that is no longer served; `oci.digest` and `oci.size` for one that is not
/// what it should be; `store.disk-full`. Layers that arrived whole before a failure stay, and of others what arrived
/// is gone on with.
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
    documents::compare(store, &place, pin, &session)?;
    let mut missing: Vec<&OciLayer> = Vec::new();
    for layer in &pin.layers {
        if stored(store, layer).is_none() && !missing.iter().any(|other| other.digest == layer.digest) {
            missing.push(layer);
        }
    }
    if !missing.is_empty() {
        let total = missing.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        let begun = missing.iter().map(|layer| blob::begun(store, layer)).fold(0, u64::saturating_add);
        room::check(&store.home().store(), total.saturating_sub(begun))?;
        let session = session()?;
        // The longest ones first: none is left to the end alone.
        missing.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        parallel(&missing, |layer| fetch_layer(store, session, layer, progress))?;
    }
    let found =
        |layer| stored(store, layer).ok_or_else(|| Error::bug("a layer was published and is not there"));
    pin.layers.iter().map(found).collect()
}

fn fetch_layer(store: &Store, session: &Session, layer: &OciLayer, progress: &dyn Progress) -> Result<()> {
    let waiting = |who: &str| progress.note(&format!("waiting for {who}, which downloads the same layer"));
    let mut intake = Intake::open(store, layer, &waiting)?;
    // Whoever had the layer may have fetched it.
    let done = if stored(store, layer).is_some() {
        Ok(())
    } else {
        let hex = layer.digest.trim_start_matches("sha256:");
        let what = format!("downloading {}, layer {}", session.place.shown(), hex.get(..12).unwrap_or(hex));
        progress.start(&what, Some(layer.size));
        let mut download = || {
            let registry = Registry::new(session)?;
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
