//! Blobs as store objects: a small record leads from a blob's SHA-256 to its object, whatever image it came with.
//! Layers arrive piece by piece and are gone on with by the next process; documents are small and kept whole.

use super::image::{MAX_DOCUMENT, invalid, is_of};
use crate::asset::http::sink::Sink;
use crate::asset::named::{Named, digest_of_file};
use crate::digest::{FieldHasher, ObjectDigest, StepKey};
use crate::error::{Context, Error, Result};
use crate::lock::{Layer, OciLayer};
use crate::store::{Action, Partial, Store};
use fs_err as fs;
use hyper::body::Bytes;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

/// What is read of a local file at once.
const PIECE: usize = 1 << 20;

/// The kinds of records.
const LAYER: &str = "oci layer";
const DOCUMENT: &str = "oci document";

fn key(digest: &str) -> StepKey {
    FieldHasher::new("firegopher oci blob v1").field(digest).finish().into()
}

/// What a record says of a blob.
fn inputs(digest: &str) -> Vec<(String, String)> {
    vec![("sha256".to_owned(), digest.to_owned())]
}

/// What a lock calls a blob: `sha256:…` and its BLAKE3.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    pub digest: &'a str,
    pub blake3: ObjectDigest,
}

impl Names<'_> {
    /// `shown` is the image that the blob is of.
    fn is_stored(self, store: &Store, shown: &str, kind: &'static str, size: Option<u64>) -> Result<bool> {
        let Names { digest, blake3 } = self;
        let sha = digest.split_once(':').map_or(digest, |(_, hex)| hex);
        let what = format_args!("the image {shown} (in {digest})");
        Named { key: key(digest), sha, blake3, size }.is_stored(store, &what, || (kind, inputs(digest)))
    }
}

/// Whether the store has a layer that is pinned, of the image `shown`.
///
/// # Errors
/// `lock.contradiction` if its SHA-256 and BLAKE3 are those of different bytes; failed if it cannot be read.
pub(super) fn is_stored(store: &Store, shown: &str, layer: &OciLayer) -> Result<bool> {
    let names = Names { digest: &layer.digest, blake3: layer.blake3 };
    names.is_stored(store, shown, LAYER, Some(layer.size))
}

/// The object that holds a layer's blob, by its SHA-256 alone, if the store has it.
pub fn stored(store: &Store, layer: &Layer) -> Option<ObjectDigest> {
    let output = store.action(&key(&layer.digest))?.output;
    let there = fs::metadata(store.object_path(&output)).is_ok_and(|meta| meta.len() == layer.size);
    there.then_some(output)
}

/// A pinned manifest or configuration of the image `shown`, if the store has it, both of its digests checked.
///
/// # Errors
/// As [`is_stored`].
pub(super) fn pinned_document(store: &Store, shown: &str, names: Names<'_>) -> Result<Option<Vec<u8>>> {
    match names.is_stored(store, shown, DOCUMENT, None)? {
        true => Ok(document(store, names.digest)),
        false => Ok(None),
    }
}

/// A manifest or configuration that the store has, its digest checked.
pub(super) fn document(store: &Store, digest: &str) -> Option<Vec<u8>> {
    let output = store.action(&key(digest))?.output;
    // A digest of a lock that somebody edited may be a layer's.
    fs::metadata(store.object_path(&output)).ok().filter(|meta| meta.len() <= MAX_DOCUMENT)?;
    let bytes = store.read(&output).ok()?;
    is_of(digest, &bytes).then_some(bytes)
}

/// Keeps a manifest or configuration by the digest that it was asked for by, which the bytes have: a lock can be
/// compared with it later.
pub(super) fn keep_as(store: &Store, digest: &str, bytes: &[u8]) -> Result<()> {
    let output = store.publish_bytes(bytes)?;
    let action = Action {
        kind: DOCUMENT.to_owned(),
        output,
        inputs: inputs(digest),
        millis: 0,
        subject: String::new(),
    };
    store.record(&key(digest), &action)
}

/// Takes in a layer's bytes, counts and hashes them, and publishes them if they are what was announced.
pub(super) struct Intake<'a> {
    store: &'a Store,
    layer: &'a Layer,
    partial: Partial,
    sink: Sink,
    began: Instant,
}

