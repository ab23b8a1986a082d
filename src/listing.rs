//! What a workload directory holds, as a scan saw it: names, kinds, modes and content digests, never times
//! or the host's owners. Its digest is the workload's identity.

mod codec;
mod diff;

pub use diff::{Change, ChangeKind};

use crate::digest::{FieldHasher, ObjectDigest};
use serde::{Deserialize, Serialize};

/// A scanned directory: its entries sorted by path bytes, each parent before its children, without the root.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Sorted by `path`.
    pub entries: Vec<Listed>,
}

/// One entry of a scanned directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Relative, UTF-8, '/'-separated, without leading or trailing '/'.
    pub path: String,
    /// Permission bits as the guest will see them (normalised unless modes are kept).
    pub mode: u16,
    /// What it is.
    pub kind: ListedKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ListedKind {
    /// A directory.
    Dir,
    /// A regular file.
    File {
        /// In bytes.
        size: u64,
        /// Of its contents.
        digest: ObjectDigest,
    },
    /// A symbolic link.
    Symlink {
        /// As written in the link.
        target: String,
    },
}

impl Listing {
    /// The digest of everything that can reach an image.
    pub fn digest(&self) -> ObjectDigest {
        let mut hasher = FieldHasher::new("firegopher listing v1");
        for entry in &self.entries {
            hasher.field(&entry.path).field(entry.mode.to_le_bytes());
            match &entry.kind {
                ListedKind::Dir => hasher.field("dir"),
                ListedKind::File { size, digest } => {
                    hasher.field("file").field(size.to_le_bytes()).field(digest.as_bytes())
                }
                ListedKind::Symlink { target } => hasher.field("symlink").field(target),
            };
        }
        hasher.finish().into()
    }
}
