//! Downloads by URL.

use super::Progress;
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::store::Store;
use std::path::Path;

/// One file to download.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Mirrors in order.
    pub urls: Vec<String>,
    /// What the bytes must have, if it is known.
    pub sha256: Option<String>,
    /// Their size in bytes, if it is known.
    pub size: Option<u64>,
    /// The most bytes it may have.
    pub max: u64,
}

/// A file that was downloaded and published.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The file in the store.
    pub object: ObjectDigest,
    /// Of its bytes, in hexadecimal.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// The address that served it.
    pub url: String,
}

/// Downloads files.
pub fn fetch(_store: &Store, wanted: &[Wanted], _progress: &dyn Progress) -> Result<Vec<Fetched>> {
    let url = wanted.iter().filter_map(|w| w.urls.first()).next().cloned().unwrap_or_default();
    Err(Error::failed("http.unavailable", format!("{url}: this version cannot download yet")))
}

/// Takes a file out of an archive.
pub fn member(_store: &Store, _archive: &Path, member: &str) -> Result<ObjectDigest> {
    Err(Error::failed(
        "http.unavailable",
        format!("{member}: this version cannot take files out of archives yet"),
    ))
}
