//! What a plan may know of the world, as plain data and one read-only trait.

use super::StepKind;
use crate::digest::{ObjectDigest, StepKey};
use crate::listing::Listing;
use crate::lock::OciImage;
use crate::manifest::model::{Workload, WorkloadFrom};
use crate::name::Name;
use crate::store::{Action, Last};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What this host allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Effective uid 0: jails and taps.
    pub root: bool,
    /// Hardware-backed KVM that we may use.
    pub kvm: bool,
}

/// Digests of everything on this host that the manifest names.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// Files and directories.
    pub sources: BTreeMap<ScanId, ScannedSource>,
    /// Container images on this host.
    pub images: BTreeMap<ImageId, OciImage>,
}

/// What was scanned: a path as the manifest writes it, and everything that decides which of its entries are seen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ScanId {
    /// A plain file.
    File(PathBuf),
    /// The file or directory of a base image.
    Base {
        /// Where it is.
        path: PathBuf,
        /// Whether mode bits are kept.
        keep_modes: bool,
    },
    /// A workload.
    Workload {
        /// Where it comes from.
        source: WorkloadFrom,
        /// Whether mode bits are kept.
        keep_modes: bool,
        /// What is left out, in order.
        ignore: Vec<String>,
        /// And the file of patterns.
        ignore_from: Option<PathBuf>,
    },
}

/// A container image on this host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId {
    /// Directory or tar.
    pub path: PathBuf,
    /// Which of several images.
    pub tag: Option<String>,
}

impl Scan {
    /// The id of a workload's scan.
    pub fn workload_id(workload: &Workload) -> ScanId {
        ScanId::Workload {
            source: workload.source.clone(),
            keep_modes: workload.keep_modes,
            ignore: workload.ignore.clone(),
            ignore_from: workload.ignore_from.clone(),
        }
    }

    /// The id of a container image on this host.
    pub fn image_id(path: &Path, tag: Option<&str>) -> ImageId {
        ImageId { path: path.to_owned(), tag: tag.map(str::to_owned) }
    }

    /// The id of the scan of a base image's file or directory.
    pub fn base_id(path: &Path, keep_modes: bool) -> ScanId {
        ScanId::Base { path: path.to_owned(), keep_modes }
    }

    /// The id of a plain file's scan.
    pub fn file_id(path: &Path) -> ScanId {
        ScanId::File(path.to_owned())
    }
}

/// One scanned path.
#[derive(Debug, Clone)]
pub enum ScannedSource {
    /// A directory.
    Dir {
        /// Its canonical path.
        path: PathBuf,
        /// What it holds.
        listing: Listing,
        /// The listing's digest.
        digest: ObjectDigest,
    },
    /// A file: archive, executable, kernel, image.
    File {
        /// Its canonical path.
        path: PathBuf,
        /// Of its bytes.
        digest: ObjectDigest,
        /// The owner's executable bit.
        executable: bool,
    },
}

impl ScannedSource {
    /// What the step's key holds of it.
    pub fn digest(&self) -> ObjectDigest {
        match self {
            ScannedSource::Dir { digest, .. } | ScannedSource::File { digest, .. } => *digest,
        }
    }
}

/// What a plan reads of the store.
pub trait StoreView {
    /// The record of a computation, if it was ever done.
    fn action(&self, key: &StepKey) -> Option<Action>;
    /// Whether an object is there.
    fn has(&self, object: &ObjectDigest) -> bool;
    /// The last keys and inputs of a VM's steps.
    fn last(&self, vm: &Name) -> Option<Last>;
    /// Bytes of an object, or of a file in it, that a jail has to copy as it lies on another file system than the
    /// jails. `None`: it is linked, or not there yet.
    fn copied(&self, _object: &ObjectDigest, _file: Option<&str>) -> Option<u64> {
        None
    }
    /// A workload listing stored earlier.
    fn listing(&self, object: &ObjectDigest) -> Option<Listing>;
}

/// A VM of this project as it is found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedVm {
    /// The VM.
    pub name: Name,
    /// The boot it was started for.
    pub boot_key: StepKey,
    /// Whether it runs.
    pub running: Running,
    /// The effects of a running VM that are not as it made them, each with what is wrong.
    pub drift: Vec<(StepKind, String)>,
}

/// Whether an observed VM runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Running {
    /// Supervised and up, or on its way up.
    Yes,
    /// It ended; how, in a few words: `exited 0`.
    Ended(String),
    /// Its supervisor is gone: drift.
    Lost,
}
