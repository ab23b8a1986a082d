//! Layers that are in the store, with what they must unpack to.

use super::blob;
use super::config::diff_ids;
use crate::digest::ObjectDigest;
use crate::error::{Error, Result};
use crate::image::Layer;
use crate::lock::OciPin;
use crate::store::Store;
use serde::{Deserialize, Serialize};

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StoredLayer {
    /// Its blob, as it was served.
    pub object: ObjectDigest,
    /// `sha256:…` of the blob.
    pub blob: String,
    /// `sha256:…` of the tar in it, if the image's configuration says it.
    pub diff_id: Option<String>,
}

impl StoredLayer {
    /// The same for whoever unpacks it.
    pub fn in_store(&self, store: &Store) -> Layer {
        let StoredLayer { object, blob, diff_id } = self;
        Layer { path: store.object_path(object), blob: blob.clone(), diff_id: diff_id.clone() }
    }
}

/// The layers of `pin`, whose `objects` are in the store, lowest first.
///
/// # Errors
/// `oci.invalid` for a configuration whose digests are of another kind; `oci.gone` if the store has lost it.
pub fn stored_layers(
    store: &Store,
    reference: &str,
    pin: &OciPin,
    objects: &[ObjectDigest],
) -> Result<Vec<StoredLayer>> {
    let config = blob::document(store, &pin.config.digest).ok_or_else(|| {
        Error::failed("oci.gone", format!("the store has lost the configuration of {reference}"))
            .help("run the command again: it is fetched with what else is missing")
    })?;
    Ok(join(pin, objects, diff_ids(&config, pin.layers.len(), reference)?))
}

/// A pin's layers, which are as many as its `objects` and its configuration's `diff_ids`.
pub(super) fn join(
    pin: &OciPin,
    objects: &[ObjectDigest],
    diff_ids: Vec<Option<String>>,
) -> Vec<StoredLayer> {
    let all = pin.layers.iter().zip(objects).zip(diff_ids);
    all.map(|((layer, object), diff_id)| StoredLayer { object: *object, blob: layer.digest.clone(), diff_id })
        .collect()
}
