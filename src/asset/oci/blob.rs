//! Layers as store objects: a small record leads from a layer's SHA-256 to its object, whatever image it came with.

use super::image::{digest_text, invalid};
use crate::digest::{FieldHasher, ObjectDigest, StepKey};
use crate::error::{Context, Result};
use crate::lock::{OciLayer, OciPin};
use crate::store::{Action, Store, TempDir, write_failed};
use fs_err as fs;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

pub(super) fn key(digest: &str) -> StepKey {
    FieldHasher::new("firegopher oci blob v1").field(digest).finish().into()
}

/// The object that holds a layer's blob, if the store has it.
pub fn stored(store: &Store, layer: &OciLayer) -> Option<ObjectDigest> {
    let output = store.action(&key(&layer.digest))?.output;
    let there = fs::metadata(store.object_path(&output)).is_ok_and(|meta| meta.len() == layer.size);
    there.then_some(output)
}

/// Whether the store has all layers of an image, so that fetching it needs no network.
pub fn have(store: &Store, pin: &OciPin) -> bool {
    pin.layers.iter().all(|layer| stored(store, layer).is_some())
}

/// Takes in bytes, counts and hashes them, and publishes them if they are what was announced.
pub(super) struct Intake<'a> {
    store: &'a Store,
    layer: &'a OciLayer,
    temp: TempDir,
    file: fs::File,
    hasher: Sha256,
    pub got: u64,
    began: Instant,
}

impl<'a> Intake<'a> {
    const FILE: &'static str = "layer";

    pub fn new(store: &'a Store, layer: &'a OciLayer) -> Result<Self> {
        let temp = store.temp_dir()?;
        let path = temp.path().join(Self::FILE);
        let file = fs::File::create_new(&path).or_failed("oci.write", || "cannot write a layer")?;
        Ok(Intake { store, layer, temp, file, hasher: Sha256::new(), got: 0, began: Instant::now() })
    }

    /// Whether `more` bytes would still be within the announced size.
    pub fn fits(&self, more: u64) -> bool {
        self.got.checked_add(more).is_some_and(|sum| sum <= self.layer.size)
    }

    /// Takes bytes that fit.
    pub fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.got += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|e| write_failed(format_args!("writing the layer {}", self.layer.digest), e))
    }

    /// Forgets all bytes.
    pub fn restart(&mut self) -> Result<()> {
        *self = Intake::new(self.store, self.layer)?;
        Ok(())
    }

    /// Publishes, or says in what way the bytes differ from the announced ones.
    pub fn finish(self) -> Result<std::result::Result<ObjectDigest, String>> {
        let Intake { store, layer, temp, file, hasher, got, began } = self;
        drop(file);
        if got != layer.size {
            return Ok(Err(format!("it has {got} bytes instead of {}", layer.size)));
        }
        let found = digest_text(hasher.finalize().as_slice());
        if found != layer.digest {
            return Ok(Err(format!("its bytes are those of {found}")));
        }
        let output = store.publish_file(&temp.path().join(Self::FILE), false)?;
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let inputs = vec![("sha256".to_owned(), layer.digest.clone())];
        store
            .record(&key(&layer.digest), &Action { kind: "oci layer".to_owned(), output, inputs, millis })?;
        Ok(Ok(output))
    }
}

/// Publishes a layer out of a local file's bytes, unless the store has it.
pub(super) fn import(
    store: &Store,
    layer: &OciLayer,
    mut from: impl Read,
    path: &Path,
) -> Result<ObjectDigest> {
    if let Some(there) = stored(store, layer) {
        return Ok(there);
    }
    let shown = path.display().to_string();
    let mut intake = Intake::new(store, layer)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let got = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => got,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).or_failed("oci.read", || format!("cannot read a layer of {shown}")),
        };
        if !intake.fits(got as u64) {
            let what = format!("the layer {} has more than its {} bytes", layer.digest, layer.size);
            return Err(invalid(&shown, &what));
        }
        intake.take(&buffer[..got])?;
    }
    let digest = &layer.digest;
    intake.finish()?.map_err(|why| {
        invalid(&shown, &format!("the layer {digest} is damaged: {why}")).help("make or copy the image again")
    })
}
