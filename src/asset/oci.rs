//! Container images.

use super::Progress;
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::lock::OciPin;
use crate::store::Store;
use std::path::Path;

/// A container image on this host, its layers published.
#[derive(Debug, Clone)]
pub struct LocalImage {
    /// What it is.
    pub pin: OciPin,
    /// Its layers, lowest first.
    pub layers: Vec<ObjectDigest>,
}

fn unavailable<T>(what: &str) -> Result<T> {
    Err(Error::failed("oci.unavailable", format!("{what}: this version cannot read container images yet")))
}

/// Finds out what a reference stands for.
pub fn resolve(reference: &str, _progress: &dyn Progress) -> Result<OciPin> {
    unavailable(reference)
}

/// Downloads an image's layers.
pub fn fetch(
    _store: &Store,
    reference: &str,
    _pin: &OciPin,
    _progress: &dyn Progress,
) -> Result<Vec<ObjectDigest>> {
    unavailable(reference)
}

/// Whether the store has all layers.
pub fn have(_store: &Store, _pin: &OciPin) -> bool {
    false
}

/// Describes an image on this host.
pub fn inspect(path: &Path, _tag: Option<&str>) -> Result<OciPin> {
    unavailable(&path.display().to_string())
}

/// Publishes the layers of an image on this host.
pub fn open_local(_store: &Store, path: &Path, _tag: Option<&str>) -> Result<LocalImage> {
    unavailable(&path.display().to_string())
}