impl<'a> Intake<'a> {
    /// Waits for whoever takes in the same layer, and goes on with what they left.
    pub fn open(store: &'a Store, layer: &'a Layer, on_wait: &dyn Fn(&str)) -> Result<Self> {
        let partial = store.partial(&key(&layer.digest), on_wait)?;
        let sink = Sink::open(&partial.bytes())?;
        let mut intake = Intake { store, layer, partial, sink, began: Instant::now() };
        if intake.got() > layer.size {
            intake.restart()?;
        }
        Ok(intake)
    }

    /// How many bytes there are.
    pub fn got(&self) -> u64 {
        self.sink.len()
    }

    /// Whether `more` bytes would still be within the announced size.
    pub fn fits(&self, more: u64) -> bool {
        self.got().checked_add(more).is_some_and(|sum| sum <= self.layer.size)
    }

    /// Takes bytes that fit.
    pub fn take(&mut self, bytes: Bytes) -> Result<()> {
        self.sink.push(bytes)
    }

    /// Writes what is held back: a process after us may go on with it.
    pub fn flush(&mut self) -> Result<()> {
        self.sink.flush()
    }

    /// Forgets all bytes.
    pub fn restart(&mut self) -> Result<()> {
        self.sink.restart()
    }

    /// Publishes, or says in what way the bytes differ from the announced ones and forgets them.
    pub fn finish(&mut self) -> Result<std::result::Result<ObjectDigest, String>> {
        let Intake { store, layer, .. } = *self;
        let hashed = self.sink.finish()?;
        let found = match layer.digest.starts_with("sha512:") {
            // Rare enough to be read again.
            true => digest_of_file(&self.partial.bytes(), &layer.digest)?,
            false => format!("sha256:{}", hashed.sha256),
        };
        let why = match hashed.size == layer.size {
            true if found == layer.digest => None,
            true => Some(format!("its bytes are those of {found}")),
            false => Some(format!("it has {} bytes instead of {}", hashed.size, layer.size)),
        };
        if let Some(why) = why {
            self.restart()?;
            return Ok(Err(why));
        }
        let output = hashed.blake3;
        self.partial.publish(store, &output)?;
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let action = Action {
            kind: LAYER.to_owned(),
            output,
            inputs: inputs(&layer.digest),
            millis,
            subject: String::new(),
        };
        store.record(&key(&layer.digest), &action)?;
        Ok(Ok(output))
    }

    /// Frees the layer. After an error what has arrived is kept, unless that is nothing or in everybody's way.
    pub fn close(self, error: Option<&Error>) {
        let Intake { partial, sink, .. } = self;
        let empty = sink.len() == 0;
        drop(sink);
        if error.is_none_or(|error| empty || error.code() == "store.disk-full") {
            partial.discard();
        }
    }
}

/// What the store has of a layer that is under way.
pub(super) fn begun(store: &Store, layer: &Layer) -> u64 {
    let partials = store.partials().unwrap_or_default();
    let key = key(&layer.digest);
    partials.iter().find(|partial| partial.key == key).map_or(0, |partial| partial.size)
}

/// Publishes a layer out of a local file's bytes, unless the store has it.
pub(super) fn import(store: &Store, layer: &Layer, from: impl Read, path: &Path) -> Result<ObjectDigest> {
    if let Some(there) = stored(store, layer) {
        return Ok(there);
    }
    let mut intake = Intake::open(store, layer, &|_| ())?;
    // Whoever had the layer may have published it.
    let done = match stored(store, layer) {
        Some(there) => Ok(there),
        None => read_in(&mut intake, from, path),
    };
    if done.is_err() {
        // Reading a file again costs little, and it may be another one by then.
        let _ = intake.restart();
    }
    intake.close(done.as_ref().err());
    done
}

fn read_in(intake: &mut Intake<'_>, mut from: impl Read, path: &Path) -> Result<ObjectDigest> {
    let shown = path.display().to_string();
    let layer = intake.layer;
    let digest = &layer.digest;
    intake.restart()?;
    loop {
        let mut piece = vec![0; PIECE];
        match from.read(&mut piece) {
            Ok(0) => break,
            Ok(got) => piece.truncate(got),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).or_failed("oci.read", || format!("cannot read a layer of {shown}")),
        };
        if !intake.fits(piece.len() as u64) {
            let what = format!("the layer {digest} has more than its {} bytes", layer.size);
            return Err(invalid(&shown, &what));
        }
        intake.take(piece.into())?;
    }
    intake.finish()?.map_err(|why| {
        invalid(&shown, &format!("the layer {digest} is damaged: {why}")).help("make or copy the image again")
    })
}
