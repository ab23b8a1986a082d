//! Downloads files over http and https and copies `file:` ones, verified as they stream in and published to the
//! store. `download` decides (mirrors, retries, what to go on with), `transfer` moves bytes from one URL into a
//! `sink`, `client` asks and follows redirects. `member` takes one file out of what was downloaded.

mod client;
mod download;
mod failure;
mod member;
mod resume;
mod settings;
pub(super) mod sink;
mod transfer;
mod url;

#[cfg(test)]
mod tests;

pub(super) use client::retry_after;
pub use member::member;
pub use url::shown;

use super::named::Named;
use super::progress::Progress;
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::lock::FilePin;
use crate::store::{STALE, Store};
use settings::Settings;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Downloads at a time. They wait for the network, not for a core.
const AT_ONCE: usize = 4;

/// One file to download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Mirrors in order of preference: `http`, `https` or `file`.
    pub urls: Vec<String>,
    /// 64 hexadecimal digits. Without it whatever comes is taken: the caller announces that.
    pub sha256: Option<String>,
    /// In bytes, if known.
    pub size: Option<u64>,
    /// Nothing longer than this many bytes is taken.
    pub max: u64,
}

/// A file that was downloaded, or was in the store already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The published file.
    pub object: ObjectDigest,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// In bytes.
    pub size: u64,
    /// The one of [`Wanted::urls`] that served it, as it was given there (for people: [`shown`]); the first one if
    /// the store had the file already.
    pub url: String,
}

/// The files in their order, several at a time. What the store has by its SHA-256 is not asked for again. What
/// fails for reasons that pass is tried again; what stopped half-way, even in another process, is gone on with.
///
/// # Errors
/// `http.*`, naming the URL, for what cannot be had or is not what was wanted; usage for URLs that make no sense or
/// are unsafe; `store.disk-full`. Nothing of a file that failed is published; what arrived whole stays.
pub fn fetch(store: &Store, wanted: &[Wanted], progress: &dyn Progress) -> Result<Vec<Fetched>> {
    fetch_with(store, wanted, progress, &Settings::default())
}

/// As [`fetch`], but each file by itself: one that fails stops no other. `found` hears of each by its place among
/// `wanted`, when it is done.
pub fn fetch_each(
    store: &Store,
    wanted: &[Wanted],
    progress: &dyn Progress,
    found: &(dyn Fn(usize, Result<Fetched>) + Sync),
) {
    let mut jobs = Vec::new();
    for (index, wanted) in wanted.iter().enumerate() {
        match url::check(wanted) {
            Ok(urls) => jobs.push((index, wanted, urls)),
            Err(error) => found(index, Err(error)),
        }
    }
    run(store, &jobs, progress, &Settings::default(), &|index, result| {
        found(index, result);
        true
    });
}

/// Whether the store has what the download from `url` is pinned to.
///
/// # Errors
/// `lock.contradiction` if its SHA-256 and BLAKE3 are those of different bytes; failed if it cannot be read.
pub fn is_stored(store: &Store, url: &str, pin: &FilePin) -> Result<bool> {
    let FilePin { size, sha256, blake3 } = pin;
    let key = download::file_key(sha256);
    let named = Named { key, sha: sha256, blake3: *blake3, size: Some(*size) };
    named.is_stored(store, &shown(url), || ("url", download::inputs(url, sha256)))
}

fn fetch_with(
    store: &Store,
    wanted: &[Wanted],
    progress: &dyn Progress,
    settings: &Settings,
) -> Result<Vec<Fetched>> {
    // All of them, before the first byte moves.
    let job = |(index, wanted)| url::check(wanted).map(|urls| (index, wanted, urls));
    let jobs = wanted.iter().enumerate().map(job).collect::<Result<Vec<_>>>()?;
    let done: Mutex<Vec<Option<Fetched>>> = Mutex::new(vec![None; wanted.len()]);
    let error: Mutex<Option<Error>> = Mutex::new(None);
    run(store, &jobs, progress, settings, &|index, result| match result {
        Ok(fetched) => {
            lock(&done)[index] = Some(fetched);
            true
        }
        Err(e) => {
            lock(&error).get_or_insert(e);
            // The others would only delay the message; what they have is kept.
            false
        }
    });
    match error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => std::mem::take(&mut *lock(&done))
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::bug("a download neither ended nor failed")),
    }
}

/// A file by its place among those that are wanted, and its URLs, checked.
type Checked<'a> = (usize, &'a Wanted, Vec<reqwest::Url>);

/// Tells `found` what became of each file; its answer is whether the others shall go on.
fn run(
    store: &Store,
    jobs: &[Checked<'_>],
    progress: &dyn Progress,
    settings: &Settings,
    found: &(dyn Fn(usize, Result<Fetched>) -> bool + Sync),
) {
    let shared = client::Shared::new(settings);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(jobs.len()) {
            scope.spawn(|| {
                while let Some((index, wanted, urls)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let job = download::Job { store, wanted, urls, progress, shared: &shared };
                    let go_on = match job.run(stopped.clone()) {
                        Ok(Some(fetched)) => found(*index, Ok(fetched)),
                        // Another one failed.
                        Ok(None) => return,
                        Err(e) => found(*index, Err(e)),
                    };
                    if !go_on {
                        stop.send_replace(true);
                        return;
                    }
                }
            });
        }
    });
    // Housekeeping: failing at it would fail a download that went well.
    let _ = store.sweep_partials(STALE);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
